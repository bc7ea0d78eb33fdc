//! Nodes as pods of Kubernetes (`http-smpp-registry.md` 3.6): the real process against a stand-in for the
//! API server.

use tests::{ApiServer, Balancer, Node, Pod, Setup, wait_for, who_got};

const CLASS: &str = "org.mobicents.tools.heartbeat.kube.HeartbeatConfigKube";

fn setup(server: &ApiServer) -> Setup {
    Setup::two_entry()
        .set("heartbeat.configclass", CLASS)
        .set("heartbeat.nodeName", "as")
        .set("heartbeat.pullPeriod", "100")
        .environment("KUBECONFIG", &server.kubeconfig().display().to_string())
}

fn names(lb: &Balancer) -> String {
    let mut names: Vec<String> = lb.known().into_iter().map(|it| it.host_name).collect();
    names.sort();
    names.join(" ")
}

fn wait_names(lb: &Balancer, want: &str) {
    wait_for(&format!("the nodes {want:?}"), || (names(lb) == want).then_some(()));
}

/// A pretend application server that says nothing of itself, and its pod.
fn pair(name: &str) -> (Node, Pod) {
    let node = Node::bind(name);
    node.answers_calls();
    let pod = Pod::of(name, node.address());
    (node, pod)
}

#[test]
fn pods_are_nodes_from_their_first_word_to_their_end() {
    let server = ApiServer::start(false);
    let (nodes, pods): (Vec<Node>, Vec<Pod>) = (0..5).map(|it| pair(&format!("as-{it}"))).unzip();
    pods[..4].iter().for_each(|it| server.put(it));
    server.put(&Pod::of("db-0", nodes[0].address()));
    let lb = setup(&server).start();
    wait_names(&lb, "as-0 as-1 as-2 as-3"); // in two pages and one of a stranger
    let info = lb.wait_node("labels as properties", |it| it.property("app") == Some("as"));
    assert_eq!(info.property("udpPort"), Some(&*nodes[0].address().port().to_string()));

    // They get calls, in turn.
    let caller = lb.caller("alice");
    let dialogs: Vec<_> = (0..4).map(|_| caller.call("sip:bob@example.com")).collect();
    let homes: Vec<_> = dialogs.iter().map(|it| who_got(&nodes, &it.call_id, "INVITE")).collect();
    let mut all = homes.concat();
    all.sort_unstable();
    assert_eq!(all, [0, 1, 2, 3]);

    // One more, but not before it is ready, and not if it is for another balancer.
    server.put(&pods[4].clone().unready());
    server.put(&Pod::of("as-9", nodes[4].address()).label("lbs", "10.1.1.1"));
    server.bookmark();
    server.put(&pods[4]);
    wait_names(&lb, "as-0 as-1 as-2 as-3 as-4");

    // One leaves by its label, one is told to end: no new calls, and their dialogs stay.
    server.put(&pods[0].clone().label("graceful-shutdown", "true"));
    server.put(&pods[1].clone().terminating());
    for name in ["as-0", "as-1"] {
        lb.wait_node("leaving", |it| it.host_name == name && it.is_leaving);
    }
    for _ in 0..6 {
        let dialog = caller.call("sip:bob@example.com");
        let home = who_got(&nodes, &dialog.call_id, "INVITE");
        assert!(home[0] > 1, "{home:?}");
    }
    for (mut dialog, home) in dialogs.into_iter().zip(&homes) {
        caller.exchange(&mut dialog, "BYE");
        assert_eq!(who_got(&nodes, &dialog.call_id, "BYE"), *home);
    }

    // The end of a pod is the end of its node, long before nodeTimeout would say so.
    server.delete("as-0");
    server.put(&pods[2].clone().phase("Failed"));
    wait_names(&lb, "as-1 as-3 as-4");
    lb.wait_log("forcibly removed due to a clean shutdown of a node");
    assert!(!lb.has_logged("Last timestamp"), "nobody was silent: {}", lb.log());
    assert_eq!(server.gone(), 0);
}

#[test]
fn a_pod_that_is_for_others_from_now_on_expires() {
    let server = ApiServer::start(false);
    let (_node, pod) = pair("as-0");
    server.put(&pod);
    let lb = setup(&server).start();
    wait_names(&lb, "as-0");
    server.put(&pod.label("lbs", "10.1.1.1"));
    wait_names(&lb, "");
    lb.wait_log("removed. Last timestamp");
}

