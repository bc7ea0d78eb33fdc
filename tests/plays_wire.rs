//! Exact wire shapes of SIP over UDP with two legs (`sip.md` 0, 2.5, 2.6, 2.7, 2.9, 2.10): which lines the
//! balancer adds, changes and removes, in which order, and that everything else stays byte for byte.

use tests::{Balancer, Dialog, Message, Node, Peer, Setup, first_to_get, param};

/// One balancer, one node, one client.
fn stage() -> (Balancer, Node, Peer) {
    let lb = Setup::two_entry().start();
    let node = lb.nodes(1).remove(0);
    let caller = lb.caller("alice");
    (lb, node, caller)
}

fn sent_by(via: &str) -> &str {
    via.split_whitespace().nth(1).and_then(|it| it.split(';').next()).unwrap_or_default()
}

fn branch(via: &str) -> String {
    param(via, "branch").unwrap_or_default()
}

/// Both Record-Route values, top first, as the leg that a request leaves from orders them.
fn stamped(lb: &Balancer, node: &Peer, top_is_internal: bool) -> [String; 2] {
    let port = node.address().port();
    let stamp = format!("transport=udp;lr;node_host=127.0.0.1;node_port={port};version=0");
    let [mut top, mut below] = [lb.internal, lb.external].map(|it| format!("<sip:{it};{stamp}>"));
    if !top_is_internal {
        std::mem::swap(&mut top, &mut below);
    }
    [top, below]
}

#[test]
fn an_initial_invite_gets_two_vias_two_record_routes_a_route_and_its_senders_address() {
    let (lb, node, caller) = stage();
    let invite = caller.request("INVITE", "sip:bob@example.com");
    caller.send(&invite);
    let got = node.expect("INVITE");

    assert_eq!(got.uri(), "sip:bob@example.com");
    let vias = got.vias();
    let senders: Vec<&str> = vias.iter().map(|it| sent_by(it)).collect();
    let [internal, external] = [lb.internal, lb.external].map(|it| it.to_string());
    assert_eq!(senders, [internal.as_str(), &external, &caller.address().to_string()]);
    for via in &vias[..2] {
        assert!(via.starts_with("SIP/2.0/UDP "), "{via}");
        assert!(branch(via).starts_with("z9hG4bK") && branch(via).ends_with("_0"), "{via}");
    }
    assert_ne!(branch(vias[0]), branch(vias[1]), "the two legs are two hops");
    assert_eq!(branch(vias[2]), branch(invite.vias()[0]));
    assert_eq!(param(vias[2], "received").as_deref(), Some("127.0.0.1"));
    assert_eq!(param(vias[2], "rport"), Some(caller.address().port().to_string()));

    assert_eq!(got.record_routes(), stamped(&lb, &node, true));
    assert_eq!(got.routes(), [format!("<sip:{};transport=udp;lr>", node.address())]);
    assert_eq!(got.header("Max-Forwards"), "69");
    assert_eq!(got.all("X-Sip-Balancer-InitialRemoteAddr"), ["127.0.0.1"]);
    let port = caller.address().port().to_string();
    assert_eq!(got.all("X-Sip-Balancer-InitialRemotePort"), [port.as_str()]);
    assert_eq!(got.source, lb.internal, "sent from the internal socket");
}

#[test]
fn a_request_to_the_balancer_itself_is_readdressed_to_the_node_without_a_route() {
    let (lb, node, caller) = stage();
    for uri in [
        format!("sip:bob@{}", lb.external),
        format!("sip:bob@{};transport=udp", lb.external),
        format!("sip:bob@{};user=phone", lb.external),
    ] {
        caller.send(&caller.request("OPTIONS", &uri));
        let got = node.expect("OPTIONS");
        assert!(
            got.uri().starts_with(&format!("sip:bob@{}", node.address())),
            "{uri}: {}",
            got.uri()
        );
        assert!(got.routes().is_empty(), "{uri}: {:?}", got.routes());
        assert!(got.record_routes().is_empty(), "{uri}: OPTIONS makes no dialog");
    }
}

