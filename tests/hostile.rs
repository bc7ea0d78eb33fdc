//! Mutated messages on every port for a while: the process lives, nothing panics inside, memory stays
//! flat, and the next good call works. Then nodes that answer HTTP with anything. `HOSTILE_SECONDS` sets how
//! long (5), `SEED` replays a run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tests::Transport::{Tcp, Tls, Udp, Ws, Wss};
use tests::web::{End, WebServer, WebStream, get, ok};
use tests::{Balancer, Dialog, Node, Peer, Setup, keys, wait_for};

/// A tiny xorshift generator: the same seed, the same run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// Breaks a message in one to eight places.
    fn mutate(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.below(8) {
            let at = self.below(bytes.len());
            let end = (at + self.below(40)).min(bytes.len());
            match self.below(8) {
                0 => drop(bytes.drain(at..end)),
                1 => bytes.truncate(at),
                2 => bytes.splice(at..at, TOKENS[self.below(TOKENS.len())].bytes()).for_each(drop),
                3 => {
                    let other = &seeds[self.below(seeds.len())];
                    let from = self.below(other.len());
                    bytes.splice(at..end, other[from..].iter().copied()).for_each(drop);
                }
                4 => {
                    let piece = bytes[at..end].repeat(self.below(200));
                    bytes.splice(at..at, piece).for_each(drop);
                }
                _ if at < bytes.len() => bytes[at] = self.next() as u8,
                _ => {}
            }
            bytes.truncate(60_000);
        }
        bytes
    }
}

const TOKENS: [&str; 24] = [
    "\r\n",
    "\r\n\r\n",
    ":",
    ";",
    ",",
    "<",
    ">",
    "\"",
    "\0",
    "[",
    "]",
    "@",
    "%00",
    "\u{ff}",
    "=",
    " ",
    "Via: SIP/2.0/UDP 127.0.0.1;branch=z9hG4bK\r\n",
    "Route: <sip:127.0.0.1;lr>\r\n",
    ";lr",
    ";rport",
    "99999999999999999999",
    "-1",
    "Content-Length: 4294967295\r\n",
    "_",
];

/// Good messages of every kind, to break.
fn seeds(lb: &Balancer, caller: &Peer, node: &Node) -> Vec<Vec<u8>> {
    let invite = caller.request("INVITE", "sip:bob@127.0.0.1");
    caller.send(&invite);
    let got = node.expect("INVITE");
    let ok = got.reply(200, "OK");
    node.respond(&got, &ok);
    let answer = caller.expect("200 INVITE");
    let mut ours = Dialog::of_caller(caller, &invite, &answer);
    let mut theirs = Dialog::of_callee(node, &got, &ok);
    let beat = "ip=127.0.0.1\nudpPort=9\nhostname=x\nversion=0\nsessionId=1\n";
    let json = r#"{"start":{"hostName":"x","ip":"127.0.0.1","udpPort":"9","sessionId":"1"}}"#;
    let length = json.len();
    let json_beat = format!("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{json}");
    let mut seeds = vec![
        invite.to_bytes(),
        got.raw.clone(),
        ok.to_bytes(),
        got.reply(180, "Ringing").to_bytes(),
        got.reply(503, "Busy").to_bytes(),
        ours.ack().to_bytes(),
        ours.request("BYE").to_bytes(),
        theirs.request("BYE").to_bytes(),
        caller.request("REGISTER", "sip:127.0.0.1").to_bytes(),
        caller.request("MESSAGE", "tel:+1").with("Route", lb.node_route(node)).to_bytes(),
        caller
            .request("OPTIONS", "sip:x@127.0.0.1")
            .with("Mobicents-Heartbeat", "1")
            .with_body("text/plain", beat)
            .to_bytes(),
        b"\r\n\r\n".to_vec(),
        b"GET /lbstat HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc".to_vec(),
        b"GET /lbinfo?x=%41&y HTTP/1.0\r\n\r\n".to_vec(),
        b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n".to_vec(),
        b"\0\0\0\x1b\0\0\0\x09\0\0\0\0\0\0\0\x01x\0y\0\0\x34\0\0\0\0".to_vec(),
        b"\x16\x03\x01\0\x2f\x01\0\0\x2b\x03\x03hello hello".to_vec(),
        b"\x81\xfe\0\x80\x01\x02\x03\x04frames".to_vec(),
        b"POST /lbexplain HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
            .to_vec(),
        json_beat.into_bytes(),
        b"JRMI\0\x02K\0\x09127.0.0.1\0\0\0\0\x50\xac\xed\0\x05\x77\x22".to_vec(),
    ];
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/rfc4475");
    seeds.extend(fs::read_dir(data).unwrap().map(|it| fs::read(it.unwrap().path()).unwrap()));
    seeds
}

