//! What must hold for any bytes at all. Each claim is a fuzz target (`targets/`), and `fuzz_corpus.rs`
//! replays the corpus and mutations of it in every test run.

use engine::config;
use engine::registry::{Announcement, Source};
use protocols::bytes::{EDITS_MAX, Edits, Span};
use protocols::heartbeat::{jrmp, json, post};
use protocols::http::Method;
use protocols::http::body::{Body, Framing};
use protocols::http::head::{Malformed, Request, Response, Scan};
use protocols::sip::message::{Message, remove_values, salvage};
use protocols::sip::reply::{reply, reply_to_malformed};
use protocols::sip::route::NameAddr;
use protocols::sip::stream::{Frame, Framer};
use protocols::sip::uri::Uri;
use protocols::sip::via::Via;
use protocols::smpp::Command;
use protocols::smpp::body::{Bind, Message as ShortMessage, congestion_state, message_id};
use protocols::smpp::pdu::{self, frame, write_bind};
use protocols::time::Time;

/// Name of a target and its corpus directory, and what it claims.
pub(crate) type Claim = (&'static str, fn(&[u8]));

/// Every claim.
pub(crate) const CLAIMS: [Claim; 12] = [
    ("message", message),
    ("uri", uri),
    ("via", via),
    ("route", route),
    ("stream", stream),
    ("properties", properties),
    ("xml", xml),
    ("rmi", rmi),
    ("json", json),
    ("beat", beat),
    ("smpp", smpp),
    ("http", http),
];

/// A message that is accepted can be edited in one pass and answered, and the answer is accepted in turn.
pub(crate) fn message(bytes: &[u8]) {
    let message = match Message::parse(bytes, Some(b"X-Session")) {
        Ok(message) => message,
        Err(reason) => {
            assert!(reason.status().is_none_or(|it| (400..700).contains(&it)));
            if let Some(salvage) = salvage(bytes) {
                let mut out = Vec::new();
                reply_to_malformed(&salvage, 400, "Bad Request", salvage.via, &mut out);
                assert!(out.starts_with(b"SIP/2.0 400 "));
            }
            return;
        }
    };
    assert!(message.bytes.len() <= bytes.len());
    let spans = [message.from, message.to, message.call_id, message.cseq, message.body];
    for span in spans.iter().chain(message.contact.iter()).chain(message.max_forwards.iter()) {
        assert!(span.range().end <= message.bytes.len(), "{span:?}");
    }
    let (mut edits, mut out) = (Edits::new(), Vec::new());
    edits.apply(message.bytes, &mut out).unwrap();
    assert_eq!(out, message.bytes, "no edits, no change");

    // One Via less, one header more: the same message but for those.
    edits.insert(message.first_header, b"X-Ours: 1\r\n");
    if message.vias.len() > 1 {
        remove_values(&message.vias, 1, &mut edits);
    }
    out.clear();
    edits.apply(message.bytes, &mut out).unwrap();
    if let Ok(edited) = Message::parse(&out, None) {
        assert_eq!(edited.text(edited.call_id), message.text(message.call_id));
        assert_eq!(edited.text(edited.body), message.text(message.body));
        assert_eq!(edited.vias.len(), message.vias.len().saturating_sub(1).max(1));
    } else {
        // The new top Via was never looked at and need not be one.
        assert!(message.vias.len() > 1, "an added line broke {:?}", String::from_utf8_lossy(&out));
    }

    if message.is_request() {
        let top = message.vias.first().map_or(&b""[..], |it| message.text(it.span));
        out.clear();
        reply(&message, 500, "No nodes available", b"tag", top, b"", &mut out);
        let answer = Message::parse(&out, None);
        let answer =
            answer.unwrap_or_else(|it| panic!("{it:?}: {}", String::from_utf8_lossy(&out)));
        assert_eq!(answer.status(), Some(500));
        assert_eq!(answer.text(answer.call_id), message.text(message.call_id));
        assert_eq!(answer.cseq_number(), message.cseq_number());
        // The tag is there even on a To whose quotes never close and hide it.
        let to = answer.text(answer.to);
        assert!(message.to_tag().is_some() || to.ends_with(b";tag=tag"));
    }
}

/// A URI that is accepted names a host, and its spans lie inside it.
pub(crate) fn uri(bytes: &[u8]) {
    let Some(uri) = Uri::parse(bytes) else { return };
    assert_eq!(uri.text, bytes);
    inside(uri.host_port, bytes);
    assert!(uri.params_end as usize <= bytes.len());
    for name in ["transport", "lr", "node_host", "maddr", "version"] {
        let value = uri.param(name);
        assert_eq!(uri.param_span(name).is_some(), value.is_some(), "{name}");
        inside(uri.param_span(name).unwrap_or_default(), bytes);
    }
    let _ = (uri.host_ip(), uri.transport());
}

/// A Via that is accepted has its spans inside.
pub(crate) fn via(bytes: &[u8]) {
    let Some(via) = Via::parse(bytes) else { return };
    assert!(!via.host.is_empty());
    inside(via.sent_by, bytes);
    inside(via.rport_span.unwrap_or_default(), bytes);
    inside(via.received_span.unwrap_or_default(), bytes);
    assert!(via.params_end as usize <= bytes.len());
    let _ = via.param("branch");
    let _ = (via.host_ip(), via.received_ip(), via.rport_port());
}

/// A name-addr that is accepted has its URI where it says.
pub(crate) fn route(bytes: &[u8]) {
    let Some(route) = NameAddr::parse(bytes) else { return };
    assert_eq!(route.uri_span.of(bytes), route.uri);
    inside(route.param_span("tag").unwrap_or_default(), bytes);
    let _ = route.tag();
}

/// Where the network cuts a stream does not matter: cut by its own bytes, it yields the same messages.
pub(crate) fn stream(bytes: &[u8]) {
    let whole = frames(bytes, &[usize::MAX]);
    let steps: Vec<usize> = bytes.iter().take(16).map(|it| usize::from(*it) + 1).collect();
    assert_eq!(frames(bytes, &steps), whole, "cut by {steps:?}");
    assert_eq!(frames(bytes, &[1]), whole, "byte by byte");
}

/// The messages and the error of a stream that arrives in pieces of these lengths, in turn.
fn frames(bytes: &[u8], steps: &[usize]) -> (Vec<Vec<u8>>, bool) {
    let mut framer = Framer::new(4096);
    let (mut messages, mut start, mut arrived, mut turn) = (Vec::new(), 0, 0, 0);
    loop {
        match framer.frame(&bytes[start..arrived]) {
            Err(_) => return (messages, true),
            Ok(Frame::NeedMore) if arrived == bytes.len() => return (messages, false),
            Ok(Frame::NeedMore) => {
                let step = steps.get(turn % steps.len().max(1)).copied().unwrap_or(1);
                arrived = arrived.saturating_add(step).min(bytes.len());
                turn += 1;
            }
            Ok(Frame::Ping { bytes } | Frame::Blank { bytes }) => {
                assert!(bytes > 0);
                start += bytes;
            }
            Ok(Frame::Message(message)) => {
                assert!(!message.is_empty());
                messages.push(message.to_vec());
                start += message.len();
            }
        }
    }
}

/// A PDU crosses with its number changed and nothing else; a bind that can be read can be written.
pub(crate) fn smpp(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let pdu = match frame(rest) {
            Ok(pdu::Frame::Pdu(pdu)) => pdu,
            Ok(pdu::Frame::NeedMore { bytes }) => {
                assert!(bytes > 0);
                break;
            }
            Err(_) => break,
        };
        let length = pdu.bytes().len();
        assert!(length >= pdu::HEADER_BYTES && length <= rest.len());
        let mut out = b"in front".to_vec();
        pdu.append_as(0x0102_0304, &mut out);
        let crossed = out.get(8..).unwrap();
        assert_eq!(crossed.len(), length);
        let is_number = |at: usize| (12..16).contains(&at);
        let differs = |at: &usize| crossed[*at] != pdu.bytes()[*at];
        assert!((0..length).filter(differs).all(is_number));
        if let Some(bind) = Bind::read(pdu.body()) {
            let mut written = Vec::new();
            write_bind(Command::BIND_RECEIVER, 1, &bind, &mut written);
            assert!(Bind::read(&written[pdu::HEADER_BYTES..]) == Some(bind));
        }
        if let Some(message) = ShortMessage::read(pdu) {
            message.segment_of();
            message.receipt_of();
        }
        message_id(pdu);
        congestion_state(pdu);
        rest = &rest[length..];
    }
}

