//! What leaves a socket in one `sendmmsg`, out of reused buffers.
#![allow(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::ptr::null_mut;

use super::{BATCH, BATCH_LENGTH, EMPTY_HEADER};
use crate::sys::{RawAddress, allow_fragments, check};

/// What is to leave from one socket.
pub struct Outgoing {
    slots: Vec<Letter>,
    count: usize,
    addresses: Box<[RawAddress; BATCH]>,
    vectors: Box<[libc::iovec; BATCH]>,
    headers: Box<[libc::mmsghdr; BATCH]>,
}

/// One datagram to send.
#[derive(Default)]
pub struct Letter {
    bytes: Vec<u8>,
    /// Where the datagram starts in `bytes`.
    start: usize,
    to: Option<SocketAddr>,
}

impl Letter {
    /// What is sent.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or(&[])
    }

    /// To whom.
    pub fn to(&self) -> Option<SocketAddr> {
        self.to
    }
}

// SAFETY: the raw pointers inside lead to this value's own heap buffers, which move with it; those that
// lead into letters are written anew before each use.
unsafe impl Send for Outgoing {}

impl Default for Outgoing {
    fn default() -> Self {
        let mut it = Outgoing {
            slots: (0..BATCH).map(|_| Letter::default()).collect(),
            count: 0,
            addresses: Box::new([RawAddress::EMPTY; BATCH]),
            vectors: Box::new([libc::iovec { iov_base: null_mut(), iov_len: 0 }; BATCH]),
            headers: Box::new([EMPTY_HEADER; BATCH]),
        };
        let parts = it.headers.iter_mut().zip(it.vectors.iter_mut()).zip(it.addresses.iter_mut());
        for ((header, vector), address) in parts {
            header.msg_hdr.msg_name = (&raw mut address.0).cast();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
        }
        it
    }
}

impl Outgoing {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether nothing more fits before a [`Outgoing::send`].
    pub fn is_full(&self) -> bool {
        self.count == BATCH
    }

    /// Queues `bytes[start..]` by taking the vector over; `bytes` becomes an older one, to be reused.
    /// Ignored when full: send first.
    #[inline]
    pub fn push(&mut self, bytes: &mut Vec<u8>, start: usize, to: SocketAddr) {
        debug_assert!(!self.is_full(), "send before pushing");
        let (Some(letter), Some(header), Some(vector), Some(address)) = (
            self.slots.get_mut(self.count),
            self.headers.get_mut(self.count),
            self.vectors.get_mut(self.count),
            self.addresses.get_mut(self.count),
        ) else {
            return;
        };
        std::mem::swap(&mut letter.bytes, bytes);
        letter.start = start.min(letter.bytes.len());
        letter.to = Some(to);
        header.msg_hdr.msg_namelen = address.encode(to);
        vector.iov_base = letter.payload().as_ptr().cast_mut().cast();
        vector.iov_len = letter.bytes.len() - letter.start;
        self.count += 1;
    }

    /// Queues a copy of `bytes`.
    pub fn push_copy(&mut self, bytes: &[u8], to: SocketAddr) {
        if let Some(letter) = self.slots.get_mut(self.count) {
            let mut reused = std::mem::take(&mut letter.bytes);
            reused.clear();
            reused.extend_from_slice(bytes);
            self.push(&mut reused, 0, to);
        }
    }

