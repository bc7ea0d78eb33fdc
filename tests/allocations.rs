//! Between receive and send nothing is allocated: every algorithm, every message of a call, UDP and TCP.
//!
//! Counts on this thread alone, around `Relay::handle`. Every call has a Call-ID of its own; the memory
//! of calls holds fewer than there are, so that forgetting is under the meter too.
//!
//! And what an idle SMPP session takes, in bytes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use engine::balance::{ALGORITHMS, Shard};
use engine::config::Config;
use engine::names::{Answer, Target};
use engine::relay::smpp::{PLAIN_LISTENER, Smpp, SmppSettings};
use engine::relay::stream::{Conn, Progress, Room, Secure, StreamRelay, Wire};
use engine::relay::{Leg, Verdict};
use engine::snapshot::Snapshot;
use protocols::sip::Transport;
use protocols::time::Time;
use tests::Message;
use tests::sim::{Kind, Script, Stage, node, node_address};
use tests::smpp::{BIND_TRANSCEIVER, OK, Pdu, bind_body};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    /// Bytes allocated and not freed. Wraps below zero where another thread's are freed.
    static LIVE: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator with a meter.
struct Metered;

// SAFETY: every call goes to `System` unchanged; counting touches a thread-local `Cell` of a number, which
// needs no allocation and no destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LIVE.set(LIVE.get().wrapping_add(layout.size()));
        // SAFETY: the caller's promises are `System`'s demands.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LIVE.set(LIVE.get().wrapping_add(bytes).wrapping_sub(layout.size()));
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, bytes) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static METERED: Metered = Metered;

/// A configuration that puts other code on the way than the defaults do.
struct Variant {
    name: &'static str,
    two_legs: bool,
    lines: &'static str,
}

const fn with(name: &'static str, lines: &'static str) -> Variant {
    Variant { name, two_legs: true, lines }
}

const VARIANTS: &[Variant] = &[
    with("defaults", ""),
    Variant { name: "single entry", two_legs: false, lines: "" },
    with("ramp-up", "trafficRampupCyclePeriod=7000\ntrafficPercentageIncrease=20\n"),
    with("affinity by From", "sipHeaderAffinityKey=From\n"),
    with("affinity by a header", "sipHeaderAffinityKey=User-Agent\n"),
    with("blocked words", "blocked-values=sipvicious,friendly-scanner\n"),
    with("rates", "sourceRateMax=1000000\ntotalRateMax=1000000\n"),
    with("routing rules", "routingRulesIpv4=203[.]0[.]113[.].*=false\n"),
    with("TCP to nodes", "internalTransport=TCP\n"),
];

const WARM: u64 = 300;
const METERED_CALLS: u64 = 1_000;

fn allocations(algorithm: &str, variant: &Variant, transport: Transport) -> BTreeMap<Kind, u64> {
    let lines = variant.lines;
    let lines =
        format!("algorithmClass=x.{algorithm}\nshards=1\ncallIdAffinityMaxCalls=200\n{lines}");
    let stage = Stage::new(variant.two_legs, &lines);
    let mut relay = stage.relay(Shard { index: 0, scattered: false });
    let snapshot = Snapshot::new(1, (1..=4).map(|it| node(it, 0)).collect(), &[]);
    let caller = SocketAddr::from(([203, 0, 113, 7], 5062));
    let mut script = Script::record(&stage, &mut relay, &snapshot, transport, caller);
    let mut out = Vec::new();
    let mut counts: BTreeMap<Kind, u64> = Kind::ALL.into_iter().map(|it| (it, 0)).collect();
    for number in 0..WARM + METERED_CALLS {
        script.renumber(number);
        for (kind, arrival, bytes) in script.messages(Time::from_millis(10_000 + number)) {
            let before = ALLOCATIONS.get();
            let verdict = relay.handle(&arrival, bytes, &snapshot, &mut out);
            let made = ALLOCATIONS.get() - before;
            let is_sent = matches!(verdict, Verdict::Forward { .. });
            assert!(is_sent, "{algorithm} {} {kind:?}: {verdict:?}", variant.name);
            if number >= WARM {
                *counts.get_mut(&kind).unwrap() += made;
            }
        }
    }
    counts
}

fn none_allocates(algorithms: &[&str], variants: &[Variant]) {
    let mut found = Vec::new();
    for (algorithm, variant) in
        algorithms.iter().flat_map(|it| variants.iter().map(move |variant| (*it, variant)))
    {
        for transport in [Transport::Udp, Transport::Tcp] {
            let rows = allocations(algorithm, variant, transport).into_iter();
            found.extend(rows.filter(|(_, made)| *made > 0).map(|(kind, made)| {
                let what = format!("{algorithm} / {} / {transport:?} / {kind:?}", variant.name);
                format!("{what}: {made} in {METERED_CALLS} messages")
            }));
        }
    }
    assert!(found.is_empty(), "these allocate:\n{}", found.join("\n"));
}

#[test]
fn no_message_of_a_call_allocates_with_any_algorithm() {
    let algorithms: Vec<&str> = ALGORITHMS.iter().map(|it| it.name).collect();
    none_allocates(&algorithms, &VARIANTS[..2]);
}

#[test]
fn nor_does_any_with_other_keys_set() {
    none_allocates(&["CallIDAffinityBalancerAlgorithm", "UserBasedAlgorithm"], &VARIANTS[2..]);
}

