//! Methods of requests (RFC 3261 §7.1 and its extensions).

/// Methods by name (RFC 3261 §7.1: case matters). Unknown ones pass as [`Method::Other`].
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the method of its name")]
pub enum Method {
    Register,
    Invite,
    Ack,
    Bye,
    Cancel,
    Message,
    Info,
    Subscribe,
    Notify,
    Update,
    Publish,
    Refer,
    Prack,
    Options,
    /// Any other token.
    Other,
}

impl Method {
    /// Every method, in the order of the statistics (`http-smpp-registry.md` 4.3).
    pub const ALL: [Method; 15] = [
        Method::Register,
        Method::Invite,
        Method::Ack,
        Method::Bye,
        Method::Cancel,
        Method::Message,
        Method::Info,
        Method::Subscribe,
        Method::Notify,
        Method::Update,
        Method::Publish,
        Method::Refer,
        Method::Prack,
        Method::Options,
        Method::Other,
    ];

    /// The method of a token.
    pub fn from_token(token: &[u8]) -> Method {
        match token {
            b"INVITE" => Method::Invite,
            b"ACK" => Method::Ack,
            b"BYE" => Method::Bye,
            b"CANCEL" => Method::Cancel,
            b"REGISTER" => Method::Register,
            b"OPTIONS" => Method::Options,
            b"MESSAGE" => Method::Message,
            b"INFO" => Method::Info,
            b"SUBSCRIBE" => Method::Subscribe,
            b"NOTIFY" => Method::Notify,
            b"UPDATE" => Method::Update,
            b"PUBLISH" => Method::Publish,
            b"REFER" => Method::Refer,
            b"PRACK" => Method::Prack,
            _ => Method::Other,
        }
    }

    /// As the wire and the statistics spell it; `OTHER` for the rest.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::Register => "REGISTER",
            Method::Invite => "INVITE",
            Method::Ack => "ACK",
            Method::Bye => "BYE",
            Method::Cancel => "CANCEL",
            Method::Message => "MESSAGE",
            Method::Info => "INFO",
            Method::Subscribe => "SUBSCRIBE",
            Method::Notify => "NOTIFY",
            Method::Update => "UPDATE",
            Method::Publish => "PUBLISH",
            Method::Refer => "REFER",
            Method::Prack => "PRACK",
            Method::Options => "OPTIONS",
            Method::Other => "OTHER",
        }
    }

    /// Position in [`Method::ALL`].
    pub const fn index(self) -> usize {
        self as usize
    }
}
