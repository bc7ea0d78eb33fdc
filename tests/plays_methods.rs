//! Every method of a call finds the node that has the call (`sip.md` 2.3, second table, and 6.7), with
//! three nodes so that luck shows, and the bodies of a user agent that follows its route set.

use tests::{Balancer, Dialog, Message, Node, Peer, Received, Setup, first_to_get, who_got};

fn stage() -> (Balancer, Vec<Node>, Peer) {
    let lb = Setup::two_entry().start();
    let nodes = lb.nodes(3);
    let caller = lb.caller("alice");
    (lb, nodes, caller)
}

/// Places enough calls that every node has one; gives the last one of node `at`.
fn ringing(nodes: &[Node], caller: &Peer) -> (usize, Message, Received) {
    for _ in 0..nodes.len() - 1 {
        caller.send(&caller.request("INVITE", "sip:other@example.com"));
        first_to_get(nodes, "INVITE");
    }
    let invite = caller.request("INVITE", "sip:bob@example.com");
    caller.send(&invite);
    let (at, got) = first_to_get(nodes, "INVITE");
    (at, invite, got)
}

/// The same transaction's CANCEL or ACK.
fn sibling(invite: &Message, method: &str) -> Message {
    let mut it = invite.clone().without("Content-Type").set("CSeq", format!("1 {method}"));
    it.body.clear();
    it.start = it.start.replace("INVITE", method);
    it
}

#[test]
fn a_cancel_finds_the_node_of_its_invite_and_the_call_ends() {
    let (_lb, nodes, caller) = stage();
    let (at, invite, got) = ringing(&nodes, &caller);
    nodes[at].reply(&got, 180, "Ringing");
    caller.expect_in(invite.call_id(), "180");
    caller.send(&sibling(&invite, "CANCEL"));
    let cancel = nodes[at].expect("CANCEL");
    nodes[at].reply(&cancel, 200, "OK");
    nodes[at].reply(&got, 487, "Request Terminated");
    caller.expect("200 CANCEL");
    let refusal = caller.expect("487 INVITE");
    caller.send(&sibling(&invite, "ACK").set("To", refusal.header("To")));
    nodes[at].expect("ACK");
    assert_eq!(who_got(&nodes, invite.call_id(), "CANCEL"), [at]);
    assert_eq!(who_got(&nodes, invite.call_id(), "ACK"), [at]);
}

#[test]
fn the_ack_of_every_kind_of_refusal_finds_the_node() {
    let (_lb, nodes, caller) = stage();
    for code in [302, 401, 404, 486, 500, 603] {
        let (at, invite, got) = ringing(&nodes, &caller);
        nodes[at].reply(&got, code, "No");
        let refusal = caller.expect(&code.to_string());
        caller.send(&sibling(&invite, "ACK").set("To", refusal.header("To")));
        nodes[at].expect_in(invite.call_id(), "ACK");
    }
}

#[test]
fn a_challenged_invite_is_sent_again_under_its_call_id_to_the_same_node() {
    let (_lb, nodes, caller) = stage();
    let (at, invite, got) = ringing(&nodes, &caller);
    nodes[at].reply(&got, 407, "Proxy Authentication Required");
    caller.expect("407");
    let again = invite.set("CSeq", "2 INVITE").set("Via", caller.via());
    caller.send(&again.with("Proxy-Authorization", "Digest username=\"a\""));
    nodes[at].expect("INVITE");
}

#[test]
fn reliable_provisional_responses_are_acknowledged_to_the_right_node() {
    let (_lb, nodes, caller) = stage();
    let (at, invite, got) = ringing(&nodes, &caller);
    let progress = got.reply(183, "Session Progress").with("Require", "100rel").with("RSeq", "1");
    nodes[at].respond(&got, &progress);
    let early = caller.expect("183");
    let mut dialog = Dialog::of_caller(&caller, &invite, &early);
    for method in ["PRACK", "UPDATE"] {
        caller.send(&dialog.request(method).with("RAck", "1 1 INVITE"));
        let request = nodes[at].expect(method);
        assert!(request.routes().is_empty(), "{method}: {:?}", request.routes());
        nodes[at].reply(&request, 200, "OK");
        caller.expect(&format!("200 {method}"));
    }
}

#[test]
fn a_reinvite_in_either_direction_stays_in_its_call_without_a_new_record_route() {
    let (_lb, nodes, caller) = stage();
    let (at, invite, got) = ringing(&nodes, &caller);
    let node = &nodes[at];
    let ok = node.reply(&got, 200, "OK");
    let answer = caller.expect("200 INVITE");
    let mut ours = Dialog::of_caller(&caller, &invite, &answer);
    let mut theirs = Dialog::of_callee(node, &got, &ok);
    caller.send(&ours.ack());
    node.expect("ACK");

    caller.send(&ours.request("INVITE").with_body("application/sdp", "v=0\r\n"));
    let reinvite = node.expect("INVITE");
    assert!(reinvite.record_routes().is_empty());
    assert_eq!(reinvite.header("X-Sip-Balancer-InitialRemoteAddr"), "127.0.0.1", "it has a body");
    node.reply(&reinvite, 200, "OK");
    caller.expect("200 INVITE");
    caller.send(&ours.ack());
    node.expect("ACK");

    node.send(&theirs.request("INVITE").with_body("application/sdp", "v=0\r\n"));
    let reinvite = caller.expect("INVITE");
    assert!(reinvite.record_routes().is_empty());
    assert_eq!(reinvite.find("X-Sip-Balancer-InitialRemoteAddr"), None);
    caller.reply(&reinvite, 200, "OK");
    node.expect("200 INVITE");
    node.send(&theirs.ack());
    caller.expect("ACK");
}