/// Nodes call domains; a name in the cache costs no more than a literal.
#[test]
fn nor_does_a_nodes_request_to_a_name_that_is_known() {
    let stage = Stage::new(true, "");
    let mut relay = stage.relay(Shard { index: 0, scattered: false });
    let snapshot = Snapshot::new(1, vec![node(1, 0)], &[]);
    let now = Time::from_millis(1_000);
    let arrival = stage.arrival(now, Leg::Internal, Transport::Udp, node_address(1));
    let invite = Message::new("INVITE sip:alice@Carrier.Example.com SIP/2.0")
        .with("Via", format!("SIP/2.0/UDP {};branch=z9hG4bKn1", node_address(1)))
        .with("Max-Forwards", "70")
        .with("From", "<sip:bob@example.com>;tag=b1")
        .with("To", "<sip:alice@carrier.example.com>")
        .with("Call-ID", "1@node")
        .with("CSeq", "1 INVITE")
        .to_bytes();
    let mut out = Vec::new();
    assert_eq!(relay.handle(&arrival, &invite, &snapshot, &mut out), Verdict::Resolve);
    let name = relay.wanted_name().unwrap();
    assert_eq!(name.host, "carrier.example.com");
    let address = SocketAddr::from(([203, 0, 113, 9], 5060));
    let targets = vec![Target { transport: Transport::Udp, address, rank: 0, weight: 1 }];
    let answer = Answer { targets, ttl: Duration::from_secs(60) };
    relay.handle_name(now, name, Ok(answer));
    let mut made = 0;
    for turn in 0..1_100 {
        let before = ALLOCATIONS.get();
        let verdict = relay.handle(&arrival, &invite, &snapshot, &mut out);
        assert!(matches!(verdict, Verdict::Forward { .. }), "{verdict:?}");
        made += if turn < 100 { 0 } else { ALLOCATIONS.get() - before };
    }
    assert_eq!(made, 0, "in 1 000 messages");
}

/// Remembers which connections were asked for.
#[derive(Default)]
struct Wanted(Vec<Conn>);

impl Wire for Wanted {
    fn send(&mut self, _conn: Conn, _bytes: &[u8]) -> Room {
        Room::Free
    }

    fn connect(&mut self, conn: Conn, _to: SocketAddr, _secure: Secure) {
        self.0.push(conn);
    }

    fn sent_bytes(&mut self, _conn: Conn) -> u64 {
        0
    }
    fn secure(&mut self, _conn: Conn) {}
    fn count_for(&mut self, _conn: Conn, _source: IpAddr, _most: usize) -> bool {
        true
    }
    fn progress(&mut self, _conn: Conn) -> Progress {
        Progress::default()
    }

    fn pause(&mut self, _conn: Conn) {}
    fn resume(&mut self, _conn: Conn) {}
    fn end(&mut self, _conn: Conn) {}
    fn close(&mut self, conn: Conn) {
        panic!("{conn:?} is closed");
    }
    fn hang_up(&mut self, conn: Conn) {
        self.close(conn);
    }
    fn abort(&mut self, conn: Conn) {
        panic!("{conn:?} is aborted");
    }
}

#[test]
fn an_idle_smpp_session_takes_little() {
    let servers = vec![SocketAddr::from(([127, 0, 0, 1], 2775))];
    let settings = SmppSettings::new(&Config { shards: 1, ..Config::default() }, servers, 0, 1);
    assert!(!settings.mux, "a server connection each");
    let mut relay = Smpp::new(settings);
    let mut wire = Wanted(Vec::with_capacity(1));
    let (now, snapshot) = (Time::from_millis(1_000), Snapshot::default());
    let source = SocketAddr::from(([192, 0, 2, 9], 40_000));
    let bind = Pdu::new(BIND_TRANSCEIVER, 1, bind_body("RestComm", "password")).to_bytes();
    let bound = Pdu::new(BIND_TRANSCEIVER, 1, b"").answer(OK, b"smsc\0").to_bytes();
    let mut bind_all = |count: usize| {
        for _ in 0..count {
            let esme = relay.handle_open(now, PLAIN_LISTENER, source, &mut wire).unwrap();
            assert_eq!(relay.handle_bytes(now, esme, &bind, &snapshot, &mut wire), bind.len());
            let smsc = wire.0.pop().expect("a connection");
            relay.handle_connected(now, smsc, &mut wire);
            assert_eq!(relay.handle_bytes(now, smsc, &bound, &snapshot, &mut wire), bound.len());
        }
        LIVE.get()
    };
    // Tables double: from one power of two to the next is what a session takes on average.
    let before = bind_all(1_024);
    let bytes = bind_all(1_024).wrapping_sub(before) / 1_024;
    assert!(bytes <= SESSION_BYTES_MAX, "{bytes} bytes for both of its sides");
}

/// Of an idle session in regular mode, without its sockets' share.
const SESSION_BYTES_MAX: usize = 1_000;

#[test]
fn the_meter_counts() {
    let before = ALLOCATIONS.get();
    let mut grown = vec![std::hint::black_box(1u8)];
    grown.reserve_exact(1_000);
    assert!(ALLOCATIONS.get() - before >= 2, "{}", grown.len());
    let held = LIVE.get();
    drop(grown);
    assert_eq!(held.wrapping_sub(LIVE.get()), 1_001, "bytes that were freed");
}
