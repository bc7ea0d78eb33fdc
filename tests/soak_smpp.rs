//! SMPP for a while through the whole process: many sessions and full windows while servers die and come
//! back, and sessions that come and go by the thousand.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tests::smpp::*;
use tests::{Balancer, Setup};

/// A session that keeps its window full until enough of its messages were taken.
struct Worker {
    name: String,
    esme: Esme,
    /// It has answered an unbind: what it asked before gets its responses, then its connection ends.
    is_unbound: bool,
    open: BTreeSet<u32>,
    ids: BTreeSet<String>,
    receipts: BTreeSet<String>,
    asked: usize,
    turned_back: usize,
}

impl Worker {
    fn bound(lb: &Balancer, name: String) -> Worker {
        Worker {
            esme: Worker::esme(lb, &name),
            name,
            is_unbound: false,
            open: BTreeSet::new(),
            ids: BTreeSet::new(),
            receipts: BTreeSet::new(),
            asked: 0,
            turned_back: 0,
        }
    }

    fn esme(lb: &Balancer, name: &str) -> Esme {
        let mut esme = Esme::connect(lb.smpp()).bind(name, "password");
        esme.answers(&[ENQUIRE_LINK]);
        esme
    }

    fn is_done(&self) -> bool {
        self.ids.len() == MESSAGES && self.open.is_empty() && self.missing().count() <= CUT_MAX
    }

    /// Messages that were taken, with a receipt that has not come.
    fn missing(&self) -> impl Iterator<Item = &String> {
        self.ids.difference(&self.receipts).filter(|it| !it.starts_with(BARE))
    }

    /// Takes in what came and fills the window up again.
    fn turn(&mut self, lb: &Balancer, case: &str) {
        self.esme.poll();
        for pdu in self.esme.take_inbox() {
            match pdu.command {
                DELIVER_SM => {
                    self.esme.send(&pdu.answer(OK, b"\0"));
                    let text = String::from_utf8_lossy(&pdu.body).into_owned();
                    let id = text.split("id:").nth(1).unwrap().split(' ').next().unwrap();
                    assert!(self.ids.contains(id), "{case}: somebody else's receipt {id}");
                    assert!(self.receipts.insert(id.to_owned()), "{case}: receipt {id} twice");
                }
                it if it == SUBMIT_SM | RESPONSE => {
                    let is_open = self.open.remove(&pdu.sequence);
                    assert!(is_open, "{case}: {} answered twice, or never asked", pdu.sequence);
                    match pdu.status {
                        OK => assert!(self.ids.insert(pdu.text(0).to_owned()), "{case}"),
                        status => {
                            let is_late = status == INVALID_BIND_STATUS; // for an SMSC that unbinds
                            assert!(status == SYSTEM_ERROR || is_late, "{case}: {status:#x}");
                            self.turned_back += 1;
                        }
                    }
                }
                UNBIND => {
                    self.esme.send(&pdu.answer(OK, b""));
                    self.is_unbound = true;
                }
                other => panic!("{case}: {other:#x}"),
            }
        }
        if self.esme.has_ended() {
            assert!(self.is_unbound, "{case}: {} open", self.open.len());
            assert!(self.open.is_empty(), "{case}: {} open at the end", self.open.len());
            self.esme = Worker::esme(lb, &self.name);
            self.is_unbound = false;
        }
        if self.is_unbound {
            return;
        }
        let body = message_body(b"Hello world!");
        while self.open.len() < WINDOW && self.ids.len() + self.open.len() < MESSAGES {
            self.open.insert(self.esme.request(SUBMIT_SM, &body));
            self.asked += 1;
        }
    }
}

/// What is known of a receipt.
struct Receipt {
    server: usize,
    connection: usize,
    sequence: u32,
}