#[test]
fn a_response_loses_the_two_vias_of_the_balancer_and_nothing_else() {
    let (lb, node, caller) = stage();
    let mut twice = caller.request("INVITE", "sip:bob@example.com");
    twice.headers.insert(1, ("Via".into(), "SIP/2.0/UDP 192.0.2.9:5062;branch=z9hG4bKdeep".into()));
    caller.send(&twice);
    let got = node.expect("INVITE");

    for (code, reason) in [(100, "Trying"), (180, "Ringing"), (183, "x"), (200, "OK"), (699, "No")]
    {
        let reply =
            got.reply(code, reason).with("X-Odd", "a  b").with_body("a/b", b"\0\xff\r\n".to_vec());
        node.respond(&got, &reply);
        let back = caller.expect(&code.to_string());
        let sent = String::from_utf8_lossy(&reply.to_bytes()).into_owned();
        let without_ours: Vec<&str> = sent
            .split("\r\n")
            .filter(|it| !it.contains(&format!("UDP {};", lb.internal)))
            .filter(|it| !it.contains(&format!("UDP {};", lb.external)))
            .collect();
        assert_eq!(String::from_utf8_lossy(&back.raw), without_ours.join("\r\n"), "{code}");
        assert_eq!(back.vias().len(), 2, "{code}");
        assert_eq!(back.source, lb.external, "{code}: from the socket that took the request in");
    }
}

#[test]
fn vias_joined_in_one_line_are_understood_in_both_directions() {
    let (_lb, node, caller) = stage();
    let plain = caller.request("INVITE", "sip:bob@example.com");
    let joined = format!("{} , SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKdeep", plain.vias()[0]);
    caller.send(&plain.set("Via", joined));
    let got = node.expect("INVITE");
    assert_eq!(got.vias().len(), 4);
    assert_eq!(sent_by(got.vias()[3]), "192.0.2.9");

    let reply = got.reply(180, "Ringing");
    let all = reply.vias().join(", ");
    let reply = reply.without("Via").set("v", all);
    node.respond(&got, &reply);
    let back = caller.expect("180");
    assert_eq!(back.vias(), got.vias()[2..]);
}

#[test]
fn in_dialog_requests_of_the_caller_lose_both_routes_and_gain_only_vias() {
    let (lb, node, caller) = stage();
    node.answers_calls();
    let mut dialog = caller.call("sip:bob@example.com");
    assert_eq!(dialog.routes.len(), 2);
    for method in ["ACK", "INFO", "UPDATE", "REFER", "MESSAGE", "BYE"] {
        let request = if method == "ACK" { dialog.ack() } else { dialog.request(method) };
        caller.send(&request);
        let cseq = request.header("CSeq").to_owned();
        let got = node.expect_where(method, |it| {
            it.is(method)
                && it.header("CSeq") == cseq
                && it.vias()[2].contains(&branch(request.vias()[0]))
        });
        assert!(got.routes().is_empty(), "{method}: {:?}", got.routes());
        assert!(got.record_routes().is_empty(), "{method}");
        assert_eq!(got.uri(), node.uri(), "{method}: the remote target is not touched");
        assert_eq!(got.find("X-Sip-Balancer-InitialRemoteAddr"), None, "{method} has no body");
        assert_eq!(got.header("Max-Forwards"), "69", "{method}");
        let senders: Vec<&str> = got.vias().iter().map(|it| sent_by(it)).collect();
        assert_eq!(senders[..2], [lb.internal.to_string(), lb.external.to_string()], "{method}");
    }
}

#[test]
fn in_dialog_requests_of_the_node_leave_by_the_external_leg_to_the_callers_contact() {
    let (lb, node, caller) = stage();
    caller.answers(|it| if it.is("BYE") { vec![it.reply(200, "OK")] } else { vec![] });
    caller.send(&caller.request("INVITE", "sip:bob@example.com"));
    let got = node.expect("INVITE");
    let ok = node.reply(&got, 200, "OK");
    caller.expect("200 INVITE");
    let mut dialog = Dialog::of_callee(&node, &got, &ok);
    let bye = dialog.request("BYE");
    assert_eq!(bye.routes().len(), 2);
    node.send(&bye);

    let bye = caller.expect("BYE");
    assert!(bye.routes().is_empty(), "{:?}", bye.routes());
    assert_eq!(bye.uri(), caller.uri());
    let senders: Vec<&str> = bye.vias().iter().map(|it| sent_by(it)).collect();
    let expected = [lb.external, lb.internal, node.address()].map(|it| it.to_string());
    assert_eq!(senders, expected);
    assert_ne!(branch(bye.vias()[0]), branch(bye.vias()[1]));
    assert_eq!(bye.source, lb.external);
    assert_eq!(node.expect("200 BYE").vias().len(), 1);
}