#[test]
fn on_any_address_a_pod_is_for_us_if_it_names_one_of_ours() {
    let server = ApiServer::start(false);
    let (_theirs, theirs) = pair("as-0");
    let (_ours, ours) = pair("as-1");
    server.put(&theirs.label("lbs", "10.1.1.1"));
    server.put(&ours.label("lbs", "10.1.1.1_127.0.0.9"));
    let lb = setup(&server).set("externalHost", "0.0.0.0").set("public-ip", "127.0.0.9").start();
    wait_names(&lb, "as-1");
    lb.wait_log("Kubernetes: label lbs means this balancer where it names ");
}

#[test]
fn nothing_is_lost_where_the_server_cuts_forgets_or_restarts() {
    let mut server = ApiServer::start(false);
    let (nodes, pods): (Vec<Node>, Vec<Pod>) = (0..4).map(|it| pair(&format!("as-{it}"))).unzip();
    server.put(&pods[0]);
    let lb = setup(&server).start();
    wait_names(&lb, "as-0");
    wait_for("a watch", || (server.watches() == 1).then_some(()));
    let lists = server.lists();

    // A cut watch goes on from where it was: no list, nothing missed.
    server.cut();
    server.put(&pods[1]);
    wait_names(&lb, "as-0 as-1");
    assert_eq!(server.lists(), lists);

    // Where the past is forgotten all is listed anew, whichever way the server says so.
    for (pod, want) in [(&pods[2], "as-0 as-1 as-2"), (&pods[3], "as-0 as-1 as-2 as-3")] {
        let gone = server.gone();
        server.cut();
        server.forget();
        server.put(pod);
        wait_names(&lb, want);
        if server.gone() == gone {
            // It was quicker to be back than we to forget.
            server.cut();
            server.forget();
            wait_for("410", || (server.gone() > gone).then_some(()));
        }
    }

    // A bookmark alone saves the list.
    let before = (server.lists(), server.gone());
    wait_for("a quiet watch", || {
        server.bookmark();
        let watches = server.watches();
        server.cut();
        wait_for("the next watch", || (server.watches() > watches).then_some(()));
        Some(())
    });
    assert_eq!((server.lists(), server.gone()), before);

    // Away for longer than nodeTimeout: nodes stay, calls go on, changes are seen on return.
    server.stop();
    lb.wait_log("Pods that are nodes stay so for now");
    let started = std::time::Instant::now();
    let caller = lb.caller("alice");
    while started.elapsed() < std::time::Duration::from_millis(2 * 1500) {
        let mut dialog = caller.call("sip:bob@example.com");
        caller.exchange(&mut dialog, "BYE");
        assert_eq!(who_got(&nodes, &dialog.call_id, "INVITE").len(), 1);
    }
    assert_eq!(names(&lb), "as-0 as-1 as-2 as-3");
    server.delete("as-1");
    server.forget();
    server.resume();
    wait_names(&lb, "as-0 as-2 as-3");
    assert!(!lb.has_logged("Last timestamp"), "nobody was silent: {}", lb.log());
}

/// A server that takes the question and says nothing, not even that it has understood.
#[test]
fn a_watch_that_is_not_answered_is_given_up() {
    let server = ApiServer::start(false);
    let (_node, pod) = pair("as-0");
    let lb = setup(&server).start();
    wait_for("a watch", || (server.watches() == 1).then_some(()));
    server.mute(true);
    server.cut();
    lb.wait_log("no answer to the watch");
    server.mute(false);
    server.put(&pod);
    wait_names(&lb, "as-0");
}

