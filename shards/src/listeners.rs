//! Opens every socket of the process, for all shards, before any of them starts.
//!
//! Each shard has a socket of its own for each listener; they share the address by `SO_REUSEPORT` and the
//! kernel chooses among them: by its hash over addresses and ports, by CPU or at random.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;

use engine::config::Steering;
use engine::relay::Listener;
use protocols::sip::Transport;
use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::{allow_fragments, attach_steering, receive_errors, set_buffer};

/// What sockets are opened with, besides their addresses.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// How the kernel spreads work over shards.
    pub steering: Steering,
    /// Kernel receive buffer of UDP sockets, bytes; 0 leaves the system's.
    pub receive_buffer_bytes: usize,
    /// Kernel send buffer of UDP sockets, bytes; 0 leaves the system's.
    pub send_buffer_bytes: usize,
    /// CPU of each shard, for [`Steering::Cpu`].
    pub cpus: Vec<usize>,
}

/// A socket that cannot be opened: the operator's to mend, the process must not start.
#[derive(Debug)]
pub struct OpenError {
    /// What was to be spoken there.
    pub transport: Transport,
    /// Where it was to listen.
    pub address: SocketAddr,
    /// The kernel's reason; `AddrInUse` if somebody has the port.
    pub error: io::Error,
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OpenError { transport, address, .. } = self;
        let reason = match self.error.kind() {
            io::ErrorKind::AddrInUse => "another process has this port",
            io::ErrorKind::AddrNotAvailable => "this host does not have that address",
            io::ErrorKind::PermissionDenied => "ports below 1024 need a privilege",
            _ => return write!(f, "cannot listen on {transport:?} {address}: {}", self.error),
        };
        write!(f, "cannot listen on {transport:?} {address}: {reason} ({})", self.error)
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}

/// Opens every listener for every shard: the outer list is by shard, the inner by listener. A port of 0
/// becomes one free port, the same on all shards.
///
/// # Errors
///
/// [`OpenError`] for the first that fails; those opened before are closed again.
pub fn open_listeners(
    listeners: &[Listener],
    shards: usize,
    options: &SocketOptions,
) -> Result<Vec<Vec<Socket>>, OpenError> {
    let mut sockets: Vec<Vec<Socket>> = (0..shards).map(|_| Vec::new()).collect();
    for Listener { transport, address, .. } in listeners {
        let group = open_group(*transport, *address, Families::Own, shards, options)?;
        sockets.iter_mut().zip(group).for_each(|(of_shard, socket)| of_shard.push(socket));
    }
    Ok(sockets)
}

/// Opens one port of a stream relay for every shard. The wildcard of IPv6 takes IPv4 in, too.
///
/// # Errors
///
/// [`OpenError`].
pub fn open_port(
    address: SocketAddr,
    shards: usize,
    options: &SocketOptions,
) -> Result<Vec<Socket>, OpenError> {
    open_group(Transport::Tcp, address, Families::Both, shards, options)
}

/// Every address of this host: those of IPv6 and IPv4, or of IPv4 alone where there is no IPv6.
pub fn everywhere(port: u16) -> SocketAddr {
    let probe = Socket::new(Domain::IPV6, Type::STREAM, None)
        .and_then(|it| it.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()));
    match probe {
        Ok(()) => (Ipv6Addr::UNSPECIFIED, port).into(),
        Err(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
    }
}

/// What the wildcard of IPv6 takes in.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Families {
    /// IPv6 alone: IPv4 has a listener of its own.
    Own,
    /// IPv4, too.
    Both,
}

fn open_group(
    transport: Transport,
    mut address: SocketAddr,
    families: Families,
    shards: usize,
    options: &SocketOptions,
) -> Result<Vec<Socket>, OpenError> {
    let asked = address;
    let failed = |error| OpenError { transport, address: asked, error };
    address = free_address(transport, address, families).map_err(failed)?;
    let mut group = Vec::with_capacity(shards);
    for _ in 0..shards {
        let socket = open(transport, address, families, options).map_err(failed)?;
        address = local_address(&socket).map_err(failed)?;
        group.push(socket);
    }
    if let (Some(first), true) = (group.first(), shards > 1)
        && let Some(mut program) = steering_program(options, shards)
    {
        attach_steering(first.as_raw_fd(), &mut program).map_err(failed)?;
    }
    Ok(group)
}