/// Says that it is over, also when the test has failed.
struct End<'e>(&'e AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_request_gets_one_response_while_servers_die_and_return() {
    for is_mux in [false, true] {
        let servers = Smsc::several::<4>();
        // Where each message was taken, and the number of its receipt if it has one.
        let taken: Arc<Mutex<BTreeMap<String, Receipt>>> = Arc::default();
        // Connections that were unbound: nobody takes a receipt there.
        let unbound: Arc<Mutex<BTreeSet<(usize, usize)>>> = Arc::default();
        for (server, smsc) in servers.iter().enumerate() {
            let (taken, unbound) = (taken.clone(), unbound.clone());
            smsc.replies(move |connection, it| match it.command {
                // An id, and the receipt right behind it.
                SUBMIT_SM => {
                    let mut taken = taken.lock().unwrap();
                    let is_bare = unbound.lock().unwrap().contains(&(server, connection));
                    let id = format!("{}{}", if is_bare { BARE } else { "id" }, taken.len());
                    let sequence = it.sequence | 0x4000_0000;
                    taken.insert(id.clone(), Receipt { server, connection, sequence });
                    if is_bare {
                        return Reply::Body(format!("{id}\0").into());
                    }
                    let receipt = Pdu::new(DELIVER_SM, sequence, receipt_body(&id));
                    Reply::Exactly(vec![it.answer(OK, format!("{id}\0")), receipt])
                }
                _ => Reply::Ok,
            });
        }
        let lb = Setup::smpp(&servers).set("muxMode", &is_mux.to_string());
        let lb = lb.set("shards", "2").set("connectionsMax", "4000").start();
        let mut workers: Vec<Worker> =
            (0..SESSIONS).map(|it| Worker::bound(&lb, format!("name{}", it % 10))).collect();
        let is_over = AtomicBool::new(false);
        let (servers, cut) = std::thread::scope(|scope| {
            let mut servers = servers;
            let unbound = &unbound;
            let is_over = &is_over;
            let _end = End(is_over);
            let killer = scope.spawn(move || {
                let (mut at, mut cut) = (0, BTreeSet::new());
                for round in 0.. {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    if round % UNBIND_EVERY == 1 {
                        for connection in servers[at].bound() {
                            unbound.lock().unwrap().insert((at, connection));
                            let sequence = 0x3fff_ffff;
                            servers[at].send(connection, &Pdu::new(UNBIND, sequence, b""));
                        }
                    } else {
                        cut.extend(servers[at].bound().into_iter().map(|it| (at, it)));
                        servers[at].stop();
                        std::thread::sleep(Duration::from_millis(60));
                        servers[at].restart();
                    }
                    // The next one goes when this one has work again, or nobody needs it.
                    let before = servers[at].count(SUBMIT_SM);
                    let patience = Instant::now() + Duration::from_millis(500);
                    while servers[at].count(SUBMIT_SM) == before
                        && Instant::now() < patience
                        && !is_over.load(Ordering::Relaxed)
                    {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    at = (at + 1) % servers.len();
                }
                (servers, cut)
            });
            let deadline = Instant::now() + 6 * tests::PATIENCE;
            while !workers.iter().all(Worker::is_done) {
                for (number, worker) in workers.iter_mut().enumerate() {
                    worker.turn(&lb, &format!("mux {is_mux}, session {number}"));
                }
                let late = || workers.iter().filter(|it| !it.is_done()).count();
                assert!(Instant::now() < deadline, "mux {is_mux}: {} are not done", late());
                std::thread::sleep(Duration::from_millis(1));
            }
            is_over.store(true, Ordering::Relaxed);
            // What is answered twice may be so last of all.
            let end = Instant::now() + Duration::from_secs(1);
            while Instant::now() < end {
                for (number, worker) in workers.iter_mut().enumerate() {
                    worker.turn(&lb, &format!("mux {is_mux}, session {number} at the end"));
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            killer.join().unwrap()
        });
        // A receipt stands right behind its response: it is lost only where the connection was cut between them.
        let taken = taken.lock().unwrap();
        let answered = servers.each_ref().map(|it| {
            let seen = it.seen().into_iter().filter(|it| it.pdu.command == DELIVER_SM | RESPONSE);
            seen.map(|it| (it.connection, it.pdu.sequence)).collect::<BTreeSet<_>>()
        });
        for (number, worker) in workers.iter().enumerate() {
            for id in worker.missing() {
                let Receipt { server, connection, sequence } = taken[id];
                let case = format!("mux {is_mux}, session {number}: receipt {id}");
                assert!(!answered[server].contains(&(connection, sequence)), "{case} was answered");
                assert!(!servers[server].bound().contains(&connection), "{case} was not cut off");
            }
        }
        // What a server took that unbinds is not called failed: it would come twice.
        let known: BTreeSet<&String> = workers.iter().flat_map(|it| &it.ids).collect();
        let unbound = unbound.lock().unwrap();
        assert!(!unbound.is_empty(), "mux {is_mux}: a server did unbind");
        for (id, it) in &*taken {
            let at = (it.server, it.connection);
            if unbound.contains(&at) && !cut.contains(&at) {
                assert!(known.contains(id), "mux {is_mux}: {id} was taken");
            }
        }
        let turned_back: usize = workers.iter().map(|it| it.turned_back).sum();
        let asked: usize = workers.iter().map(|it| it.asked).sum();
        assert_eq!(asked, SESSIONS * MESSAGES + turned_back);
        assert!(lb.smpp_metric("rebinds_total") > 0 || is_mux, "servers did die");
    }
}

#[test]
fn ten_thousand_sessions_leave_nothing_behind() {
    for is_mux in [false, true] {
        let servers = Smsc::several::<2>();
        let lb = Setup::smpp(&servers).set("muxMode", &is_mux.to_string()).start();
        let mut settled_kib = 0;
        for round in 0..100 {
            let mut clients: Vec<Esme> = (0..100).map(|_| Esme::connect(lb.smpp())).collect();
            for (number, client) in clients.iter_mut().enumerate() {
                let name = format!("name{}", number % 7);
                client.request(BIND_TRANSCEIVER, &bind_body(&name, "password"));
            }
            clients.iter_mut().for_each(|it| assert_eq!(it.answer_to(1).status, OK));
            for client in &mut clients {
                client.request(UNBIND, b"");
            }
            for client in &mut clients {
                assert_eq!(client.answer_to(2).status, OK);
                client.close();
            }
            if round == SETTLED {
                lb.wait_no_smpp();
                settled_kib = lb.resident_kib();
            }
        }
        lb.wait_no_smpp();
        let grown = lb.resident_kib().saturating_sub(settled_kib);
        assert!(grown < GROWN_KIB_MAX, "mux {is_mux}: {grown} KiB more after 6 000 sessions");
        let unbinds = lb.smpp_metric("pdus_total{command=\"unbind\",kind=\"request\"}");
        assert_eq!(unbinds, 10_000);
    }
}

/// The round after which every table and every pool has the size that it needs: 4 000 sessions.
const SETTLED: usize = 39;
/// In the 6 000 sessions after that: 43 bytes of each.
const GROWN_KIB_MAX: usize = 256;
const SESSIONS: usize = 200;
const WINDOW: usize = 50;
/// How ids of messages begin that have no receipt.
const BARE: &str = "bare";
/// Of so many servers that go all die and come back but one, which unbinds.
const UNBIND_EVERY: usize = 4;
/// Receipts of one session that may be missing at the end. It takes a write that is cut behind the response:
/// where the receipt was answered, or the connection is still there, none may.
const CUT_MAX: usize = 2;
/// Of each session; the original's windows are full ten times over.
const MESSAGES: usize = 500;
