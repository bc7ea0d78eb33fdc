//! Answers, byte for byte as a JVM writes them.

use alloc::string::ToString;
use alloc::vec::Vec;
use core::net::SocketAddr;

use super::call::Lease;
use super::{NAME, Stub, Uid};

/// Answer to the greeting: the client as we see it.
pub(super) fn greeting(out: &mut Vec<u8>, client: SocketAddr) {
    out.push(0x4e); // ProtocolAck
    text(out, &client.ip().to_string());
    out.extend_from_slice(&u32::from(client.port()).to_be_bytes());
}

/// A `void` method has returned.
pub(super) fn nothing(out: &mut Vec<u8>, uid: Uid) {
    out.extend_from_slice(b"\x51\xac\xed\0\x05\x77\x0f\x01");
    out.extend_from_slice(&uid.to_bytes());
}

/// `String[] list()`.
pub(super) fn names(out: &mut Vec<u8>, uid: Uid) {
    nothing(out, uid);
    out.push(0x75);
    class(out, "[Ljava.lang.String;", -5_921_575_005_990_323_385, 2, &[]);
    out.extend_from_slice(b"\x70\0\0\0\x01\x74");
    text(out, NAME);
}

/// `Remote lookup(String)`: a dynamic proxy of the interface, behind it the reference to our object.
pub(super) fn stub(out: &mut Vec<u8>, uid: Uid, stub: &Stub) {
    nothing(out, uid);
    out.extend_from_slice(b"\x73\x7d\0\0\0\x02");
    text(out, "java.rmi.Remote");
    text(out, "org.mobicents.tools.sip.balancer.NodeRegisterRMIStub");
    out.extend_from_slice(b"\x70\x78");
    let handler = [("Lh", Some("Ljava/lang/reflect/InvocationHandler;"))];
    class(out, "java.lang.reflect.Proxy", -2_222_568_056_686_623_797, 2, &handler);
    out.extend_from_slice(b"\x70\x73");
    class(out, "java.rmi.server.RemoteObjectInvocationHandler", 2, 2, &[]);
    class(out, "java.rmi.server.RemoteObject", -3_215_090_123_894_869_218, 3, &[]);
    out.push(0x70);
    let mut reference = Vec::new();
    text(&mut reference, "UnicastRef");
    text(&mut reference, &stub.host);
    reference.extend_from_slice(&u32::from(stub.port).to_be_bytes());
    reference.extend_from_slice(&stub.object.to_be_bytes());
    reference.extend_from_slice(&stub.uid.to_bytes());
    reference.push(1);
    match u8::try_from(reference.len()) {
        Ok(length) => out.extend_from_slice(&[0x77, length]),
        Err(_) => {
            out.push(0x7a);
            out.extend_from_slice(&u32::try_from(reference.len()).unwrap_or(0).to_be_bytes());
        }
    }
    out.extend_from_slice(&reference);
    out.push(0x78);
}

/// `Lease dirty(..)`: granted for as long as it was asked for, within limits. The client renews it after
/// half of that.
pub(super) fn lease(out: &mut Vec<u8>, uid: Uid, lease: &Lease) {
    nothing(out, uid);
    out.push(0x73);
    let fields = [("Jvalue", None), ("Lvmid", Some("Ljava/rmi/dgc/VMID;"))];
    class(out, "java.rmi.dgc.Lease", -5_713_411_624_328_831_948, 2, &fields);
    out.push(0x70);
    out.extend_from_slice(&lease.millis.clamp(LEASE_MILLIS_MIN, LEASE_MILLIS_MAX).to_be_bytes());
    out.push(0x73);
    let fields = [("[addr", Some("[B")), ("Luid", Some("Ljava/rmi/server/UID;"))];
    class(out, "java.rmi.dgc.VMID", -538_642_295_484_486_218, 2, &fields);
    out.extend_from_slice(b"\x70\x75");
    class(out, "[B", -5_984_413_125_824_719_648, 2, &[]);
    out.push(0x70);
    out.extend_from_slice(&u32::try_from(lease.address.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(&lease.address);
    out.push(0x73);
    let fields = [("Scount", None), ("Jtime", None), ("Iunique", None)];
    class(out, "java.rmi.server.UID", 1_086_053_664_494_604_050, 2, &fields);
    out.push(0x70);
    out.extend_from_slice(&lease.uid.count.to_be_bytes());
    out.extend_from_slice(&lease.uid.time.to_be_bytes());
    out.extend_from_slice(&lease.uid.unique.to_be_bytes());
}

/// A class descriptor up to its parent. Fields: type letter and name, and the type if it is no primitive.
fn class(out: &mut Vec<u8>, name: &str, version: i64, flags: u8, fields: &[(&str, Option<&str>)]) {
    out.push(0x72);
    text(out, name);
    out.extend_from_slice(&version.to_be_bytes());
    out.push(flags);
    out.extend_from_slice(&u16::try_from(fields.len()).unwrap_or(0).to_be_bytes());
    for (field, type_name) in fields {
        let (kind, field) = field.split_at(1);
        out.extend_from_slice(kind.as_bytes());
        text(out, field);
        if let Some(type_name) = type_name {
            out.push(0x74);
            text(out, type_name);
        }
    }
    out.extend_from_slice(b"\x70\x78"); // no codebase
}

/// A text with its length before it: ASCII, and short.
fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// What every JVM asks for unless told otherwise.
const LEASE_MILLIS_MAX: i64 = 600_000;

/// Bounds how often a client renews.
const LEASE_MILLIS_MIN: i64 = 1_000;
