use super::*;
use crate::config::load;
use crate::node::Node;
use crate::registry::Rules;

fn rules() -> PodRules {
    PodRules {
        node_name: "as".into(),
        pull_period: Duration::from_secs(5),
        own: vec!["10.0.0.9".parse().unwrap()],
    }
}

fn registry() -> Registry {
    let config = load("t", b"host=127.0.0.1\nexternalPort=5060\n", &[]).config;
    Registry::new(Time::ZERO, Rules::from(&config), &BTreeMap::new())
}

fn at(millis: u64) -> Time {
    Time::from_millis(millis)
}

/// A pod that runs and is ready, with its labels as `name=value` apart by blanks.
fn pod(name: &str, ip: &str, labels: &str) -> Pod {
    let labels = labels.split_whitespace().filter_map(|it| it.split_once('='));
    Pod {
        name: name.into(),
        uid: format!("uid-of-{name}"),
        ip: Some(ip.into()),
        phase: Phase::Running,
        containers: vec![Container { name: "as".into(), is_ready: true, restarts: 0 }],
        labels: labels.map(|(name, value)| (name.into(), value.into())).collect(),
        is_terminating: false,
    }
}

fn changed(pod: &Pod) -> PodEvent {
    PodEvent::Changed(Box::new(pod.clone()))
}

/// Names of the live nodes; those that leave have a star.
fn live(registry: &Registry) -> String {
    let name = |it: &Node| format!("{}{}", it.host_name, if it.graceful { "*" } else { "" });
    let mut names: Vec<String> = registry.live().map(name).collect();
    names.sort();
    names.join(" ")
}

const UDP: &str = "udpPort=5080 sessionId=7";

#[test]
fn a_pod_counts_if_all_of_it_says_so() {
    let good = || pod("as-0", "10.1.0.1", UDP);
    let with = |change: &dyn Fn(&mut Pod)| {
        let mut it = good();
        change(&mut it);
        it
    };
    let label = |name: &str, value: &str| {
        with(&|it| drop(it.labels.insert(name.to_owned(), value.to_owned())))
    };
    let cases = [
        ("as it should be", good(), "as-0"),
        ("label hostName", label("hostName", "n1"), "n1"),
        ("another name", with(&|it| it.name = "db-0".into()), ""),
        ("no session", with(&|it| drop(it.labels.remove("sessionId"))), "as-0"),
        ("pending", with(&|it| it.phase = Phase::Other), ""),
        ("ended", with(&|it| it.phase = Phase::Ended), ""),
        ("not ready", with(&|it| it.containers[0].is_ready = false), ""),
        ("another container is ready", with(&|it| it.containers[0].name = "log".into()), ""),
        ("for another balancer", label("lbs", "10.0.0.8"), ""),
        ("for us", label("lbs", "10.0.0.9"), "as-0"),
        ("for us and another", label("lbs", "10.0.0.8,10.0.0.9"), "as-0"),
        ("as labels allow it", label("lbs", "10.0.0.8_10.0.0.9"), "as-0"),
        ("no part of a longer address", label("lbs", "10.0.0.90"), ""),
        ("for all", label("lbs", ""), "as-0"),
        ("leaving before it came", label("graceful-shutdown", "true"), "as-0*"),
        ("not leaving", label("graceful-shutdown", "false"), "as-0"),
        ("ending before it came", with(&|it| it.is_terminating = true), "as-0*"),
        ("without address", with(&|it| it.ip = None), ""),
        ("without port", with(&|it| drop(it.labels.remove("udpPort"))), ""),
        ("HTTP alone", with(&|it| it.labels = pod("", "", "httpPort=80").labels), "as-0"),
    ];
    for (name, pod, want) in cases {
        for event in [changed(&pod), PodEvent::Listed(vec![pod])] {
            let (mut pods, mut registry) = (Pods::new(at(0), rules()), registry());
            pods.handle_event(at(0), event.clone(), &mut registry);
            assert_eq!(live(&registry), want, "{name}: {event:?}");
        }
    }
    let (mut unsure, mut registry) = (PodRules { own: Vec::new(), ..rules() }, registry());
    let mut pods = Pods::new(at(0), unsure.clone());
    pods.handle_event(at(0), changed(&label("lbs", "10.0.0.8")), &mut registry);
    assert_eq!(live(&registry), "as-0", "whoever does not know its own address takes all");
    unsure.node_name.clear();
    assert!(unsure.names("anything"));
}

