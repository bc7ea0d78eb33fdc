//! Mutated messages on every port for a while: the process lives, nothing panics inside, memory stays
//! flat, and the next good call works. `HOSTILE_SECONDS` sets how long (5), `SEED` replays a run.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;
use tests::Transport::{Tcp, Tls, Udp, Ws, Wss};
use tests::web::WebStream;
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

#[test]
fn it_survives_broken_messages_on_every_port() {
    let seconds = std::env::var("HOSTILE_SECONDS").ok().and_then(|it| it.parse().ok()).unwrap_or(5);
    let seed = std::env::var("SEED").ok().and_then(|it| it.parse().ok()).unwrap_or(0x5eed_0001);
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