#[test]
fn it_waits_for_a_server_and_for_credentials() {
    let mut server = ApiServer::start(true); // by TLS
    server.stop();
    let (_node, pod) = pair("as-0");
    server.put(&pod);
    let lb = setup(&server).start();
    lb.wait_log("Kubernetes: ");
    server.resume();
    wait_names(&lb, "as-0");
    lb.wait_log("Kubernetes: pods as* of namespace voice at https://127.0.0.1");

    // A new token: the old one is refused, the new one is found where it was written.
    server.issue("second");
    server.cut();
    wait_for("another watch", || {
        server.put(&pod.clone().label("seen", "yes"));
        lb.known().into_iter().find(|it| it.property("seen").is_some())
    });

    // A token that was never written down: as away, and nobody dies of it.
    let (watches, refused) = (server.watches(), server.refused());
    let config = std::fs::read_to_string(server.kubeconfig()).unwrap();
    server.issue("third");
    std::fs::write(server.kubeconfig(), config).unwrap();
    server.cut();
    wait_for("refusals", || (server.refused() > refused + 2).then_some(()));
    assert_eq!((names(&lb).as_str(), server.watches()), ("as-0", watches));
    lb.wait_log("Kubernetes: 401");
}

/// A service account is found at one place alone, which the process gets in a mount namespace of its own.
#[test]
fn in_a_cluster_the_service_account_is_enough() {
    const ENTER: &str = "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && \
                         cp -r \"$0\" /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"";
    let tried = std::process::Command::new("unshare").args(["--mount", "true"]).output();
    if !tried.is_ok_and(|it| it.status.success()) {
        assert!(std::env::var_os("CI").is_none(), "CI needs mount namespaces");
        eprintln!("SKIPPED: mount namespaces cannot be made here");
        return;
    }
    let server = ApiServer::start(true);
    let (node, pod) = pair("as-0");
    server.put(&pod);
    let account = server.service_account().display().to_string();
    let lb = setup(&server)
        .environment("KUBECONFIG", "/nonexistent")
        .environment("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        .environment("KUBERNETES_SERVICE_PORT", &server.address().port().to_string())
        .through(&["unshare", "--mount", "sh", "-c", ENTER, &account])
        .start();
    wait_names(&lb, "as-0");
    lb.caller("alice").call("sip:bob@example.com");
    node.expect("INVITE");
    lb.wait_log("Kubernetes: pods as* of namespace voice at https://127.0.0.1");
}

#[test]
fn what_is_no_node_is_told_once_and_harms_nobody() {
    let server = ApiServer::start(false);
    let (_node, pod) = pair("as-0");
    let bad = Pod::of("as-1", "127.0.0.1:1".parse().unwrap()).label("udpPort", "many");
    server.put(&bad);
    server.put(&pod);
    let lb = setup(&server).start();
    wait_names(&lb, "as-0");
    server.put(&bad.label("x", "y"));
    server.put(&pod.clone().label("x", "y"));
    lb.wait_node("the second word", |it| it.property("x").is_some());
    let told = lb.log().matches("Pod as-1 is no node: Heartbeat udpPort is not a port").count();
    assert_eq!(told, 1, "{}", lb.log());
}

/// The client of the API parses and encrypts: on a core of a shard it would take time from calls.
#[test]
fn the_watch_and_control_keep_off_the_cpus_of_shards_where_others_are_left() {
    let server = ApiServer::start(false);
    let lb = setup(&server).set("shards", "1").start();
    lb.wait_log("are nodes");
    let threads = lb.threads();
    let (shards, others): (Vec<_>, Vec<_>) =
        threads.iter().partition(|(name, _)| name.starts_with("shard-"));
    for name in ["trunkline", "names", "kubernetes"] {
        assert!(others.iter().any(|it| it.0 == name), "{name}: {threads:?}");
    }
    assert!(shards.iter().all(|it| it.1 == shards[0].1), "{threads:?}");
    let cpu: usize = shards[0].1.parse().expect("a shard has one CPU");
    if std::thread::available_parallelism().unwrap().get() == 1 {
        eprintln!("SKIPPED: one CPU leaves none over");
        return;
    }
    for (name, cpus) in &others {
        let ranges = cpus.split(',').map(|it| it.split_once('-').unwrap_or((it, it)));
        let mut ranges = ranges.map(|(from, to)| (from.parse().unwrap(), to.parse().unwrap()));
        assert!(!ranges.any(|(from, to)| (from..=to).contains(&cpu)), "{name}: {threads:?}");
    }
    // Where shards have all of them, the rest may use all.
    let lb = setup(&server).set("shards", "0").start();
    let threads = lb.threads();
    let all = lb.threads().into_iter().find(|it| it.0 == "trunkline").unwrap().1;
    assert!(all.contains(['-', ',']), "{threads:?}");
}
