//! The kernel, made safe: epoll, eventfd, timerfd, socket addresses and the few options that the
//! standard library and `socket2` do not know.
//!
//! Every `unsafe` of the data path is here or in `udp`; each stands alone with its reason. Nothing here
//! decides anything.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Turns the `-1` of a system call into its error.
pub(crate) fn check(returned: libc::c_int) -> io::Result<libc::c_int> {
    if returned < 0 { Err(io::Error::last_os_error()) } else { Ok(returned) }
}

/// One readiness event: what was registered, and what happened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Event {
    /// Token given at registration.
    pub token: u64,
    /// `EPOLLIN`, `EPOLLOUT` and so on.
    pub flags: u32,
}

/// An epoll set with room for one turn's events.
#[derive(Debug)]
pub struct Epoll {
    fd: OwnedFd,
}

/// Where [`Epoll::wait`] puts what it found.
pub struct Events {
    raw: Vec<libc::epoll_event>,
    count: usize,
}

impl Events {
    /// Room for `capacity` events a turn.
    pub fn new(capacity: usize) -> Events {
        Events { raw: vec![libc::epoll_event { events: 0, u64: 0 }; capacity.max(1)], count: 0 }
    }

    /// The event at `index` of the last wait.
    pub fn at(&self, index: usize) -> Option<Event> {
        let raw = self.raw.get(..self.count)?.get(index)?;
        Some(Event { token: raw.u64, flags: raw.events })
    }
}

impl Epoll {
    /// An empty set.
    ///
    /// # Errors
    ///
    /// The kernel's: out of descriptors or memory.
    pub fn new() -> io::Result<Epoll> {
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: as above.
        Ok(Epoll { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Watches `fd` for `flags`; events carry `token`. Closing `fd` ends the watch.
    ///
    /// # Errors
    ///
    /// The kernel's: `fd` is watched already, or cannot be.
    pub fn add(&self, fd: RawFd, token: u64, flags: i32) -> io::Result<()> {
        let mut event = libc::epoll_event { events: flags.cast_unsigned(), u64: token };
        // SAFETY: `event` lives through the call; a wrong `fd` is an error, not a fault.
        check(unsafe {
            libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event)
        })?;
        Ok(())
    }

    /// Stops watching `fd`. A descriptor that is not watched is no error.
    pub fn remove(&self, fd: RawFd) {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: `event` lives through the call; errors say that there was nothing to remove.
        unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, &raw mut event) };
    }

    /// Waits up to `timeout_ms` (-1 is for ever) and returns how many events came; `None`: it was interrupted
    /// (io_uring's task work does that), which says nothing about events.
    pub fn wait(&self, events: &mut Events, timeout_ms: i32) -> Option<usize> {
        let capacity = i32::try_from(events.raw.len()).unwrap_or(i32::MAX);
        // SAFETY: the kernel writes at most `capacity` events into a buffer of that many.
        let count = unsafe {
            libc::epoll_wait(self.fd.as_raw_fd(), events.raw.as_mut_ptr(), capacity, timeout_ms)
        };
        events.count = usize::try_from(count).unwrap_or(0);
        (count >= 0).then_some(events.count)
    }
}

