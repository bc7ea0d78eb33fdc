//! A pretend name server (RFC 1035): answers by UDP what it was told, and knows what it was asked.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};

/// What it knows of one name: kind, the bytes of one record.
type Record = (&'static str, u16, Vec<u8>);

/// A running name server. It answers as long as the process lives.
pub struct NameServer {
    asked: Arc<Mutex<Vec<(u16, String)>>>,
}

impl NameServer {
    /// Answers at an address. Names that have no record do not exist.
    ///
    /// # Panics
    ///
    /// If the address is taken.
    pub fn start(address: SocketAddr, records: Vec<Record>) -> NameServer {
        let socket = UdpSocket::bind(address).unwrap();
        let asked = Arc::<Mutex<Vec<_>>>::default();
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((count, from)) = socket.recv_from(&mut query) {
                let (kind, name, end) = question(&query[..count]);
                log.lock().unwrap().push((kind, name.clone()));
                let found = records.iter().filter(|it| it.0 == name && it.1 == kind);
                let found: Vec<&[u8]> = found.map(|it| it.2.as_slice()).collect();
                let _ = socket.send_to(&response(&query[..end], &found), from);
            }
        });
        NameServer { asked }
    }

    /// The questions so far, in their order.
    pub fn asked(&self) -> Vec<(u16, String)> {
        self.asked.lock().unwrap().clone()
    }

    /// A record of kind 1 (RFC 1035 §3.4.1).
    pub fn a(name: &'static str, address: Ipv4Addr) -> Record {
        (name, A, address.octets().to_vec())
    }

    /// A record of kind 33 (RFC 2782).
    pub fn srv(name: &'static str, priority: u16, port: u16, target: &str) -> Record {
        let weight = 1u16;
        let numbers = [priority, weight, port].map(u16::to_be_bytes).concat();
        (name, SRV, [numbers, labels(target)].concat())
    }

    /// A record of kind 35 that leads to other records (RFC 3403 §4.1).
    pub fn naptr(name: &'static str, order: u16, service: &str, replacement: &str) -> Record {
        let preference = 1u16;
        let numbers = [order, preference].map(u16::to_be_bytes).concat();
        let texts: Vec<u8> = ["s", service, ""].iter().flat_map(|it| counted(it)).collect();
        (name, NAPTR, [numbers, texts, labels(replacement)].concat())
    }
}

/// Kind and name of a query's only question, and where it ends.
fn question(query: &[u8]) -> (u16, String, usize) {
    let (mut at, mut name) = (HEADER_BYTES, Vec::new());
    while query[at] != 0 {
        let end = at + 1 + usize::from(query[at]);
        name.push(String::from_utf8_lossy(&query[at + 1..end]).to_lowercase());
        at = end;
    }
    (u16::from_be_bytes([query[at + 1], query[at + 2]]), name.join("."), at + 5)
}

/// The query's header and question, turned into a response.
fn response(query: &[u8], records: &[&[u8]]) -> Vec<u8> {
    let no_such_name = u8::from(records.is_empty()) * 3;
    let count = u8::try_from(records.len()).unwrap();
    let mut bytes = query.to_vec();
    bytes[2..HEADER_BYTES].copy_from_slice(&[
        0x85,
        no_such_name | 0x80,
        0,
        1,
        0,
        count,
        0,
        0,
        0,
        0,
    ]);
    let kind = &query[query.len() - 4..query.len() - 2];
    for record in records {
        let length = u16::try_from(record.len()).unwrap().to_be_bytes();
        bytes.extend_from_slice(&[0xC0, HEADER_BYTES as u8]); // the question's name
        bytes.extend_from_slice(&[kind, &[0, 1, 0, 0, 1, 44], &length, *record].concat());
    }
    bytes
}

fn labels(name: &str) -> Vec<u8> {
    name.split('.').chain([""]).flat_map(counted).collect()
}

fn counted(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat()
}

const HEADER_BYTES: usize = 12;
/// Kinds of records.
pub const A: u16 = 1;
/// Where a service is.
pub const SRV: u16 = 33;
/// Which services there are.
pub const NAPTR: u16 = 35;