    /// Hands everything queued to the kernel and empties the queue. `failed` hears of every letter that
    /// did not leave, why, and how often in a row, and says how to go on. Returns how many left.
    ///
    /// A letter too long for one packet on its way leaves in fragments, and so may those behind it.
    pub fn send(
        &mut self,
        fd: RawFd,
        mut failed: impl FnMut(&Letter, &io::Error, usize) -> Next,
    ) -> usize {
        let (mut at, mut sent, mut failures) = (0, 0, 0);
        let mut in_fragments = false;
        while let Some(headers) = self.headers.get_mut(at..self.count)
            && !headers.is_empty()
        {
            // SAFETY: `headers` is a slice of at most `BATCH` headers; each points at an address of
            // `self` and at a letter that `push` filled and nobody touched since.
            let returned = unsafe {
                libc::sendmmsg(
                    fd,
                    headers.as_mut_ptr(),
                    libc::c_uint::try_from(headers.len()).unwrap_or(BATCH_LENGTH),
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            match check(returned) {
                Ok(count) => {
                    let count = usize::try_from(count).unwrap_or(0).max(1);
                    (at, sent, failures) = (at + count, sent + count, 0);
                }
                Err(error) if is_too_long(&error) && !in_fragments => {
                    in_fragments = true;
                    // Where that is refused the second attempt fails as the first did.
                    let _ = allow_fragments(fd, true);
                }
                // On an error the first of the slice did not leave; those behind it were not tried.
                Err(error) => {
                    failures += 1;
                    let Some(letter) = self.slots.get(at) else { break };
                    match failed(letter, &error, failures) {
                        Next::Again if failures < SEND_ATTEMPTS_MAX => {}
                        Next::Again | Next::Skip => (at, failures) = (at + 1, 0),
                        Next::Stop => break,
                    }
                }
            }
        }
        if in_fragments {
            let _ = allow_fragments(fd, false);
        }
        for letter in self.slots.iter_mut().take(self.count) {
            if letter.bytes.capacity() > LETTER_BYTES_KEPT {
                letter.bytes = Vec::new();
            }
        }
        self.count = 0;
        sent
    }
}

fn is_too_long(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// How to go on after a letter that did not leave.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Next {
    /// The error was another letter's: send this one again. Taken for [`Next::Skip`] in the end.
    Again,
    /// Leave this one and go on with the next.
    Skip,
    /// Leave this one and all behind it.
    Stop,
}

/// Letters that grew beyond this are freed after sending: SIP datagrams rarely pass the 1 500 bytes of
/// an Ethernet frame.
const LETTER_BYTES_KEPT: usize = 8_192;
/// Pending errors of earlier datagrams that one send may report before it is given up.
const SEND_ATTEMPTS_MAX: usize = 2 * BATCH;

#[cfg(test)]
mod tests {
    use super::super::tests::{pattern, wait};
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_letter_too_long_for_the_network_fails_alone() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let mut outgoing = Outgoing::default();
        for length in [10, 70_000, 20] {
            outgoing.push(&mut pattern(length), 0, to);
        }
        outgoing.push_copy(b"copy", to);
        let mut failures = Vec::new();
        let sent = outgoing.send(sender.as_raw_fd(), |letter, error, _| {
            failures.push((letter.payload().len(), letter.to(), error.raw_os_error()));
            Next::Skip
        });
        assert_eq!(sent, 3);
        assert_eq!(failures, [(70_000, Some(to), Some(libc::EMSGSIZE))]);
    }

    /// Gives this thread a network of its own: a loopback of 1 280 bytes a packet. `false`: we may not.
    fn enter_narrow_network() -> bool {
        // SAFETY: no pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return false;
        }
        let any = UdpSocket::bind("0.0.0.0:0").unwrap();
        // SAFETY: all-zero is a valid request; the kernel reads and writes only it, and `lo` fits its name.
        unsafe {
            let mut request: libc::ifreq = std::mem::zeroed();
            for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
                *to = from.cast_signed();
            }
            request.ifr_ifru.ifru_mtu = 1_280;
            assert_eq!(libc::ioctl(any.as_raw_fd(), libc::SIOCSIFMTU, &raw mut request), 0);
            request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
            assert_eq!(libc::ioctl(any.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request), 0);
        }
        true
    }

    #[test]
    fn a_letter_too_long_for_one_packet_leaves_in_fragments() {
        let in_narrow_network = || {
            if !enter_narrow_network() {
                eprintln!("not run: it needs a network namespace");
                return;
            }
            let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
            let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
            let to = receiver.local_addr().unwrap();
            allow_fragments(sender.as_raw_fd(), false).unwrap();
            let mut outgoing = Outgoing::default();
            let mut buffer = vec![0; 65_536];
            for round in 0..2 {
                let lengths = [100, 3_000, 200, 5_000];
                for length in lengths {
                    outgoing.push(&mut pattern(length), 0, to);
                }
                let sent = outgoing.send(sender.as_raw_fd(), |_, error, _| panic!("{error}"));
                assert_eq!(sent, lengths.len(), "round {round}");
                for length in lengths {
                    wait(&receiver, libc::EPOLLIN);
                    let count = receiver.recv(&mut buffer).unwrap();
                    assert_eq!(buffer[..count], pattern(length), "round {round}");
                }
                let alone = sender.send_to(&pattern(3_000), to).unwrap_err();
                assert!(is_too_long(&alone), "round {round}: fragments are the exception");
            }
        };
        std::thread::spawn(in_narrow_network).join().unwrap();
    }
}