/// Own messages in front, the RFC's behind.
const OWN: usize = 21;

/// The same inside of TLS.
fn attack_secure(to: SocketAddr, config: &Arc<ClientConfig>, bytes: &[u8]) {
    if let Ok(mut stream) = WebStream::connect_secure(to, config, "lb.test") {
        let _ = stream.try_send(bytes);
    }
}

fn attack_stream(to: SocketAddr, bytes: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(to) else { return };
    let _ = stream.set_read_timeout(Some(Duration::from_millis(1)));
    let _ = stream.set_write_timeout(Some(Duration::from_millis(100)));
    let _ = stream.write_all(bytes);
    let _ = stream.read(&mut [0; 1000]);
}

/// How many seconds, and the seed.
fn run() -> (u64, u64) {
    let number = |name| std::env::var(name).ok().and_then(|it| it.parse().ok());
    (number("HOSTILE_SECONDS").unwrap_or(5), number("SEED").unwrap_or(0x5eed_0001))
}

#[test]
fn it_survives_broken_messages_on_every_port() {
    let (seconds, seed) = run();
    println!("SEED={seed}");
    let mut random = Random(seed);
    let lb = Setup::every_transport()
        .set("shards", "2")
        .heartbeats()
        .set("ipv6Host", "::1")
        .set("externalIpv6UdpPort", "EXTERNAL")
        .set("externalIpv6TcpPort", "EXTERNAL")
        .set("internalIpv6UdpPort", "INTERNAL")
        .set("internalIpv6TcpPort", "INTERNAL")
        .set("httpPort", "HTTP")
        .set("httpsPort", "HTTPS")
        .set("smppPort", "SMPP")
        .set("smppSslPort", "SMPPS")
        .set("logLevel", "ERROR")
        .argument("-DlogLevel=INFO")
        .start();
    let [external6, internal6] = [lb.external, lb.internal].map(|it| lb.v6(it.port()));
    let nodes = lb.nodes(1);
    let mut node6 = Node::bind_v6("n6");
    node6.announce(&[internal6]);
    lb.wait_nodes(2);
    node6.answers_calls();
    let caller = lb.caller("alice");
    let seeds = seeds(&lb, &caller, &nodes[0]);
    nodes[0].answers_calls();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp6 = UdpSocket::bind("[::1]:0").unwrap();
    // Inside of TLS and frames, and in place of them.
    let layered = [Tls, Ws, Wss].map(|it| lb.caller_over(it, "hostile"));
    let secure = [lb.https(), lb.smpps()];
    let client = Arc::new(keys().client(None));
    let doors =
        [lb.external, lb.internal, external6, internal6, lb.statistic, lb.http(), lb.smpp()];
    let objects = SocketAddr::new(lb.rmi().ip(), lb.addresses.heartbeats[1]);
    let beats = [lb.rmi(), objects, lb.beats()];
    let layers = [Tls, Ws, Wss].map(|it| [lb.external_of(it), lb.internal_of(it)]);
    let doors = doors.into_iter().chain(beats).chain(secure).chain(layers.into_iter().flatten());
    let doors: Vec<SocketAddr> = doors.collect();

    let start = Instant::now();
    let (mut sent, mut warm_kib) = (0u64, 0);
    while start.elapsed() < Duration::from_secs(seconds) {
        for _ in 0..20 {
            let _ = udp.send_to(&random.mutate(&seeds), lb.external);
            let _ = udp.send_to(&random.mutate(&seeds[..OWN]), lb.internal);
            let _ = udp6.send_to(&random.mutate(&seeds), external6);
            let _ = udp6.send_to(&random.mutate(&seeds[..OWN]), internal6);
        }
        for peer in &layered {
            peer.send_bytes(lb.external_of(peer.transport), &random.mutate(&seeds));
        }
        for door in &doors {
            // Those of the RFC are for the external leg; requests of nodes leave for wherever they say.
            let is_external = [lb.external, external6].contains(door);
            let seeds = if is_external { &seeds } else { &seeds[..OWN] };
            attack_stream(*door, &random.mutate(seeds));
        }
        for door in secure {
            attack_secure(door, &client, &random.mutate(&seeds[..OWN]));
        }
        let _ = lb.upgraded().write_all(&random.mutate(&seeds));
        sent += 86 + doors.len() as u64;
        if let Some(status) = lb.exit_status() {
            panic!("SEED={seed}: the process ended after {sent} messages: {status}");
        }
        if warm_kib == 0 && start.elapsed() > Duration::from_secs(seconds) / 4 {
            warm_kib = lb.resident_kib();
        }
    }
    // Some heartbeats among them made sense; what they announced expires first.
    wait_for("only our nodes", || {
        let names: BTreeSet<String> = lb.known().into_iter().map(|it| it.host_name).collect();
        names.iter().map(String::as_str).eq(["n0", "n6"]).then_some(())
    });
    for transport in [Udp, Tcp, Tls, Ws, Wss] {
        let caller = lb.caller_over(transport, "bob");
        let mut dialog = caller.call("sip:bob@example.com");
        caller.exchange(&mut dialog, "BYE");
    }
    for transport in [Udp, Tcp] {
        let caller = Peer::bind_v6("bob").over(transport).through(external6);
        let mut dialog = caller.call("sip:bob@example.com");
        caller.exchange(&mut dialog, "BYE");
    }
    assert_eq!(lb.dropped("panic"), 0, "SEED={seed}");
    let grown = lb.resident_kib().saturating_sub(warm_kib);
    println!("{sent} messages, {grown} KiB more than after a quarter of the time");
    assert!(grown < 16 * 1024, "SEED={seed}: {grown} KiB grown while {sent} messages came");
}

