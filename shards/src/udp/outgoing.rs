//! What leaves a socket in one `sendmmsg`, out of reused buffers.
//!
//! Most of what a datagram costs is its way through the kernel, and datagrams to one destination can go
//! it together: coupled to a train, they are one step for the kernel, which cuts them apart again at the
//! end (`UDP_SEGMENT`, udp(7)). All of a train are equally long, but the last may be shorter. What came
//! from one source for one destination leaves in the order in which it was queued; what came from several
//! had no order on the network either.
#![allow(unsafe_code)]

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::RawFd;
use std::ptr::null_mut;

use super::{BATCH, BATCH_LENGTH, EMPTY_HEADER};
use crate::sys::{RawAddress, allow_fragments, check};

/// What is to leave from one socket.
pub struct Outgoing {
    letters: Vec<Letter>,
    count: usize,
    /// Longest letter that may be coupled with others, bytes; the kernel's refusals lower it.
    coupled_bytes_max: usize,
    trains: Trains,
}

/// One datagram to send.
pub struct Letter {
    bytes: Vec<u8>,
    /// Where the datagram starts in `bytes`.
    start: usize,
    to: Option<SocketAddr>,
    /// Of where it came from and where it goes: [`route`].
    route: u64,
    address: RawAddress,
    address_bytes: libc::socklen_t,
}

impl Letter {
    const EMPTY: Letter = Letter {
        bytes: Vec::new(),
        start: 0,
        to: None,
        route: 0,
        address: RawAddress::EMPTY,
        address_bytes: 0,
    };

    /// What is sent.
    pub fn payload(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or(&[])
    }

    /// To whom.
    pub fn to(&self) -> Option<SocketAddr> {
        self.to
    }
}

