//! Carriers by name (RFC 3263): in a network namespace, where a pretend name server has its port, and a
//! mount namespace, where `/etc/resolv.conf` names it.

use std::net::Ipv4Addr;

use tests::name_server::{A, NAPTR, NameServer, SRV};
use tests::{Namespaces, Peer, Setup};

#[test]
fn a_route_by_name_leads_to_its_first_carrier_and_to_the_next_when_that_is_gone() {
    const ENTER: &str = "mount --bind \"$0\" /etc/resolv.conf && exec \"$@\"";
    let Some(net) = Namespaces::new(&["lb"]) else { return };
    let file = std::env::temp_dir().join(format!("trunkline-resolv-{}", std::process::id()));
    std::fs::write(&file, "nameserver 127.0.0.1\n").unwrap();
    net.inside("lb", || {
        let mut carriers = ["first", "second"].map(Peer::bind);
        let [first, second] = [&carriers[0], &carriers[1]].map(|it| it.address().port());
        let service = "_sip._udp.carrier.example";
        let names = NameServer::start(
            "127.0.0.1:53".parse().unwrap(),
            vec![
                NameServer::naptr("carrier.example", 2, "SIP+D2T", "_sip._tcp.carrier.example"),
                NameServer::naptr("carrier.example", 1, "SIP+D2U", service),
                NameServer::srv(service, 2, second, "b.carrier.example"),
                NameServer::srv(service, 1, first, "a.carrier.example"),
                NameServer::a("a.carrier.example", Ipv4Addr::LOCALHOST),
                NameServer::a("b.carrier.example", Ipv4Addr::LOCALHOST),
            ],
        );
        let lb = Setup::two_entry()
            .through(&["unshare", "--mount", "sh", "-c", ENTER, &file.display().to_string()])
            .start();
        let nodes = lb.nodes(1);
        let call = || {
            let invite = nodes[0].request("INVITE", "sip:bob@example.com");
            let invite = invite.with("Route", "<sip:carrier.example;lr>");
            nodes[0].send_to(lb.internal, &invite);
            invite.call_id().to_owned()
        };
        let got = carriers[0].expect_in(&call(), "INVITE");
        assert_eq!(got.routes(), ["<sip:carrier.example;lr>"], "a name stays a name");
        let asked = names.asked();
        let at = |kind, name: &str| {
            let is_it = |it: &(u16, String)| *it == (kind, name.to_owned());
            asked.iter().position(is_it).unwrap_or_else(|| panic!("no {name} in {asked:?}"))
        };
        let order = [at(NAPTR, "carrier.example"), at(SRV, service), at(A, "a.carrier.example")];
        assert!(order.is_sorted(), "{asked:?}");

        carriers[0].close();
        for _ in 0..3 {
            carriers[1].expect_in(&call(), "INVITE");
        }
        assert_eq!(lb.sum_of("trunkline_sip_dropped_total"), 0, "{}", lb.metrics());
    });
    std::fs::remove_file(file).unwrap();
}