/// What a node does once it has a request.
#[derive(Clone, Debug)]
struct Deed {
    answer: Vec<u8>,
    then: Then,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    /// It waits for the next request.
    Stay,
    Close,
    Reset,
}

/// What the client hears of it.
#[derive(Clone, Copy, Debug)]
enum Heard {
    /// This, whole.
    Error(u16),
    /// The node's answer, cut so that nobody takes it for whole: all of it may be. 502, if that has not begun.
    Cut,
    /// This, whole.
    Text(&'static str),
}

/// A node that does the deed it was given last when it is asked for `/deed`, and `good` to all else.
fn wrongdoer(deed: &Arc<Mutex<Deed>>) -> WebServer {
    let deed = Arc::clone(deed);
    WebServer::raw(move |mut stream, _| {
        while let Ok(head) = stream.head() {
            let is_deed = head.starts_with("GET /deed ");
            let good = Deed { answer: ok("good"), then: Then::Stay };
            let it = if is_deed { deed.lock().unwrap().clone() } else { good };
            let is_sent = stream.try_send(&it.answer).is_ok();
            match it.then {
                Then::Stay if is_sent => {}
                Then::Reset => return stream.reset(),
                _ => return,
            }
        }
    })
}

#[test]
fn whatever_a_node_answers_its_client_hears_of_it_and_the_next_is_served() {
    use Heard::{Cut, Error, Text};
    let (seconds, seed) = run();
    println!("SEED={seed}");
    let mut random = Random(seed);
    let deed = Arc::new(Mutex::new(Deed { answer: Vec::new(), then: Then::Stay }));
    let lb = Setup::two_entry()
        .set("httpPort", "HTTP")
        .set("httpResponseTimeout", "300")
        .set("httpBodyTimeout", "300")
        .start();
    let server = wrongdoer(&deed);
    let _node = lb.web_node("n", &server, &[]);
    let serves = |case: &str| assert_eq!(lb.ask(get("/")).text(), "good", "behind {case}");

    let endless = format!("HTTP/1.1 200 OK\r\n{}", "X: y\r\n".repeat(20_000));
    let one_line = format!("HTTP/1.1 200 OK\r\nX: {}", "y".repeat(100_000));
    let hints = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(100);
    let spare = [ok("hello"), ok("evil")].concat();
    let short = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello";
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    let bad_chunk = format!("{chunked}x\r\n");
    let cases: &[(&str, &[u8], Then, Heard)] = &[
        ("garbage", b"\0\xff\x15\x03\r\n\r\n", Then::Stay, Error(502)),
        ("another protocol", b"SSH-2.0-x\r\n\r\n", Then::Stay, Error(502)),
        ("an endless head", endless.as_bytes(), Then::Stay, Error(502)),
        ("an endless line", one_line.as_bytes(), Then::Stay, Error(502)),
        ("101 unasked", b"HTTP/1.1 101 Go\r\nUpgrade: x\r\n\r\n", Then::Stay, Error(502)),
        ("nothing but hints", hints.as_bytes(), Then::Stay, Error(504)),
        ("nothing", b"", Then::Stay, Error(504)),
        ("half a head", b"HTTP/1.1 200 OK\r\nCon", Then::Stay, Error(504)),
        ("half a head, and gone", b"HTTP/1.1 200 OK\r\nCon", Then::Close, Error(502)),
        ("gone", b"", Then::Close, Error(502)),
        ("reset", b"", Then::Reset, Error(502)),
        ("too short, and gone", short.as_bytes(), Then::Close, Cut),
        ("too short", short.as_bytes(), Then::Stay, Cut),
        ("no last chunk", chunked.as_bytes(), Then::Close, Cut),
        ("no chunk", bad_chunk.as_bytes(), Then::Stay, Cut),
        ("cut short", b"HTTP/1.1 200 OK\r\n\r\nhello", Then::Reset, Cut),
        ("until the end", b"HTTP/1.1 200 OK\r\n\r\nhello", Then::Close, Text("hello")),
        ("too long", &spare, Then::Stay, Text("hello")),
    ];
    for (name, answer, then, heard) in cases {
        *deed.lock().unwrap() = Deed { answer: answer.to_vec(), then: *then };
        let answer = lb.ask(get("/deed"));
        let is_heard = match heard {
            Error(status) => answer.status() == *status && !answer.is_cut,
            Cut => answer.is_cut || answer.status() == 502,
            Text(text) => answer.text() == *text && !answer.is_cut,
        };
        assert!(is_heard, "{name}: {heard:?} and not {answer:?}");
        serves(name);
    }

    let seeds: Vec<Vec<u8>> = cases.iter().map(|(_, answer, ..)| answer.to_vec()).collect();
    let seeds: Vec<Vec<u8>> = seeds.into_iter().filter(|it| it.starts_with(b"HTTP")).collect();
    let request = get("/deed").replace("Host", "Connection: close\r\nHost");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(seconds) {
        let then = [Then::Stay, Then::Close, Then::Reset][random.below(3)];
        let mut answer = random.mutate(&seeds);
        answer.truncate(2_000); // comes in one piece: what is left over is not taken for the next answer
        let it = Deed { answer, then };
        *deed.lock().unwrap() = it.clone();
        let mut client = WebStream::connect(lb.http());
        client.send(&request);
        let (heard, end) = client.rest();
        let status = heard.strip_prefix(b"HTTP/1.1 ").and_then(|it| it.get(..3));
        let is_answered = status.is_some_and(|it| it.iter().all(u8::is_ascii_digit));
        let is_cut = heard.is_empty() && end == End::Reset;
        let case = format!("SEED={seed} {:?} of {}", it.then, it.answer.escape_ascii());
        assert!(is_answered || is_cut, "{case}: {end:?} of {}", heard.escape_ascii());
        serves(&case);
    }
    assert_eq!(lb.event("panic"), 0, "SEED={seed}");
}