impl AsRawFd for Epoll {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Bytes in the kernel that were written to a TCP socket and that its peer has not acknowledged.
///
/// # Errors
///
/// The kernel's: it is no such socket.
pub fn unacknowledged(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the kernel writes one `int` into a local.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

/// Wakes whoever watches it, from any thread.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
}

impl EventFd {
    /// A waker at rest.
    ///
    /// # Errors
    ///
    /// The kernel's: out of descriptors or memory.
    pub fn new() -> io::Result<EventFd> {
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        let fd = check(unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) })?;
        // SAFETY: as above.
        Ok(EventFd { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Makes it readable. Never blocks: a counter that is full is readable already.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: reads eight bytes of a local.
        unsafe { libc::write(self.fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Puts it to rest again.
    pub fn clear(&self) {
        read_counter(self.fd.as_raw_fd());
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// One alarm, watched through epoll.
#[derive(Debug)]
pub struct TimerFd {
    fd: OwnedFd,
}

impl TimerFd {
    /// An alarm that is not set.
    ///
    /// # Errors
    ///
    /// The kernel's: out of descriptors or memory.
    pub fn new() -> io::Result<TimerFd> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: no pointers; a non-negative result is a descriptor that nobody else owns.
        let fd = check(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) })?;
        // SAFETY: as above.
        Ok(TimerFd { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Sets the alarm for `after` from now, at least a nanosecond; `None` switches it off.
    pub fn arm(&self, after: Option<Duration>) {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let value = after.map_or(zero, |it| {
            let it = it.max(Duration::from_nanos(1));
            libc::timespec {
                tv_sec: libc::time_t::try_from(it.as_secs()).unwrap_or(libc::time_t::MAX),
                tv_nsec: libc::c_long::from(it.subsec_nanos().cast_signed()),
            }
        });
        let spec = libc::itimerspec { it_interval: zero, it_value: value };
        // SAFETY: `spec` lives through the call; no old value is asked for.
        unsafe {
            libc::timerfd_settime(self.fd.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut())
        };
    }

    /// Takes note of an alarm that went off.
    pub fn clear(&self) {
        read_counter(self.fd.as_raw_fd());
    }
}

impl AsRawFd for TimerFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

fn read_counter(fd: RawFd) {
    let mut counter = [0u8; 8];
    // SAFETY: writes at most eight bytes into a local of eight.
    unsafe { libc::read(fd, counter.as_mut_ptr().cast(), counter.len()) };
}

/// A socket address as the kernel reads and writes it: room for `sockaddr_in` and `sockaddr_in6`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub struct RawAddress(pub [u8; RAW_ADDRESS_BYTES]);

/// `sizeof(struct sockaddr_in6)`.
pub const RAW_ADDRESS_BYTES: usize = 28;
/// The same, as the kernel takes it.
pub(crate) const RAW_ADDRESS_LENGTH: libc::socklen_t = 28;
const _: () = assert!(RAW_ADDRESS_BYTES == size_of::<libc::sockaddr_in6>());
const V4_BYTES: u32 = 16;
const FAMILY_V4: u16 = 2;
const FAMILY_V6: u16 = 10;
const _: () = assert!(libc::AF_INET == 2 && libc::AF_INET6 == 10);
const _: () = assert!(V4_BYTES as usize == size_of::<libc::sockaddr_in>());

impl RawAddress {
    /// No address yet.
    pub const EMPTY: RawAddress = RawAddress([0; RAW_ADDRESS_BYTES]);

    /// Writes an address; returns how many bytes of it count.
    #[inline]
    pub fn encode(&mut self, address: SocketAddr) -> u32 {
        let it = &mut self.0;
        match address {
            SocketAddr::V4(v4) => {
                let [a, b, c, d] = v4.ip().octets();
                let [f0, f1] = FAMILY_V4.to_ne_bytes();
                let [p0, p1] = v4.port().to_be_bytes();
                it[..8].copy_from_slice(&[f0, f1, p0, p1, a, b, c, d]);
                it[8..16].fill(0);
                V4_BYTES
            }
            SocketAddr::V6(v6) => {
                let [f0, f1] = FAMILY_V6.to_ne_bytes();
                let [p0, p1] = v6.port().to_be_bytes();
                it[..4].copy_from_slice(&[f0, f1, p0, p1]);
                it[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                it[8..24].copy_from_slice(&v6.ip().octets());
                it[24..].copy_from_slice(&v6.scope_id().to_ne_bytes());
                RAW_ADDRESS_LENGTH
            }
        }
    }

    /// Reads what the kernel wrote; `None` for a family that is neither IPv4 nor IPv6.
    #[inline]
    pub fn decode(&self) -> Option<SocketAddr> {
        let [f0, f1, p0, p1, a, b, c, d, rest @ ..] = self.0;
        let port = u16::from_be_bytes([p0, p1]);
        match u16::from_ne_bytes([f0, f1]) {
            FAMILY_V4 => Some(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(a, b, c, d), port))),
            FAMILY_V6 => {
                let (ip, scope) = rest.split_first_chunk::<16>()?;
                Some(SocketAddr::V6(SocketAddrV6::new(
                    Ipv6Addr::from(*ip),
                    port,
                    0,
                    u32::from_ne_bytes(*scope.first_chunk()?),
                )))
            }
            _ => None,
        }
    }
}

/// Takes one connection off a listening socket, non-blocking from birth.
///
/// # Errors
///
/// `WouldBlock` when there is none; `EMFILE` and `ENFILE` when descriptors ran out; a connection that
/// died in the queue reports its own error and the next call may succeed.
pub(crate) fn accept(listener: RawFd) -> io::Result<(OwnedFd, Option<SocketAddr>)> {
    let mut address = RawAddress::EMPTY;
    let mut length = RAW_ADDRESS_LENGTH;
    // SAFETY: the kernel writes at most `length` bytes into `address`, which has that many.
    let fd = check(unsafe {
        libc::accept4(
            listener,
            (&raw mut address.0).cast(),
            &raw mut length,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address.decode()))
}

/// Asks for ICMP errors on an unconnected datagram socket (`IP_RECVERR`, `IPV6_RECVERR`).
pub(crate) fn receive_errors(fd: RawFd, ip: IpAddr) -> io::Result<()> {
    match ip {
        IpAddr::V4(_) => set_option(fd, libc::SOL_IP, libc::IP_RECVERR, &1i32),
        IpAddr::V6(_) => set_option(fd, libc::SOL_IPV6, libc::IPV6_RECVERR, &1i32),
    }
}

/// Whether IPv4 datagrams may leave this socket in fragments. One that may not needs no identification
/// (RFC 6864 §4.1), which the kernel draws from counters that all CPUs share; one that is too long then
/// fails with `EMSGSIZE`.
///
/// # Errors
///
/// The kernel's: an IPv6 socket, which knows no such difference.
pub(crate) fn allow_fragments(fd: RawFd, allowed: bool) -> io::Result<()> {
    let discovery = if allowed { libc::IP_PMTUDISC_WANT } else { libc::IP_PMTUDISC_DO };
    set_option(fd, libc::SOL_IP, libc::IP_MTU_DISCOVER, &discovery)
}

/// Sets a kernel buffer, above the system's limit where we are privileged to.
pub(crate) fn set_buffer(fd: RawFd, forced: i32, plain: i32, bytes: usize) -> io::Result<()> {
    let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
    set_option(fd, libc::SOL_SOCKET, forced, &bytes)
        .or_else(|_| set_option(fd, libc::SOL_SOCKET, plain, &bytes))
}

/// Lets a classic BPF program choose the member of a `SO_REUSEPORT` group; the result is the position
/// in bind order.
pub(crate) fn attach_steering(fd: RawFd, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_mut_ptr(),
    };
    set_option(fd, libc::SOL_SOCKET, libc::SO_ATTACH_REUSEPORT_CBPF, &filter)
}

/// Lets the kernel choose the port of a bound address only when it connects, for the place that it connects to.
/// Else every connection takes a port from all the others, and 28 000 of them are all there are.
///
/// # Errors
///
/// The kernel's: it does not know the option.
pub(crate) fn choose_port_late(fd: RawFd) -> io::Result<()> {
    set_option(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, &1i32)
}

fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of::<T>()).unwrap_or(0);
    // SAFETY: the kernel reads `length` bytes at `value`, a reference to that many.
    check(unsafe { libc::setsockopt(fd, level, name, std::ptr::from_ref(value).cast(), length) })?;
    Ok(())
}

/// Datagrams that the kernel dropped because this socket's receive buffer was full, since it opened.
pub(crate) fn receive_drops(fd: RawFd) -> u32 {
    const SO_MEMINFO: i32 = 55;
    const DROPS: usize = 8;
    let mut figures = [0u32; 9];
    let mut length: libc::socklen_t = 36;
    // SAFETY: the kernel writes at most `length` bytes into `figures`, which has that many.
    let returned = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            SO_MEMINFO,
            figures.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if returned == 0 { figures.get(DROPS).copied().unwrap_or(0) } else { 0 }
}

/// CPUs that this process may use, ascending.
pub fn affinity() -> Vec<usize> {
    // SAFETY: all-zero is a valid, empty set; the kernel writes at most its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) != 0 {
            return vec![0];
        }
        set
    };
    let capacity = 8 * size_of::<libc::cpu_set_t>();
    // SAFETY: `cpu` is below the number of bits of the set.
    (0..capacity).filter(|cpu| unsafe { libc::CPU_ISSET(*cpu, &set) }).collect()
}

/// Pins the calling thread to one CPU.
pub(crate) fn pin_to(cpu: usize) -> io::Result<()> {
    confine_to(&[cpu])
}

/// Keeps the calling thread, and all that it starts from now on, off the CPUs of the shards, which are the
/// first `shards` of `cpus`: whoever works beside them must not take a core's time from calls. Where they
/// leave none over, the scheduler chooses among all.
pub(crate) fn keep_off_shards(cpus: &[usize], shards: usize) -> io::Result<()> {
    match cpus.get(shards..) {
        Some(others @ [_, ..]) => confine_to(others),
        _ => Ok(()),
    }
}

/// Lets the calling thread, and all that it starts from now on, run on these CPUs alone.
fn confine_to(cpus: &[usize]) -> io::Result<()> {
    if cpus.iter().any(|cpu| *cpu >= 8 * size_of::<libc::cpu_set_t>()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all-zero is a valid, empty set; each CPU is below its number of bits; the kernel only reads.
    check(unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        cpus.iter().for_each(|cpu| libc::CPU_SET(*cpu, &mut set));
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    })?;
    Ok(())
}

/// Makes short sleeps of the calling thread exact to a microsecond instead of 50.
pub(crate) fn sharpen_sleep() {
    // SAFETY: no pointers; the worst that happens is that nothing changes.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1_000 as libc::c_ulong) };
}

/// CPU time that the calling thread has used.
pub(crate) fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one `timespec` into a local.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
}

