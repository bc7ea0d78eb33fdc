//! A UDP socket that moves datagrams in batches (`recvmmsg`, `sendmmsg`).
//!
//! Never blocks on receive. Blocks on send only while the kernel's send buffer is full, which on
//! loopback it never is. Datagrams of one length and destination that follow each other leave as one piece
//! which the kernel cuts up (`UDP_SEGMENT`), so that a generator on one core can saturate a balancer on
//! another; whoever receives them sees no difference.

use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SockaddrStorage, recvmmsg, sendmmsg, sendmsg,
};

/// One bound socket with its batches.
#[derive(Debug)]
pub struct UdpPort {
    /// The socket.
    pub socket: UdpSocket,
    /// Address it is bound to.
    pub local: SocketAddr,
    /// What came in with the last [`Self::receive`].
    pub inbox: Inbox,
    peer: Option<SocketAddr>,
    send_headers: MultiHeaders<SockaddrStorage>,
    /// Whether the kernel takes several datagrams as one piece.
    couples: bool,
    /// Times the kernel said that the other side is not there (ICMP port unreachable).
    pub refused: u64,
}

impl UdpPort {
    /// Binds a socket; with `peer` it is connected, which saves the route look-up of every send and
    /// hears of refusals, but receives from nowhere else.
    ///
    /// # Errors
    /// What the kernel says to `bind`, `connect` or the buffer sizes.
    pub fn bind(local: SocketAddr, peer: Option<SocketAddr>) -> std::io::Result<Self> {
        let socket = UdpSocket::bind(local)?;
        let options = socket2::SockRef::from(&socket);
        options.set_recv_buffer_size(KERNEL_BUFFER_BYTES)?;
        options.set_send_buffer_size(KERNEL_BUFFER_BYTES)?;
        if let Some(peer) = peer {
            socket.connect(peer)?;
        }
        let local = socket.local_addr()?;
        Ok(Self {
            socket,
            local,
            inbox: Inbox::new(),
            peer,
            send_headers: send_headers()?,
            couples: true,
            refused: 0,
        })
    }

    /// Replaces the inbox by what has arrived, at most [`BATCH`] datagrams; returns how many.
    ///
    /// # Errors
    /// What the kernel says, other than "nothing there" and "refused", which is counted.
    pub fn receive(&mut self) -> std::io::Result<usize> {
        match self.inbox.fill(&self.socket) {
            Ok(()) => {}
            Err(Errno::ECONNREFUSED) => self.refused += 1,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(other) => return Err(other.into()),
        }
        Ok(self.inbox.received.len())
    }

    /// Sends and empties `outbox`. Datagrams that the kernel refuses to take are lost, as on a wire.
    pub fn flush(&mut self, outbox: &mut Outbox) {
        let mut from = 0;
        while from < outbox.items.len() {
            let train = if self.couples { outbox.train(from) } else { 1 };
            let (sent, wanted) = if train > 1 {
                (self.send_train(outbox, from, train), train)
            } else {
                let alone = |at: &usize| !self.couples || outbox.train(*at) == 1;
                let count = (from..outbox.items.len()).take(BATCH).take_while(alone).count();
                (self.send_each(outbox, from, count), 1)
            };
            from += match sent {
                Ok(sent) => sent.max(1),
                // The error of an earlier datagram, reported late: this one was not tried.
                Err(Errno::ECONNREFUSED) => {
                    self.refused += 1;
                    0
                }
                Err(Errno::EINTR) => 0,
                // Perhaps only because they were coupled.
                Err(_) if wanted > 1 => {
                    self.couples = false;
                    0
                }
                Err(_) => 1,
            };
        }
        outbox.clear();
    }

    fn send_train(&self, outbox: &Outbox, from: usize, count: usize) -> nix::Result<usize> {
        let items = outbox.items.get(from..from + count).unwrap_or_default();
        let (Some(first), Some(last)) = (items.first(), items.last()) else { return Ok(0) };
        let bytes = outbox.bytes.get(first.from..last.end).unwrap_or_default();
        let segment = u16::try_from(first.end - first.from).unwrap_or(u16::MAX);
        let to = (self.peer != Some(first.to)).then(|| SockaddrStorage::from(first.to));
        sendmsg(
            self.socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            &[ControlMessage::UdpGsoSegments(&segment)],
            MsgFlags::empty(),
            to.as_ref(),
        )?;
        Ok(count)
    }

