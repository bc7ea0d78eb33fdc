//! Between receive and send nothing is allocated: every algorithm, every message of a call, UDP and TCP.
//!
//! Counts on this thread alone, around [`Relay::handle`]. Every call has a Call-ID of its own; the memory
//! of calls holds fewer than there are, so that forgetting is under the meter too.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;

use engine::balance::{ALGORITHMS, Shard};
use engine::relay::Verdict;
use engine::relay::sip::Relay;
use engine::snapshot::Snapshot;
use protocols::sip::Transport;
use protocols::time::Time;
use tests::sim::{Call, Kind, Stage, node, node_address};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator with a meter.
struct Metered;

// SAFETY: every call goes to `System` unchanged; counting touches a thread-local `Cell` of a number, which
// needs no allocation and no destructor.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Metered {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promises are `System`'s demands.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as above.
        unsafe { System.realloc(old, layout, bytes) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

#[global_allocator]
static METERED: Metered = Metered;

/// Configurations beside the defaults that put other code on the way.
const VARIANTS: &[(&str, bool, &str)] = &[
    ("defaults", true, ""),
    ("single entry", false, ""),
    ("ramp-up", true, "trafficRampupCyclePeriod=7000\ntrafficPercentageIncrease=20\n"),
    ("affinity by From", true, "sipHeaderAffinityKey=From\n"),
    ("affinity by a header", true, "sipHeaderAffinityKey=User-Agent\n"),
    ("blocked words", true, "blocked-values=sipvicious,friendly-scanner\n"),
    ("rates", true, "sourceRateMax=1000000\ntotalRateMax=1000000\n"),
    ("routing rules", true, "routingRulesIpv4=203[.]0[.]113[.].*=false\n"),
    ("TCP to nodes", true, "internalTransport=TCP\n"),
];

const WARM: u64 = 1_200;
const METERED_CALLS: u64 = 1_000;

fn allocations(algorithm: &str, variant: &str, transport: Transport) -> BTreeMap<Kind, u64> {
    let &(_, two_legs, lines) = VARIANTS.iter().find(|it| it.0 == variant).unwrap();
    let lines = format!(
        "algorithmClass=org.mobicents.tools.sip.balancer.{algorithm}\nshards=1\ncallIdAffinityMaxCalls=1000\n{lines}"
    );
    let stage = Stage::new(two_legs, &lines);
    let mut relay = stage.relay(Shard { index: 0, scattered: false });
    let snapshot = Snapshot::new(1, (1..=4).map(|it| node(it, 0)).collect(), &[]);
    let mut out = Vec::new();
    let mut counts: BTreeMap<Kind, u64> = Kind::ALL.into_iter().map(|it| (it, 0)).collect();
    for number in 0..WARM + METERED_CALLS {
        let now = Time::from_millis(10_000 + number);
        let caller = format!("203.0.113.{}:5062", number % 100 + 1).parse().unwrap();
        let mut call = Call::new(caller, transport.as_via(), number);
        for kind in Kind::ALL {
            let home = node_address(1);
            let source = if kind.is_from_caller() { caller } else { home };
            let leg = if two_legs { kind.leg() } else { engine::relay::Leg::External };
            let arrival = stage.arrival(now, leg, transport, source);
            let bytes = call.write(kind, home);
            let before = ALLOCATIONS.get();
            let verdict = Relay::handle(&mut relay, &arrival, &bytes, &snapshot, &mut out);
            let made = ALLOCATIONS.get() - before;
            let Verdict::Forward { reply, .. } = verdict else {
                panic!("{algorithm} {variant} {transport:?} {kind:?}: {verdict:?}");
            };
            if number >= WARM {
                *counts.get_mut(&kind).unwrap() += made;
            }
            call.sent(kind, &out[reply..]);
        }
    }
    counts
}

fn none_allocates(variants: &[&str]) {
    let mut found = Vec::new();
    for entry in ALGORITHMS {
        for &variant in variants {
            for transport in [Transport::Udp, Transport::Tcp] {
                for (kind, made) in allocations(entry.name, variant, transport) {
                    if made > 0 {
                        found.push(format!("{} / {variant} / {transport:?} / {kind:?}: {made} in {METERED_CALLS} messages", entry.name));
                    }
                }
            }
        }
    }
    assert!(found.is_empty(), "these allocate:\n{}", found.join("\n"));
}

#[test]
fn no_message_of_a_call_allocates() {
    none_allocates(&["defaults", "single entry"]);
}

#[test]
fn nor_does_any_with_other_keys_set() {
    let names: Vec<&str> = VARIANTS[2..].iter().map(|it| it.0).collect();
    none_allocates(&names);
}

#[test]
fn the_meter_counts() {
    let before = ALLOCATIONS.get();
    let mut grown = vec![std::hint::black_box(1u8)];
    grown.reserve_exact(1_000);
    assert!(ALLOCATIONS.get() - before >= 2, "{}", grown.len());
}
