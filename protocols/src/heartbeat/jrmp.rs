//! Java RMI heartbeats as the node's JVM speaks them: the server side of JRMP, one connection at a time.
//!
//! Source: `http-smpp-registry.md` 3.4, and the dialogue of a JDK 17 client in the tests. Serves the
//! registry (`lookup` and `list` of one name), the distributed garbage collector (`dirty` and `clean`,
//! so that clients stay content) and the three methods of the node register. Everything else closes the
//! connection, which a client sees as a `RemoteException`.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::net::SocketAddr;
use core::time::Duration;

use self::call::{Call, Method};
use super::{NodeWords, java};
use crate::time::Time;

mod answer;
mod call;

/// One connection, to the registry or to the node register: both are served on either.
///
/// Hand in what arrives, in any pieces; send what is written into `out`; fetch the events.
#[derive(Debug)]
pub struct Connection {
    stub: Stub,
    peer: SocketAddr,
    phase: Phase,
    /// One call and no more.
    single: bool,
    /// A token that is not complete yet.
    pending: Vec<u8>,
    /// Bytes of the current message that were read.
    message_bytes: usize,
    next_return: Uid,
    events: VecDeque<Event>,
    upkeep: Upkeep,
    deadline: Time,
}

/// What clients do for themselves, beside calls.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Upkeep {
    /// Tests of the connection before it is used again.
    pub pings: u32,
    /// Leases, begun and renewed.
    pub leases: u32,
    /// Leases given back.
    pub releases: u32,
}

/// The remote object as clients are told of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Stub {
    /// Address that the node connects to: the local one of its own connection, if nothing else is
    /// configured.
    pub host: String,
    /// Port there.
    pub port: u16,
    /// Number of the object; any but the registry's 0, the activator's 1 and the collector's 2.
    pub object: i64,
    /// Tells this incarnation of the object from all others.
    pub uid: Uid,
}

/// `java.rmi.server.UID`: unique together with the host it comes from.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Uid {
    /// Tells processes apart.
    pub unique: i32,
    /// When that process began to count, in milliseconds since 1970.
    pub time: i64,
    /// Tells its UIDs apart.
    pub count: i16,
}

/// What a node wants. It was answered already: there is nothing that a node could be told.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Event {
    /// `handlePing`: these nodes are alive. An empty list is legal and says nothing.
    Ping(Vec<NodeWords>),
    /// `forceRemoval`: these nodes stop.
    ForceRemoval(Vec<NodeWords>),
    /// `switchover`: one node's calls are another's from now on.
    SwitchOver {
        /// `jvmRoute` that is left.
        from: String,
        /// `jvmRoute` that takes over.
        to: String,
    },
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Flow {
    /// It goes on.
    Open,
    /// It was a single operation: close once `out` is sent.
    Close,
}

/// Why the peer is no client of ours. Close the connection; what is in `out` need not be sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Malformed {
    /// Not `JRMI` and version 2.
    Greeting,
    /// Neither a stream nor a single operation: multiplexing ended with Java 1.1.
    Protocol {
        /// Its code.
        code: u8,
    },
    /// Neither a ping nor a call.
    Message {
        /// Its code.
        code: u8,
    },
    /// The serialization stream of a call.
    Stream(java::Malformed),
    /// Longer than [`CALL_BYTES_MAX`].
    TooLong,
    /// No such object, or no such method that we serve.
    Call {
        /// Number of the object.
        object: i64,
        /// Number of the operation.
        operation: i32,
        /// Hash of the method or of the interface.
        hash: i64,
    },
    /// The arguments are not those of the method.
    Arguments,
    /// A name that the registry does not have.
    Name,
}

#[derive(Debug)]
enum Phase {
    Greeting,
    /// The client tells its own address.
    ClientAddress,
    /// Between messages.
    Message,
    /// A `DgcAck`; its UID is of no use.
    Acknowledgement,
    Call(Box<Call>),
    Closed,
}

impl Connection {
    /// A connection that a client has opened from `peer`. Returns are numbered from `first_return` on.
    pub fn new(now: Time, peer: SocketAddr, stub: Stub, first_return: Uid) -> Connection {
        Connection {
            stub,
            peer,
            phase: Phase::Greeting,
            single: false,
            pending: Vec::new(),
            message_bytes: 0,
            next_return: first_return,
            events: VecDeque::new(),
            upkeep: Upkeep::default(),
            deadline: now + MESSAGE_TIME_MAX,
        }
    }

