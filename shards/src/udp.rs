//! Datagrams in batches: `recvmmsg` into the shard's fixed buffers, `sendmmsg` out of reused ones, and
//! the kernel's error queue, which says who refused a datagram (RFC 1122 §4.1.3.3).
//!
//! Nothing allocates per datagram once buffers have grown, and none is ever cut short: each slot has
//! room for the longest datagram there is, of which only touched pages cost memory.
#![allow(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::ptr::null_mut;

use engine::relay::Arrival;

use crate::sys::{RAW_ADDRESS_LENGTH, RawAddress, check};

mod outgoing;

pub use outgoing::{Letter, Next, Outgoing};

/// Datagrams of one system call. Twice as many as the calls themselves need to be cheap: the more leave
/// at once, the longer are the trains of [`Outgoing`].
pub const BATCH: usize = 64;
const BATCH_LENGTH: libc::c_uint = 64;
const _: () = assert!(BATCH_LENGTH as usize == BATCH);

/// What came in with one `recvmmsg`.
pub struct Received {
    slots: Vec<u8>,
    addresses: Box<[RawAddress; BATCH]>,
    vectors: Box<[libc::iovec; BATCH]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
    count: usize,
}

// SAFETY: the raw pointers inside lead to this value's own heap buffers, which move with it.
unsafe impl Send for Received {}

