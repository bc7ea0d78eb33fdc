//! What nodes say of themselves, by whichever protocol.

use alloc::string::String;
use alloc::vec::Vec;

pub mod java;
pub mod jrmp;
pub mod json;
pub mod options;
pub mod post;

/// What a node says of itself over RMI or JSON: words alone, nothing is checked yet.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct NodeWords {
    /// For people; empty if it told none.
    pub host_name: String,
    /// Address of every port, as text; empty if it told none.
    pub ip: String,
    /// Everything else in the order it was said; numbers as text.
    pub properties: Vec<(String, String)>,
}