    /// Reads all of `bytes` and appends answers to `out`, at most some ten times as long.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: close the connection. Events before that are still valid.
    pub fn handle_bytes(
        &mut self,
        now: Time,
        bytes: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Flow, Malformed> {
        let mut pending = core::mem::take(&mut self.pending);
        let fresh = pending.is_empty();
        if !fresh {
            pending.extend_from_slice(bytes);
        }
        let mut rest = if fresh { bytes } else { pending.as_slice() };
        let offered = rest.len();
        let result = self.read(now, &mut rest, out);
        let left = rest.len();
        if result != Ok(Flow::Open) || self.message_bytes + left > CALL_BYTES_MAX {
            self.phase = Phase::Closed;
            return result.and_then(|flow| match flow {
                Flow::Open => Err(Malformed::TooLong),
                Flow::Close => Ok(Flow::Close),
            });
        }
        if fresh {
            pending.extend_from_slice(bytes.get(offered - left..).unwrap_or_default());
        } else {
            pending.drain(..offered - left);
        }
        self.pending = if left == 0 { Vec::new() } else { pending };
        Ok(Flow::Open)
    }

    /// The next thing that the node wants, oldest first.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// What the client did for itself since the last call.
    pub const fn take_upkeep(&mut self) -> Upkeep {
        core::mem::replace(&mut self.upkeep, Upkeep { pings: 0, leases: 0, releases: 0 })
    }

    /// When to close the connection unless something arrives: a message lasts [`MESSAGE_TIME_MAX`] at
    /// most, the pause between two [`IDLE_TIME_MAX`].
    pub const fn poll_timeout(&self) -> Time {
        self.deadline
    }

    /// What the message that is under way costs: its bytes, and what became of them. A few bytes may name
    /// an object of many parts.
    pub fn held_bytes(&self) -> usize {
        let call = match &self.phase {
            Phase::Call(it) => it.held_bytes(),
            _ => 0,
        };
        self.message_bytes + self.pending.len() + call
    }

    fn read(&mut self, now: Time, input: &mut &[u8], out: &mut Vec<u8>) -> Result<Flow, Malformed> {
        loop {
            let before = input.len();
            let more = self.step(input, out)?;
            self.message_bytes += before - input.len();
            if self.message_bytes > CALL_BYTES_MAX {
                return Err(Malformed::TooLong);
            }
            match self.phase {
                Phase::Closed => return Ok(Flow::Close),
                Phase::Message if before != input.len() => {
                    (self.message_bytes, self.deadline) = (0, now + IDLE_TIME_MAX);
                }
                Phase::Acknowledgement | Phase::Call(_) if self.message_bytes == 1 => {
                    self.deadline = now + MESSAGE_TIME_MAX;
                }
                _ => {}
            }
            if !more {
                return Ok(Flow::Open);
            }
        }
    }

    /// One step of the dialogue. `false`: it needs more bytes.
    fn step(&mut self, input: &mut &[u8], out: &mut Vec<u8>) -> Result<bool, Malformed> {
        match &mut self.phase {
            Phase::Greeting => {
                let Some((greeting, rest)) = input.split_first_chunk::<7>() else {
                    let known = GREETING.get(..input.len().min(6)).unwrap_or_default();
                    return if input.starts_with(known) {
                        Ok(false)
                    } else {
                        Err(Malformed::Greeting)
                    };
                };
                let Some(&[code]) = greeting.strip_prefix(GREETING) else {
                    return Err(Malformed::Greeting);
                };
                match code {
                    STREAM_PROTOCOL => {
                        answer::greeting(out, self.peer);
                        self.phase = Phase::ClientAddress;
                    }
                    SINGLE_OPERATION => (self.single, self.phase) = (true, Phase::Message),
                    code => return Err(Malformed::Protocol { code }),
                }
                *input = rest;
            }
            Phase::ClientAddress => {
                let Some((length, rest)) = input.split_first_chunk::<2>() else { return Ok(false) };
                let length = usize::from(u16::from_be_bytes(*length)) + PORT_BYTES;
                let Some((_, rest)) = rest.split_at_checked(length) else { return Ok(false) };
                (*input, self.phase) = (rest, Phase::Message);
            }
            Phase::Message => {
                let Some((code, rest)) = input.split_first() else { return Ok(false) };
                match *code {
                    PING => {
                        out.push(PING_ACKNOWLEDGEMENT);
                        self.upkeep.pings += 1;
                        self.end_message();
                    }
                    ACKNOWLEDGEMENT => self.phase = Phase::Acknowledgement,
                    CALL => self.phase = Phase::Call(Box::default()),
                    code => return Err(Malformed::Message { code }),
                }
                *input = rest;
            }
            Phase::Acknowledgement => {
                let Some((_, rest)) = input.split_first_chunk::<UID_BYTES>() else {
                    return Ok(false);
                };
                *input = rest;
                self.end_message();
            }
            Phase::Call(call) => {
                let Some(method) = call.read(input, &self.stub)? else { return Ok(false) };
                let uid = self.next_return;
                self.next_return.count = uid.count.wrapping_add(1);
                match method {
                    Method::List => answer::names(out, uid),
                    Method::Lookup => answer::stub(out, uid, &self.stub),
                    Method::Dirty(lease) => {
                        self.upkeep.leases += 1;
                        answer::lease(out, uid, &lease);
                    }
                    Method::Clean => {
                        self.upkeep.releases += 1;
                        answer::nothing(out, uid);
                    }
                    Method::Register(event) => {
                        answer::nothing(out, uid);
                        self.events.push_back(event);
                    }
                }
                self.end_message();
            }
            Phase::Closed => return Ok(false),
        }
        Ok(true)
    }

    fn end_message(&mut self) {
        self.phase = if self.single { Phase::Closed } else { Phase::Message };
    }
}

impl Uid {
    fn to_bytes(self) -> [u8; UID_BYTES] {
        let mut bytes = [0; UID_BYTES];
        let (unique, rest) = bytes.split_at_mut(4);
        let (time, count) = rest.split_at_mut(8);
        unique.copy_from_slice(&self.unique.to_be_bytes());
        time.copy_from_slice(&self.time.to_be_bytes());
        count.copy_from_slice(&self.count.to_be_bytes());
        bytes
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Greeting => f.write_str("no JRMP greeting"),
            Malformed::Protocol { code } => write!(f, "JRMP protocol {code:#04x}"),
            Malformed::Message { code } => write!(f, "JRMP message {code:#04x}"),
            Malformed::Stream(it) => write!(f, "call: {it}"),
            Malformed::TooLong => write!(f, "call longer than {CALL_BYTES_MAX} bytes"),
            Malformed::Call { object, operation, hash } => {
                write!(f, "no operation {operation} with hash {hash:#018x} of object {object}")
            }
            Malformed::Arguments => f.write_str("arguments of another method"),
            Malformed::Name => write!(f, "lookup of another name than {NAME}"),
        }
    }
}

impl core::error::Error for Malformed {}

impl From<java::Malformed> for Malformed {
    fn from(it: java::Malformed) -> Malformed {
        Malformed::Stream(it)
    }
}

/// The one name in the registry.
pub const NAME: &str = "SIPBalancer";

/// One call. A node with 20 properties takes 1 KiB the first time, and 500 bytes each time after.
pub const CALL_BYTES_MAX: usize = 1024 * 1024;

/// One message, from its first byte to its last; also the greeting.
pub const MESSAGE_TIME_MAX: Duration = Duration::from_secs(5);

/// Clients keep a connection for 15 s and test it before they use it again.
pub const IDLE_TIME_MAX: Duration = Duration::from_secs(60);

const GREETING: &[u8] = b"JRMI\0\x02";
const STREAM_PROTOCOL: u8 = 0x4b;
const SINGLE_OPERATION: u8 = 0x4c;
const CALL: u8 = 0x50;
const PING: u8 = 0x52;
const PING_ACKNOWLEDGEMENT: u8 = 0x53;
const ACKNOWLEDGEMENT: u8 = 0x54;
const UID_BYTES: usize = 14;
const PORT_BYTES: usize = 4;

#[cfg(test)]
mod tests;