impl Default for Received {
    fn default() -> Self {
        let mut it = Received {
            slots: vec![0; BATCH * SLOT_STRIDE_BYTES],
            addresses: Box::new([RawAddress::EMPTY; BATCH]),
            vectors: Box::new([libc::iovec { iov_base: null_mut(), iov_len: 0 }; BATCH]),
            headers: Box::new([EMPTY_HEADER; BATCH]),
            count: 0,
        };
        let slots = it.slots.chunks_exact_mut(SLOT_STRIDE_BYTES);
        let parts = it.headers.iter_mut().zip(it.vectors.iter_mut()).zip(it.addresses.iter_mut());
        for (((header, vector), address), slot) in parts.zip(slots) {
            vector.iov_base = slot.as_mut_ptr().cast();
            vector.iov_len = DATAGRAM_BYTES_MAX;
            header.msg_hdr.msg_name = (&raw mut address.0).cast();
            header.msg_hdr.msg_namelen = RAW_ADDRESS_LENGTH;
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        it
    }
}

impl Received {
    /// Takes up to [`BATCH`] datagrams from a socket, without waiting, and returns how many came.
    ///
    /// # Errors
    ///
    /// An error that the socket had pending (`ConnectionRefused` after a refused datagram): look at the
    /// error queue and call again.
    pub fn receive(&mut self, fd: RawFd) -> io::Result<usize> {
        // The kernel writes only into the headers that it fills.
        for header in self.headers.iter_mut().take(std::mem::take(&mut self.count)) {
            header.msg_hdr.msg_namelen = RAW_ADDRESS_LENGTH;
        }
        // SAFETY: every header points at a slot and an address of `self`, which stay where they are.
        let returned = unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                BATCH_LENGTH,
                libc::MSG_DONTWAIT,
                null_mut(),
            )
        };
        match check(returned) {
            Ok(count) => self.count = usize::try_from(count).unwrap_or(0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        Ok(self.count)
    }

    /// The datagram at `index` of the last receive, with its sender; `None` past the end, and for a
    /// sender whose address we cannot read.
    #[inline]
    pub fn at(&self, index: usize) -> Option<(SocketAddr, &[u8])> {
        let header = self.headers.get(..self.count)?.get(index)?;
        let source = self.addresses.get(index)?.decode()?;
        let start = index * SLOT_STRIDE_BYTES;
        Some((source, self.slots.get(start..start + header.msg_len as usize)?))
    }
}

/// What the kernel's error queue holds of one datagram that came back.
#[derive(Debug, Eq, PartialEq)]
pub struct Returned {
    /// Where it was sent.
    pub to: SocketAddr,
    /// The error as a number of the kernel: `ECONNREFUSED`, `EHOSTUNREACH` and so on.
    pub error: i32,
    /// How much of the datagram came back, from its start; may be nothing.
    pub length: usize,
}

/// Takes one entry off the socket's error queue; the datagram's start goes into `quoted`. `None` when
/// the queue is empty.
pub fn take_error(fd: RawFd, quoted: &mut [u8]) -> Option<Returned> {
    /// Room for `cmsghdr` with `sock_extended_err` and the offender's address, several times over.
    #[repr(C, align(8))]
    struct Control([u8; 256]);
    let mut address = RawAddress::EMPTY;
    let mut control = Control([0; 256]);
    let mut vector = libc::iovec { iov_base: quoted.as_mut_ptr().cast(), iov_len: quoted.len() };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = (&raw mut address.0).cast();
    header.msg_namelen = RAW_ADDRESS_LENGTH;
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = (&raw mut control.0).cast();
    header.msg_controllen = 256;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: `header` points at locals and at `quoted`, each with its true length.
    let received = unsafe { libc::recvmsg(fd, &raw mut header, flags) };
    let length = usize::try_from(received).ok()?;
    let mut error = 0;
    // SAFETY: the kernel filled `control` and its length; the macros walk within it, and what they
    // point at is read unaligned, only after level and type said what it is.
    unsafe {
        let mut item = libc::CMSG_FIRSTHDR(&raw const header);
        while !item.is_null() {
            let it = item.read_unaligned();
            if matches!(
                (it.cmsg_level, it.cmsg_type),
                (libc::SOL_IP, libc::IP_RECVERR) | (libc::SOL_IPV6, libc::IPV6_RECVERR)
            ) {
                let extended: libc::sock_extended_err =
                    libc::CMSG_DATA(item).cast::<libc::sock_extended_err>().read_unaligned();
                error = extended.ee_errno.cast_signed();
            }
            item = libc::CMSG_NXTHDR(&raw const header, item);
        }
    }
    Some(Returned { to: address.decode()?, error, length })
}

/// Whether the address that a datagram went to is to blame for this error, so that another node may do
/// better.
pub fn is_refusal(error: i32) -> bool {
    matches!(error, libc::ECONNREFUSED | libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN)
}

/// The requests that went out last, as they came in: when one is refused, the very same is decided
/// again. Bounded in bytes; the oldest make room.
#[derive(Default)]
pub struct Recent {
    requests: VecDeque<Request>,
    /// Buffers of forgotten requests.
    spare: Vec<Vec<u8>>,
    bytes: usize,
    /// Number of the batch that is being queued.
    batch: u64,
    hasher: ahash::RandomState,
}

/// One remembered request.
#[derive(Debug)]
pub struct Request {
    /// How it arrived.
    pub arrival: Arrival,
    /// As it arrived.
    pub bytes: Vec<u8>,
    /// How often it was sent again already.
    pub attempts: u8,
    to: SocketAddr,
    batch: u64,
    /// Of the start of what was sent: request line and our Via with its branch, which no other
    /// transaction has.
    mark: u64,
    mark_bytes: usize,
}

impl Recent {
    /// Remembers that `bytes` went to `to` as `sent`.
    #[inline]
    pub fn remember(
        &mut self,
        arrival: &Arrival,
        bytes: &[u8],
        to: SocketAddr,
        sent: &[u8],
        attempts: u8,
    ) {
        while self.bytes + bytes.len() > RECENT_BYTES_MAX {
            let Some(oldest) = self.requests.pop_front() else { return };
            self.bytes -= oldest.bytes.len();
            self.spare.push(oldest.bytes);
        }
        let mut copy = self.spare.pop().unwrap_or_default();
        copy.clear();
        copy.extend_from_slice(bytes);
        let start = sent.get(..MARK_BYTES_MAX).unwrap_or(sent);
        self.requests.push_back(Request {
            arrival: *arrival,
            bytes: copy,
            attempts,
            to,
            batch: self.batch,
            mark: self.hasher.hash_one(start),
            mark_bytes: start.len(),
        });
        self.bytes += bytes.len();
    }

    /// What was remembered since the last call has left.
    pub fn end_batch(&mut self) {
        self.batch += 1;
    }