#[test]
fn a_subscription_records_its_route_and_notifies_cross_in_the_dialog() {
    let (_lb, nodes, caller) = stage();
    let subscribe = caller
        .request("SUBSCRIBE", "sip:bob@example.com")
        .with("Event", "presence")
        .with("Expires", "60");
    caller.send(&subscribe);
    let (at, got) = first_to_get(&nodes, "SUBSCRIBE");
    let node = &nodes[at];
    assert_eq!(got.record_routes().len(), 2, "SUBSCRIBE makes a dialog");
    let accepted = node.reply(&got, 200, "OK");
    let answer = caller.expect("200 SUBSCRIBE");
    let mut theirs = Dialog::of_callee(node, &got, &accepted);
    for _ in 0..3 {
        let notify = theirs.request("NOTIFY").with("Event", "presence");
        node.send(&notify.with("Subscription-State", "active"));
        let notify = caller.expect("NOTIFY");
        assert!(notify.record_routes().is_empty(), "a NOTIFY never records");
        caller.reply(&notify, 200, "OK");
        node.expect("200 NOTIFY");
    }
    let mut ours = Dialog::of_caller(&caller, &subscribe, &answer);
    caller.send(&ours.request("SUBSCRIBE").with("Event", "presence").with("Expires", "0"));
    let refresh = node.expect("SUBSCRIBE");
    assert!(refresh.record_routes().is_empty(), "a refresh makes no dialog");
}

#[test]
fn a_client_may_notify_a_node_that_subscribed_to_it() {
    let (lb, nodes, _) = stage();
    let (node, client) = (&nodes[2], lb.caller("phone"));
    node.send(&node.request("SUBSCRIBE", &client.uri()).with("Route", lb.node_route(node)));
    let got = client.expect("SUBSCRIBE");
    let ok = client.reply(&got, 200, "OK");
    node.expect("200 SUBSCRIBE");
    client.send(&Dialog::of_callee(&client, &got, &ok).request("NOTIFY"));
    assert_eq!(first_to_get(&nodes, "NOTIFY").0, 2);
}

#[test]
fn every_method_known_or_not_crosses_and_its_answer_returns() {
    let (_lb, nodes, caller) = stage();
    for node in &nodes {
        node.answers_calls();
    }
    for method in [
        "REGISTER",
        "OPTIONS",
        "MESSAGE",
        "PUBLISH",
        "INFO",
        "REFER",
        "NOTIFY",
        "KDMQ",
        "X-!%*_+`'~.",
    ] {
        let request = caller.request(method, "sip:bob@example.com");
        caller.send(&request);
        let ok = caller.expect_in(request.call_id(), &format!("200 {method}"));
        assert_eq!(who_got(&nodes, request.call_id(), method).len(), 1, "{method}");
        assert_eq!(ok.record_routes().len(), 0, "{method}");
    }
}

#[test]
fn a_tel_uri_is_routed_like_any_other() {
    let (_lb, nodes, caller) = stage();
    let uri = "tel:+1-201-555-0123;phone-context=example.com";
    caller.send(&caller.request("INVITE", uri));
    let (at, got) = first_to_get(&nodes, "INVITE");
    assert_eq!(got.uri(), uri);
    assert_eq!(got.routes(), [format!("<sip:{};transport=udp;lr>", nodes[at].address())]);
    nodes[at].reply(&got, 200, "OK");
    caller.expect("200 INVITE");
}

#[test]
fn compact_headers_work_through_a_whole_call() {
    let (_lb, nodes, caller) = stage();
    let shorten = |message: &Message| {
        let mut it = message.clone();
        for (name, _) in &mut it.headers {
            let short = [
                ("Via", "v"),
                ("From", "f"),
                ("To", "t"),
                ("Call-ID", "i"),
                ("Contact", "m"),
                ("Content-Type", "c"),
            ];
            if let Some((_, letter)) = short.iter().find(|(long, _)| long == name) {
                *name = (*letter).to_owned();
            }
        }
        it.headers.push(("l".to_owned(), it.body.len().to_string()));
        it
    };
    let invite = caller.request("INVITE", "sip:bob@example.com");
    caller.send(&shorten(&invite));
    let (at, got) = first_to_get(&nodes, "INVITE");
    assert_eq!(got.vias().len(), 3);
    nodes[at].respond(&got, &shorten(&got.reply(200, "OK")));
    let ok = caller.expect("200 INVITE");
    assert_eq!(ok.vias().len(), 1);
    let mut dialog = Dialog::of_caller(&caller, &invite, &ok);
    caller.send(&shorten(&dialog.ack()));
    caller.send(&shorten(&dialog.request("BYE")));
    nodes[at].expect("ACK");
    let bye = nodes[at].expect("BYE");
    nodes[at].respond(&bye, &shorten(&bye.reply(200, "OK")));
    caller.expect("200 BYE");
}

#[test]
fn an_in_dialog_request_without_its_routes_still_finds_the_node_by_its_contact() {
    let (_lb, nodes, caller) = stage();
    for node in &nodes {
        node.answers_calls();
    }
    for _ in 0..4 {
        let mut dialog = caller.call("sip:bob@example.com");
        dialog.routes.clear();
        caller.exchange(&mut dialog, "BYE");
        let at = who_got(&nodes, &dialog.call_id, "INVITE");
        assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), at);
    }
}