/// Keeps the kernel from backing this process with huge pages: the allocator asks for them, and a few
/// bytes in each of its arenas then hold 2 MiB. At rest that is 40 MiB instead of 12.
pub fn forgo_huge_pages() {
    // SAFETY: no pointers; the worst that happens is that nothing changes.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1 as libc::c_ulong, 0, 0, 0) };
}

/// Blocks SIGTERM, SIGINT and SIGHUP in the calling thread and all it spawns later, so that only the
/// control thread, which waits for them, takes them.
pub fn block_signals() {
    // SAFETY: `sigemptyset` initialises the set before it is read; no old set is asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
    }
}

/// Whether io_uring may be used: tried out, since kernels, sysctls and container profiles all forbid it.
///
/// # Errors
///
/// The kernel's reason.
pub(crate) fn probe_io_uring() -> io::Result<()> {
    // In a thread of its own: a closed ring leaves work behind that interrupts its creator's next wait.
    let probe = std::thread::Builder::new().spawn(set_up_io_uring)?;
    probe.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

fn set_up_io_uring() -> io::Result<()> {
    /// `sizeof(struct io_uring_params)`.
    const PARAMS_BYTES: usize = 120;
    let mut params = [0u64; PARAMS_BYTES / 8];
    // SAFETY: the kernel reads and writes the 120 bytes of `params`.
    let fd =
        unsafe { libc::syscall(libc::SYS_io_uring_setup, 4 as libc::c_long, params.as_mut_ptr()) };
    let fd = check(libc::c_int::try_from(fd).unwrap_or(-1))?;
    // SAFETY: a fresh descriptor that nobody else owns; dropping closes it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Raises the soft limit on locked memory to the hard one and returns what it is now, bytes.
pub(crate) fn raise_memlock() -> u64 {
    raise(libc::RLIMIT_MEMLOCK)
}

/// Raises the soft limit on open files to the hard one and returns what it is now: every connection is
/// one, and shells start with 1024.
pub(crate) fn raise_files() -> u64 {
    raise(libc::RLIMIT_NOFILE)
}

fn raise(resource: libc::__rlimit_resource_t) -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` into a local.
    if unsafe { libc::getrlimit(resource, &raw mut limit) } != 0 {
        return 0;
    }
    let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
    // SAFETY: the kernel only reads a local.
    if unsafe { libc::setrlimit(resource, &raw const raised) } == 0 {
        raised.rlim_cur
    } else {
        limit.rlim_cur
    }
}

/// Whether an accept failed because nothing can be accepted for now: the listener stays ready, and an epoll set
/// would report it without end.
pub(crate) fn is_exhaustion(error: &std::io::Error) -> bool {
    let code = error.raw_os_error().unwrap_or(0);
    [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM].contains(&code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_kernels_form() {
        let cases =
            ["127.0.0.1:5060", "0.0.0.0:0", "255.1.2.3:65535", "[::1]:5060", "[fe80::1%3]:1"];
        for text in cases {
            let address: SocketAddr = text.parse().unwrap();
            let mut raw = RawAddress::EMPTY;
            // What a slot held before must not shine through.
            raw.encode("[ff02::ffff%9]:9".parse().unwrap());
            let length = raw.encode(address);
            assert_eq!(raw.decode(), Some(address), "{text}");
            assert_eq!(length, if address.is_ipv4() { 16 } else { 28 }, "{text}");
        }
        assert_eq!(RawAddress::EMPTY.decode(), None);
    }

    #[test]
    fn a_wake_is_seen_once_and_before_it_nothing() {
        let (epoll, waker) = (Epoll::new().unwrap(), EventFd::new().unwrap());
        let mut events = Events::new(4);
        epoll.add(waker.as_raw_fd(), 7, libc::EPOLLIN).unwrap();
        assert_eq!(epoll.wait(&mut events, 0), Some(0));
        waker.wake();
        waker.wake();
        assert_eq!(epoll.wait(&mut events, 1_000), Some(1));
        assert_eq!(events.at(0).map(|it| it.token), Some(7));
        assert_eq!(events.at(1), None);
        waker.clear();
        assert_eq!(epoll.wait(&mut events, 0), Some(0));
        epoll.remove(waker.as_raw_fd());
        waker.wake();
        assert_eq!(epoll.wait(&mut events, 0), Some(0));
    }

    #[test]
    fn an_alarm_goes_off_once_and_can_be_switched_off() {
        let (epoll, timer) = (Epoll::new().unwrap(), TimerFd::new().unwrap());
        let mut events = Events::new(4);
        epoll.add(timer.as_raw_fd(), 1, libc::EPOLLIN).unwrap();
        timer.arm(Some(Duration::ZERO));
        assert_eq!(epoll.wait(&mut events, 1_000), Some(1));
        timer.clear();
        assert_eq!(epoll.wait(&mut events, 0), Some(0));
        timer.arm(Some(Duration::from_secs(3_600)));
        timer.arm(None);
        assert_eq!(epoll.wait(&mut events, 0), Some(0));
    }

    #[test]
    fn the_process_may_use_the_cpus_it_is_told() {
        let cpus = affinity();
        assert!(!cpus.is_empty());
        std::thread::spawn(move || {
            for cpu in &cpus {
                pin_to(*cpu).unwrap();
                assert_eq!(affinity(), [*cpu]);
                confine_to(&cpus).unwrap();
            }
            assert!(pin_to(usize::MAX).is_err());
            sharpen_sleep();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn who_works_beside_the_shards_gets_the_cpus_that_they_leave_over() {
        let cpus = affinity();
        std::thread::spawn(move || {
            for shards in 0..=cpus.len() + 1 {
                confine_to(&cpus).unwrap();
                keep_off_shards(&cpus, shards).unwrap();
                let want = if shards < cpus.len() { &cpus[shards..] } else { &cpus };
                assert_eq!(affinity(), want, "{shards} shards");
                let heir = std::thread::spawn(affinity);
                assert_eq!(heir.join().unwrap(), want, "{shards} shards");
                pin_to(cpus[0]).unwrap(); // as a shard does, wherever it was started from
                assert_eq!(affinity(), cpus[..1]);
            }
        })
        .join()
        .unwrap();
    }

    #[test]
    fn signals_are_blocked_for_threads_spawned_later() {
        std::thread::spawn(|| {
            block_signals();
            std::thread::spawn(|| {
                // SAFETY: reads the thread's mask into a local.
                unsafe {
                    let mut set: libc::sigset_t = std::mem::zeroed();
                    libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &raw mut set);
                    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
                        assert_eq!(libc::sigismember(&raw const set, signal), 1, "{signal}");
                    }
                    assert_eq!(libc::sigismember(&raw const set, libc::SIGUSR1), 0);
                }
            })
            .join()
            .unwrap();
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_threads_cpu_time_grows_with_its_work_and_not_with_its_sleep() {
        let start = thread_cpu_time();
        std::thread::sleep(Duration::from_millis(50));
        let slept = thread_cpu_time();
        assert!(slept - start < Duration::from_millis(25));
        while thread_cpu_time() < slept + Duration::from_millis(5) {}
    }

    #[test]
    fn probes_answer_without_harm() {
        let _ = probe_io_uring();
        assert!(raise_memlock() > 0);
    }
}
