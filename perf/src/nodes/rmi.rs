//! Many nodes by Java RMI without a JVM: what `java.rmi` writes for a look-up and a ping, byte for byte
//! (`http-smpp-registry.md` 3.4.1), on connections that are kept as it keeps them.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// One node's two connections: to the registry and to the object.
pub(crate) struct Voice {
    registry: TcpStream,
    object: TcpStream,
    ping: Vec<u8>,
    answer: Vec<u8>,
}

impl Voice {
    /// Connects and looks the object up.
    pub(crate) fn connect(port: u16, node: SocketAddr, version: u32) -> Result<Voice> {
        let mut registry = greet(port)?;
        let mut answer = vec![0; 4096];
        let stub = lookup(&mut registry, &mut answer)?;
        let object = greet(stub.port)?;
        let ping = call(&stub.id, -1, HANDLE_PING, &list_of(node, version));
        Ok(Voice { registry, object, ping, answer })
    }

    /// What a node does at every heartbeat: a fresh look-up, and the ping.
    pub(crate) fn beat(&mut self) -> Result<()> {
        lookup(&mut self.registry, &mut self.answer)?;
        ask(&mut self.object, &self.ping, &mut self.answer).map(drop)
    }
}

struct Stub {
    port: u16,
    id: Vec<u8>,
}

fn greet(port: u16) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.write_all(b"JRMI\0\x02\x4b")?;
    let mut head = [0; 3];
    socket.read_exact(&mut head)?;
    let [0x4e, high, low] = head else { return Err(Error::other("no greeting")) };
    let mut rest = vec![0; usize::from(u16::from_be_bytes([high, low])) + 4];
    socket.read_exact(&mut rest)?;
    let mut own = Vec::new();
    utf(&mut own, "127.0.0.1");
    own.extend([0; 4]);
    socket.write_all(&own)?;
    Ok(socket)
}

/// The answer's bytes; they come in one piece on loopback, as they are written in one.
fn ask<'a>(socket: &mut TcpStream, call: &[u8], answer: &'a mut [u8]) -> Result<&'a [u8]> {
    socket.write_all(call)?;
    let length = socket.read(answer)?;
    let answer = answer.get(..length).unwrap_or_default();
    // Return data, a stream, a block of 15 bytes, and that it is no exception.
    if answer.starts_with(b"\x51\xac\xed\0\x05\x77\x0f\x01") {
        return Ok(answer);
    }
    Err(Error::other("the call failed"))
}

fn lookup(socket: &mut TcpStream, answer: &mut [u8]) -> Result<Stub> {
    let mut name = vec![0x74];
    utf(&mut name, "SIPBalancer");
    let answer = ask(socket, &call(&[0; 22], 2, REGISTRY, &name), answer)?;
    let none = || Error::other("no stub in the answer");
    let at = answer.windows(10).position(|it| it == b"UnicastRef").ok_or_else(none)?;
    let rest = answer.get(at + 10..).ok_or_else(none)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(none)?;
    let rest = rest.get(usize::from(u16::from_be_bytes(*length))..).ok_or_else(none)?;
    let (port, rest) = rest.split_first_chunk::<4>().ok_or_else(none)?;
    let port = u16::try_from(u32::from_be_bytes(*port)).map_err(|_| none())?;
    Ok(Stub { port, id: rest.get(..22).ok_or_else(none)?.to_vec() })
}

fn call(object: &[u8], operation: i32, hash: i64, arguments: &[u8]) -> Vec<u8> {
    let mut out = b"\x50\xac\xed\0\x05\x77\x22".to_vec();
    out.extend(object);
    out.extend(operation.to_be_bytes());
    out.extend(hash.to_be_bytes());
    out.extend(arguments);
    out
}

/// An `ArrayList` of one `SIPNode` in its older layout.
fn list_of(node: SocketAddr, version: u32) -> Vec<u8> {
    let (ip, port) = (node.ip().to_string(), node.port().to_string());
    let mut out = Vec::new();
    class(&mut out, "java.util.ArrayList", 8_683_452_581_122_892_189, 3, &[('I', "size", "")]);
    out.extend(b"\0\0\0\x01\x77\x04\0\0\0\x01");
    let fields = [
        ('J', "timeStamp", ""),
        ('L', "hostName", "Ljava/lang/String;"),
        ('L', "ip", "Ljava/lang/String;"),
        ('L', "properties", "Ljava/util/HashMap;"),
    ];
    class(
        &mut out,
        "org.mobicents.tools.sip.balancer.SIPNode",
        -4_959_114_432_342_926_569,
        2,
        &fields,
    );
    out.extend([0; 8]);
    string(&mut out, &format!("node-{ip}"));
    string(&mut out, &ip);
    let fields = [('F', "loadFactor", ""), ('I', "threshold", "")];
    class(&mut out, "java.util.HashMap", 362_498_820_763_181_265, 3, &fields);
    let route = format!("route-{ip}");
    let version = version.to_string();
    let properties = [
        ("udpPort", port.as_str()),
        ("tcpPort", &port),
        ("version", &version),
        ("sessionId", "1485157008580"),
        ("jvmRoute", &route),
    ];
    out.extend(b"\x3f\x40\0\0\0\0\0\x0c\x77\x08\0\0\0\x10\0\0\0\x05");
    for (name, value) in properties {
        string(&mut out, name);
        string(&mut out, value);
    }
    out.extend(b"\x78\x78");
    out
}

/// The beginning of an object: its class with its fields, as a stream of RMI has it.
fn class(out: &mut Vec<u8>, name: &str, version: i64, flags: u8, fields: &[(char, &str, &str)]) {
    out.extend(b"\x73\x72");
    utf(out, name);
    out.extend(version.to_be_bytes());
    out.push(flags);
    out.extend(u16::try_from(fields.len()).unwrap_or(0).to_be_bytes());
    for (kind, name, of) in fields {
        out.extend(u8::try_from(*kind));
        utf(out, name);
        if !of.is_empty() {
            string(out, of);
        }
    }
    out.extend(b"\x70\x78\x70"); // no code base, the end, no class above
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.push(0x74);
    utf(out, text);
}

fn utf(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
    out.extend(text.as_bytes());
}

/// Of `java.rmi.registry.Registry`.
const REGISTRY: i64 = 4_905_912_898_345_647_071;
/// Of `handlePing(ArrayList)`.
const HANDLE_PING: i64 = -8_036_601_489_252_403_479;
