//! The kernel's share: a forwarder that reads nothing, receives and sends in batches.
//!
//! One socket faces the callers, one per caller faces its node, as nginx does it. Whatever a balancer
//! needs beyond this is its own.

use std::net::SocketAddr;
use std::os::fd::AsFd;

use argh::FromArgs;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tools::udp::{Outbox, UdpPort};

/// Forward datagrams without reading them, until killed.
#[derive(FromArgs)]
#[argh(subcommand, name = "floor")]
pub(crate) struct Arguments {
    /// where callers send to
    #[argh(option)]
    listen: SocketAddr,
    /// where datagrams go; repeat for several nodes, one caller each in turn
    #[argh(option)]
    node: Vec<SocketAddr>,
}

struct Path {
    caller: SocketAddr,
    node: SocketAddr,
    port: UdpPort,
    outbox: Outbox,
}

pub(crate) fn run(arguments: &Arguments) -> std::io::Result<()> {
    let mut front = UdpPort::bind(arguments.listen, None)?;
    let mut to_callers = Outbox::default();
    let mut paths: Vec<Path> = Vec::new();
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    epoll.add(front.socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, FRONT))?;
    let mut events = [EpollEvent::empty(); 32];
    loop {
        let count = epoll.wait(&mut events, EpollTimeout::NONE).unwrap_or(0);
        for event in events.iter().take(count) {
            if event.data() == FRONT {
                front.receive()?;
                for (bytes, caller) in front.inbox.datagrams() {
                    let known = paths.iter().position(|path| path.caller == caller);
                    let number = known.unwrap_or(paths.len());
                    if known.is_none() {
                        paths.push(open(arguments, caller, number, &epoll)?);
                    }
                    if let Some(path) = paths.get_mut(number) {
                        path.outbox.message(path.node, |out| out.extend_from_slice(bytes));
                    }
                }
            } else if let Some(path) =
                usize::try_from(event.data()).ok().and_then(|number| paths.get_mut(number))
            {
                path.port.receive()?;
                for (bytes, _) in path.port.inbox.datagrams() {
                    to_callers.message(path.caller, |out| out.extend_from_slice(bytes));
                }
            }
        }
        for path in paths.iter_mut().filter(|path| !path.outbox.is_empty()) {
            path.port.flush(&mut path.outbox);
        }
        front.flush(&mut to_callers);
    }
}

fn open(
    arguments: &Arguments,
    caller: SocketAddr,
    number: usize,
    epoll: &Epoll,
) -> std::io::Result<Path> {
    let node = *arguments
        .node
        .get(number % arguments.node.len().max(1))
        .ok_or_else(|| std::io::Error::other("--node is missing"))?;
    let port = UdpPort::bind(SocketAddr::new(arguments.listen.ip(), 0), Some(node))?;
    let token = u64::try_from(number).unwrap_or(FRONT);
    epoll.add(port.socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, token))?;
    Ok(Path { caller, node, port, outbox: Outbox::default() })
}

const FRONT: u64 = u64::MAX;