/// Any file is either understood or complained about, in lines that name it.
pub(crate) fn properties(bytes: &[u8]) {
    load(bytes);
}

/// As [`properties`], with an XML file's beginning in front so that most inputs reach that reader.
pub(crate) fn xml(bytes: &[u8]) {
    load(bytes);
    load(&[b"<load-balancer-properties>", bytes, b"</load-balancer-properties>"].concat());
}

/// Whatever a client of RMI says, in whatever pieces, is answered alike or ends the connection, and
/// neither is kept nor answered beyond its bounds.
pub(crate) fn rmi(bytes: &[u8]) {
    // Most inputs would not get past the greeting.
    for greeting in [&b""[..], b"JRMI\0\x02K\0\x09127.0.0.1\0\0\0\0"] {
        let whole = dialogue(&[greeting, bytes].concat(), usize::MAX);
        assert_eq!(dialogue(&[greeting, bytes].concat(), 1), whole, "byte by byte");
        let step = bytes.first().map_or(3, |it| usize::from(*it) + 2);
        assert_eq!(dialogue(&[greeting, bytes].concat(), step), whole, "by {step}");
    }
}

/// Answers, events, and whether the connection goes on.
fn dialogue(bytes: &[u8], step: usize) -> (Vec<u8>, Vec<jrmp::Event>, bool) {
    let uid = jrmp::Uid { unique: 1, time: 2, count: 3 };
    let stub = jrmp::Stub { host: "127.0.0.1".to_owned(), port: 2001, object: 4711, uid };
    let peer = std::net::SocketAddr::from(([127, 0, 0, 1], 40_000));
    let mut connection = jrmp::Connection::new(Time::ZERO, peer, stub, uid);
    let (mut out, mut events) = (Vec::new(), Vec::new());
    for piece in bytes.chunks(step.min(bytes.len()).max(1)) {
        let flow = connection.handle_bytes(Time::ZERO, piece, &mut out);
        events.extend(std::iter::from_fn(|| connection.poll_event()));
        assert!(connection.held_bytes() <= jrmp::CALL_BYTES_MAX + piece.len());
        assert!(out.len() <= 16 * bytes.len() + 64, "{} for {}", out.len(), bytes.len());
        if flow != Ok(jrmp::Flow::Open) {
            // What is in `out` need not be sent after an error, so it may differ by how it was cut.
            return (if flow.is_ok() { out } else { Vec::new() }, events, false);
        }
    }
    for event in &events {
        if let jrmp::Event::Ping(nodes) | jrmp::Event::ForceRemoval(nodes) = event {
            for words in nodes {
                let _ = Announcement::from_words(Source::Rmi, words.clone());
            }
        }
    }
    (out, events, true)
}

