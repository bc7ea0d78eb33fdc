//! A seeded soak: many sessions with full windows, cut anywhere, while servers die and come back, fall
//! silent, throttle and unbind. The claim: every submit_sm gets exactly one response, and so does every
//! deliver_sm whose server is still there; receipts find their submitter. `seed` replays a failure.

use super::*;

const SESSIONS: usize = 200;
const WINDOW: usize = 50;
const SERVERS: u16 = 4;
/// Where the text of [`message`] begins.
const TEXT_AT: usize = 33;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[derive(Default)]
struct Client {
    bound: bool,
    next: u32,
    open: BTreeSet<u32>,
    answered: usize,
    errors: usize,
}

#[derive(Default)]
struct Server {
    bound: bool,
    /// Asked and not answered.
    asked: Vec<Said>,
    /// deliver_sm that wait for an answer.
    open: BTreeSet<u32>,
    next: u32,
    submitters: Vec<(String, Vec<u8>)>,
}

struct Soak {
    it: World,
    random: Random,
    seed: u64,
    clients: BTreeMap<(u32, u32), (Conn, Client)>,
    servers: BTreeMap<(u32, u32), (Conn, Server)>,
    is_mux: bool,
    messages: u32,
    /// Messages whose clients know their id.
    known: BTreeMap<String, Conn>,
    receipts: usize,
    done: (usize, usize),
}

impl Soak {
    fn new(seed: u64, is_mux: bool) -> Soak {
        let change = |it: &mut SmppSettings| {
            it.servers = (1..=SERVERS).map(server).collect();
            it.session_window = 40; // less than the clients': some wait
            it.provider_window = if seed.is_multiple_of(2) { 10_000 } else { 300 };
            it.enquire = Duration::from_secs(2);
            it.connection = Duration::from_secs(3600);
        };
        let it = if is_mux { World::mux(change) } else { World::new(change) };
        Soak {
            it,
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            seed,
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            is_mux,
            messages: 0,
            known: BTreeMap::new(),
            receipts: 0,
            done: (0, 0),
        }
    }

    fn connect_client(&mut self) {
        let esme = self.it.open();
        self.it.say(esme, &bind(Command::BIND_TRANSCEIVER, 1, "secret"));
        self.clients.insert(key(esme), (esme, Client { next: 2, ..Client::default() }));
    }

    /// Connections that are being opened: most succeed.
    fn connect_servers(&mut self) {
        for (conn, ..) in self.it.wire.connecting.clone() {
            if self.random.below(6) == 0 {
                self.it.lose(conn, Gone::Refused);
            } else {
                self.it.wire.connecting.retain(|it| it.0 != conn);
                self.servers.insert(key(conn), (conn, Server { next: 1, ..Server::default() }));
                self.it.smpp.handle_connected(self.it.now, conn, &mut self.it.wire);
            }
        }
    }

    /// Sends in pieces cut anywhere.
    fn say(&mut self, conn: Conn, bytes: &[u8]) {
        let cut = self.random.below(bytes.len());
        self.it.say(conn, &bytes[..cut]);
        self.it.say(conn, &bytes[cut..]);
    }

    fn submit(&mut self, at: (u32, u32)) {
        let Some((conn, client)) = self.clients.get_mut(&at) else { return };
        let conn = *conn;
        if !client.bound {
            return;
        }
        let count = self.random.below(WINDOW - client.open.len() + 1);
        let mut burst = Vec::new();
        for _ in 0..count {
            self.messages += 1;
            let text = format!("{}:{}:{}", self.messages, at.0, at.1);
            let body = message(0, text.as_bytes());
            burst.extend_from_slice(&request(Command::SUBMIT_SM, client.next, &body));
            client.open.insert(client.next);
            client.next += 1;
        }
        if !burst.is_empty() {
            self.say(conn, &burst);
        }
    }

