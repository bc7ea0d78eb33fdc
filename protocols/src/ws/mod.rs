//! WebSocket as SIP uses it (RFC 6455, RFC 7118): opening handshake and frames, both ends.

pub mod frame;
pub mod handshake;

pub use self::frame::{Closing, Event, Opcode, Reader, Role, Violation};