/// The listeners with the ports that they really have.
pub fn bound(listeners: &[Listener], sockets: &[Socket]) -> Vec<Listener> {
    let bound = listeners.iter().zip(sockets).map(|(listener, socket)| Listener {
        address: local_address(socket).unwrap_or(listener.address),
        ..*listener
    });
    bound.collect()
}

fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    socket.local_addr()?.as_socket().ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
}

/// Makes sure that nobody has the address. `SO_REUSEPORT` alone would share it with any process of the
/// same user, and half of the traffic would vanish there.
fn free_address(
    transport: Transport,
    address: SocketAddr,
    families: Families,
) -> io::Result<SocketAddr> {
    let socket = blank(transport, address, families)?;
    socket.bind(&address.into())?;
    if transport.is_stream() {
        socket.listen(1)?;
    }
    local_address(&socket)
}

fn blank(transport: Transport, address: SocketAddr, families: Families) -> io::Result<Socket> {
    let (kind, protocol) = if transport.is_stream() {
        (Type::STREAM, Protocol::TCP)
    } else {
        (Type::DGRAM, Protocol::UDP)
    };
    let kind = kind.nonblocking().cloexec();
    let socket = Socket::new(Domain::for_address(address), kind, Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(families == Families::Own)?;
    }
    if transport.is_stream() {
        // Connections of an earlier run in TIME_WAIT must not keep us from starting.
        socket.set_reuse_address(true)?;
    }
    Ok(socket)
}