#[test]
fn a_call_from_a_node_is_stamped_with_that_node_and_its_in_dialog_requests_come_back_to_it() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(3);
    let callee = lb.caller("bob");
    let node = &nodes[1];
    let invite = node.request("INVITE", &callee.uri()).with("Route", lb.node_route(node)).with(
        "X-Sip-Balancer-InitialRemoteAddr",
        "10.0.0.1", // a node that relays a request it got must not tell the world who sent it
    );
    node.send(&invite);

    let got = callee.expect("INVITE");
    assert!(got.routes().is_empty(), "{:?}", got.routes());
    assert_eq!(got.record_routes(), stamped(&lb, node, false));
    assert_eq!(got.uri(), callee.uri());
    assert_eq!(got.find("X-Sip-Balancer-InitialRemoteAddr"), None);
    assert_eq!(got.find("X-Sip-Balancer-InitialRemotePort"), None);

    let ok = callee.reply(&got, 200, "OK");
    let ok_at_node = node.expect("200 INVITE");
    assert_eq!(ok_at_node.header("X-Sip-Balancer-InitialRemoteAddr"), "127.0.0.1");
    let port = callee.address().port().to_string();
    assert_eq!(ok_at_node.header("X-Sip-Balancer-InitialRemotePort"), port);
    assert_eq!(ok_at_node.vias().len(), 1);

    callee.send(&Dialog::of_callee(&callee, &got, &ok).request("BYE"));
    assert_eq!(first_to_get(&nodes, "BYE").0, 1);
}

