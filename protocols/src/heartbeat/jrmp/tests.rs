extern crate std;

use alloc::string::ToString;
use alloc::{format, vec};

use super::*;
use crate::testing::Random;

/// A JDK 17 node speaking with a prototype of ours: lookup, lease, test of the connection, ping,
/// switchover, removal. `[connection]>` is what the node sent, `[connection]<` the answer.
const CAPTURE: &str = include_str!("../../../../tests/data/jrmp-heartbeat-capture.txt");

/// What one side says on one connection, in order.
fn capture(connection: usize, direction: char) -> Vec<Vec<u8>> {
    let prefix = format!("[{connection}]{direction} ");
    CAPTURE.lines().filter_map(|line| line.strip_prefix(&prefix)).map(unhex).collect()
}

fn unhex(line: &str) -> Vec<u8> {
    let hex = line.split(' ').nth(1).unwrap();
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

const PROCESS: Uid = Uid { unique: 0x0e1d_9e42, time: 0x01a2_022a_8eac, count: 0 };

/// The connection of the capture as our side opened it.
fn connection(number: usize) -> Connection {
    let (port, count) = if number == 0 { (0xb898, 0x8002) } else { (0xecb2, 0x8003) };
    let uid = |count: u16| Uid { count: count.cast_signed(), ..PROCESS };
    let stub = Stub {
        host: "127.0.0.1".into(),
        port: 2001,
        object: 0xcc74_71fb_3766_9d3b_u64.cast_signed(),
        uid: uid(0x8001),
    };
    Connection::new(Time::ZERO, SocketAddr::from(([127, 0, 0, 1], port)), stub, uid(count))
}

fn events(it: &mut Connection) -> Vec<Event> {
    core::iter::from_fn(|| it.poll_event()).collect()
}

fn node1() -> NodeWords {
    let pairs = [
        ("httpPort", "8080"),
        ("sessionId", "1485157008580"),
        ("udpPort", "5080"),
        ("version", "0"),
    ];
    NodeWords {
        host_name: "node1".into(),
        ip: "127.0.0.1".into(),
        properties: pairs.map(|(name, value)| (name.to_string(), value.to_string())).into(),
    }
}

fn wanted() -> Vec<Event> {
    vec![
        Event::Ping(vec![node1()]),
        Event::SwitchOver { from: "a".into(), to: "b".into() },
        Event::ForceRemoval(vec![node1()]),
    ]
}

#[test]
fn a_captured_dialogue_is_answered_byte_for_byte() {
    for number in [0, 1] {
        let (said, answers) = (capture(number, '>').concat(), capture(number, '<').concat());
        let mut it = connection(number);
        let mut out = Vec::new();
        assert_eq!(it.handle_bytes(Time::ZERO, &said, &mut out), Ok(Flow::Open), "{number}");
        assert_eq!(out, answers, "connection {number}");
        assert_eq!(events(&mut it), if number == 0 { vec![] } else { wanted() });
    }
}

#[test]
fn where_the_network_cuts_does_not_matter() {
    for number in [0, 1] {
        let (said, answers) = (capture(number, '>').concat(), capture(number, '<').concat());
        for cut in 0..=said.len() {
            let mut it = connection(number);
            let mut out = Vec::new();
            for part in [&said[..cut], &said[cut..]] {
                assert_eq!(it.handle_bytes(Time::ZERO, part, &mut out), Ok(Flow::Open), "{cut}");
            }
            assert_eq!(out, answers, "connection {number} cut {cut}");
            assert_eq!(events(&mut it).len(), 3 * number, "connection {number} cut {cut}");
        }
        let mut it = connection(number);
        let mut out = Vec::new();
        for byte in &said {
            it.handle_bytes(Time::ZERO, &[*byte], &mut out).unwrap();
        }
        assert_eq!(out, answers, "connection {number} byte by byte");
    }
}

#[test]
fn an_answer_does_not_wait_for_what_follows() {
    let mut it = connection(1);
    let answers = capture(1, '<');
    let mut done = answers.iter();
    for said in capture(1, '>').iter().filter(|it| *it != &b"\0\x09127.0.0.1\0\0\0\0"[..]) {
        if said.len() == 7 {
            let mut out = Vec::new();
            it.handle_bytes(Time::ZERO, said, &mut out).unwrap();
            assert_eq!(&out, done.next().unwrap());
            it.handle_bytes(Time::ZERO, b"\0\x09127.0.0.1\0\0\0\0", &mut out).unwrap();
            continue;
        }
        let mut out = Vec::new();
        it.handle_bytes(Time::ZERO, said, &mut out).unwrap();
        assert_eq!(&out, done.next().unwrap());
    }
    assert_eq!(done.next(), None);
}

#[test]
fn a_lease_is_granted_as_asked_within_limits() {
    let said = capture(1, '>')[..3].concat();
    let value = said.windows(8).position(|it| it == 600_000i64.to_be_bytes()).unwrap();
    let cases: [(i64, i64); 5] =
        [(600_000, 600_000), (600_001, 600_000), (2_000, 2_000), (0, 1_000), (-1, 1_000)];
    for (asked, granted) in cases {
        let mut said = said.clone();
        said[value..value + 8].copy_from_slice(&asked.to_be_bytes());
        let mut out = Vec::new();
        connection(1).handle_bytes(Time::ZERO, &said, &mut out).unwrap();
        let found = out.windows(8).filter(|it| *it == granted.to_be_bytes()).count();
        assert_eq!(found, 1, "{asked}");
    }
}

#[test]
fn list_names_the_one_object() {
    let mut it = connection(0);
    let mut out = Vec::new();
    it.handle_bytes(Time::ZERO, &capture(0, '>')[..2].concat(), &mut out).unwrap();
    out.clear();
    let mut call = b"\x50\xac\xed\0\x05\x77\x22".to_vec();
    call.extend([0; 22]);
    call.extend([0, 0, 0, 1, 0x44, 0x15, 0x4d, 0xc9, 0xd4, 0xe6, 0x3b, 0xdf]);
    it.handle_bytes(Time::ZERO, &call, &mut out).unwrap();
    let mut want =
        b"\x51\xac\xed\0\x05\x77\x0f\x01\x0e\x1d\x9e\x42\0\0\x01\xa2\x02\x2a\x8e\xac\x80\x02"
            .to_vec();
    want.extend(
        b"\x75\x72\0\x13[Ljava.lang.String;\xad\xd2\x56\xe7\xe9\x1d\x7b\x47\x02\0\0\x70\x78\x70",
    );
    want.extend(b"\0\0\0\x01\x74\0\x0bSIPBalancer");
    assert_eq!(out, want);
}

#[test]
fn a_single_operation_has_no_greeting_and_ends() {
    let lookup = &capture(0, '>')[2];
    let mut it = connection(0);
    let mut out = Vec::new();
    let said = [b"JRMI\0\x02\x4c", lookup.as_slice(), b"\x52"].concat();
    assert_eq!(it.handle_bytes(Time::ZERO, &said, &mut out), Ok(Flow::Close));
    assert_eq!(out, capture(0, '<')[1]);
    assert_eq!(it.handle_bytes(Time::ZERO, b"\x52", &mut out), Ok(Flow::Close), "unread");
    assert_eq!(out, capture(0, '<')[1]);
}

#[test]
fn who_is_no_client_is_told_apart() {
    let hello = capture(0, '>')[..2].concat();
    let call = |object: u8, operation: u8, hash: u64| {
        let mut bytes = [&hello[..], b"\x50\xac\xed\0\x05\x77\x22"].concat();
        bytes.extend([0, 0, 0, 0, 0, 0, 0, object]);
        bytes.extend([0; 14]);
        bytes.extend([0, 0, 0, operation]);
        bytes.extend(hash.to_be_bytes());
        bytes
    };
    let unknown = |object, operation, hash: u64| Malformed::Call {
        object,
        operation,
        hash: hash.cast_signed(),
    };
    const REGISTRY: u64 = 0x4415_4dc9_d4e6_3bdf;
    let after = |it: &[u8]| [&hello[..], it].concat();
    let stream = |it| Malformed::Stream(it);
    let long =
        [&call(0, 2, REGISTRY)[..], b"\x7c\0\0\0\0\x7f\xff\xff\xff", &[b'x'; CALL_BYTES_MAX]];
    let cases: &[(&str, Vec<u8>, Malformed)] = &[
        ("HTTP", b"POST / HTTP/1.1\r\n".to_vec(), Malformed::Greeting),
        ("at the first byte", b"P".to_vec(), Malformed::Greeting),
        ("version 3", b"JRMI\0\x03\x4b".to_vec(), Malformed::Greeting),
        ("multiplexed", b"JRMI\0\x02\x4d".to_vec(), Malformed::Protocol { code: 0x4d }),
        ("a return", after(b"\x51"), Malformed::Message { code: 0x51 }),
        ("not a stream", after(b"\x50\xac\xed\0\x06"), stream(java::Malformed::Magic)),
        ("bind", call(0, 0, REGISTRY), unknown(0, 0, REGISTRY)),
        ("the activator", call(1, 2, REGISTRY), unknown(1, 2, REGISTRY)),
        ("another interface", call(0, 2, 7), unknown(0, 2, 7)),
        ("another name", [&call(0, 2, REGISTRY)[..], b"\x74\0\x01x"].concat(), Malformed::Name),
        ("no name", [&call(0, 2, REGISTRY)[..], b"\x70"].concat(), Malformed::Arguments),
        ("a block", [&call(0, 2, REGISTRY)[..], b"\x77\0"].concat(), Malformed::Arguments),
        ("no header", after(b"\x50\xac\xed\0\x05\x74\0\x01x"), Malformed::Arguments),
        ("a short header", after(b"\x50\xac\xed\0\x05\x77\x01x"), Malformed::Arguments),
        (
            "an exception",
            [&call(0, 2, REGISTRY)[..], b"\x7b"].concat(),
            stream(java::Malformed::Tag { tag: 0x7b }),
        ),
        ("too long", long.concat(), Malformed::TooLong),
    ];
    for (name, bytes, want) in cases {
        for step in [bytes.len(), 1000] {
            let mut it = connection(0);
            let mut out = Vec::new();
            let result: Result<Vec<Flow>, Malformed> =
                bytes.chunks(step).map(|it_| it.handle_bytes(Time::ZERO, it_, &mut out)).collect();
            assert_eq!(result.unwrap_err(), *want, "{name}: {want}");
            assert!(it.pending.len() <= CALL_BYTES_MAX, "{name}");
        }
    }
}

#[test]
fn time_is_bounded_within_a_message_and_between_two() {
    let at = Time::from_millis;
    let mut it = connection(1);
    let mut out = Vec::new();
    assert_eq!(it.poll_timeout(), at(5_000));
    it.handle_bytes(at(10), b"JRMI", &mut out).unwrap();
    assert_eq!(it.poll_timeout(), at(5_000), "the greeting is one message");
    it.handle_bytes(at(20), b"\0\x02\x4b\0\0\0\0\0\0", &mut out).unwrap();
    assert_eq!(it.poll_timeout(), at(60_020));
    it.handle_bytes(at(50_000), b"\x50", &mut out).unwrap();
    assert_eq!(it.poll_timeout(), at(55_000));
    it.handle_bytes(at(54_000), &capture(1, '>')[2][1..400], &mut out).unwrap();
    assert_eq!(it.poll_timeout(), at(55_000), "dripping gains nothing");
    it.handle_bytes(at(54_500), &capture(1, '>')[2][400..], &mut out).unwrap();
    assert_eq!(it.poll_timeout(), at(114_500));
    it.handle_bytes(at(100_000), b"\x52\x50", &mut out).unwrap();
    assert_eq!(it.poll_timeout(), at(105_000));
}

#[test]
fn an_object_of_another_incarnation_is_no_object_of_ours() {
    let mut it = connection(1);
    it.stub.uid.count += 1;
    let result = it.handle_bytes(Time::ZERO, &capture(1, '>').concat(), &mut Vec::new());
    assert!(matches!(result, Err(Malformed::Call { operation: -1, .. })), "{result:?}");
    assert_eq!(it.poll_event(), None);
}

#[test]
fn a_virtual_machine_names_itself_shortly() {
    let said = capture(1, '>')[..3].concat();
    let address = said.windows(8).position(|it| it == b"\x70\0\0\0\x08\x49\xe0\xdd").unwrap() + 1;
    for (length, fits) in [(64u32, true), (65, false)] {
        let long = [&length.to_be_bytes()[..], &vec![7; length.try_into().unwrap()]].concat();
        let said = [&said[..address], &long, &said[address + 12..]].concat();
        let result = connection(1).handle_bytes(Time::ZERO, &said, &mut Vec::new());
        assert_eq!(
            result,
            if fits { Ok(Flow::Open) } else { Err(Malformed::Arguments) },
            "{length}"
        );
    }
}

/// A `handlePing` that we write, not a JVM: for what a JVM would never say.
fn ping(list: &[u8]) -> Vec<u8> {
    let said = capture(1, '>');
    [&said[0], &said[1], &said[4][..41], list].concat()
}

fn utf(text: &str) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

/// Class descriptor; `fields` as the stream has them.
fn class(name: &str, flags: u8, count: u16, fields: &[u8], parent: &[u8]) -> Vec<u8> {
    let version = [0; 8];
    [b"\x72", &utf(name)[..], &version, &[flags], &count.to_be_bytes(), fields, b"\x70\x78", parent]
        .concat()
}

fn string(text: &str) -> Vec<u8> {
    [b"\x74", &utf(text)[..]].concat()
}

/// An `ArrayList` of these elements.
fn list(elements: &[&[u8]]) -> Vec<u8> {
    let class = class("java.util.ArrayList", 3, 1, b"I\0\x04size", b"\x70");
    [b"\x73", &class[..], b"\0\0\0\x02\x77\x04\0\0\0\x02", &elements.concat(), b"\x78"].concat()
}

fn map(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
    let class = class("java.util.HashMap", 3, 0, b"", b"\x70");
    let pairs: Vec<u8> = pairs.iter().flat_map(|(name, value)| [*name, *value].concat()).collect();
    [b"\x73", &class[..], b"\x77\x08\0\0\0\x10\0\0\0\x04", &pairs, b"\x78"].concat()
}

const SIP_NODE: &str = "org.mobicents.tools.sip.balancer.SIPNode";

fn heard(list: &[u8]) -> Result<Vec<NodeWords>, Malformed> {
    let mut it = connection(1);
    let mut out = Vec::new();
    it.handle_bytes(Time::ZERO, &ping(list), &mut out)?;
    match &events(&mut it)[..] {
        [Event::Ping(nodes)] => Ok(nodes.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn nodes_are_read_by_the_names_of_their_fields() {
    let integer = |value: u8| {
        let number = class("java.lang.Number", 2, 0, b"", b"\x70");
        let class = class("java.lang.Integer", 2, 1, b"I\0\x05value", &number);
        [b"\x73", &class[..], &[0, 0, 0, value]].concat()
    };
    let atomic = || {
        let class =
            class("java.util.concurrent.atomic.AtomicInteger", 2, 1, b"I\0\x05value", b"\x70");
        [b"\x73", &class[..], b"\0\0\0\x09"].concat()
    };
    let enumeration = || {
        let class = class("Colour", 0x12, 0, b"", &class("java.lang.Enum", 0x12, 0, b"", b"\x70"));
        [b"\x7e", &class[..], &string("RED")].concat()
    };
    let strings = || {
        let class = class("[Ljava.lang.String;", 2, 0, b"", b"\x70");
        [b"\x75", &class[..], b"\0\0\0\x02", &string("x"), b"\x70"].concat()
    };
    let doubles =
        || [b"\x75", &class("[D", 2, 0, b"", b"\x70")[..], b"\0\0\0\x01", &[1; 8]].concat();
    let properties = map(&[
        (&string("udpPort"), &integer(5)),
        (&string("jvmRoute"), b"\x74\0\x03n\xc0\x80"),
        (&string("colour"), &enumeration()),
        (&string("strings"), &strings()),
        (&string("doubles"), &doubles()),
        (&string("none"), b"\x70"),
        (&integer(7), &string("no name")),
        (&string("atomic"), &atomic()),
        (&string("long"), &[b"\x7c\0\0\0\0\0\0\0\x02", &b"ok"[..]].concat()),
    ]);
    let type_of = |it: &str| string(it);
    let text = type_of("Ljava/lang/String;");
    let object = type_of("Ljava/lang/Object;");
    let field = |name: &str, type_name: &[u8]| [b"L", &utf(name)[..], type_name].concat();
    // other fields, another order, a subclass, a list that is a subclass of one
    let node = class(
        SIP_NODE,
        2,
        5,
        &[
            &b"J\0\x09timeStamp"[..],
            b"Z\0\x01z",
            &field("properties", &object),
            &field("ip", &text),
            &field("hostName", &text),
        ]
        .concat(),
        b"\x70",
    );
    let subclass = class("my.Node", 3, 1, b"S\0\x01s", &node);
    let node = [
        b"\x73",
        &subclass[..],
        &[0; 8],
        &[1],
        &properties,
        &string("10.0.0.1"),
        &string("h"),
        &[0, 1],
        b"\x77\x01x",
        &string("written by hand"),
        b"\x78",
    ]
    .concat();
    let nobody =
        [b"\x73", &class(SIP_NODE, 2, 1, &field("ip", &text), b"\x70")[..], b"\x70"].concat();
    let said = list(&[&node, b"\x70", &string("no node"), &nobody]);
    let pairs = [("udpPort", "5"), ("jvmRoute", "n\0"), ("long", "ok")];
    let want = NodeWords {
        host_name: "h".into(),
        ip: "10.0.0.1".into(),
        properties: pairs.map(|(name, value)| (name.to_string(), value.to_string())).into(),
    };
    assert_eq!(heard(&said), Ok(vec![want, NodeWords::default()]));
    assert_eq!(heard(&list(&[])), Ok(vec![]), "no node at all");
    assert_eq!(heard(b"\x70"), Err(Malformed::Arguments));
    assert_eq!(heard(&map(&[])), Err(Malformed::Arguments));
}

#[test]
fn hostile_streams_cost_a_bounded_amount() {
    let stream = |it| Err(Malformed::Stream(it));
    let object_array = class("[Ljava.lang.Object;", 2, 0, b"", b"\x70");
    let deep = [b"\x75", &object_array[..], b"\0\0\0\x01"].concat().repeat(40);
    let wide = [b"\x75", &object_array[..], b"\0\0\x27\x11"].concat();
    let negative = [b"\x75", &object_array[..], b"\xff\xff\xff\xff"].concat();
    let elements: Vec<u8> = [0x70; 10_001].into();
    let ancestor = class("a", 2, 0, b"", b"\x71\0\x7e\0\x02");
    let opaque = [b"\x73", &class("x", 4, 0, b"", b"\x70")[..]].concat();
    let many = class("x", 2, 10_001, b"", b"\x70");
    let kind = class("x", 2, 1, b"Q\0\x01x", b"\x70");
    let typed = class("x", 2, 1, b"L\0\x01x\x70", b"\x70");
    let empty = |elements: &[u8]| list(&[elements]);
    let values = [b"\x75", &object_array[..], b"\0\0\x27\x10", &[0x70; 10_000]].concat().repeat(3);
    type Row = (&'static str, Vec<u8>, Result<Vec<NodeWords>, Malformed>);
    let blocks = b"\x77\xff".iter().chain(&[0; 255]).copied().collect::<Vec<u8>>().repeat(4081);
    let cases: &[Row] = &[
        ("blocks that nobody reads", empty(&blocks), Err(Malformed::TooLong)),
        ("deep", deep, stream(java::Malformed::Depth)),
        ("wide", wide, stream(java::Malformed::Count)),
        ("negative", negative, stream(java::Malformed::Count)),
        ("a long list", empty(&elements), stream(java::Malformed::Count)),
        ("too much in all", empty(&values), stream(java::Malformed::Count)),
        (
            "its own ancestor",
            empty(&[b"\x73", &ancestor[..]].concat()),
            stream(java::Malformed::Depth),
        ),
        ("opaque", empty(&opaque), stream(java::Malformed::Opaque)),
        ("many fields", empty(&[b"\x73", &many[..]].concat()), stream(java::Malformed::Count)),
        (
            "a field of no type",
            empty(&[b"\x73", &kind[..]].concat()),
            stream(java::Malformed::FieldType { kind: b'Q' }),
        ),
        (
            "a type that is no text",
            empty(&[b"\x73", &typed[..]].concat()),
            stream(java::Malformed::Tag { tag: 0x70 }),
        ),
        ("no class", empty(b"\x73\x70"), stream(java::Malformed::Class)),
        ("array of no class", empty(b"\x75\x70"), stream(java::Malformed::Class)),
        (
            "an array that is none",
            empty(&[b"\x75", &class("x", 2, 0, b"", b"\x70")[..], b"\0\0\0\0"].concat()),
            stream(java::Malformed::Class),
        ),
        ("nothing there", empty(b"\x71\0\x7e\x01\0"), stream(java::Malformed::Handle)),
        ("below all handles", empty(b"\x71\0\0\0\0"), stream(java::Malformed::Handle)),
        ("an object for a class", empty(b"\x73\x71\0\x7e\0\x01"), stream(java::Malformed::Handle)),
        ("not a text", empty(b"\x74\0\x01\xff"), stream(java::Malformed::Text)),
        ("half a letter", empty(b"\x74\0\x01\xc3"), stream(java::Malformed::Text)),
        ("a reset within", empty(b"\x79"), stream(java::Malformed::Tag { tag: 0x79 })),
        ("half a pair of surrogates", empty(b"\x74\0\x03\xed\xa0\x80"), Ok(vec![])),
        ("a list within itself", empty(b"\x71\0\x7e\0\x01"), Ok(vec![])),
    ];
    for (name, said, want) in cases {
        assert_eq!(heard(said), *want, "{name}");
    }
}

/// A class of many ancestors makes every object of it dear, in ten bytes.
#[test]
fn what_a_call_costs_is_more_than_its_bytes() {
    let mut it = connection(1);
    let object = [b"\x73", &class("a", 2, 0, b"", b"\x70")[..]].concat();
    let again = b"\x73\x71\0\x7e\0\x02".repeat(1_000);
    let call = ping(&list(&[&object, &again]));
    let (most, _end) = call.split_at(call.len() - 1);
    it.handle_bytes(Time::ZERO, most, &mut Vec::new()).unwrap();
    assert!(it.held_bytes() > most.len() + 1_000 * 300, "{} of {}", it.held_bytes(), most.len());
}

/// One node of a hundred kilobytes, named two thousand times: short to say, long to write down.
#[test]
fn what_is_said_a_thousand_times_is_not_written_down_a_thousand_times() {
    let long = "x".repeat(60_000);
    let text = string("Ljava/lang/String;");
    let field = |name: &str| [b"L", &utf(name)[..], &text].concat();
    let node = class(SIP_NODE, 2, 2, &[field("hostName"), field("ip")].concat(), b"\x70");
    let node = [b"\x73", &node[..], &string(&long), &string(&long)].concat();
    // list class 0, its object 1, node class 2, type texts 3 and 4, node 5
    let again: Vec<u8> = b"\x71\0\x7e\0\x05".repeat(2_000);
    assert_eq!(heard(&list(&[&node])).unwrap()[0].ip.len(), 60_000);
    assert_eq!(heard(&list(&[&node, &again])), Err(Malformed::TooLong));
}

#[test]
fn any_damage_is_read_or_refused() {
    for seed in 0..6_000 {
        let mut random = Random::new(seed);
        let number = random.below(2);
        let clean = capture(number, '>').concat();
        let mut bytes = clean.clone();
        for _ in 0..=random.below(3) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.next().to_le_bytes()[0],
                1 => bytes[at] = 0x70 + u8::try_from(random.below(15)).unwrap(),
                2 => drop(bytes.splice(at..at, clean[at.min(clean.len() - 1)..].iter().copied())),
                _ => drop(bytes.drain(at..(at + random.below(9)).min(bytes.len()))),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let cut = random.below(bytes.len() + 1);
        let whole = run(number, &[&bytes]);
        assert_eq!(whole, run(number, &[&bytes[..cut], &bytes[cut..]]), "seed {seed} cut {cut}");
        let (out, ..) = whole;
        assert!(out.len() <= 10 * bytes.len() + 100, "seed {seed}: {}", out.len());
    }
}

fn run(number: usize, parts: &[&[u8]]) -> (Vec<u8>, Vec<Event>, Result<(), Malformed>) {
    let mut it = connection(number);
    let mut out = Vec::new();
    let mut result = Ok(());
    for part in parts {
        result = result.and_then(|()| it.handle_bytes(Time::ZERO, part, &mut out).map(|_| ()));
        assert!(it.pending.len() <= CALL_BYTES_MAX);
    }
    let events = events(&mut it);
    (out, events, result)
}