    /// A client takes in what it got.
    fn client_reads(&mut self, at: (u32, u32)) {
        let seed = self.seed;
        let Some((conn, _)) = self.clients.get(&at) else { return };
        let conn = *conn;
        let mut answers = Vec::new();
        let mut strays = Vec::new();
        for said in self.it.heard(conn) {
            let Some((_, client)) = self.clients.get_mut(&at) else { return };
            match said.command {
                BIND_RESP => client.bound = said.status == Status::OK,
                SUBMIT_RESP => {
                    let was_open = client.open.remove(&said.sequence);
                    assert!(was_open, "seed {seed}: {} answered twice", said.sequence);
                    client.answered += 1;
                    client.errors += usize::from(said.status != Status::OK);
                    if let Ok(id) = std::str::from_utf8(&said.body)
                        && !id.is_empty()
                    {
                        self.known.insert(id.trim_end_matches('\0').to_owned(), conn);
                    }
                }
                Command::DELIVER_SM => {
                    let text = String::from_utf8_lossy(&said.body[TEXT_AT..]).into_owned();
                    let id = text.strip_prefix("id:").and_then(|it| it.split(' ').next());
                    // Whose response never arrived does not know its message.
                    if let Some(own) = id.and_then(|it| self.known.get(it)) {
                        strays.extend((*own != conn).then_some(*own));
                        self.receipts += 1;
                    }
                    answers.extend_from_slice(&response(&said, Status::OK, b"\0"));
                }
                Command::ENQUIRE_LINK => {
                    answers.extend_from_slice(&response(&said, Status::OK, b""))
                }
                Command::UNBIND => {
                    client.bound = false;
                    answers.extend_from_slice(&response(&said, Status::OK, b""));
                }
                other => panic!("seed {seed}: a client got {other:?}"),
            }
        }
        // A receipt may find another session only if its own is gone.
        for whose in strays {
            let is_there = self.it.state(whose) == Some(ServerState::Bound);
            assert!(self.is_mux && !is_there, "seed {seed}: a receipt for {whose:?} strayed");
        }
        if !answers.is_empty() {
            self.say(conn, &answers);
        }
    }

    /// A server takes in what it got, and answers some of it in any order.
    fn server_works(&mut self, at: (u32, u32), answer_all: bool) {
        let seed = self.seed;
        let Some((conn, _)) = self.servers.get(&at) else { return };
        let conn = *conn;
        let heard = self.it.heard(conn);
        let Some((_, server)) = self.servers.get_mut(&at) else { return };
        let mut out = Vec::new();
        for said in heard {
            match said.command {
                Command::BIND_TRANSCEIVER => {
                    server.bound = true;
                    out.extend_from_slice(&response(&said, Status::OK, b"smsc\0"));
                }
                Command::SUBMIT_SM => server.asked.push(said),
                Command::ENQUIRE_LINK | Command::UNBIND => {
                    out.extend_from_slice(&response(&said, Status::OK, b""));
                }
                DELIVER_RESP => {
                    let was_open = server.open.remove(&said.sequence);
                    assert!(was_open, "seed {seed}: deliver_sm {} answered twice", said.sequence);
                }
                ENQUIRE_RESP | UNBIND_RESP | Command::GENERIC_NACK => {}
                other => panic!("seed {seed}: a server got {other:?}"),
            }
        }
        let mut left = if answer_all { server.asked.len() } else { self.random.below(60) };
        while left > 0 && !server.asked.is_empty() {
            left -= 1;
            let chosen = self.random.below(server.asked.len());
            let one = server.asked.swap_remove(chosen);
            let text = String::from_utf8_lossy(&one.body[TEXT_AT..]).into_owned();
            let (id, whose) = text.split_once(':').unwrap();
            let status = match self.random.below(100) {
                0 => Status::THROTTLED,
                1 if !answer_all => continue, // never answered
                _ => Status::OK,
            };
            let body = format!("m{id}\0");
            let body = if status == Status::OK { body.as_bytes() } else { b"" };
            if status == Status::OK {
                server.submitters.push((format!("m{id}"), whose.as_bytes().to_vec()));
            }
            out.extend_from_slice(&response(&one, status, body));
        }
        if server.bound && !answer_all && self.random.below(2) == 0 {
            for _ in 0..self.random.below(12) {
                server.next += 1;
                server.open.insert(server.next);
                let body = match server.submitters.pop() {
                    Some((id, whose)) => {
                        let whose = String::from_utf8(whose).unwrap();
                        message(4, format!("id:{id} for:{whose}").as_bytes())
                    }
                    None => message(0, b"hello"),
                };
                out.extend_from_slice(&request(Command::DELIVER_SM, server.next, &body));
            }
        }
        if !out.is_empty() {
            self.say(conn, &out);
        }
    }

