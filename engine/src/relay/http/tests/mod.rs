//! The relay between a recorder's wire and a virtual clock: bytes in, bytes out.

mod catalogue;
mod failures;
mod followers;
mod harness;
mod hostile;
mod refusals;
mod streaming;
mod tunnels;