    /// Takes the request out that went to `to` and of which `quoted` came back, and with it all that
    /// went there in the same batch: of a train that reaches nobody on this host, the kernel returns the
    /// first letter only. None if it was forgotten, or too little came back to be sure.
    pub fn take(&mut self, to: SocketAddr, quoted: &[u8]) -> Vec<Request> {
        let (mut length, mut mark) = (0, 0);
        let found = self.requests.iter().rfind(|it| {
            if it.to != to || it.mark_bytes > quoted.len() {
                return false;
            }
            if it.mark_bytes != length {
                length = it.mark_bytes;
                mark = self.hasher.hash_one(quoted.get(..length).unwrap_or(&[]));
            }
            it.mark == mark
        });
        let Some(batch) = found.map(|it| it.batch) else { return Vec::new() };
        let mut taken = Vec::new();
        for _ in 0..self.requests.len() {
            let Some(request) = self.requests.pop_front() else { break };
            if request.to == to && request.batch == batch {
                self.bytes -= request.bytes.len();
                taken.push(request);
            } else {
                self.requests.push_back(request);
            }
        }
        taken
    }

    /// Gives a request's buffer back.
    pub fn recycle(&mut self, request: Request) {
        if self.spare.len() < BATCH {
            self.spare.push(request.bytes);
        }
    }
}

/// The longest datagram that IPv4 and IPv6 can carry, and a few bytes more.
const DATAGRAM_BYTES_MAX: usize = 65_536;
/// Slots lie 2 KiB off a power of two, or all would compete for the same lines of the cache. Pages of a
/// slot that no datagram reached are never touched and cost no memory.
const SLOT_STRIDE_BYTES: usize = DATAGRAM_BYTES_MAX + 2_048;
/// About 150 requests of 900 bytes: more than are under way to a node when its refusal comes back.
const RECENT_BYTES_MAX: usize = 128 * 1024;
/// Less than what every ICMP error brings back (RFC 1812 §4.3.2.3: as much as fits 576 bytes).
const MARK_BYTES_MAX: usize = 384;

const EMPTY_HEADER: libc::mmsghdr = libc::mmsghdr {
    msg_hdr: libc::msghdr {
        msg_name: null_mut(),
        msg_namelen: 0,
        msg_iov: null_mut(),
        msg_iovlen: 0,
        msg_control: null_mut(),
        msg_controllen: 0,
        msg_flags: 0,
    },
    msg_len: 0,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::{Epoll, Events, receive_errors};
    use engine::relay::ListenerId;
    use protocols::time::Time;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use tools::ports;

    pub(super) fn pattern(length: usize) -> Vec<u8> {
        (0..=250u8).cycle().take(length).collect()
    }

    pub(super) fn wait(socket: &UdpSocket, flags: i32) {
        let (epoll, mut events) = (Epoll::new().unwrap(), Events::new(1));
        epoll.add(socket.as_raw_fd(), 0, flags).unwrap();
        assert_eq!(epoll.wait(&mut events, 5_000), Some(1));
    }

    #[test]
    fn datagrams_of_every_length_arrive_whole_in_batches() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let receiver = UdpSocket::bind(host).unwrap();
            let sender = UdpSocket::bind(host).unwrap();
            let to = receiver.local_addr().unwrap();
            let (mut received, mut outgoing) = (Received::default(), Outgoing::default());
            let lengths = [0, 1, 600, 2_047, 2_048, 2_049, 9_000, 60_000, 65_507];
            for lengths in lengths.chunks(4) {
                for length in lengths {
                    outgoing.push(&mut pattern(*length), 0, to, None);
                }
                assert!(!outgoing.is_empty());
                let sent = outgoing.send(sender.as_raw_fd(), true, |_, error, _| panic!("{error}"));
                assert_eq!(sent, lengths.len());
                assert!(outgoing.is_empty());
                let mut seen = Vec::new();
                while seen.len() < lengths.len() {
                    wait(&receiver, libc::EPOLLIN);
                    let count = received.receive(receiver.as_raw_fd()).unwrap();
                    for index in 0..count {
                        let (source, bytes) = received.at(index).unwrap();
                        assert_eq!(source, sender.local_addr().unwrap());
                        assert_eq!(bytes, pattern(bytes.len()));
                        seen.push(bytes.len());
                    }
                    assert_eq!(received.at(count), None);
                }
                assert_eq!(seen, lengths, "{host}");
            }
            assert_eq!(received.receive(receiver.as_raw_fd()).unwrap(), 0);
        }
    }

    #[test]
    fn a_refused_datagram_comes_back_with_its_destination_and_its_start() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let sender = UdpSocket::bind(host).unwrap();
            let closed = SocketAddr::new(sender.local_addr().unwrap().ip(), ports::free());
            receive_errors(sender.as_raw_fd(), closed.ip()).unwrap();
            let mut outgoing = Outgoing::default();
            outgoing.push(&mut pattern(500), 100, closed, None);
            outgoing.send(sender.as_raw_fd(), true, |_, _, _| Next::Skip);
            wait(&sender, 0);
            let mut quoted = [0; 1_024];
            let returned = take_error(sender.as_raw_fd(), &mut quoted).unwrap();
            assert_eq!((returned.to, returned.error), (closed, libc::ECONNREFUSED));
            assert!(is_refusal(returned.error));
            assert_eq!(quoted[..returned.length], pattern(500)[100..]);
            assert_eq!(take_error(sender.as_raw_fd(), &mut quoted), None);
        }
    }

    #[test]
    fn the_very_request_that_was_refused_is_found_and_memory_stays_bounded() {
        let arrival = Arrival {
            now: Time::ZERO,
            listener: ListenerId(0),
            source: "127.0.0.1:1".parse().unwrap(),
            flow: None,
        };
        let node: SocketAddr = "127.0.0.1:2".parse().unwrap();
        let other: SocketAddr = "127.0.0.1:3".parse().unwrap();
        let sent = |id: usize| format!("INVITE {id:>64} {}", "x".repeat(id % 700)).into_bytes();
        let mut recent = Recent::default();
        let received = |id: usize| id.to_string().repeat(200).into_bytes();
        for id in 0..1_000 {
            recent.remember(&arrival, &received(id), node, &sent(id), 0);
            assert!(recent.bytes <= RECENT_BYTES_MAX);
            recent.end_batch();
        }
        assert!(recent.take(node, &sent(0)).is_empty(), "forgotten");
        assert!(recent.take(other, &sent(999)).is_empty(), "sent elsewhere");
        assert!(recent.take(node, &sent(999)[..40]).is_empty(), "too little came back");
        for id in [999, 950] {
            let mut requests = recent.take(node, &sent(id));
            assert_eq!(requests.len(), 1);
            let request = requests.remove(0);
            assert_eq!(request.bytes, received(id));
            assert!(recent.take(node, &sent(id)).is_empty(), "taken");
            recent.recycle(request);
        }
        let held = recent.requests.iter().map(|it| it.bytes.len()).sum::<usize>();
        assert_eq!(recent.bytes, held);
    }

    #[test]
    fn every_request_of_a_refused_train_is_found_by_what_came_back() {
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let open = UdpSocket::bind(host).unwrap();
            let closed = SocketAddr::new(open.local_addr().unwrap().ip(), ports::free());
            let sender = UdpSocket::bind(host).unwrap();
            receive_errors(sender.as_raw_fd(), closed.ip()).unwrap();
            let arrival =
                Arrival { now: Time::ZERO, listener: ListenerId(0), source: closed, flow: None };
            let (mut outgoing, mut recent) = (Outgoing::default(), Recent::default());
            let earlier = pattern(400);
            recent.remember(&arrival, &earlier, closed, &earlier, 0);
            recent.end_batch();
            for id in 0..6u8 {
                let to = if id % 3 == 0 { open.local_addr().unwrap() } else { closed };
                let mut bytes = vec![id; 500];
                recent.remember(&arrival, &bytes, to, &bytes, 0);
                outgoing.push(&mut bytes, 0, to, None);
            }
            assert_eq!(outgoing.send(sender.as_raw_fd(), true, |_, _, _| Next::Skip), 6);
            recent.end_batch();
            wait(&sender, 0);
            let mut quoted = [0; 1_024];
            let returned = take_error(sender.as_raw_fd(), &mut quoted).unwrap();
            let again = recent.take(returned.to, &quoted[..returned.length]);
            assert_eq!(
                again.iter().map(|it| it.bytes[0]).collect::<Vec<_>>(),
                [1, 2, 4, 5],
                "{host}"
            );
        }
    }
}
