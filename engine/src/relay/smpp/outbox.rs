//! What one turn wants done: bytes by connection, then the rest. Handed to the wire at the turn's end, so
//! that many PDUs to one peer leave as one.

use std::net::SocketAddr;

use crate::relay::stream::{Conn, Room, Secure, Wire};

/// Everything but sending. Done after all sending.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Wish {
    Connect(Conn, SocketAddr, Secure),
    Pause(Conn),
    Resume(Conn),
    Close(Conn),
    Abort(Conn),
}

/// Collects bytes and wishes of one turn.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    /// The first `used` are in use; the others keep their room for the next turn.
    letters: Vec<(Conn, Vec<u8>)>,
    used: usize,
    wishes: Vec<Wish>,
}

impl Outbox {
    /// What goes to one connection: append to it.
    #[allow(clippy::indexing_slicing)] // `at` is found or made below `letters.len()`
    pub(super) fn to(&mut self, conn: Conn) -> &mut Vec<u8> {
        // An older letter to the same peer is as good as none: letters leave in order.
        let recent = self.used.saturating_sub(SEARCHED_MAX);
        let letters = self.letters.get(recent..self.used).unwrap_or_default();
        let known = letters.iter().rposition(|it| it.0 == conn);
        let at = known.map(|it| recent + it).unwrap_or_else(|| {
            let at = self.used;
            self.used += 1;
            match self.letters.get_mut(at) {
                Some(letter) => letter.0 = conn,
                None => self.letters.push((conn, Vec::new())),
            }
            at
        });
        &mut self.letters[at].1
    }

    pub(super) fn wish(&mut self, wish: Wish) {
        self.wishes.push(wish);
    }

    /// Sends everything. Calls `full` for each connection whose queue has enough.
    pub(super) fn send(
        &mut self,
        wire: &mut impl Wire,
        mut full: impl FnMut(&mut Vec<Wish>, Conn),
    ) {
        for (conn, bytes) in self.letters.iter_mut().take(self.used) {
            if wire.send(*conn, bytes) == Room::Full {
                full(&mut self.wishes, *conn);
            }
            bytes.clear();
            bytes.shrink_to(KEPT_BYTES_MAX);
        }
        self.used = 0;
        self.letters.truncate(KEPT_MAX);
        for wish in self.wishes.drain(..) {
            match wish {
                Wish::Connect(conn, to, secure) => wire.connect(conn, to, secure),
                Wish::Pause(conn) => wire.pause(conn),
                Wish::Resume(conn) => wire.resume(conn),
                Wish::Close(conn) => wire.close(conn),
                Wish::Abort(conn) => wire.abort(conn),
            }
        }
    }
}

/// Letters looked through for one to the same peer.
const SEARCHED_MAX: usize = 16;
/// Room kept from turn to turn: letters, and bytes of each.
const KEPT_MAX: usize = 64;
const KEPT_BYTES_MAX: usize = 64 * 1024;
