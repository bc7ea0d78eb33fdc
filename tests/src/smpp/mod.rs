//! SMPP for plays. PDUs are written out by hand; there is an ESME that the play drives, and an SMSC that
//! answers by itself.

mod esme;
mod smsc;

use crate::{Balancer, Setup, wait_for};

pub use esme::Esme;
pub use smsc::{Reply, Seen, Smsc};

impl Setup {
    /// SMPP alone, plain and over TLS, in front of these servers, with times that suit plays.
    pub fn smpp(servers: &[Smsc]) -> Setup {
        let servers: Vec<String> = servers.iter().map(|it| it.address.to_string()).collect();
        Setup::single_entry()
            .set("smppHost", "127.0.0.1")
            .set("smppPort", "SMPP")
            .set("remoteServers", &servers.join(","))
            .set("timeoutResponse", "5000")
            .set("timeoutConnection", "2000")
            .set("timeoutEnquire", "30000")
            .set("timeoutConnectionCheckClientSide", "10000")
            .set("timeoutConnectionCheckServerSide", "10000")
            .set("reconnectPeriod", "50")
    }

    /// The same in mux mode.
    pub fn smpp_mux(servers: &[Smsc]) -> Setup {
        Setup::smpp(servers).set("muxMode", "true")
    }
}

impl Balancer {
    /// A row of `/metrics`, as `trunkline_smpp_` continues: `not_bound_total`, or with labels.
    pub fn smpp_metric(&self, row: &str) -> u64 {
        let metrics = self.metrics();
        let name = format!("trunkline_smpp_{row} ");
        let line = metrics.lines().find_map(|it| it.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no {name} in\n{metrics}")).parse().unwrap()
    }

    /// Waits until neither side of any session is left.
    pub fn wait_no_smpp(&self) {
        wait_for("the end of all SMPP connections", || {
            let stat = self.stat("NumberOfActiveSmppConnections");
            let providers = self.smpp_metric("server_connections");
            (stat == 0 && providers == 0).then_some(())
        });
    }
}

/// One PDU (SMPP 3.4 §3.2).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Pdu {
    /// `command_id`.
    pub command: u32,
    /// `command_status`.
    pub status: u32,
    /// `sequence_number`.
    pub sequence: u32,
    /// What follows the header.
    pub body: Vec<u8>,
}

impl Pdu {
    /// A request, or anything else without a status.
    pub fn new(command: u32, sequence: u32, body: impl Into<Vec<u8>>) -> Pdu {
        Pdu { command, status: 0, sequence, body: body.into() }
    }

    /// The response to it.
    pub fn answer(&self, status: u32, body: impl Into<Vec<u8>>) -> Pdu {
        Pdu { command: self.command | RESPONSE, status, sequence: self.sequence, body: body.into() }
    }

    /// Whether it answers something.
    pub fn is_response(&self) -> bool {
        self.command & RESPONSE != 0
    }

    /// As it travels.
    pub fn to_bytes(&self) -> Vec<u8> {
        let length = u32::try_from(16 + self.body.len()).unwrap();
        let header = [length, self.command, self.status, self.sequence].map(u32::to_be_bytes);
        [&header.concat(), self.body.as_slice()].concat()
    }

    /// The PDU at the front of what was received, once it is whole.
    ///
    /// # Panics
    ///
    /// If its length is none: the balancer must not send such a thing.
    pub(crate) fn cut(received: &[u8]) -> Option<(Pdu, usize)> {
        let word = |at: usize| Some(u32::from_be_bytes(received.get(at..at + 4)?.try_into().ok()?));
        let (length, command, status, sequence) = (word(0)?, word(4)?, word(8)?, word(12)?);
        assert!((16..=65_536).contains(&length), "a PDU of {length} bytes");
        let body = received.get(16..length as usize)?.to_vec();
        Some((Pdu { command, status, sequence, body }, length as usize))
    }

    /// The C-string that starts so many bytes into the body.
    pub fn text(&self, at: usize) -> &str {
        let rest = self.body.get(at..).unwrap_or_default();
        let end = rest.iter().position(|it| *it == 0).unwrap_or(rest.len());
        std::str::from_utf8(&rest[..end]).unwrap()
    }
}

/// Body of a bind as the original's tests send it: 39 bytes with the header for "RestComm" and "password".
pub fn bind_body(system_id: &str, password: &str) -> Vec<u8> {
    [system_id.as_bytes(), b"\0", password.as_bytes(), b"\0\0\x34\0\0\0"].concat()
}

/// Body of a submit_sm or deliver_sm as the original's tests send it: 61 bytes with the header for
/// "Hello world!".
pub fn message_body(text: &[u8]) -> Vec<u8> {
    message(0, text)
}

/// As [`message_body`], with an `esm_class`.
pub fn message(esm_class: u8, text: &[u8]) -> Vec<u8> {
    let length = [u8::try_from(text.len()).unwrap()];
    let addresses = b"\0\x03\x0040404\0\x01\x0144555519205\0";
    [&addresses[..], &[esm_class], b"\0\0\0\0\0\0\0\0", &length, text].concat()
}

/// Body of a deliver_sm that is the receipt for a message (SMPP 3.4 appendix B).
pub fn receipt_body(id: &str) -> Vec<u8> {
    let text = format!(
        "id:{id} sub:001 dlvrd:001 submit date:2601011200 done date:2601011201 stat:DELIVRD"
    );
    message(0x04, text.as_bytes())
}

/// Bit that makes a command the response to itself.
pub const RESPONSE: u32 = 0x8000_0000;
/// generic_nack.
pub const GENERIC_NACK: u32 = RESPONSE;
/// bind_receiver.
pub const BIND_RECEIVER: u32 = 1;
/// bind_transmitter.
pub const BIND_TRANSMITTER: u32 = 2;
/// query_sm.
pub const QUERY_SM: u32 = 3;
/// submit_sm.
pub const SUBMIT_SM: u32 = 4;
/// deliver_sm.
pub const DELIVER_SM: u32 = 5;
/// unbind.
pub const UNBIND: u32 = 6;
/// bind_transceiver.
pub const BIND_TRANSCEIVER: u32 = 9;
/// outbind.
pub const OUTBIND: u32 = 0x0b;
/// enquire_link.
pub const ENQUIRE_LINK: u32 = 0x15;
/// alert_notification.
pub const ALERT_NOTIFICATION: u32 = 0x102;
/// data_sm.
pub const DATA_SM: u32 = 0x103;
/// broadcast_sm of SMPP 5.0.
pub const BROADCAST_SM: u32 = 0x111;

/// ESME_ROK.
pub const OK: u32 = 0;
/// ESME_RINVCMDLEN.
pub const INVALID_LENGTH: u32 = 2;
/// ESME_RINVCMDID.
pub const INVALID_COMMAND: u32 = 3;
/// ESME_RINVBNDSTS.
pub const INVALID_BIND_STATUS: u32 = 4;
/// ESME_RALYBND.
pub const ALREADY_BOUND: u32 = 5;
/// ESME_RSYSERR.
pub const SYSTEM_ERROR: u32 = 8;
/// ESME_RINVDSTADR.
pub const INVALID_DESTINATION: u32 = 0x0b;
/// ESME_RINVPASWD.
pub const INVALID_PASSWORD: u32 = 0x0e;
/// ESME_RTHROTTLED.
pub const THROTTLED: u32 = 0x58;
