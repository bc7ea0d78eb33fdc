//! Bytes that are no message, and bytes that are none of our business.

use super::*;

#[test]
fn nonsense_is_answered_where_it_can_be_and_the_next_message_is_served() {
    let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
    let cases = [
        ("noise", "hello".to_owned(), None),
        ("keep-alive", "\r\n\r\n".to_owned(), None),
        ("version", INVITE.replace("SIP/2.0\nVia", "SIP/3.0\nVia"), Some("SIP/2.0 505 ")),
        ("CSeq method", INVITE.replace("CSeq: 1 INVITE", "CSeq: 1 BYE"), Some("SIP/2.0 400 ")),
        ("no Call-ID", INVITE.replace("Call-ID: 8f3ad1@203.0.113.5\n", ""), None),
        (
            "a malformed ACK",
            INVITE.replace("INVITE", "ACK").replace("CSeq: 1 ACK", "CSeq: 1 BYE"),
            None,
        ),
        ("a malformed response", "SIP/2.0 abc\nVia: x\n\n".to_owned(), None),
        ("cut in the middle", INVITE[..120].to_owned(), None),
    ];
    for (case, message, want) in cases {
        let verdict = world.client(&message);
        match want {
            Some(line) => {
                assert!(matches!(verdict, Verdict::Reply { .. }), "{case}: {verdict:?}");
                assert!(world.first_line().starts_with(line), "{case}: {}", world.first_line());
            }
            None => assert!(matches!(verdict, Verdict::Drop(_)), "{case}: {verdict:?}"),
        }
        assert!(datagram(NODE)(world.client(INVITE)), "after {case}");
    }
}

/// Header lines that nobody but their owners understands.
const NOISE: [&str; 10] = [
    "X-Custom:   spaces  kept\t ",
    "x-CUSTOM:again",
    "Identity: \"abc==\"",
    "m: <sip:q@w>",
    "Supported: a,b ,c",
    "Subject: folded\n  over\n\tlines",
    "Via: SIP/2.0/UDP 9.9.9.9;branch=z9hG4bKold , SIP/2.0/TCP 8.8.8.8",
    "Record-Route: <sip:7.7.7.7;lr>",
    "Warning: 399 x \"\u{fc}\"",
    "Empty:",
];

/// A message with noise anywhere behind its first `fixed` lines, and a body that is no text.
fn noisy(seed: u64, message: &str, fixed: usize) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut draw = |max: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % max as u64).unwrap()
    };
    let mut lines: Vec<&str> = message.trim_start().split("\n\n").next().unwrap().lines().collect();
    for _ in 0..draw(9) {
        lines.insert(fixed + draw(lines.len() + 1 - fixed), NOISE[draw(NOISE.len())]);
    }
    let body = "v=0\r\n\0binary\u{ff}";
    let length = format!("Content-Length: {}", wire(body).len());
    let lines: Vec<&str> = lines
        .iter()
        .map(|it| if it.starts_with("Content-Length") { length.as_str() } else { *it })
        .collect();
    format!("{}\n\n{body}", lines.join("\n"))
}

/// A message without the lines that are ours to change.
fn theirs(bytes: &[u8]) -> Vec<String> {
    let is_ours = |line: &str| {
        let starts = ["Max-Forwards", "X-Sip-Balancer", "Route: <sip:172.16.0.1"];
        starts.iter().any(|it| line.starts_with(it))
            || line.contains("node_host=")
            || line.starts_with("Via: SIP/2.0/UDP 172.16.0.1:5065")
            || line.starts_with("Via: SIP/2.0/UDP 10.0.0.1:5060")
    };
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    text.split("\r\n").filter(|it| !is_ours(it)).map(str::to_owned).collect()
}

#[test]
fn everything_that_is_not_ours_leaves_as_it_came() {
    let as_sent = |world: &World, prefix: &str| -> String {
        let text = String::from_utf8(world.out.clone()).unwrap();
        let lines = text.split("\r\n").take_while(|it| !it.is_empty());
        lines.filter(|it| it.starts_with(prefix)).map(|it| format!("{it}\n")).collect()
    };
    let outside = "127.0.0.1:5033";
    for seed in 1..512u64 {
        let mut world = World::new(TWO_LEGS).with_nodes(&[NODE]);
        let invite = noisy(seed, &INVITE.replace(";rport", ""), 2);
        let verdict = world.client(&invite);
        assert!(datagram(NODE)(verdict), "seed {seed}: {verdict:?}");
        assert_eq!(theirs(&world.out), theirs(&wire(&invite)), "seed {seed}");

        let (vias, answer) = (as_sent(&world, "Via"), callee_answer(&world, "180 Ringing"));
        let ringing = noisy(seed, &answer, 1 + vias.lines().count());
        let verdict = world.from_node(&ringing);
        assert!(datagram(CLIENT)(verdict), "seed {seed}: {verdict:?}");
        assert_eq!(theirs(&world.out), theirs(&wire(&ringing)), "seed {seed}: from a node");

        let calling = noisy(seed, NODE_INVITE, 3);
        let verdict = world.from_node(&calling);
        assert!(datagram(outside)(verdict), "seed {seed}: {verdict:?}");
        assert_eq!(theirs(&world.out), theirs(&wire(&calling)), "seed {seed}: a node's");

        let (vias, answer) = (as_sent(&world, "Via"), callee_answer(&world, "200 OK"));
        let ok = noisy(seed, &answer, 1 + vias.lines().count());
        let verdict = world.send(Leg::External, Transport::Udp, outside, &ok);
        assert!(datagram(NODE)(verdict), "seed {seed}: {verdict:?}");
        assert_eq!(theirs(&world.out), theirs(&wire(&ok)), "seed {seed}: from outside");
    }
}
