//! SMPP as it travels between ESME and SMSC: PDUs off a stream, the few fields that a balancer reads, and
//! the state machines of a session.
//!
//! Reads SMPP 3.4 §3.2 (format), §4 (operations), §5.1 (ids and status codes), and SMPP 5.0 §4 where it
//! adds to them. Bodies are read only where something hangs on them and are never rewritten: of a PDU
//! that passes, the sequence number changes and nothing else.

pub mod body;
pub mod pdu;
pub mod session;

use core::fmt;

/// `command_id`: which operation, and whether it is a response. Source: SMPP 3.4 §5.1.2.1.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Command(pub u32);

impl Command {
    /// Something is wrong with a PDU's header.
    pub const GENERIC_NACK: Command = Command(0x8000_0000);
    /// Binds an ESME that only receives.
    pub const BIND_RECEIVER: Command = Command(0x0000_0001);
    /// Binds an ESME that only sends.
    pub const BIND_TRANSMITTER: Command = Command(0x0000_0002);
    /// Asks for a message's state.
    pub const QUERY_SM: Command = Command(0x0000_0003);
    /// A message from the ESME.
    pub const SUBMIT_SM: Command = Command(0x0000_0004);
    /// A message to the ESME.
    pub const DELIVER_SM: Command = Command(0x0000_0005);
    /// Ends a session.
    pub const UNBIND: Command = Command(0x0000_0006);
    /// Replaces a message that is still under way.
    pub const REPLACE_SM: Command = Command(0x0000_0007);
    /// Withdraws a message.
    pub const CANCEL_SM: Command = Command(0x0000_0008);
    /// Binds an ESME that sends and receives.
    pub const BIND_TRANSCEIVER: Command = Command(0x0000_0009);
    /// The SMSC asks an ESME to bind.
    pub const OUTBIND: Command = Command(0x0000_000b);
    /// Are you there?
    pub const ENQUIRE_LINK: Command = Command(0x0000_0015);
    /// A message from the ESME to many.
    pub const SUBMIT_MULTI: Command = Command(0x0000_0021);
    /// A mobile has become available; has no response.
    pub const ALERT_NOTIFICATION: Command = Command(0x0000_0102);
    /// A message either way.
    pub const DATA_SM: Command = Command(0x0000_0103);
    /// A message to an area (SMPP 5.0 §4.4.1).
    pub const BROADCAST_SM: Command = Command(0x0000_0111);
    /// Asks for a broadcast's state (SMPP 5.0 §4.6.1).
    pub const QUERY_BROADCAST_SM: Command = Command(0x0000_0112);
    /// Withdraws a broadcast (SMPP 5.0 §4.6.3).
    pub const CANCEL_BROADCAST_SM: Command = Command(0x0000_0113);

    /// Whether it answers something.
    pub const fn is_response(self) -> bool {
        self.0 & RESPONSE != 0
    }

    /// The response of a request; a response stays what it is.
    pub const fn response(self) -> Command {
        Command(self.0 | RESPONSE)
    }

    /// The request that a response answers; a request stays what it is. [`Command::GENERIC_NACK`] answers
    /// any.
    pub const fn request(self) -> Command {
        Command(self.0 & !RESPONSE)
    }

    /// The name in the specification, for people; `None` if it has none that we know.
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Command::GENERIC_NACK => "generic_nack",
            Command::BIND_RECEIVER => "bind_receiver",
            Command::BIND_TRANSMITTER => "bind_transmitter",
            Command::QUERY_SM => "query_sm",
            Command::SUBMIT_SM => "submit_sm",
            Command::DELIVER_SM => "deliver_sm",
            Command::UNBIND => "unbind",
            Command::REPLACE_SM => "replace_sm",
            Command::CANCEL_SM => "cancel_sm",
            Command::BIND_TRANSCEIVER => "bind_transceiver",
            Command::OUTBIND => "outbind",
            Command::ENQUIRE_LINK => "enquire_link",
            Command::SUBMIT_MULTI => "submit_multi",
            Command::ALERT_NOTIFICATION => "alert_notification",
            Command::DATA_SM => "data_sm",
            Command::BROADCAST_SM => "broadcast_sm",
            Command::QUERY_BROADCAST_SM => "query_broadcast_sm",
            Command::CANCEL_BROADCAST_SM => "cancel_broadcast_sm",
            _ => return None,
        })
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.name(), self.request().name()) {
            (Some(name), _) => f.write_str(name),
            (None, Some(name)) => write!(f, "{name}_resp"),
            (None, None) => write!(f, "command {:#010x}", self.0),
        }
    }
}

/// `command_status` of a response. Source: SMPP 3.4 §5.1.3.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Status(pub u32);

impl Status {
    /// No error.
    pub const OK: Status = Status(0x00);
    /// The command length is invalid.
    pub const INVALID_COMMAND_LENGTH: Status = Status(0x02);
    /// The command id is invalid.
    pub const INVALID_COMMAND_ID: Status = Status(0x03);
    /// Not now: the session's state does not allow the command.
    pub const INVALID_BIND_STATUS: Status = Status(0x04);
    /// The ESME is bound already.
    pub const ALREADY_BOUND: Status = Status(0x05);
    /// System error.
    pub const SYSTEM_ERROR: Status = Status(0x08);
    /// Bind failed.
    pub const BIND_FAILED: Status = Status(0x0d);
    /// Invalid password.
    pub const INVALID_PASSWORD: Status = Status(0x0e);
    /// Invalid system id.
    pub const INVALID_SYSTEM_ID: Status = Status(0x0f);
    /// The SMSC's queue is full.
    pub const MESSAGE_QUEUE_FULL: Status = Status(0x14);
    /// The ESME sends more than it may.
    pub const THROTTLED: Status = Status(0x58);
}

/// Highest sequence number; 1 follows (SMPP 3.4 §3.2).
pub const SEQUENCE_MAX: u32 = 0x7fff_ffff;

const RESPONSE: u32 = 0x8000_0000;
