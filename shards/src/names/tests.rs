//! The resolver against a name server on loopback that can be deaf, curt and broken.

use super::*;
use simple_dns::rdata::{A, CNAME, NAPTR, RData, SRV};
use simple_dns::{CLASS, CharacterString, Name, Packet, PacketFlag, RCODE, ResourceRecord};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Mutex;
use std::sync::mpsc;
use tools::ports;

const V4: Reach = Reach { transports: [true, true, false, false, false], ipv4: true, ipv6: false };

/// What the server was asked, as `udp A name`.
type Asked = Arc<Mutex<Vec<String>>>;

fn server() -> (SocketAddr, Asked) {
    // TCP and UDP on one port: try until both are free.
    let (tcp, udp) = loop {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        if let Ok(udp) = UdpSocket::bind(tcp.local_addr().unwrap()) {
            break (tcp, udp);
        }
    };
    let address = udp.local_addr().unwrap();
    let asked = Asked::default();
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = udp.recv_from(&mut buffer) {
            for answer in answers(&buffer[..count], "udp", &log) {
                let _ = udp.send_to(&answer, from);
            }
        }
    });
    let log = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            for answer in answers(&question, "tcp", &log) {
                let length = u16::try_from(answer.len()).unwrap().to_be_bytes();
                // Cut where it hurts.
                stream.write_all(&length[..1]).unwrap();
                std::thread::sleep(Duration::from_millis(5));
                stream.write_all(&length[1..]).unwrap();
                let (front, back) = answer.split_at(answer.len() / 2);
                stream.write_all(front).unwrap();
                std::thread::sleep(Duration::from_millis(5));
                stream.write_all(back).unwrap();
            }
        }
    });
    (address, asked)
}

fn answers(question: &[u8], by: &str, log: &Asked) -> Vec<Vec<u8>> {
    let query = Packet::parse(question).unwrap();
    let name = query.questions[0].qname.to_string();
    let kind = format!("{:?}", query.questions[0].qtype).replace("TYPE(", "").replace(')', "");
    let line = format!("{by} {kind} {name}");
    let times = {
        let mut log = log.lock().unwrap();
        log.push(line.clone());
        log.iter().filter(|it| **it == line).count()
    };
    let mut reply = query.clone().into_reply();
    let record = |name: &str, ttl, rdata: RData<'static>| {
        ResourceRecord::new(Name::new(name).unwrap().into_owned(), CLASS::IN, ttl, rdata)
    };
    let a = |last: u8| RData::A(A { address: Ipv4Addr::new(192, 0, 2, last).into() });
    let host = |name: &'static str| Name::new_unchecked(name);
    match (kind.as_str(), name.as_str()) {
        ("A", "a.example") => reply.answers.push(record(&name, 60, a(1))),
        ("A", "short.example") => reply.answers.push(record(&name, 3, a(2))),
        ("A", "alias.example") => {
            let to = RData::CNAME(CNAME(host("a.example")));
            reply.answers.push(record(&name, 60, to));
        }
        ("A", "large.example") if by == "udp" => reply.set_flags(PacketFlag::TRUNCATION),
        ("A", "large.example") => {
            (1..=250).for_each(|it| reply.answers.push(record(&name, 60, a(it))));
        }
        ("A", "lossy.example") if times == 1 => return vec![],
        ("A", "lossy.example") => reply.answers.push(record(&name, 60, a(3))),
        ("A", "failing.example") => *reply.rcode_mut() = RCODE::ServerFailure,
        ("A", name) if name.ends_with("deaf.example") => return vec![],
        ("A", "forged.example") => {
            let mut forged = reply.clone();
            forged.set_id(query.id().wrapping_add(1));
            forged.answers.push(record(&name, 60, a(66)));
            reply.answers.push(record(&name, 60, a(4)));
            return vec![
                forged.build_bytes_vec().unwrap(),
                vec![0xff; 40],
                reply.build_bytes_vec().unwrap(),
            ];
        }
        ("NAPTR", "carrier.example") => {
            let text = |it: &'static str| CharacterString::new(it.as_bytes()).unwrap();
            let to_tcp = NAPTR {
                order: 1,
                preference: 1,
                flags: text("s"),
                services: text("SIP+D2T"),
                regexp: text(""),
                replacement: host("_sip._tcp.carrier.example"),
            };
            reply.answers.push(record(&name, 60, RData::NAPTR(to_tcp)));
        }
        ("SRV", "_sip._tcp.carrier.example") => {
            let first = SRV { priority: 1, weight: 0, port: 5070, target: host("alias.example") };
            let second = SRV { priority: 2, weight: 0, port: 5080, target: host("short.example") };
            reply.answers.push(record(&name, 60, RData::SRV(second)));
            reply.answers.push(record(&name, 60, RData::SRV(first)));
        }
        _ => *reply.rcode_mut() = RCODE::NameError,
    }
    vec![reply.build_bytes_vec_compressed().unwrap()]
}

fn start(servers: Vec<SocketAddr>, hosts: &str) -> Names {
    let hosts: std::path::PathBuf = hosts.into();
    Names::start(Sources { servers, resolv_conf: "/nonexistent".into(), hosts }).unwrap()
}

fn query(host: &str, port: Option<u16>) -> Query {
    Query { host: host.into(), port, transport: None, sips: false }
}