/// A request is a command, is refused, or is not complete; a command has an answer that is JSON.
pub(crate) fn json(bytes: &[u8]) {
    let command = |body: &[u8]| {
        let Ok(command) = json::Command::parse(body) else { return };
        let mut out = Vec::new();
        json::answer(command.name(), true, &mut out);
        assert!(out.starts_with(b"{\"") && out.ends_with(b":\"OK\"}"));
        if let json::Command::Start(words) = command
            && let Ok(said) = Announcement::from_words(Source::Json, words)
        {
            assert!(said.session.is_none_or(|it| !it.is_empty()));
        }
    };
    command(bytes);
    match post::Request::default().handle_bytes(bytes) {
        Ok(Some(body)) => {
            assert!(body.len() <= bytes.len());
            command(&body);
        }
        Ok(None) => {}
        Err(why) => assert!((400..500).contains(&why.status())),
    }
    let mut request = Vec::new();
    post::request(std::net::SocketAddr::from(([127, 0, 0, 1], 1)), bytes, &mut request);
    let read = post::Request::default().handle_bytes(&request);
    let read = read.unwrap_or_else(|it| panic!("{it}"));
    assert_eq!(read.as_deref(), Some(bytes), "what we post can be read");
}

/// The body of a SIP heartbeat names a node with an address and a port, or why it does not.
pub(crate) fn beat(bytes: &[u8]) {
    match Announcement::parse(bytes) {
        Ok(said) => {
            assert!(!said.host_name.is_empty() && said.properties.contains_key("ip"));
            assert_eq!(said.key(), said.clone().key());
        }
        Err(why) => assert!(why.to_string().starts_with("Heartbeat ")),
    }
}

