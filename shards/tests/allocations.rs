//! Between receive and send nothing is allocated: counted, on real sockets, with the whole shard.
#![allow(unsafe_code)] // a global allocator cannot be had without

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use engine::config::Steering;
use engine::node::{NodeKey, Way};
use engine::relay::{Arrival, DropReason, Failure, Hop, Leg, Listener, Report, Verdict};
use engine::snapshot::Snapshot;
use protocols::sip::Transport;
use protocols::time::Time;
use shards::clock::Clock;
use shards::decide::Decide;
use shards::listeners::{SocketOptions, bound, open_listeners};
use shards::mesh::{mesh, notices};
use shards::publish::{Published, Tuning, View};
use shards::shard::{Setup, Shard};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator unchanged; counting does not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|it| it.set(it.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Sends everything to one address, as a request to a node.
struct Forward(SocketAddr);

impl Decide for Forward {
    type Settings = ();
    type Counters = ();
    type Name = ();
    type Answer = ();

    fn handle(&mut self, it: &Arrival, bytes: &[u8], _: &Snapshot, out: &mut Vec<u8>) -> Verdict {
        out.clear();
        out.extend_from_slice(bytes);
        let hop = Hop::Datagram { from: it.listener, to: self.0 };
        Verdict::Forward { hop, is_request: true, reply: None }
    }

    fn undelivered(
        &mut self,
        _: &Arrival,
        _: &[u8],
        _: Failure,
        _: &Snapshot,
        _: &mut Vec<u8>,
    ) -> Verdict {
        Verdict::Drop(DropReason::NoNode)
    }

    fn refused(&mut self, _: SocketAddr, _: Transport, _: &Snapshot) -> Option<(NodeKey, Way)> {
        None
    }

    fn handle_snapshot(&mut self, _: &Snapshot) {}

    fn configure(&mut self, _: Arc<()>) {}

    fn wanted_name(&mut self) -> Option<()> {
        None
    }

    fn poll_aging_name(&mut self, _: Time) -> Option<()> {
        None
    }

    fn handle_name(&mut self, _: Time, (): (), (): ()) {}

    fn poll_report(&mut self, _: Time, _: &Snapshot) -> Option<Report> {
        None
    }

    fn switch_over(&mut self, _: NodeKey, _: NodeKey) {}

    fn dropped(&mut self, reason: DropReason) {
        panic!("{reason:?}");
    }

    fn counters(&mut self, _: Time, _: &Snapshot, _: bool) -> &() {
        &()
    }
}

#[test]
fn a_forwarded_datagram_allocates_nothing() {
    let node = UdpSocket::bind("127.0.0.1:0").unwrap();
    node.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let listeners = [Listener {
        leg: Leg::External,
        transport: Transport::Udp,
        address: "127.0.0.1:0".parse().unwrap(),
    }];
    let options = SocketOptions {
        steering: Steering::Hash,
        receive_buffer_bytes: 0,
        send_buffer_bytes: 0,
        cpus: Vec::new(),
    };
    let sockets = open_listeners(&listeners, 1, &options).unwrap().remove(0);
    let listeners = bound(&listeners, &sockets);
    let address = listeners[0].address;
    let (post, mut mailboxes) = mesh(1).unwrap();
    let (outbox, _inbox) = notices().unwrap();
    let view = View {
        snapshot: Arc::new(Snapshot::default()),
        settings: Arc::new(()),
        tuning: Tuning {
            coalesce: Duration::ZERO,
            couples_datagrams: true,
            stream_idle: Duration::from_secs(60),
            message_time: Duration::from_secs(60),
            tls_gateway: false,
            connections_max: 1,
            source_connections_max: 0,
            handshake_time: Duration::from_secs(1),
            message_bytes_max: 65_536,
        },
        security: None,
        stopping: None,
    };
    let published = Published::new(Arc::new(view), post.wakers());
    let mut shard = Shard::new(Setup {
        id: 0,
        listeners,
        sockets,
        relay: Forward(node.local_addr().unwrap()),
        pumps: Vec::new(),
        view: published.subscribe(),
        mailbox: mailboxes.remove(0),
        post,
        outbox,
        clock: Clock::start(),
        census: Arc::default(),
    })
    .unwrap();
    let caller = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut buffer = [0; 2_000];
    let mut round = |shard: &mut Shard<Forward>, batch: usize| {
        for _ in 0..batch {
            caller.send_to(&[b'x'; 900], address).unwrap();
        }
        let before = ALLOCATIONS.with(Cell::get);
        let mut messages = 0;
        while messages < batch as u64 {
            messages += shard.turn(1_000).messages;
        }
        let allocations = ALLOCATIONS.with(Cell::get) - before;
        for _ in 0..batch {
            assert_eq!(node.recv(&mut buffer).unwrap(), 900);
        }
        allocations
    };
    // Buffers grow to their sizes, also those of the remembered requests.
    for _ in 0..20 {
        round(&mut shard, 40);
    }
    let allocations: u64 = (0..100).map(|it| round(&mut shard, 1 + it % 40)).sum();
    assert_eq!(allocations, 0);
}