#[test]
fn what_is_not_ours_crosses_byte_for_byte() {
    let (lb, node, caller) = stage();
    let address = caller.address();
    let head = format!(
        "INVITE sip:bob@example.com;x=%41?h=v SIP/2.0\r\n\
         Via: SIP/2.0/UDP {address};branch=z9hG4bKodd;rport\r\n\
         vIA :  SIP/2.0/TCP  old.example.com ; branch=z9hG4bKold\r\n\
         X-First:\r\n\
         FROM: \"A \\\" , <x>\" <sip:a@here.com>;tag=1;x=\"y;z\"\r\n\
         to:<sip:bob@example.com>\r\n\
         i: odd-{address}\r\n\
         CSeq:   1    INVITE\r\n\
         Max-Forwards: 70\r\n\
         X-Folded: one\r\n   two\r\n\tthree\r\n\
         Identity:\"aGVsbG8=\"\r\n\
         Identity-Info: <https://example.com/cert>;alg=rsa-sha1\r\n\
         m: <sip:alice@{address}>\r\n\
         UTF8: \u{442}\u{435}\u{441}\u{442}\r\n\
         c: application/x-binary\r\n\
         l: 9\r\n\r\n"
    );
    let body = b"\0\xff\r\n\r\nVia";
    caller.send_bytes(lb.external, &[head.as_bytes(), body].concat());
    let got = node.expect("INVITE");

    let head_length = got.raw.len() - body.len();
    assert_eq!(&got.raw[head_length..], body);
    let crossed = String::from_utf8(got.raw[..head_length].to_vec()).unwrap();
    let ours = [lb.internal.to_string(), lb.external.to_string(), address.to_string()];
    let is_ours = |line: &str| {
        let is_via_or_route = ["Via: ", "Record-Route: "].iter().any(|it| line.starts_with(it));
        is_via_or_route && ours.iter().any(|it| line.contains(it))
            || line.starts_with("Route: ")
            || line.starts_with("X-Sip-Balancer-")
            || line.starts_with("Max-Forwards: ")
    };
    let foreign = |text: &str| {
        text.split("\r\n").filter(|it| !is_ours(it)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(foreign(&crossed), foreign(&head));
}

#[test]
fn a_clients_own_x_sip_balancer_headers_never_reach_a_node() {
    let (_lb, node, caller) = stage();
    let lie = |it: Message| {
        it.with("X-Sip-Balancer-InitialRemoteAddr", "10.1.1.1")
            .with("x-sip-balancer-initialremoteport", "1")
    };
    for (method, is_added) in [("INVITE", true), ("REGISTER", true), ("OPTIONS", false)] {
        caller.send(&lie(caller.request(method, "sip:bob@example.com")));
        let got = node.expect(method);
        let addresses = got.all("X-Sip-Balancer-InitialRemoteAddr");
        let ports = got.all("X-Sip-Balancer-InitialRemotePort");
        if is_added {
            assert_eq!(addresses, ["127.0.0.1"], "{method}");
            assert_eq!(ports, [caller.address().port().to_string()], "{method}");
        } else {
            assert!(addresses.is_empty() && ports.is_empty(), "{method}: {addresses:?} {ports:?}");
        }
    }
}

#[test]
fn a_register_gets_its_senders_address_but_no_record_route_and_no_path() {
    let (_lb, node, caller) = stage();
    caller.send(&caller.request("REGISTER", "sip:example.com"));
    let got = node.expect("REGISTER");
    assert_eq!(got.header("X-Sip-Balancer-InitialRemoteAddr"), "127.0.0.1");
    assert!(got.record_routes().is_empty() && got.find("Path").is_none());
    let contact = "<sip:alice@10.0.0.7:5099;ob>;expires=60;q=0.5;+sip.instance=\"<urn:uuid:1>\"";
    node.respond(&got, &got.reply(200, "OK").with("Contact", contact));
    assert_eq!(caller.expect("200 REGISTER").header("Contact"), contact);
}

#[test]
fn received_and_rport_are_written_as_rfc_3581_says() {
    let (_lb, node, mut caller) = stage();
    let address = caller.address();
    let port = address.port();
    // sent-by and parameters of the client, `received` and `rport` at the node
    let cases = [
        (format!("{address}"), "", None, None),
        (format!("{address}"), ";rport", Some("127.0.0.1"), Some(port.to_string())),
        (format!("10.9.8.7:{port}"), "", Some("127.0.0.1"), None),
        (format!("client.invalid:{port}"), "", Some("127.0.0.1"), None),
        ("10.9.8.7:9".to_owned(), ";rport", Some("127.0.0.1"), Some(port.to_string())),
        (format!("[2001:db8::9]:{port}"), "", Some("127.0.0.1"), None),
        (format!("10.9.8.7:{port}"), ";received=1.2.3.4", Some("127.0.0.1"), None),
    ];
    caller.asks_rport = false;
    for (host, parameters, received, rport) in cases {
        let case = format!("{host}{parameters}");
        let request = caller.request("OPTIONS", "sip:bob@example.com");
        let via = request.vias()[0].replace(&address.to_string(), &host) + parameters;
        caller.send(&request.set("Via", via));
        let got = node.expect("OPTIONS");
        let bottom = got.vias()[2].to_owned();
        assert_eq!(param(&bottom, "received").as_deref(), received, "{case}: {bottom}");
        assert_eq!(param(&bottom, "rport"), rport, "{case}: {bottom}");
        assert_eq!(sent_by(&bottom), host, "{case}");
        node.reply(&got, 200, "OK");
        caller.expect("200 OPTIONS");
    }
}

#[test]
fn max_forwards_counts_down_and_runs_out_with_483() {
    let (_lb, node, caller) = stage();
    for (given, expected) in
        [(Some("70"), "69"), (Some("1"), "0"), (Some("255"), "254"), (None, "70")]
    {
        let mut request = caller.request("MESSAGE", "sip:bob@example.com").without("Max-Forwards");
        if let Some(given) = given {
            request = request.with("Max-Forwards", given);
        }
        caller.send(&request);
        assert_eq!(node.expect("MESSAGE").header("Max-Forwards"), expected, "{given:?}");
    }

    let spent = caller.request("INVITE", "sip:bob@example.com").set("Max-Forwards", "0");
    caller.send(&spent);
    let refusal = caller.expect("483");
    assert!(refusal.tag("To").is_some(), "{}", refusal.message);
    assert_eq!(refusal.vias().len(), 1);
    assert_eq!(refusal.header("CSeq"), "1 INVITE");
    let ack = caller.request("ACK", "sip:bob@example.com").set("Max-Forwards", "0");
    caller.send(&ack);
    caller.send(&caller.request("OPTIONS", "sip:bob@example.com"));
    node.expect("OPTIONS"); // whatever came before it would be here by now
    assert_eq!(
        (node.count("INVITE"), node.count("ACK")),
        (0, 0),
        "a spent request is not forwarded"
    );
    assert_eq!(caller.count("483"), 1, "an ACK is never answered");
}

#[test]
fn a_retransmission_is_forwarded_as_the_very_same_bytes_to_the_same_node() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(3);
    let caller = lb.caller("alice");
    let invite = caller.request("INVITE", "sip:bob@example.com");
    caller.send(&invite);
    let (at, first) = first_to_get(&nodes, "INVITE");
    for _ in 0..5 {
        caller.send(&invite);
        let again = nodes[at].expect("INVITE");
        assert_eq!(String::from_utf8_lossy(&again.raw), String::from_utf8_lossy(&first.raw));
    }
}

#[test]
fn cancel_and_the_ack_of_a_refusal_carry_the_branches_of_their_invite() {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(3);
    let caller = lb.caller("alice");
    let invite = caller.request("INVITE", "sip:bob@example.com");
    caller.send(&invite);
    let (at, got) = first_to_get(&nodes, "INVITE");
    let ours = |it: &Message| it.vias()[..2].iter().map(|via| branch(via)).collect::<Vec<_>>();

    let sibling = |method: &str| {
        let mut it = invite.clone().set("CSeq", format!("1 {method}")).without("Content-Type");
        it.body.clear();
        it.start = it.start.replace("INVITE", method);
        it
    };
    caller.send(&sibling("CANCEL"));
    let cancel = nodes[at].expect("CANCEL");
    assert_eq!(ours(&cancel), ours(&got));
    assert_eq!(cancel.header("Max-Forwards"), "69");
    assert!(cancel.record_routes().is_empty());

    nodes[at].reply(&cancel, 200, "OK");
    nodes[at].reply(&got, 487, "Request Terminated");
    let refusal = caller.expect("487");
    caller.send(&sibling("ACK").set("To", refusal.header("To")));
    let ack = nodes[at].expect("ACK");
    assert_eq!(ours(&ack), ours(&got));
    assert!(ack.record_routes().is_empty());
}

#[test]
fn different_transactions_have_different_branches() {
    let (_lb, node, caller) = stage();
    let mut branches = std::collections::BTreeSet::new();
    for _ in 0..20 {
        caller.send(&caller.request("OPTIONS", "sip:bob@example.com"));
        let got = node.expect("OPTIONS");
        branches.extend(got.vias()[..2].iter().map(|it| branch(it)));
    }
    assert_eq!(branches.len(), 40);
}

#[test]
fn clients_without_the_magic_cookie_get_branches_of_their_own() {
    let (_lb, node, caller) = stage();
    let address = caller.address();
    let old_style = |via_parameters: &str, cseq: u32| {
        let via = format!("SIP/2.0/UDP {address}{via_parameters}");
        caller
            .request("INVITE", "sip:bob@example.com")
            .set("Via", via)
            .set("Call-ID", format!("rfc2543-{address}"))
            .set("From", "<sip:a@here.com>;tag=1")
            .set("CSeq", format!("{cseq} INVITE"))
    };
    let mut branches = Vec::new();
    for (parameters, cseq) in [("", 1), (";branch=1", 2), ("", 3), ("", 1)] {
        caller.send(&old_style(parameters, cseq));
        let got = node.expect("INVITE");
        branches.push(branch(got.vias()[0]));
        node.reply(&got, 180, "Ringing");
        caller.expect("180");
    }
    assert_eq!(branches[0], branches[3], "a retransmission");
    let different: std::collections::BTreeSet<_> = branches.iter().collect();
    assert_eq!(different.len(), 3, "{branches:?}");
}
