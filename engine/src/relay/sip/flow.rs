//! Flow tokens: which connection a message must leave by, signed so that nobody can aim at another's.
//!
//! `sip.md` 8.5. We write the token into our own Via and Record-Route where the neighbour is a stream;
//! peers echo it. It names shard, slot, incarnation and listener, and means nothing to another process.

use std::hash::Hasher as _;

use siphasher::sip::SipHasher24;

use crate::relay::{Arrival, Flow, ListenerId};

/// What a token says.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Token {
    /// The connection.
    pub flow: Flow,
    /// Listener that it belongs to: a URI may name another transport than the one it came by.
    pub listener: ListenerId,
}

impl Token {
    /// The token of the connection that a message came by.
    pub(super) fn of(arrival: &Arrival) -> Option<Token> {
        arrival.flow.map(|flow| Token { flow, listener: arrival.listener })
    }
}

/// Appends `;flow=` and the token.
pub(super) fn write(token: Token, secret: &[u8; 16], out: &mut Vec<u8>) {
    out.extend_from_slice(b";flow=");
    let plain = plain(token);
    for byte in plain.iter().chain(&seal(&plain, secret)) {
        out.push(hex(byte >> 4));
        out.push(hex(byte & 15));
    }
}

/// Reads a token. `None` if it is not one of ours: forged, cut, or from before a restart.
pub(super) fn read(text: &[u8], secret: &[u8; 16]) -> Option<Token> {
    let mut token = [0u8; PLAIN_BYTES + SEAL_BYTES];
    if text.len() != token.len() * 2 {
        return None;
    }
    for (to, pair) in token.iter_mut().zip(text.chunks_exact(2)) {
        let (high, low) = (pair.first()?, pair.last()?);
        *to = unhex(*high)? << 4 | unhex(*low)?;
    }
    let (plain, sealed) = token.split_first_chunk::<PLAIN_BYTES>()?;
    if seal(plain, secret) != sealed {
        return None;
    }
    let (shard, rest) = plain.split_first()?;
    let (slot, rest) = rest.split_first_chunk()?;
    let (generation, rest) = rest.split_first_chunk()?;
    let (slot, generation) = (u32::from_be_bytes(*slot), u32::from_be_bytes(*generation));
    Some(Token {
        flow: Flow { shard: *shard, slot, generation },
        listener: ListenerId(*rest.first()?),
    })
}

fn plain(Token { flow, listener }: Token) -> [u8; PLAIN_BYTES] {
    let mut plain = [0; PLAIN_BYTES];
    let fields = flow.slot.to_be_bytes().into_iter().chain(flow.generation.to_be_bytes());
    let all = [flow.shard].into_iter().chain(fields).chain([listener.0]);
    for (to, from) in plain.iter_mut().zip(all) {
        *to = from;
    }
    plain
}

fn seal(plain: &[u8], secret: &[u8; 16]) -> [u8; SEAL_BYTES] {
    let mut hasher = SipHasher24::new_with_key(secret);
    hasher.write(plain);
    let mut seal = [0; SEAL_BYTES];
    for (to, from) in seal.iter_mut().zip(hasher.finish().to_be_bytes()) {
        *to = from;
    }
    seal
}

fn hex(nibble: u8) -> u8 {
    if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 }
}

fn unhex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// Shard, slot, generation, listener.
const PLAIN_BYTES: usize = 10;
/// 48 bits: guessing one takes 2^47 messages on average, each of which is counted.
const SEAL_BYTES: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 16] = *b"0123456789abcdef";

    #[test]
    fn what_we_write_we_read() {
        for (shard, slot, generation) in [(0, 0, 0), (7, 70_000, 3), (255, u32::MAX, u32::MAX)] {
            let flow = Flow { shard, slot, generation };
            let token = Token { flow, listener: ListenerId(shard) };
            let mut text = Vec::new();
            write(token, &SECRET, &mut text);
            let text = text.strip_prefix(b";flow=").unwrap();
            assert_eq!(read(text, &SECRET), Some(token));
            assert_eq!(
                read(&text.to_ascii_uppercase(), &SECRET),
                Some(token),
                "case folded on the way"
            );
        }
    }

    #[test]
    fn nobody_else_can_write_one() {
        let mut text = Vec::new();
        let flow = Flow { shard: 1, slot: 2, generation: 3 };
        write(Token { flow, listener: ListenerId(4) }, &SECRET, &mut text);
        let token = text.strip_prefix(b";flow=").unwrap().to_vec();
        for at in 0..token.len() {
            let mut forged = token.clone();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            assert_eq!(read(&forged, &SECRET), None, "digit {at}");
        }
        assert_eq!(read(&token, b"another process.."[..16].try_into().unwrap()), None);
        for length in 0..token.len() {
            assert_eq!(read(&token[..length], &SECRET), None, "cut at {length}");
        }
        assert_eq!(read(b"zz", &SECRET), None);
    }
}