impl Default for Outgoing {
    fn default() -> Self {
        Outgoing {
            letters: (0..BATCH).map(|_| Letter::EMPTY).collect(),
            count: 0,
            coupled_bytes_max: COUPLED_BYTES_MAX,
            trains: Trains::default(),
        }
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
    /// `source` is where they came from; `None`: from here. Ignored when full: send first.
    #[inline]
    pub fn push(
        &mut self,
        bytes: &mut Vec<u8>,
        start: usize,
        to: SocketAddr,
        source: Option<SocketAddr>,
    ) {
        debug_assert!(!self.is_full(), "send before pushing");
        let Some(letter) = self.letters.get_mut(self.count) else { return };
        std::mem::swap(&mut letter.bytes, bytes);
        letter.start = start.min(letter.bytes.len());
        letter.to = Some(to);
        letter.route = route(source, to);
        letter.address_bytes = letter.address.encode(to);
        self.count += 1;
    }

    /// Queues a copy of `bytes`.
    pub fn push_copy(&mut self, bytes: &[u8], to: SocketAddr) {
        if let Some(letter) = self.letters.get_mut(self.count) {
            let mut reused = std::mem::take(&mut letter.bytes);
            reused.clear();
            reused.extend_from_slice(bytes);
            self.push(&mut reused, 0, to, None);
        }
    }

    /// Hands everything queued to the kernel and empties the queue, in trains if `may_couple`. `failed`
    /// hears of every letter that did not leave, why, and how often in a row, and says how to go on.
    /// Returns how many left.
    ///
    /// A letter too long for one packet on its way leaves in fragments, and so may those behind it. A
    /// train that the kernel refuses is uncoupled; if its letters then leave one by one, there will be
    /// no such train again.
    pub fn send(
        &mut self,
        fd: RawFd,
        may_couple: bool,
        mut failed: impl FnMut(&Letter, &io::Error, usize) -> Next,
    ) -> usize {
        let longest = if may_couple { self.coupled_bytes_max } else { 0 };
        self.trains.couple(self.letters.get(..self.count).unwrap_or(&[]), longest);
        let (mut at, mut sent, mut failures) = (0, 0, 0);
        let mut in_fragments = false;
        // What the refusal of a train will mean if its first letter leaves alone.
        let mut suspicion = None;
        while let Some(headers) = self.trains.headers.get_mut(at..self.trains.count)
            && !headers.is_empty()
        {
            // SAFETY: `headers` is a slice of at most `BATCH` headers; each points at vectors and a
            // control message of `self.trains` and at letters that nobody touched since `couple`.
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
                    let gone = headers.iter().take(count);
                    sent += gone.map(|it| it.msg_hdr.msg_iovlen).sum::<usize>();
                    (at, failures) = (at + count, 0);
                    if let Some(limit) = suspicion.take() {
                        self.coupled_bytes_max = limit;
                    }
                }
                // On an error the first of the slice did not leave; those behind it were not tried.
                Err(error) if self.trains.at(at).letters > 1 => {
                    suspicion = limit_after(&error, self.trains.at(at).segment_bytes);
                    self.trains.uncouple(at, &self.letters);
                }
                Err(error) if is_too_long(&error) && !in_fragments => {
                    in_fragments = true;
                    // Where that is refused the second attempt fails as the first did.
                    let _ = allow_fragments(fd, true);
                }
                Err(error) => {
                    suspicion = None;
                    failures += 1;
                    let first = self.trains.order.get(self.trains.at(at).start);
                    let Some(letter) = first.and_then(|it| self.letters.get(*it)) else { break };
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
        for letter in self.letters.iter_mut().take(self.count) {
            if letter.bytes.capacity() > LETTER_BYTES_KEPT {
                letter.bytes = Vec::new();
            }
        }
        self.count = 0;
        sent
    }
}

/// The same for all letters of one way. Where two ways share it, they only keep an order that they need
/// not.
fn route(source: Option<SocketAddr>, to: SocketAddr) -> u64 {
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 by the golden ratio: odd, so that nothing is lost
    source.map_or(0, digest).wrapping_mul(SPREAD) ^ digest(to)
}

/// Different for different IPv4 addresses.
#[allow(clippy::cast_possible_truncation)] // both halves are taken
fn digest(address: SocketAddr) -> u64 {
    let port = u64::from(address.port());
    match address.ip() {
        IpAddr::V4(ip) => u64::from(ip.to_bits()) << 16 | port,
        IpAddr::V6(ip) => {
            let bits = ip.to_bits();
            ((bits >> 64) as u64 ^ bits as u64).rotate_left(16) ^ port
        }
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

/// What a refused train of letters of `segment_bytes` says about longer ones, if it was the train's
/// fault: the longest letters that may still be coupled. `None`: nothing.
fn limit_after(error: &io::Error, segment_bytes: usize) -> Option<usize> {
    match error.raw_os_error()? {
        libc::EMSGSIZE => {
            let usual = PAYLOAD_BYTES_USUAL.iter().find(|it| **it < segment_bytes);
            Some(usual.copied().unwrap_or(0))
        }
        // A kernel before 4.18, or a device or policy that trains cannot pass.
        libc::EIO | libc::EINVAL | libc::ENOPROTOOPT | libc::EOPNOTSUPP => Some(0),
        _ => None,
    }
}

/// The letters of one [`Outgoing`] in trains, and in the kernel's form. The pointers inside lead into
/// this value's own heap buffers and into letters; all are written anew for each send.
struct Trains {
    count: usize,
    trains: Box<[Train; BATCH]>,
    /// Of each letter, side by side to be searched.
    routes: [u64; BATCH],
    /// One for each train.
    headers: Box<[libc::mmsghdr; BATCH]>,
    controls: Box<[SegmentControl; BATCH]>,
    /// Letters by their index, train by train.
    order: [usize; BATCH],
    letters: usize,
    /// Of each letter, in that order.
    vectors: Box<[libc::iovec; BATCH]>,
}

/// Letters that leave in one step.
#[derive(Clone, Copy)]
struct Train {
    to: Option<SocketAddr>,
    /// Of its first letter in the order of all.
    start: usize,
    letters: usize,
    /// Length of each letter, but the last may be shorter.
    segment_bytes: usize,
    bytes: usize,
    is_closed: bool,
}

// SAFETY: see the type: no pointer is read again before it is written.
unsafe impl Send for Trains {}

impl Default for Trains {
    fn default() -> Self {
        Trains {
            count: 0,
            trains: Box::new([Train::NONE; BATCH]),
            routes: [0; BATCH],
            headers: Box::new([EMPTY_HEADER; BATCH]),
            controls: Box::new([SegmentControl::EMPTY; BATCH]),
            order: [0; BATCH],
            letters: 0,
            vectors: Box::new([libc::iovec { iov_base: null_mut(), iov_len: 0 }; BATCH]),
        }
    }
}

impl Trains {
    /// Forms trains of letters that are no longer than `longest`.
    fn couple(&mut self, letters: &[Letter], longest: usize) {
        (self.count, self.letters) = (0, letters.len());
        let mut train_of = [0; BATCH];
        for (index, letter) in letters.iter().enumerate() {
            let bytes = letter.payload().len();
            let place = self.place(letter, index, &train_of);
            if let (Some(train), Some(route)) =
                (train_of.get_mut(index), self.routes.get_mut(index))
            {
                (*train, *route) = (place, letter.route);
            }
            let Some(train) = self.trains.get_mut(place) else { continue };
            if place == self.count {
                self.count += 1;
                let is_closed = bytes == 0 || bytes > longest;
                *train = Train { to: letter.to, segment_bytes: bytes, is_closed, ..Train::NONE };
            }
            train.letters += 1;
            train.bytes += bytes;
            train.is_closed |= bytes < train.segment_bytes;
        }
        let mut start = 0;
        for train in self.trains.iter_mut().take(self.count) {
            train.start = start;
            start += std::mem::take(&mut train.letters);
        }
        for (index, place) in train_of.iter().enumerate().take(letters.len()) {
            if let Some(train) = self.trains.get_mut(*place)
                && let Some(order) = self.order.get_mut(train.start + train.letters)
            {
                *order = index;
                train.letters += 1;
            }
        }
        self.write(0, letters);
    }

    /// The train for one more letter behind `earlier` ones: one that is as long, else one that can end with
    /// it, else a new one.
    fn place(&self, letter: &Letter, earlier: usize, train_of: &[usize; BATCH]) -> usize {
        // Not before the train of the one before it on the same way.
        let routes = self.routes.get(..earlier).unwrap_or(&[]);
        let before = routes.iter().rposition(|it| *it == letter.route);
        let first = before.and_then(|it| train_of.get(it)).copied().unwrap_or(0);
        let bytes = letter.payload().len();
        let formed = self.trains.get(first..self.count).unwrap_or(&[]);
        let takes = |it: &Train| it.takes(bytes) && it.to == letter.to;
        let equal = formed.iter().position(|it| it.segment_bytes == bytes && takes(it));
        equal.or_else(|| formed.iter().position(takes)).map_or(self.count, |it| first + it)
    }

    /// Makes a train of its own of every letter from the train at `from` on.
    fn uncouple(&mut self, from: usize, letters: &[Letter]) {
        let start = self.at(from).start;
        self.count = from + self.letters - start;
        for (start, train) in (start..self.letters).zip(self.trains.iter_mut().skip(from)) {
            *train = Train { start, letters: 1, ..Train::NONE };
        }
        self.write(from, letters);
    }

    /// Writes the kernel's form of the trains from `from` on.
    fn write(&mut self, from: usize, letters: &[Letter]) {
        let forms = self.headers.iter_mut().zip(self.controls.iter_mut());
        let trains = self.trains.iter().zip(forms).take(self.count).skip(from);
        for (train, (header, control)) in trains {
            let own = train.start..train.start + train.letters;
            let (Some(order), Some(vectors)) =
                (self.order.get(own.clone()), self.vectors.get_mut(own))
            else {
                continue;
            };
            let header = &mut header.msg_hdr;
            for (index, vector) in order.iter().zip(vectors.iter_mut()).rev() {
                let Some(letter) = letters.get(*index) else { continue };
                vector.iov_base = letter.payload().as_ptr().cast_mut().cast();
                vector.iov_len = letter.payload().len();
                header.msg_name = letter.address.0.as_ptr().cast_mut().cast();
                header.msg_namelen = letter.address_bytes;
            }
            header.msg_iov = vectors.as_mut_ptr();
            header.msg_iovlen = train.letters;
            (header.msg_control, header.msg_controllen) = (null_mut(), 0);
            if train.letters > 1 {
                control.segment_bytes = u16::try_from(train.segment_bytes).unwrap_or(0);
                header.msg_control = std::ptr::from_mut(control).cast();
                header.msg_controllen = size_of::<SegmentControl>();
            }
        }
    }

    fn at(&self, index: usize) -> Train {
        self.trains.get(index).copied().unwrap_or(Train::NONE)
    }
}

impl Train {
    const NONE: Train =
        Train { to: None, start: 0, letters: 0, segment_bytes: 0, bytes: 0, is_closed: true };

    /// Whether one more letter of `bytes` may join.
    fn takes(&self, bytes: usize) -> bool {
        let fits = bytes <= self.segment_bytes && self.bytes + bytes <= TRAIN_BYTES_MAX;
        !self.is_closed && fits && bytes > 0
    }
}

/// The control message that says how long the letters of a train are.
#[derive(Clone, Copy)]
#[repr(C)]
struct SegmentControl {
    header: libc::cmsghdr,
    segment_bytes: u16,
    padding: [u8; 6],
}

impl SegmentControl {
    const EMPTY: SegmentControl = SegmentControl {
        header: libc::cmsghdr {
            cmsg_len: size_of::<libc::cmsghdr>() + size_of::<u16>(),
            cmsg_level: libc::SOL_UDP,
            cmsg_type: libc::UDP_SEGMENT,
        },
        segment_bytes: 0,
        padding: [0; 6],
    };
}

/// Letters that grew beyond this are freed after sending: SIP datagrams rarely pass the 1 500 bytes of
/// an Ethernet frame.
const LETTER_BYTES_KEPT: usize = 8_192;
/// Pending errors of earlier datagrams that one send may report before it is given up.
const SEND_ATTEMPTS_MAX: usize = 2 * BATCH;

/// Longest letter that is coupled at all: two must fit a packet.
const COUPLED_BYTES_MAX: usize = 32_000;
/// What the length field of an IP packet allows, less headers.
const TRAIN_BYTES_MAX: usize = 65_000;
/// What fits one packet of the usual sizes: 9 000 (IPv6, as below), 1 500 (IPv4 and IPv6), 1 280 (IPv6).
const PAYLOAD_BYTES_USUAL: [usize; 4] = [8_952, 1_472, 1_452, 1_232];
const _: () = assert!(COUPLED_BYTES_MAX <= u16::MAX as usize && 2 * COUPLED_BYTES_MAX < 65_000);

#[cfg(test)]
mod tests {
    use super::super::tests::{pattern, wait};
    use super::*;
    use std::collections::VecDeque;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_letter_too_long_for_the_network_fails_alone() {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let to = receiver.local_addr().unwrap();
        let mut outgoing = Outgoing::default();
        for length in [10, 70_000, 20] {
            outgoing.push(&mut pattern(length), 0, to, None);
        }
        outgoing.push_copy(b"copy", to);
        let mut failures = Vec::new();
        let sent = outgoing.send(sender.as_raw_fd(), true, |letter, error, _| {
            failures.push((letter.payload().len(), letter.to(), error.raw_os_error()));
            Next::Skip
        });
        assert_eq!(sent, 3);
        assert_eq!(failures, [(70_000, Some(to), Some(libc::EMSGSIZE))]);
    }

    /// Gives this thread a network of its own: a loopback of 1 280 bytes a packet. `false`: we may not,
    /// which CI must not pass over.
    fn enter_narrow_network() -> bool {
        // SAFETY: no pointers.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            let why = std::io::Error::last_os_error();
            assert!(std::env::var_os("CI").is_none(), "CI needs network namespaces: {why}");
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
                    outgoing.push(&mut pattern(length), 0, to, None);
                }
                let sent = outgoing.send(sender.as_raw_fd(), true, |_, error, _| panic!("{error}"));
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

    /// Lengths of letters by train. A letter is its source (tens) and destination (ones), and its length.
    fn coupled(letters: &[(u16, usize)], longest: usize) -> Vec<Vec<usize>> {
        let letters = letters.iter().map(|(number, bytes)| Letter {
            bytes: pattern(*bytes),
            to: Some(SocketAddr::from(([127, 0, 0, 1], number % 10))),
            route: u64::from(*number),
            ..Letter::EMPTY
        });
        let letters: Vec<Letter> = letters.collect();
        let mut trains = Trains::default();
        trains.couple(&letters, longest);
        let length = |it: &usize| letters[*it].payload().len();
        let of = |it: &Train| &trains.order[it.start..it.start + it.letters];
        let formed = trains.trains[..trains.count].iter();
        formed.map(|it| of(it).iter().map(length).collect()).collect()
    }

    #[test]
    fn letters_of_one_destination_form_trains_and_overtake_nobody() {
        type Case = (&'static str, &'static [(u16, usize)], &'static [&'static [usize]]);
        let cases: &[Case] = &[
            ("nothing", &[], &[]),
            ("alone", &[(1, 500)], &[&[500]]),
            ("equal ones", &[(1, 500), (1, 500), (1, 500)], &[&[500, 500, 500]]),
            ("a shorter one ends it", &[(1, 9), (1, 9), (1, 8), (1, 8)], &[&[9, 9, 8], &[8]]),
            ("a longer one begins another", &[(1, 8), (1, 9)], &[&[8], &[9]]),
            ("not behind an earlier one", &[(1, 8), (1, 9), (1, 8)], &[&[8], &[9, 8]]),
            ("by destination", &[(1, 7), (2, 7), (1, 7), (2, 7)], &[&[7, 7], &[7, 7]]),
            ("beside another source's", &[(1, 8), (1, 9), (11, 8)], &[&[8, 8], &[9]]),
            (
                "calls of two nodes",
                &[(1, 5), (1, 7), (1, 9), (11, 5), (11, 7), (11, 9)],
                &[&[5, 5], &[7, 7], &[9, 9]],
            ),
            ("behind its own", &[(1, 5), (11, 9), (11, 5), (11, 5)], &[&[5], &[9, 5], &[5]]),
            ("rather with its like", &[(1, 9), (11, 5), (21, 5)], &[&[9, 5], &[5]]),
            ("rather with its like 2", &[(1, 5), (11, 9), (21, 5)], &[&[5, 5], &[9]]),
            ("empty ones alone", &[(1, 0), (1, 0)], &[&[0], &[0]]),
            ("none behind an empty one", &[(1, 5), (1, 0), (1, 5)], &[&[5], &[0], &[5]]),
            ("too long ones alone", &[(1, 1_001), (1, 1_001)], &[&[1_001], &[1_001]]),
            ("just not too long", &[(1, 1_000), (1, 1_000)], &[&[1_000, 1_000]]),
        ];
        for (name, letters, want) in cases {
            assert_eq!(coupled(letters, 1_000), *want, "{name}");
        }
        let most = coupled(&[(1, 3_000); BATCH], COUPLED_BYTES_MAX);
        assert!(most.iter().all(|it| it.len() <= 21), "an IP packet is full");
    }

    #[test]
    fn coupled_letters_arrive_as_if_each_had_left_alone() {
        let mut state = 7u64;
        let mut random = |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state % 1_000_003).unwrap() % below
        };
        for host in ["127.0.0.1:0", "[::1]:0"] {
            let sender = UdpSocket::bind(host).unwrap();
            let receivers = [(); 3].map(|()| UdpSocket::bind(host).unwrap());
            let mut outgoing = Outgoing::default();
            let mut buffer = vec![0; 65_536];
            let mut trains = 0;
            for round in 0..200u8 {
                let mut expected = [(); 3].map(|()| [(); 2].map(|()| VecDeque::new()));
                let lengths = [300, 420, 420 + random(3), 1_100];
                for number in 0..BATCH {
                    let mut letter = vec![round; lengths[random(4)]];
                    letter[..8].copy_from_slice(&number.to_be_bytes());
                    let (to, source) = (random(3), random(2));
                    letter[8] = u8::try_from(source).unwrap();
                    expected[to][source].push_back(letter.clone());
                    let source = receivers[source].local_addr().unwrap();
                    outgoing.push(
                        &mut letter,
                        0,
                        receivers[to].local_addr().unwrap(),
                        Some(source),
                    );
                }
                let sent = outgoing.send(sender.as_raw_fd(), true, |_, error, _| panic!("{error}"));
                assert_eq!(sent, BATCH);
                trains += outgoing.trains.count;
                for (receiver, expected) in receivers.iter().zip(&mut expected) {
                    while expected.iter().any(|it| !it.is_empty()) {
                        wait(receiver, libc::EPOLLIN);
                        let count = receiver.recv(&mut buffer).unwrap();
                        let letter = expected[usize::from(buffer[8])].pop_front().unwrap();
                        assert_eq!(buffer[..count], letter, "{host} round {round}");
                    }
                }
            }
            assert!(trains < 200 * BATCH / 2, "{host}: {trains} trains");
            assert_eq!(outgoing.coupled_bytes_max, COUPLED_BYTES_MAX, "{host}");
        }
    }

    #[test]
    fn a_train_too_long_for_the_network_leaves_one_by_one_and_there_is_no_other_like_it() {
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
            for (length, trains) in [(1_300, 4), (1_300, 4), (1_200, 1)] {
                for _ in 0..4 {
                    outgoing.push(&mut pattern(length), 0, to, None);
                }
                assert_eq!(outgoing.send(sender.as_raw_fd(), true, |_, it, _| panic!("{it}")), 4);
                assert_eq!(outgoing.trains.count, trains, "{length}");
                for _ in 0..4 {
                    wait(&receiver, libc::EPOLLIN);
                    let count = receiver.recv(&mut buffer).unwrap();
                    assert_eq!(buffer[..count], pattern(length));
                }
                assert_eq!(outgoing.coupled_bytes_max, 1_232, "after {length}");
            }
        };
        std::thread::spawn(in_narrow_network).join().unwrap();
    }

    #[test]
    fn only_what_is_the_trains_fault_ends_trains() {
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        let mut outgoing = Outgoing::default();
        // Nobody can send to port 0: as invalid as an unknown option, but not the train's fault.
        for _ in 0..3 {
            outgoing.push(&mut pattern(100), 0, "127.0.0.1:0".parse().unwrap(), None);
        }
        let mut failures = 0;
        let sent = outgoing.send(sender.as_raw_fd(), true, |_, error, _| {
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
            failures += 1;
            Next::Skip
        });
        assert_eq!((sent, failures), (0, 3));
        assert_eq!(outgoing.coupled_bytes_max, COUPLED_BYTES_MAX);
        let limit = |code| limit_after(&io::Error::from_raw_os_error(code), 1_300);
        assert_eq!(limit(libc::EMSGSIZE), Some(1_232));
        for code in [libc::EIO, libc::EINVAL, libc::ENOPROTOOPT, libc::EOPNOTSUPP] {
            assert_eq!(limit(code), Some(0), "{code}");
        }
        for code in [libc::EAGAIN, libc::ENOBUFS, libc::EINTR, libc::ECONNREFUSED] {
            assert_eq!(limit(code), None, "{code}");
        }
    }
}