    fn send_each(&mut self, outbox: &Outbox, from: usize, count: usize) -> nix::Result<usize> {
        let items = outbox.items.get(from..from + count).unwrap_or_default();
        let mut slices = [[IoSlice::new(&[])]; BATCH];
        let mut addresses: [Option<SockaddrStorage>; BATCH] = [None; BATCH];
        for ((item, slice), address) in items.iter().zip(&mut slices).zip(&mut addresses) {
            *slice = [IoSlice::new(outbox.bytes.get(item.from..item.end).unwrap_or_default())];
            *address = (self.peer != Some(item.to)).then(|| SockaddrStorage::from(item.to));
        }
        sendmmsg(
            self.socket.as_raw_fd(),
            &mut self.send_headers,
            slices.iter().take(count),
            addresses,
            [],
            MsgFlags::empty(),
        )
        .map(Iterator::count)
    }
}

/// Datagrams received in one batch.
#[derive(Debug)]
pub struct Inbox {
    slots: Vec<u8>,
    headers: MultiHeaders<SockaddrStorage>,
    received: Vec<(usize, SocketAddr)>,
}

impl Inbox {
    fn new() -> Self {
        Self {
            slots: vec![0; BATCH * DATAGRAM_BYTES_MAX],
            headers: MultiHeaders::preallocate(BATCH, None),
            received: Vec::with_capacity(BATCH),
        }
    }

    fn fill(&mut self, socket: &UdpSocket) -> nix::Result<()> {
        self.received.clear();
        let mut chunks = self.slots.chunks_exact_mut(DATAGRAM_BYTES_MAX);
        let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        let results = recvmmsg(
            socket.as_raw_fd(),
            &mut self.headers,
            slices.iter_mut(),
            MsgFlags::MSG_DONTWAIT,
            None,
        )?;
        for result in results {
            let source = result.address.and_then(|address| source_of(&address));
            self.received.push((result.bytes, source.unwrap_or(NOWHERE)));
        }
        Ok(())
    }

    /// The datagrams with their sources, in the order of arrival.
    pub fn datagrams(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        self.slots
            .chunks_exact(DATAGRAM_BYTES_MAX)
            .zip(&self.received)
            .map(|(slot, (bytes, source))| (slot.get(..*bytes).unwrap_or(slot), *source))
    }
}

/// Headers for `sendmmsg` whose addresses are initialised.
///
/// nix reads the address of every result, also of messages sent, where the kernel writes none. So the
/// headers first receive a batch that a socket sent to itself; afterwards nothing reads raw memory.
fn send_headers() -> std::io::Result<MultiHeaders<SockaddrStorage>> {
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let local = socket.local_addr()?;
    for _ in 0..BATCH {
        socket.send_to(&[], local)?;
    }
    let mut slices: [[IoSliceMut<'_>; 1]; BATCH] =
        std::array::from_fn(|_| [IoSliceMut::new(&mut [])]);
    let flags = MsgFlags::empty();
    let received = recvmmsg(socket.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None)?;
    let count = received.count();
    assert_eq!(count, BATCH, "loopback holds a batch of empty datagrams");
    Ok(headers)
}

fn source_of(address: &SockaddrStorage) -> Option<SocketAddr> {
    if let Some(v4) = address.as_sockaddr_in() {
        return Some(SocketAddr::new(v4.ip().into(), v4.port()));
    }
    address.as_sockaddr_in6().map(|v6| SocketAddr::new(v6.ip().into(), v6.port()))
}

/// Datagrams to be sent, in one buffer that is used again.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    items: Vec<Item>,
}

#[derive(Clone, Copy, Debug)]
struct Item {
    from: usize,
    end: usize,
    to: SocketAddr,
}

impl Outbox {
    /// Appends one message to `to`, written by `write`.
    pub fn message(&mut self, to: SocketAddr, write: impl FnOnce(&mut Vec<u8>)) {
        let from = self.bytes.len();
        write(&mut self.bytes);
        self.items.push(Item { from, end: self.bytes.len(), to });
    }

    /// How many messages from `from` on can leave as one piece: all as long as the first, but the last may
    /// be shorter.
    fn train(&self, from: usize) -> usize {
        let items = self.items.get(from..).unwrap_or_default();
        let Some(first) = items.first() else { return 0 };
        let bytes = first.end - first.from;
        let fits = |item: &Item| item.to == first.to && item.end > item.from;
        let most = (TRAIN_BYTES_MAX / bytes.max(1)).clamp(1, BATCH);
        let equal = |item: &&Item| fits(item) && item.end - item.from == bytes;
        let count = items.iter().take(most).take_while(equal).count().max(1);
        let ends = items.get(count).is_some_and(|it| fits(it) && it.end - it.from < bytes);
        count + usize::from(ends && count < most)
    }

    /// Nothing to send.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// All messages without their borders, as a stream carries them.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The messages with their destinations.
    pub fn messages(&self) -> impl Iterator<Item = (&[u8], SocketAddr)> {
        self.items
            .iter()
            .map(|item| (self.bytes.get(item.from..item.end).unwrap_or_default(), item.to))
    }

    /// Forgets what was sent and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.items.clear();
    }
}

