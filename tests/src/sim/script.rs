//! One call recorded as bytes, ready to be played as any number of other calls at the cost of a copy.

use std::net::SocketAddr;

use engine::relay::sip::Relay;
use engine::relay::{Arrival, Leg, Verdict};
use engine::snapshot::Snapshot;
use protocols::sip::Transport;
use protocols::time::Time;

use super::{Call, Kind, Stage, node_address};

/// Every message of a call, with where it arrives.
#[derive(Clone, Debug)]
pub struct Script {
    rows: Vec<Row>,
}

#[derive(Clone, Debug)]
struct Row {
    kind: Kind,
    arrival: Arrival,
    bytes: Vec<u8>,
    /// Where the number of the call stands.
    marks: Vec<usize>,
}

impl Script {
    /// Plays one call through a relay and keeps every message that it got.
    ///
    /// # Panics
    ///
    /// If a message is not sent on.
    pub fn record(
        stage: &Stage,
        relay: &mut Relay,
        snapshot: &Snapshot,
        transport: Transport,
        caller: SocketAddr,
    ) -> Script {
        let two_legs = stage.settings.listeners.iter().any(|it| it.leg == Leg::Internal);
        let mut call = Call::new(caller, transport.as_via(), MARK);
        let mark = format!("{MARK:016x}");
        let home = node_address(1);
        let mut out = Vec::new();
        let rows = Kind::ALL.map(|kind| {
            let source = if kind.is_from_caller() { caller } else { home };
            let leg = if two_legs { kind.leg() } else { Leg::External };
            let arrival = stage.arrival(Time::from_millis(1_000), leg, transport, source);
            let bytes = call.write(kind, home);
            let verdict = relay.handle(&arrival, &bytes, snapshot, &mut out);
            let Verdict::Forward { reply, .. } = verdict else { panic!("{kind:?}: {verdict:?}") };
            call.sent(kind, &out[reply.map_or(0, |it| it.bytes)..]);
            let marks = bytes.windows(mark.len()).enumerate();
            let marks = marks.filter(|(_, it)| *it == mark.as_bytes()).map(|(at, _)| at);
            let marks = marks.collect();
            Row { kind, arrival, bytes, marks }
        });
        Script { rows: rows.into() }
    }

    /// Makes it the call of another number.
    pub fn renumber(&mut self, number: u64) {
        for row in &mut self.rows {
            for (index, shift) in (0..16).zip((0..64).step_by(4).rev()) {
                let digit = b"0123456789abcdef"[((number >> shift) & 15) as usize];
                for mark in &row.marks {
                    row.bytes[mark + index] = digit;
                }
            }
        }
    }

    /// Its messages in order, as they arrive at `now`.
    pub fn messages(&self, now: Time) -> impl Iterator<Item = (Kind, Arrival, &[u8])> {
        let at = move |row: &Row| Arrival { now, ..row.arrival };
        self.rows.iter().map(move |row| (row.kind, at(row), row.bytes.as_slice()))
    }
}

/// Sixteen hexadecimal digits that stand nowhere else.
const MARK: u64 = 0xfeed_face_cafe_beef;
