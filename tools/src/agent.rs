//! One thread that carries callers and nodes: sockets, time and commands.
//!
//! Everything is bound before [`start`] returns, so an address in use is an error and not a silence.
//! The thread polls without rest ([`Polling::Busy`], for measurements on a core of its own) or sleeps
//! until something arrives or is due ([`Polling::Block`]).

use std::net::SocketAddr;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use protocols::time::Time;

use crate::caller::CallerConfig;
use crate::node::{Answer, NodeConfig};
use crate::process;
use crate::report::Report;

mod turn;

use turn::Turns;

/// What one thread carries.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Nodes, numbered in this order.
    pub nodes: Vec<NodeConfig>,
    /// Callers; their figures are added up.
    pub callers: Vec<CallerConfig>,
    /// How it waits.
    pub polling: Polling,
    /// CPU to be pinned to.
    pub cpu: Option<usize>,
}

/// How the thread waits.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Polling {
    /// Never sleeps: one core at 100 %, no wake-up in what is measured.
    Busy,
    /// Sleeps until something arrives or is due.
    Block,
}

/// How a node dies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Death {
    /// Sockets are closed: the kernel refuses, as after a crash of the process.
    Refuse,
    /// Sockets stay open, nothing is answered: as after a hang, or the loss of the machine.
    Silent,
}

/// Handle of a running agent. Dropping it ends the thread.
#[derive(Debug)]
pub struct Agent {
    clock: Clock,
    nodes: Vec<SocketAddr>,
    commands: Option<Sender<Command>>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) enum Command {
    Report(Sender<Report>),
    ClearLatencies,
    StopCalls,
    Place(CallerConfig, Sender<std::io::Result<()>>),
    Kill(usize, Death),
    Restart(usize, Sender<std::io::Result<()>>),
    Answer(usize, Answer),
}

/// Binds all sockets and starts the thread.
///
/// # Errors
/// What the kernel says to `bind`, `connect` or pinning, with the address in the text.
pub fn start(config: AgentConfig) -> std::io::Result<Agent> {
    let clock = Clock::start();
    let (commands, receiver) = mpsc::channel();
    let (ready, started) = mpsc::channel();
    let thread = std::thread::Builder::new().name("peers".to_owned()).spawn(move || {
        // Made here: the batch headers of the sockets may not change threads.
        match prepare(clock, config) {
            Ok(mut turns) => {
                let _ = ready.send(Ok(turns.node_addresses()));
                turns.run(&receiver);
            }
            Err(error) => drop(ready.send(Err(error))),
        }
    })?;
    let nodes = started.recv().map_err(|_| gone())??;
    Ok(Agent { clock, nodes, commands: Some(commands), thread: Some(thread) })
}

fn prepare(clock: Clock, config: AgentConfig) -> std::io::Result<Turns> {
    let AgentConfig { nodes, callers, polling, cpu } = config;
    if let Some(cpu) = cpu {
        process::pin(cpu)?;
    }
    let mut turns = Turns::new(clock, polling)?;
    for node in nodes {
        turns.add_node(node)?;
    }
    for caller in callers {
        turns.add_caller(caller)?;
    }
    Ok(turns)
}

impl Agent {
    /// The clock of all times in reports.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Addresses of the nodes, ports resolved.
    pub fn nodes(&self) -> &[SocketAddr] {
        &self.nodes
    }

