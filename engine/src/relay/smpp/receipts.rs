//! Which session submitted a message, so that its delivery receipts find it: message id to session,
//! bounded in number and time. Only in mux mode; a session of its own has its own SMSC connection.
//!
//! Source: SMPP 3.4 §5.2.12, §5.3.2.12, appendix B. SMSCs are known to write an id in hexadecimal in the
//! response and in decimal in the receipt, with or without leading zeros; both spellings are tried.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use protocols::time::Time;

use crate::relay::stream::Conn;

/// Who submitted what, lately.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    by_id: HashMap<u64, (Conn, Time), ahash::RandomState>,
    /// Oldest first.
    order: VecDeque<(u64, Time)>,
}

impl Receipts {
    /// `session` submitted the message that `server` calls `id`. Forgets the oldest past `count_max`.
    pub(super) fn learn(
        &mut self,
        now: Time,
        (server, id): (SocketAddr, &[u8]),
        session: Conn,
        count_max: usize,
    ) {
        let Some(name) = name(server, Spelling::of(id)) else { return };
        while self.order.len() >= count_max.max(1) {
            self.forget_oldest();
        }
        self.by_id.insert(name, (session, now));
        self.order.push_back((name, now));
    }

    /// The session that submitted the message, if it is remembered and no older than `age_max`.
    pub(super) fn find(
        &mut self,
        now: Time,
        server: SocketAddr,
        id: &[u8],
        age_max: Duration,
    ) -> Option<Conn> {
        while self.order.front().is_some_and(|(_, at)| now.since(*at) > age_max) {
            self.forget_oldest();
        }
        let spelling = Spelling::of(id);
        let spellings = [Some(spelling), spelling.as_hexadecimal(), spelling.as_decimal()];
        let names = spellings.into_iter().flatten().filter_map(|it| name(server, it));
        names.filter_map(|it| self.by_id.get(&it)).map(|(session, _)| *session).next()
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    fn forget_oldest(&mut self) {
        let Some((name, at)) = self.order.pop_front() else { return };
        // An id that was used again meanwhile belongs to the later entry.
        if self.by_id.get(&name).is_some_and(|(_, learned)| *learned == at) {
            self.by_id.remove(&name);
        }
    }
}

/// An id in lower case without leading zeros.
#[derive(Clone, Copy)]
struct Spelling {
    text: [u8; ID_BYTES_MAX],
    /// 0: not an id.
    length: usize,
}

impl Spelling {
    fn of(id: &[u8]) -> Spelling {
        let id = id.trim_ascii();
        let zeros = id.iter().take_while(|it| **it == b'0').count();
        let id = id.get(zeros.min(id.len().saturating_sub(1))..).unwrap_or_default();
        let mut it = Spelling { text: [0; ID_BYTES_MAX], length: 0 };
        if let Some(text) = it.text.get_mut(..id.len()) {
            text.copy_from_slice(id);
            text.make_ascii_lowercase();
            it.length = id.len();
        }
        it
    }

    fn as_str(&self) -> Option<&str> {
        let text = self.text.get(..self.length)?;
        std::str::from_utf8(text).ok().filter(|it| !it.is_empty())
    }

    fn as_hexadecimal(self) -> Option<Spelling> {
        let value: u64 = self.as_str()?.parse().ok()?;
        Some(Spelling::of(format!("{value:x}").as_bytes()))
    }

    fn as_decimal(self) -> Option<Spelling> {
        let value = u64::from_str_radix(self.as_str()?, 16).ok()?;
        Some(Spelling::of(value.to_string().as_bytes()))
    }
}

fn name(server: SocketAddr, id: Spelling) -> Option<u64> {
    let text = id.as_str()?;
    let mut seed = [0; 18];
    let ip = match server.ip() {
        std::net::IpAddr::V4(it) => it.to_ipv6_mapped(),
        std::net::IpAddr::V6(it) => it,
    };
    seed.split_first_chunk_mut().map(|(at, port)| {
        *at = ip.octets();
        port.copy_from_slice(&server.port().to_be_bytes());
    })?;
    Some(crate::balance::hash(crate::balance::hash(0, &seed), text.as_bytes()))
}

/// message_id and receipted_message_id are 65 octets with their NUL (SMPP 3.4 §5.2.23).
const ID_BYTES_MAX: usize = 65;

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(port: u16) -> SocketAddr {
        SocketAddr::new([127, 0, 0, 1].into(), port)
    }

    fn session(slot: u32) -> Conn {
        Conn { slot, generation: 0 }
    }

    #[test]
    fn an_id_is_found_in_any_spelling() {
        let cases: &[(&str, &str, bool)] = &[
            ("abc", "abc", true),
            ("0000A1", "a1", true),
            ("00ff", "255", true),
            ("255", "FF", true),
            ("0", "000", true),
            ("m-1", "m-1", true),
            ("m-1", "m-2", false),
            ("12", "13", false),
            ("", "", false),
            (" ", " ", false),
        ];
        for (learned, asked, want) in cases {
            let mut it = Receipts::default();
            it.learn(Time::ZERO, (at(1), learned.as_bytes()), session(4), 10);
            let found = it.find(Time::ZERO, at(1), asked.as_bytes(), HOUR);
            assert_eq!(found.is_some(), *want, "{learned} {asked}");
            assert_eq!(it.find(Time::ZERO, at(2), asked.as_bytes(), HOUR), None, "another server");
        }
        let mut it = Receipts::default();
        it.learn(Time::ZERO, (at(1), &[b'7'; 66]), session(4), 10);
        assert_eq!(it.len(), 0, "no id is that long");
    }

    #[test]
    fn it_forgets_by_number_and_by_time() {
        let mut it = Receipts::default();
        for number in 0..10_u32 {
            let id = format!("m{number}");
            it.learn(Time::from_millis(number.into()), (at(1), id.as_bytes()), session(number), 4);
        }
        assert_eq!((it.len(), it.by_id.len()), (4, 4));
        let now = Time::from_millis(9);
        assert_eq!(it.find(now, at(1), b"m5", HOUR), None, "one too many");
        assert_eq!(it.find(now, at(1), b"m6", HOUR), Some(session(6)));
        let later = Time::from_millis(8) + HOUR;
        assert_eq!(it.find(later, at(1), b"m7", HOUR), None, "too old");
        assert_eq!(it.find(later, at(1), b"m8", HOUR), Some(session(8)));
    }

    #[test]
    fn an_id_used_again_belongs_to_the_later_session() {
        let mut it = Receipts::default();
        it.learn(Time::from_millis(1), (at(1), b"x"), session(1), 2);
        it.learn(Time::from_millis(2), (at(1), b"x"), session(2), 2);
        it.learn(Time::from_millis(3), (at(1), b"y"), session(3), 2);
        assert_eq!(it.find(Time::from_millis(3), at(1), b"x", HOUR), Some(session(2)));
    }
}