#[test]
fn labels_become_properties() {
    let (mut pods, mut registry) = (Pods::new(at(0), rules()), registry());
    let labels = "udpPort=5080 tcpPort=5081 version=2 jvmRoute=a sessionId=7 hostName=n1 x=y";
    pods.handle_event(at(0), changed(&pod("as-0", "10.1.0.1", labels)), &mut registry);
    let node = registry.live().next().unwrap();
    assert_eq!((node.host_name.as_str(), node.ip.to_string().as_str()), ("n1", "10.1.0.1"));
    assert_eq!((node.version.0, node.session.as_deref()), (2, Some("7")));
    let ports: Vec<u16> = node.ports.iter().map(|it| it.1).collect();
    assert_eq!(ports, [5080, 5081]);
    assert_eq!((&node.properties["jvmRoute"][..], &node.properties["x"][..]), ("a", "y"));
}

#[test]
fn a_pod_lives_while_it_counts() {
    let (mut pods, mut registry) = (Pods::new(at(0), rules()), registry());
    let it = pod("as-0", "10.1.0.1", UDP);
    assert_eq!(pods.poll_timeout(), None);
    pods.handle_event(at(0), changed(&it), &mut registry);
    // Nothing more is heard: the API server may be away.
    for second in 1..60 {
        pods.handle_timeout(at(second * 1000), &mut registry);
        registry.handle_timeout(at(second * 1000));
    }
    assert_eq!((live(&registry).as_str(), pods.poll_timeout()), ("as-0", Some(at(60_000))));
    // Not ready for a while, and admitted all the same: it is the same process.
    let mut unready = it.clone();
    unready.containers[0].is_ready = false;
    pods.handle_event(at(59_000), changed(&unready), &mut registry);
    pods.handle_timeout(at(60_000), &mut registry);
    registry.handle_timeout(at(67_000));
    assert_eq!(live(&registry), "as-0");
    // For another balancer from now on: no heartbeat counts any more.
    let mut foreign = it.clone();
    foreign.labels.insert("lbs".into(), "10.0.0.8".into());
    pods.handle_event(at(67_000), changed(&foreign), &mut registry);
    pods.handle_timeout(at(67_000), &mut registry);
    assert_eq!((live(&registry).as_str(), pods.poll_timeout()), ("as-0", None));
    registry.handle_timeout(at(75_500));
    assert_eq!(live(&registry), "");
}

#[test]
fn whoever_ends_is_taken_out_at_once_and_whoever_is_to_end_gets_no_new_calls() {
    type Change = fn(&mut Pod);
    let label: Change = |it| drop(it.labels.insert("graceful-shutdown".into(), "true".into()));
    let ends: Change = |it| it.is_terminating = true;
    let it = pod("as-0", "10.1.0.1", UDP);
    for change in [label, ends] {
        let (mut pods, mut registry) = (Pods::new(at(0), rules()), registry());
        let mut leaving = it.clone();
        change(&mut leaving);
        pods.handle_event(at(0), changed(&it), &mut registry);
        pods.handle_event(at(1), changed(&leaving), &mut registry);
        assert_eq!(live(&registry), "as-0*");
        for second in 1..30 {
            pods.handle_timeout(at(second * 1000), &mut registry);
            registry.handle_timeout(at(second * 1000));
        }
        assert_eq!(live(&registry), "as-0*", "it keeps its calls");
    }
    let mut ended = it.clone();
    ended.phase = Phase::Ended;
    let deleted = PodEvent::Deleted("as-0".into());
    for event in [changed(&ended), deleted, PodEvent::Listed(vec![])] {
        let (mut pods, mut registry) = (Pods::new(at(0), rules()), registry());
        pods.handle_event(at(0), changed(&it), &mut registry);
        pods.handle_event(at(1), event.clone(), &mut registry);
        assert_eq!((live(&registry).as_str(), pods.poll_timeout()), ("", None), "{event:?}");
    }
}