fn open(
    transport: Transport,
    address: SocketAddr,
    families: Families,
    options: &SocketOptions,
) -> io::Result<Socket> {
    let socket = blank(transport, address, families)?;
    socket.set_reuse_port(true)?;
    if transport.is_stream() {
        socket.set_tcp_nodelay(true)?; // accepted connections inherit it
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        return Ok(socket);
    }
    let fd = socket.as_raw_fd();
    if options.receive_buffer_bytes > 0 {
        set_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, options.receive_buffer_bytes)?;
    }
    if options.send_buffer_bytes > 0 {
        set_buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, options.send_buffer_bytes)?;
    }
    receive_errors(fd, address.ip())?;
    if address.is_ipv4() {
        allow_fragments(fd, false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Classic BPF that returns the position of a shard; `None` leaves the choice to the kernel's hash.
fn steering_program(options: &SocketOptions, shards: usize) -> Option<Vec<libc::sock_filter>> {
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let load = |what: i32| step(LOAD, 0, 0, (ANCILLARY + what).cast_unsigned());
    let shards = u32::try_from(shards).ok()?;
    let modulo = [step(MODULO, 0, 0, shards), step(RETURN_A, 0, 0, 0)];
    let mut program = Vec::new();
    match options.steering {
        Steering::Hash => return None,
        Steering::Random => program.push(load(ANCILLARY_RANDOM)),
        Steering::Cpu => {
            program.push(load(ANCILLARY_CPU));
            for (position, cpu) in (0..shards).zip(&options.cpus).take(CPUS_MAX) {
                program.push(step(JUMP_EQUAL, 0, 1, u32::try_from(*cpu).ok()?));
                program.push(step(RETURN_K, 0, 0, position));
            }
        }
    }
    program.extend(modulo);
    Some(program)
}

/// Connections that may wait to be accepted: a second's worth at rates no SIP peer reaches.
const BACKLOG: i32 = 4_096;
/// A program may have 4 096 steps.
const CPUS_MAX: usize = 1_024;
const LOAD: u16 = 0x20; // ld [k]
const MODULO: u16 = 0x94; // mod #k
const JUMP_EQUAL: u16 = 0x15; // jeq #k, jt, jf
const RETURN_K: u16 = 0x06; // ret #k
const RETURN_A: u16 = 0x16; // ret a
const ANCILLARY: i32 = -0x1000; // SKF_AD_OFF
const ANCILLARY_CPU: i32 = 36; // SKF_AD_CPU
const ANCILLARY_RANDOM: i32 = 56; // SKF_AD_RANDOM

#[cfg(test)]
mod tests {
    use super::*;
    use engine::relay::Leg;
    use std::io::Read as _;
    use std::net::{TcpStream, UdpSocket};

    fn listener(transport: Transport, address: &str) -> Listener {
        Listener { leg: Leg::External, transport, address: address.parse().unwrap() }
    }

    fn options(steering: Steering) -> SocketOptions {
        SocketOptions {
            steering,
            receive_buffer_bytes: 1 << 20,
            send_buffer_bytes: 1 << 20,
            cpus: crate::sys::affinity(),
        }
    }

    #[test]
    fn all_shards_share_one_port_per_listener() {
        let listeners = [
            listener(Transport::Udp, "127.0.0.1:0"),
            listener(Transport::Tcp, "127.0.0.1:0"),
            listener(Transport::Udp, "[::1]:0"),
            listener(Transport::Tcp, "[::1]:0"),
        ];
        let sockets = open_listeners(&listeners, 3, &options(Steering::Hash)).unwrap();
        assert_eq!(sockets.len(), 3);
        let first = bound(&listeners, &sockets[0]);
        assert!(first.iter().all(|it| it.address.port() != 0));
        for of_shard in &sockets[1..] {
            assert_eq!(bound(&listeners, of_shard), first);
        }
    }

    #[test]
    fn a_port_that_is_taken_is_named_even_if_its_owner_would_share_it() {
        for transport in [Transport::Udp, Transport::Tcp] {
            let one = [listener(transport, "127.0.0.1:0")];
            let sockets = open_listeners(&one, 2, &options(Steering::Hash)).unwrap();
            let taken = bound(&one, &sockets[0]);
            let error = open_listeners(&taken, 2, &options(Steering::Hash)).unwrap_err();
            assert_eq!(error.error.kind(), io::ErrorKind::AddrInUse);
            let text = error.to_string();
            assert!(text.contains(&taken[0].address.to_string()), "{text}");
            assert!(text.contains(&format!("{transport:?}")), "{text}");
        }
        let absent = [listener(Transport::Udp, "192.0.2.1:5060")];
        let text = open_listeners(&absent, 1, &options(Steering::Hash)).unwrap_err().to_string();
        assert!(text.contains("does not have that address"), "{text}");
    }

    #[test]
    fn one_source_reaches_every_shard_when_steered_at_random() {
        let one = [listener(Transport::Udp, "127.0.0.1:0")];
        let sockets = open_listeners(&one, 4, &options(Steering::Random)).unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for _ in 0..400 {
            sender.send_to(b"x", bound(&one, &sockets[0])[0].address).unwrap();
        }
        for of_shard in &sockets {
            let mut count = 0;
            while (&of_shard[0]).read(&mut [0; 8]).is_ok() {
                count += 1;
            }
            assert!((50..150).contains(&count), "{count} of 400 on one of four");
        }
    }

    #[test]
    fn steering_by_cpu_takes_the_position_of_the_senders_cpu() {
        let one =
            [listener(Transport::Udp, "127.0.0.1:0"), listener(Transport::Tcp, "127.0.0.1:0")];
        let options = options(Steering::Cpu);
        let shards = options.cpus.len().min(2);
        let sockets = open_listeners(&one, shards, &options).unwrap();
        let addresses = bound(&one, &sockets[0]);
        for (position, cpu) in options.cpus.iter().take(shards).enumerate() {
            let (datagrams, streams) = (addresses[0].address, addresses[1].address);
            let cpu = *cpu;
            let connection = std::thread::spawn(move || {
                crate::sys::pin_to(cpu).unwrap();
                let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
                sender.send_to(b"x", datagrams).unwrap();
                TcpStream::connect(streams).unwrap()
            })
            .join()
            .unwrap();
            assert!((&sockets[position][0]).read(&mut [0; 8]).is_ok(), "cpu {cpu}");
            let (_, peer) = sockets[position][1].accept().unwrap();
            assert_eq!(peer.as_socket(), Some(connection.local_addr().unwrap()), "cpu {cpu}");
        }
    }
}