    /// Forgets who was closed. A client that is closed had its answers or lost its connection.
    fn bury(&mut self) {
        let seed = self.seed;
        for conn in std::mem::take(&mut self.it.wire.closed) {
            self.it.unread.remove(&key(conn));
            self.it.wire.paused.remove(&conn);
            if let Some((_, client)) = self.clients.remove(&key(conn)) {
                assert!(
                    client.open.is_empty(),
                    "seed {seed}: closed with {} open",
                    client.open.len()
                );
                self.done.0 += client.answered;
                self.done.1 += client.errors;
            }
            self.servers.remove(&key(conn));
        }
    }

    fn trouble(&mut self) {
        let conns: Vec<Conn> = self.servers.values().map(|it| it.0).collect();
        let Some(conn) = conns.get(self.random.below(conns.len().max(1))).copied() else { return };
        match self.random.below(10) {
            0..=5 => self.it.lose(conn, Gone::Reset),
            6..=7 => self.it.end(conn),
            8 => {
                self.say(conn, b"\0\0\0\x03");
                self.it.heard(conn);
            }
            _ => self.say(conn, &request(Command::UNBIND, 99_999, b"")),
        }
    }

    fn run(&mut self, rounds: usize) {
        (0..SESSIONS).for_each(|_| self.connect_client());
        for round in 0..rounds {
            self.connect_servers();
            if round % 10 == 9 {
                (0..=self.random.below(3)).for_each(|_| self.trouble());
            }
            let clients: Vec<_> = self.clients.keys().copied().collect();
            let servers: Vec<_> = self.servers.keys().copied().collect();
            clients.iter().for_each(|at| self.submit(*at));
            servers.iter().for_each(|at| self.server_works(*at, false));
            clients.iter().for_each(|at| self.client_reads(*at));
            for conn in self.it.wire.full.clone() {
                self.it.drain(conn);
            }
            for _ in 0..5 {
                let all = self
                    .clients
                    .values()
                    .map(|it| it.0)
                    .chain(self.servers.values().map(|it| it.0));
                let all: Vec<Conn> = all.collect();
                self.it.wire.full.insert(all[self.random.below(all.len())]);
            }
            let millis = self.random.below(400) as u64;
            self.it.pass_millis(millis);
            clients.iter().for_each(|at| self.client_reads(*at));
            self.bury();
            (self.clients.len()..SESSIONS).for_each(|_| self.connect_client());
        }
        for conn in self.it.wire.full.clone() {
            self.it.drain(conn);
        }
        // Calm: what is open is answered, by its server or by the timer.
        for _ in 0..130 {
            self.connect_servers();
            let clients: Vec<_> = self.clients.keys().copied().collect();
            let servers: Vec<_> = self.servers.keys().copied().collect();
            servers.iter().for_each(|at| self.server_works(*at, true));
            clients.iter().for_each(|at| self.client_reads(*at));
            self.it.pass_millis(100);
            self.bury();
        }
        let seed = self.seed;
        for (conn, client) in self.clients.values() {
            assert!(client.open.is_empty(), "seed {seed}: {conn:?} misses {:?}", client.open);
            assert!(
                self.it.unread.get(&key(*conn)).is_none_or(Vec::is_empty),
                "seed {seed}: unread"
            );
            self.done.0 += client.answered;
            self.done.1 += client.errors;
        }
        for (conn, server) in self.servers.values() {
            let state = self.it.smpp.legs.provider(*conn).map(|it| it.state);
            assert!(
                server.open.is_empty(),
                "seed {seed}: {conn:?} {state:?} misses {:?}",
                server.open
            );
        }
        assert!(self.it.wire.paused.is_empty(), "seed {seed}: somebody is held for ever");
        let outstanding: u32 = self.it.smpp.sessions().map(|it| it.outstanding).sum();
        assert_eq!(outstanding, 0, "seed {seed}");
        assert!(self.it.smpp.shared.is_empty(), "seed {seed}");
    }
}

#[test]
fn every_request_gets_exactly_one_response() {
    for is_mux in [false, true] {
        for seed in 1..=4 {
            let mut soak = Soak::new(seed, is_mux);
            soak.run(60);
            let (answered, errors) = soak.done;
            assert_eq!(answered, soak.messages as usize, "seed {seed} mux {is_mux}");
            assert!(answered > 10_000 && errors < answered, "seed {seed}: {answered} {errors}");
            assert!(soak.receipts > 100, "seed {seed}: {}", soak.receipts);
        }
    }
}