fn load(bytes: &[u8]) {
    let loaded = config::load("lb.properties", bytes, &[]);
    for finding in &loaded.findings {
        assert!(loaded.line(finding).starts_with("lb.properties"));
    }
    assert!(!config::check(&loaded).is_empty());
}

fn inside(span: Span, bytes: &[u8]) {
    let range = span.range();
    assert!(range.start <= range.end && range.end <= bytes.len(), "{span:?} of {}", bytes.len());
}

/// A head ends at one place, however it comes; what is passed on of it says the same when it is read again,
/// without a second edit of its framing; and its body ends at one place, however that comes.
pub(crate) fn http(bytes: &[u8]) {
    let whole = head_of(bytes);
    let mut scan = Scan::NEW;
    let first = (0..=bytes.len()).find_map(|end| scan.head(&bytes[..end]).transpose());
    match first {
        None => assert_eq!(whole, Ok(None)),
        Some(decided) => assert_eq!(whole, decided.map(Some)),
    }
    let Ok(Some(length)) = whole else { return };
    let (head, rest) = bytes.split_at(length);
    let (mut edits, mut out) = (Edits::new(), Vec::new());
    if let Ok(request) = Request::parse(head, &mut edits)
        && edited(&mut edits, head, &mut out)
    {
        let again = Request::parse(&out, &mut Edits::new());
        let again = again.unwrap_or_else(|it| panic!("{it:?}: {}", String::from_utf8_lossy(&out)));
        assert_eq!((again.method, again.framing), (request.method, request.framing));
        assert_eq!(again.target.of(&out), request.target.of(head));
        // Without any it stays HTTP/1.0, or nobody could read it again.
        assert_eq!(again.host.map(|it| it.of(&out)), request.host.map(|it| it.of(head)));
        assert_eq!(head_of(&out), Ok(Some(out.len())), "one head, no more");
        http_body(request.framing, rest);
    }
    for method in [Method::Get, Method::Head] {
        edits.clear();
        out.clear();
        let Ok(response) = Response::parse(head, method, &mut edits) else { continue };
        if !edited(&mut edits, head, &mut out) {
            continue;
        }
        let again = Response::parse(&out, method, &mut Edits::new());
        let again = again.unwrap_or_else(|it| panic!("{it:?}: {}", String::from_utf8_lossy(&out)));
        assert_eq!((again.status, again.framing), (response.status, response.framing));
        assert_eq!(head_of(&out), Ok(Some(out.len())), "one head, no more");
        http_body(response.framing, rest);
    }
}

/// Whether it could be edited. The relay refuses one with more edits than there is room for, which takes
/// more lines than that.
fn edited(edits: &mut Edits, head: &[u8], out: &mut Vec<u8>) -> bool {
    let result = edits.apply(head, out);
    assert!(result.is_ok() || head.iter().filter(|it| **it == b'\n').count() > EDITS_MAX);
    result.is_ok()
}

/// All of it at once.
fn head_of(bytes: &[u8]) -> Result<Option<usize>, Malformed> {
    let mut scan = Scan::NEW;
    scan.head(bytes)
}

fn http_body(framing: Framing, bytes: &[u8]) {
    let mut whole = Body::new(framing);
    let taken = whole.take(bytes);
    let (mut pieces, mut at, mut content) = (Body::new(framing), 0, 0);
    while at < bytes.len() {
        let end = (at + 1 + at % 3).min(bytes.len());
        let Ok(taken) = pieces.take(&bytes[at..end]) else {
            assert!(taken.is_err(), "broken in pieces alone");
            return;
        };
        at += taken.bytes;
        content += taken.content;
        if taken.bytes == 0 {
            break;
        }
    }
    let taken = taken.expect("broken as a whole alone");
    assert_eq!((taken.bytes, taken.content), (at, content));
    assert_eq!((whole.is_done(), whole.may_end_here()), (pieces.is_done(), pieces.may_end_here()));
}
