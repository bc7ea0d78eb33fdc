//! What nodes say of themselves, by whichever protocol.

pub mod options;
