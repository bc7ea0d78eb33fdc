//! Failover under load: 500 calls a second while a node is killed and restarted three times. New calls
//! fail only inside the expiry window, established ones end at their own node or, if that is dead, at
//! another, and nothing ever reaches a live node that is not its dialog's.

use std::net::SocketAddr;
use std::time::Duration;

use protocols::time::Time;
use tests::{Setup, free_port, wait_for};
use tools::agent::{AgentConfig, Death, Polling, start};
use tools::caller::{CallerConfig, Pace};
use tools::node::NodeConfig;
use tools::report::Failure;

#[test]
fn calls_survive_a_node_that_is_killed_and_restarted_three_times() {
    let lb = Setup::two_entry().set("shards", "2").start();
    let nodes = (0..3).map(|_| {
        // Its port when it is back: nobody must get it meanwhile.
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut node = NodeConfig::new(address, Some(lb.internal));
        node.heartbeat_interval = Duration::from_millis(150);
        node
    });
    let agent =
        AgentConfig { nodes: nodes.collect(), callers: vec![], polling: Polling::Block, cpu: None };
    let agent = start(agent).unwrap();
    lb.wait_nodes(3);
    let mut caller = CallerConfig::new(lb.external, Pace::Open(500.0));
    caller.hold = Duration::from_secs(1);
    agent.place(caller).unwrap();

    let completed = || agent.report().unwrap().calls.completed;
    let more = |calls: u64| {
        let from = completed();
        wait_for("more calls", || (completed() >= from + calls).then_some(()));
    };
    more(500);
    let mut windows: Vec<(Time, Time)> = Vec::new();
    for death in [Death::Refuse, Death::Silent, Death::Refuse] {
        let killed = agent.now();
        agent.kill(1, death);
        lb.wait_nodes(2);
        windows.push((killed, agent.now()));
        more(500);
        agent.restart(1).unwrap();
        lb.wait_nodes(3);
        more(500);
    }
    agent.stop_calls();
    let report = agent.wait(Duration::from_secs(60)).unwrap();
    println!("{report}");

    assert!(report.finished, "calls hang");
    assert_eq!(report.misrouted(), 0);
    assert_eq!(report.calls.malformed, 0);
    assert!(report.calls.completed >= 3_500, "{report}");
    for lost in &report.calls.lost {
        let was_up = matches!(lost.failure, Failure::ByeTimeout | Failure::ByeRefused(_));
        assert!(!was_up, "a call that was up has no end: {lost:?}");
        // A call that began just before the kill may still have been on its way.
        let slack = Duration::from_millis(600);
        let is_excused = windows.iter().any(|(killed, expired)| {
            lost.ended >= *killed && lost.started.since(*expired) == Duration::ZERO
                || killed.since(lost.started) < slack && lost.started.since(*killed) < slack
        });
        assert!(is_excused, "lost outside of {windows:?}: {lost:?}");
    }
    let share = report.calls.failed_total() as f64 / report.calls.started as f64;
    assert!(share < 0.05, "{:.1} % lost: retransmissions should find a survivor", share * 100.0);
    assert_eq!(lb.dropped("panic"), 0);
}
