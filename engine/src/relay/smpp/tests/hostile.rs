//! Anything from anybody at any time: nothing panics, the wire is used as it wants to be, no timer is
//! lost or left due, and a stop ends it all.

use super::*;
use crate::config::{SmppFull, SmppToNode};

const COMMANDS: [u32; 16] = [
    0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x09, 0x0b, 0x15, 0x21, 0x102, 0x103, 0x111, 0x7777,
    0x10201, 0,
];

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound.max(1) as u64).unwrap()
    }

    /// Mostly a PDU.
    fn bytes(&mut self) -> Vec<u8> {
        let mut command = Command(COMMANDS[self.below(COMMANDS.len())]);
        if self.below(2) == 0 {
            command = command.response();
        }
        let status = Status([0, 0, 0, 8, 0x0e, 0x58][self.below(6)]);
        let sequence = u32::try_from(self.below(12)).unwrap();
        let mut bytes = match self.below(4) {
            0 if command.0 < 10 => bind(command, sequence, "secret"),
            1 => pdu(command, status, sequence, b""),
            2 => pdu(command, status, sequence, b"id\0"),
            _ => pdu(
                command,
                status,
                sequence,
                &message([0, 4, 0x40][self.below(3)], b"\x05\0\x03\x07\x02\x01id:1"),
            ),
        };
        match self.below(30) {
            0 => {
                let at = self.below(bytes.len());
                bytes[at] ^= 1 << self.below(8);
            }
            1 => bytes.truncate(self.below(bytes.len())),
            _ => {}
        }
        bytes
    }
}

#[test]
fn nothing_that_anybody_does_makes_us_stumble() {
    for seed in 1..=300_u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        let is_mux = seed.is_multiple_of(2);
        let change = |it: &mut SmppSettings| {
            it.session_window = 2;
            it.provider_window = 3;
            it.vendor_commands = seed.is_multiple_of(3);
            it.full = if seed.is_multiple_of(5) { SmppFull::Throttle } else { SmppFull::Stop };
            it.to_node = if seed.is_multiple_of(7) {
                SmppToNode::SubmitToAll
            } else {
                SmppToNode::RoundRobin
            };
        };
        let mut it = if is_mux { World::mux(change) } else { World::new(change) };
        let mut conns: Vec<Conn> = Vec::new();
        for _ in 0..400 {
            let chosen = random.below(conns.len());
            let chosen = conns.get(chosen).copied();
            match (random.below(40), chosen) {
                (0..3, _) if conns.len() < 30 => {
                    let esme = it.open();
                    if random.below(4) > 0 {
                        it.say(esme, &bind(Command::BIND_TRANSCEIVER, 1, "secret"));
                    }
                    conns.push(esme);
                }
                (3..8, _) => {
                    for (conn, _) in it.accept() {
                        conns.push(conn);
                        if random.below(5) > 0 {
                            let sent = it.heard(conn).pop();
                            sent.iter()
                                .for_each(|one| it.say(conn, &response(one, Status::OK, b"\0")));
                        }
                    }
                }
                (8, Some(conn)) => it.lose(conn, Gone::Reset),
                (9, Some(conn)) => it.end(conn),
                (10, Some(conn)) => drop(it.wire.full.insert(conn).then_some(())),
                (11, _) => it.wire.full.clone().into_iter().for_each(|conn| it.drain(conn)),
                (12..15, _) => {
                    let millis = random.below(3000) as u64;
                    it.pass_millis(millis);
                }
                (15, _) => {
                    let servers =
                        (0..random.below(4)).map(|_| server([1, 2, 3, 4, 5][random.below(5)]));
                    let settings =
                        SmppSettings { servers: servers.collect(), ..it.smpp.settings.clone() };
                    it.smpp.reload(it.now, settings, &it.snapshot, &mut it.wire);
                }
                (_, Some(conn)) => {
                    let bytes: Vec<u8> =
                        (0..=random.below(3)).flat_map(|_| random.bytes()).collect();
                    it.say(conn, &bytes);
                }
                _ => {}
            }
            conns.retain(|conn| !it.wire.closed.contains(conn));
        }
        it.smpp.stop(it.now, &mut it.wire);
        it.pass_millis(1000);
        assert!(it.smpp.is_idle(), "seed {seed}");
        assert!(it.smpp.spaces_by_name.is_empty() && it.smpp.spaces.len() == 0, "seed {seed}");
        assert!(it.smpp.shared.is_empty(), "seed {seed}");
        it.pass_millis(100_000);
        assert_eq!(it.smpp.poll_timeout(), None, "seed {seed}");
    }
}