#[test]
fn another_incarnation_counts_when_it_is_ready() {
    let (mut pods, mut registry) = (Pods::new(at(0), rules()), registry());
    let mut it = pod("as-0", "10.1.0.1", "udpPort=5080");
    pods.handle_event(at(0), changed(&it), &mut registry);
    it.labels.insert("graceful-shutdown".into(), "true".into());
    pods.handle_event(at(1), changed(&it), &mut registry);
    assert_eq!(live(&registry), "as-0*");
    // Its container starts again.
    it.labels.remove("graceful-shutdown");
    it.containers[0] = Container { restarts: 1, is_ready: false, ..it.containers[0].clone() };
    pods.handle_event(at(2), changed(&it), &mut registry);
    assert_eq!((live(&registry).as_str(), pods.poll_timeout()), ("as-0*", None));
    it.containers[0].is_ready = true;
    pods.handle_event(at(3), changed(&it), &mut registry);
    assert_eq!(live(&registry), "as-0", "nothing that the old one did counts");
    // The same name, another pod at another address: the old address is given up at once.
    let next = Pod { uid: "another".into(), ..pod("as-0", "10.1.0.2", "udpPort=5080") };
    pods.handle_event(at(4), PodEvent::Listed(vec![next]), &mut registry);
    let ips: Vec<String> = registry.live().map(|it| it.ip.to_string()).collect();
    assert_eq!(ips, ["10.1.0.2"]);
}

#[test]
fn what_is_wrong_is_told_once() {
    let (mut pods, mut registry) = (Pods::new(at(0), rules()), registry());
    let mut told = |pods: &mut Pods| {
        for _ in 0..3 {
            pods.handle_timeout(at(60_000), &mut registry);
        }
        std::iter::from_fn(|| pods.poll_complaint()).map(|it| it.to_string()).collect::<Vec<_>>()
    };
    let mut quiet = registry_and_event(&mut pods, "as-0", "10.1.0.1", "udpPort=x");
    assert_eq!(told(&mut pods), ["Pod as-0 is no node: Heartbeat udpPort is not a port"]);
    quiet = registry_and_event(&mut pods, "as-0", "10.1.0.1", "udpPort=x").or(quiet);
    assert_eq!((told(&mut pods).len(), quiet), (0, None));
    registry_and_event(&mut pods, "as-0", "224.0.0.1", UDP);
    assert_eq!(told(&mut pods), ["Pod as-0 refused: no node can have the address 224.0.0.1"]);
    assert_eq!(told(&mut pods).len(), 0);
}

fn registry_and_event(pods: &mut Pods, name: &str, ip: &str, labels: &str) -> Option<String> {
    let mut registry = registry();
    pods.handle_event(at(0), changed(&pod(name, ip, labels)), &mut registry);
    registry.live().next().map(|it| it.host_name.clone())
}

#[test]
fn the_class_turns_it_on_and_the_period_must_be_short() {
    let of = |text: &str| {
        let text = format!("host=127.0.0.1\nexternalPort=5060\n{text}");
        load("t", text.as_bytes(), &[])
    };
    const CLASS: &str =
        "heartbeat.configclass=org.mobicents.tools.heartbeat.kube.HeartbeatConfigKube\n";
    assert_eq!(PodRules::of(&of("heartbeat.nodeName=as\n").config, &[]), None);
    let as_nodes = format!("{CLASS}heartbeat.nodeName=as\n");
    let rules = PodRules::of(&of(&as_nodes).config, &[]).unwrap();
    assert_eq!((rules.node_name.as_str(), rules.pull_period), ("as", Duration::from_secs(5)));
    assert_eq!(rules.own, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    let interfaces = ["10.0.0.9", "10.1.0.9", "2001:db8::9"].map(|it| it.parse().unwrap());
    for (host, own) in [
        ("externalHost=10.0.0.9\n", "10.0.0.9"),
        ("externalHost=0.0.0.0\n", "10.0.0.9 10.1.0.9"),
        (
            "externalHost=0.0.0.0\npublic-ip=192.0.2.1\nexternalIpLoadBalancerAddress=10.2.0.1\n",
            "10.0.0.9 10.1.0.9 10.2.0.1 192.0.2.1",
        ),
        ("externalHost=lb.example\n", ""),
    ] {
        let rules = PodRules::of(&of(&format!("{as_nodes}{host}")).config, &interfaces).unwrap();
        let found: Vec<String> = rules.own.iter().map(ToString::to_string).collect();
        assert_eq!(found.join(" "), own, "{host}");
    }
    let slow = of(&format!("{CLASS}heartbeat.pullPeriod=9000\n"));
    let said: Vec<String> = slow.findings.iter().map(ToString::to_string).collect();
    let said = said.join("\n");
    assert!(said.contains("error") && said.contains("only looked at every 9000 ms"), "{said}");
    assert!(said.contains("no pod can have such a name"), "{said}");
}