fn resolve(names: &Names, host: &str, port: Option<u16>) -> String {
    let (send, receive) = mpsc::channel();
    names.ask(query(host, port), V4, move |_, result| send.send(result).unwrap());
    match receive.recv_timeout(Duration::from_secs(10)).unwrap() {
        Ok(answer) => answer
            .targets
            .iter()
            .map(|it| format!("{}/{}", it.transport.as_param(), it.address))
            .collect::<Vec<_>>()
            .join(" "),
        Err(unresolved) => unresolved.to_string(),
    }
}

#[test]
fn names_become_addresses_through_everything_a_network_does() {
    let (server, asked) = server();
    let names = start(vec![server], "/nonexistent");
    let (p, no) = (Some(5060), "no such name");
    let cases = [
        ("192.0.2.9", None, "udp/192.0.2.9:5060"),
        ("a.example", p, "udp/192.0.2.1:5060"),
        ("A.EXAMPLE.", p, "udp/192.0.2.1:5060"),
        ("alias.example", p, "udp/192.0.2.1:5060"),
        ("carrier.example", None, "tcp/192.0.2.1:5070 tcp/192.0.2.2:5080"),
        ("lossy.example", p, "udp/192.0.2.3:5060"),
        ("forged.example", p, "udp/192.0.2.4:5060"),
        ("nowhere.example", None, no),
        ("nowhere.example", p, no),
        ("failing.example", p, "the name servers do not answer"),
        ("deaf.example", p, "the name servers do not answer"),
    ];
    for (host, port, want) in cases {
        assert_eq!(resolve(&names, host, port), want, "{host} {:?}", asked.lock().unwrap());
    }
    let large = resolve(&names, "large.example", p);
    assert_eq!(large.split(' ').count(), engine::names::TARGETS_MAX, "{large}");
    assert!(asked.lock().unwrap().contains(&"tcp A large.example".to_owned()));
}

#[test]
fn what_is_known_is_not_asked_again_until_it_expires() {
    let (server, asked) = server();
    let names = start(vec![server], "/nonexistent");
    let times = |line: &str| asked.lock().unwrap().iter().filter(|it| *it == line).count();
    for _ in 0..5 {
        resolve(&names, "short.example", Some(1));
        resolve(&names, "nowhere.example", Some(1));
    }
    assert_eq!(times("udp A short.example"), 1);
    assert_eq!(times("udp A nowhere.example"), 1, "that there is nothing is known too");
    std::thread::sleep(Duration::from_millis(3_100));
    resolve(&names, "short.example", Some(1));
    assert_eq!(times("udp A short.example"), 2);
}

#[test]
fn a_slow_name_delays_no_other_and_many_askers_are_one_question() {
    let (server, asked) = server();
    let names = start(vec![server], "/nonexistent");
    let (send, receive) = mpsc::channel();
    for _ in 0..10 {
        let send = send.clone();
        names.ask(query("deaf.example", Some(1)), V4, move |_, result| send.send(result).unwrap());
    }
    assert_eq!(resolve(&names, "a.example", Some(1)), "udp/192.0.2.1:1");
    assert_eq!(receive.try_recv(), Err(mpsc::TryRecvError::Empty), "before the slow one ends");
    for _ in 0..10 {
        let result = receive.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(result, Err(Unresolved::Timeout));
    }
    let times = asked.lock().unwrap().iter().filter(|it| it.contains("deaf")).count();
    assert_eq!(times, ROUNDS);
}

#[test]
fn a_dead_server_is_passed_over() {
    let (server, _) = server();
    let nobody = SocketAddr::from(([127, 0, 0, 1], ports::free()));
    let names = start(vec![nobody, server], "/nonexistent");
    let before = Instant::now();
    assert_eq!(resolve(&names, "a.example", Some(1)), "udp/192.0.2.1:1");
    assert!(before.elapsed() < ATTEMPT_TIME_MAX, "refused at once: {:?}", before.elapsed());
}

#[test]
fn the_hosts_file_needs_no_server() {
    let file = std::env::temp_dir().join(format!("trunkline-hosts-{}", std::process::id()));
    std::fs::write(&file, "192.0.2.77 Node1 node1.lan\n2001:db8::77 node1\n").unwrap();
    let (server, asked) = server();
    let names = start(vec![server], file.to_str().unwrap());
    assert_eq!(resolve(&names, "node1", None), "udp/192.0.2.77:5060");
    assert_eq!(resolve(&names, "NODE1.lan", None), "udp/192.0.2.77:5060");
    assert_eq!(*asked.lock().unwrap(), Vec::<String>::new());
    std::fs::remove_file(file).unwrap();
}

#[test]
fn past_the_limit_askers_are_refused_and_dropping_the_last_copy_ends_the_thread() {
    let (server, _) = server();
    let names = start(vec![server], "/nonexistent");
    let (send, receive) = mpsc::channel();
    for it in 0..QUEUE_MAX + RESOLUTIONS_MAX + 100 {
        let send = send.clone();
        let host = format!("n{it}.deaf.example");
        names.ask(query(&host, Some(1)), V4, move |_, result| drop(send.send(result)));
    }
    assert_eq!(receive.recv_timeout(Duration::from_secs(1)).unwrap(), Err(Unresolved::QueueFull));
    drop((names, send));
    // The thread drops the replies that it still holds, and with them their ends of the channel.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        let heard = receive.recv_timeout(Duration::from_millis(500));
        if heard == Err(mpsc::RecvTimeoutError::Disconnected) {
            return;
        }
    }
    panic!("the thread lives on");
}