/// Datagrams moved by one system call; more brings nothing measurable.
pub const BATCH: usize = 64;
/// Most that one piece may hold: what the length field of an IP packet allows, less headers.
const TRAIN_BYTES_MAX: usize = 65_000;
/// Longest datagram received whole, bytes; longer ones are cut off and do not parse.
pub const DATAGRAM_BYTES_MAX: usize = 4096;
/// Room for bursts: the kernel doubles it and caps it at `net.core.rmem_max`.
const KERNEL_BUFFER_BYTES: usize = 8 << 20;
const NOWHERE: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 0);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports;

    #[test]
    fn more_than_a_batch_arrives_whole_and_in_order() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let mut here = UdpPort::bind(host.parse().unwrap(), None).unwrap();
            let mut there = UdpPort::bind(host.parse().unwrap(), Some(here.local)).unwrap();
            let mut outbox = Outbox::default();
            let total = BATCH + 7;
            for number in 0..total {
                outbox.message(here.local, |out| out.extend_from_slice(&number.to_be_bytes()));
            }
            there.flush(&mut outbox);
            assert!(outbox.is_empty());
            let mut seen = 0usize;
            while seen < total {
                here.receive().unwrap();
                for (bytes, source) in here.inbox.datagrams() {
                    assert_eq!(bytes, seen.to_be_bytes());
                    assert_eq!(source, there.local);
                    seen += 1;
                }
            }
        }
    }

    #[test]
    fn a_connected_port_hears_of_refusals_and_lives_on() {
        let gone = SocketAddr::from(([127, 0, 0, 1], ports::free()));
        let mut port = UdpPort::bind("127.0.0.1:0".parse().unwrap(), Some(gone)).unwrap();
        let mut outbox = Outbox::default();
        for _ in 0..3 {
            outbox.message(gone, |out| out.push(b'x'));
            port.flush(&mut outbox);
        }
        port.receive().unwrap();
        assert!(port.refused >= 1);
    }

    #[test]
    fn datagrams_of_all_lengths_in_a_row_arrive_as_they_are() {
        let mut here = UdpPort::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let other = UdpPort::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let mut there = UdpPort::bind("127.0.0.1:0".parse().unwrap(), None).unwrap();
        let lengths = [0, 5, 5, 5, 3, 9, 9, 1, 0, 0, 4_000, 4_000, 2, 7, 8, 9];
        for round in 0..20u8 {
            let mut outbox = Outbox::default();
            for (number, length) in (0u8..).zip(lengths) {
                outbox.message(here.local, |out| out.resize(out.len() + length, number ^ round));
                if number % 5 == round % 5 {
                    outbox.message(other.local, |out| out.extend_from_slice(b"elsewhere"));
                }
            }
            there.flush(&mut outbox);
            let mut seen = Vec::new();
            while seen.len() < lengths.len() {
                here.receive().unwrap();
                seen.extend(here.inbox.datagrams().map(|(bytes, _)| bytes.to_vec()));
            }
            let expected = (0u8..).zip(lengths).map(|(number, it)| vec![number ^ round; it]);
            assert_eq!(seen, expected.collect::<Vec<_>>(), "round {round}");
        }
        assert!(there.couples);
    }
}