    /// The figures at this moment.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn report(&self) -> std::io::Result<Report> {
        self.ask(Command::Report)
    }

    /// Forgets latencies and generator figures, so that a warm-up does not count.
    pub fn clear_latencies(&self) {
        self.tell(Command::ClearLatencies);
    }

    /// Places no more calls; those in progress go on.
    pub fn stop_calls(&self) {
        self.tell(Command::StopCalls);
    }

    /// Adds a caller while others run.
    ///
    /// # Errors
    /// What the kernel says to its sockets.
    pub fn place(&self, caller: CallerConfig) -> std::io::Result<()> {
        self.ask(|reply| Command::Place(caller, reply))?
    }

    /// Kills the node with this number; a dead node cannot die again.
    pub fn kill(&self, node: usize, death: Death) {
        self.tell(Command::Kill(node, death));
    }

    /// Starts the node with this number as a new incarnation on its old address.
    ///
    /// # Errors
    /// What the kernel says to `bind`.
    pub fn restart(&self, node: usize) -> std::io::Result<()> {
        self.ask(|reply| Command::Restart(node, reply))?
    }

    /// Changes how a node answers INVITE.
    pub fn set_answer(&self, node: usize, answer: Answer) {
        self.tell(Command::Answer(node, answer));
    }

    /// Waits until the callers have finished, at most `limit`; the last report either way.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn wait(&self, limit: Duration) -> std::io::Result<Report> {
        let start = Instant::now();
        loop {
            let report = self.report()?;
            if report.finished || start.elapsed() >= limit {
                return Ok(report);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn tell(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // A thread that is gone shows in the next report.
            let _ = commands.send(command);
        }
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> std::io::Result<T> {
        let (reply, answer) = mpsc::channel();
        self.tell(command(reply));
        answer.recv().map_err(|_| gone())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn gone() -> std::io::Error {
    std::io::Error::other("the thread of the pretend peers has ended")
}

/// Turns the machine's clock into [`Time`].
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that begins now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn now(&self) -> Time {
        Time::ZERO + self.0.elapsed()
    }
}

pub(crate) type Commands = Receiver<Command>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::Pace;
    use crate::ports;
    use crate::report::Failure;
    use protocols::sip::Transport;

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    /// Of a node: when it is dead nobody else gets it.
    fn own_port() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], ports::free()))
    }

    fn agent(nodes: usize) -> Agent {
        start(AgentConfig {
            nodes: (0..nodes).map(|_| NodeConfig::new(own_port(), None)).collect(),
            callers: Vec::new(),
            polling: Polling::Block,
            cpu: None,
        })
        .unwrap()
    }

    fn some_calls(agent: &Agent, node: usize, transport: Transport, calls: u64) -> CallerConfig {
        CallerConfig {
            transport,
            calls_max: Some(calls),
            timeout: Duration::from_millis(400),
            ..CallerConfig::new(agent.nodes()[node], Pace::Open(1000.0))
        }
    }

    const PATIENCE: Duration = Duration::from_secs(20);

    #[test]
    fn calls_complete_over_both_transports() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let agent = agent(2);
            for node in 0..2 {
                agent
                    .place(CallerConfig {
                        from: vec![loopback(); 3],
                        timeout: PATIENCE,
                        ..some_calls(&agent, node, transport, 100)
                    })
                    .unwrap();
            }
            let report = agent.wait(PATIENCE).unwrap();
            assert_eq!(report.calls.completed, 200, "{transport:?} {report}");
            assert_eq!(report.calls.failed_total(), 0, "{transport:?}");
            assert_eq!(report.misrouted(), 0, "{transport:?}");
            for node in &report.nodes {
                assert_eq!(node.calls, 100, "{transport:?}");
            }
        }
    }

    #[test]
    fn a_killed_node_loses_calls_and_a_restarted_one_takes_them() {
        for (transport, death) in [
            (Transport::Udp, Death::Refuse),
            (Transport::Udp, Death::Silent),
            (Transport::Tcp, Death::Refuse),
            (Transport::Tcp, Death::Silent),
        ] {
            let case = format!("{transport:?} {death:?}");
            let agent = agent(1);
            // A connection must be there before the node dies.
            agent
                .place(CallerConfig { calls_max: None, ..some_calls(&agent, 0, transport, 0) })
                .unwrap();
            let calls = |agent: &Agent| agent.report().unwrap().calls;
            let until = |reached: &dyn Fn(&crate::report::Calls) -> bool| {
                let begin = Instant::now();
                while !reached(&calls(&agent)) {
                    assert!(begin.elapsed() < PATIENCE, "{case} {:?}", calls(&agent).failed);
                    std::thread::sleep(Duration::from_millis(5));
                }
            };
            until(&|calls| calls.completed > 20);
            agent.kill(0, death);
            until(&|calls| calls.failed.get(&Failure::InviteTimeout).is_some_and(|it| *it > 20));
            assert!(!agent.report().unwrap().nodes[0].up);
            agent.restart(0).unwrap();
            let before = calls(&agent).completed;
            until(&|calls| calls.completed > before + 20);
            agent.stop_calls();
            let report = agent.wait(PATIENCE).unwrap();
            assert!(report.finished && report.nodes[0].up, "{case}");
            assert_eq!(report.calls.started, report.calls.completed + report.calls.failed_total());
        }
    }

    #[test]
    fn an_address_in_use_is_an_error_with_its_name() {
        let taken = std::net::UdpSocket::bind(loopback()).unwrap();
        let address = taken.local_addr().unwrap();
        let error = start(AgentConfig {
            nodes: vec![NodeConfig::new(address, None)],
            callers: Vec::new(),
            polling: Polling::Block,
            cpu: None,
        })
        .unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
