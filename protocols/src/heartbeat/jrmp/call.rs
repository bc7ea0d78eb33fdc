//! One call: which method of which object, and its arguments.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Event, Malformed, NAME, Stub, UID_BYTES, Uid};
use crate::heartbeat::NodeWords;
use crate::heartbeat::java::{Content, Stream, VALUES_MAX, Value};

/// A call, as far as it was read.
#[derive(Debug, Default)]
pub(super) struct Call {
    stream: Stream,
    served: Option<&'static Served>,
    /// Those that are objects.
    arguments: Vec<Value>,
    /// How many of all were read.
    read: usize,
}

/// A call that was read to its end.
#[derive(Debug)]
pub(super) enum Method {
    List,
    Lookup,
    Dirty(Lease),
    Clean,
    Register(Event),
}

/// `java.rmi.dgc.Lease`: how long a virtual machine wants to hold an object, and its name for itself.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) millis: i64,
    pub(super) address: Vec<u8>,
    pub(super) uid: Uid,
}

impl Call {
    /// What it costs beyond the bytes that it was read from.
    pub(super) const fn held_bytes(&self) -> usize {
        self.stream.held_bytes()
    }

    /// Reads on; `None` needs more bytes.
    pub(super) fn read(
        &mut self,
        input: &mut &[u8],
        stub: &Stub,
    ) -> Result<Option<Method>, Malformed> {
        loop {
            if let Some(served) = self.served
                && self.read == served.arguments.len()
            {
                return (served.method)(&self.stream, &self.arguments).map(Some);
            }
            let Some(content) = self.stream.read(input)? else { return Ok(None) };
            let Some(served) = self.served else {
                let Content::Block(header) = content else { return Err(Malformed::Arguments) };
                self.served = Some(served(&header, stub)?);
                continue;
            };
            match (served.arguments.get(self.read), content) {
                (Some(Argument::Object), Content::Value(value)) => self.arguments.push(value),
                (Some(Argument::Bytes(count)), Content::Block(it)) if it.len() == *count => {}
                _ => return Err(Malformed::Arguments),
            }
            self.read += 1;
        }
    }
}

/// The method that the first block of a call names.
fn served(header: &[u8], stub: &Stub) -> Result<&'static Served, Malformed> {
    let parts = header.split_first_chunk::<8>().and_then(|(object, rest)| {
        let (uid, rest) = rest.split_first_chunk::<UID_BYTES>()?;
        let (operation, rest) = rest.split_first_chunk::<4>()?;
        Some((*object, *uid, *operation, <[u8; 8]>::try_from(rest).ok()?))
    });
    let (object, uid, operation, hash) = parts.ok_or(Malformed::Arguments)?;
    let (object, operation, hash) =
        (i64::from_be_bytes(object), i32::from_be_bytes(operation), i64::from_be_bytes(hash));
    let found = SERVED.iter().find(|it| {
        let (number, expected) = match it.object {
            Object::Registry => (0, [0; UID_BYTES]),
            Object::Collector => (2, [0; UID_BYTES]),
            Object::Register => (stub.object, stub.uid.to_bytes()),
        };
        (number, expected, it.operation, it.hash) == (object, uid, operation, hash)
    });
    found.ok_or(Malformed::Call { object, operation, hash })
}

/// A method that we serve.
#[derive(Debug)]
struct Served {
    object: Object,
    operation: i32,
    /// Of the interface for the old objects, of the method for the register.
    hash: i64,
    arguments: &'static [Argument],
    method: fn(&Stream, &[Value]) -> Result<Method, Malformed>,
}

#[derive(Clone, Copy, Debug)]
enum Object {
    Registry,
    Collector,
    Register,
}

#[derive(Clone, Copy, Debug)]
enum Argument {
    Object,
    /// Primitives together.
    Bytes(usize),
}

const SERVED: &[Served] = &[
    Served {
        object: Object::Registry,
        operation: 1,
        hash: REGISTRY_HASH,
        arguments: &[],
        method: |_, _| Ok(Method::List),
    },
    Served {
        object: Object::Registry,
        operation: 2,
        hash: REGISTRY_HASH,
        arguments: &[Argument::Object],
        method: |stream, arguments| match arguments {
            [name] if stream.text(*name) == Some(NAME) => Ok(Method::Lookup),
            [name] if stream.text(*name).is_some() => Err(Malformed::Name),
            _ => Err(Malformed::Arguments),
        },
    },
    Served {
        object: Object::Collector,
        operation: 0,
        hash: COLLECTOR_HASH,
        // ObjID[], long, VMID, boolean
        arguments: &[Argument::Object, Argument::Bytes(8), Argument::Object, Argument::Bytes(1)],
        method: |_, _| Ok(Method::Clean),
    },
    Served {
        object: Object::Collector,
        operation: 1,
        hash: COLLECTOR_HASH,
        // ObjID[], long, Lease
        arguments: &[Argument::Object, Argument::Bytes(8), Argument::Object],
        method: |stream, arguments| {
            let lease = arguments.get(1).and_then(|it| lease(stream, *it));
            lease.map(Method::Dirty).ok_or(Malformed::Arguments)
        },
    },
    Served {
        object: Object::Register,
        operation: -1,
        hash: -8_036_601_489_252_403_479, // handlePing(Ljava/util/ArrayList;)V
        arguments: &[Argument::Object],
        method: |stream, arguments| Ok(Method::Register(Event::Ping(nodes(stream, arguments)?))),
    },
    Served {
        object: Object::Register,
        operation: -1,
        hash: 2_838_792_121_754_352_127, // forceRemoval(Ljava/util/ArrayList;)V
        arguments: &[Argument::Object],
        method: |stream, arguments| {
            Ok(Method::Register(Event::ForceRemoval(nodes(stream, arguments)?)))
        },
    },
    Served {
        object: Object::Register,
        operation: -1,
        // switchover(Ljava/lang/String;Ljava/lang/String;)V
        hash: -4_063_774_897_710_564_321,
        arguments: &[Argument::Object, Argument::Object],
        method: |stream, arguments| {
            let mut texts = arguments.iter().map(|it| stream.text(*it).map(String::from));
            match (texts.next().flatten(), texts.next().flatten()) {
                (Some(from), Some(to)) => Ok(Method::Register(Event::SwitchOver { from, to })),
                _ => Err(Malformed::Arguments),
            }
        },
    },
];

fn lease(stream: &Stream, lease: Value) -> Option<Lease> {
    let lease = stream.part(lease, "java.rmi.dgc.Lease")?;
    let machine = stream.part(lease.field("vmid")?, "java.rmi.dgc.VMID")?;
    let address = stream.bytes(machine.field("addr")?)?;
    if address.len() > ADDRESS_BYTES_MAX {
        return None;
    }
    let uid = stream.part(machine.field("uid")?, "java.rmi.server.UID")?;
    let (Value::Int(unique), Value::Long(time), Value::Short(count), Value::Long(millis)) =
        (uid.field("unique")?, uid.field("time")?, uid.field("count")?, lease.field("value")?)
    else {
        return None;
    };
    let address = address.to_vec();
    Some(Lease { millis, address, uid: Uid { unique, time, count } })
}

/// The nodes of the list that is the only argument. An element that is no node is skipped.
fn nodes(stream: &Stream, arguments: &[Value]) -> Result<Vec<NodeWords>, Malformed> {
    let list = arguments.first().and_then(|list| stream.part(*list, "java.util.ArrayList"));
    let list = list.ok_or(Malformed::Arguments)?;
    let mut budget = Budget { values: VALUES_MAX, bytes: super::CALL_BYTES_MAX };
    let mut nodes = Vec::new();
    for element in list.written() {
        budget.spend(1, 0)?;
        let Some(node) = stream.part(*element, "org.mobicents.tools.sip.balancer.SIPNode") else {
            continue;
        };
        budget.spend(node.values(), 0)?;
        let mut text = |name| {
            let text = node.field(name).and_then(|it| stream.text(it)).unwrap_or_default();
            budget.spend(1, text.len()).map(|()| text.to_string())
        };
        let (host_name, ip) = (text("hostName")?, text("ip")?);
        let mut properties = Vec::new();
        let map = node.field("properties").and_then(|it| stream.part(it, "java.util.HashMap"));
        for pair in map.map_or(&[][..], |it| it.written()).chunks_exact(2) {
            let [name, value] = pair else { continue };
            budget.spend(2, 0)?;
            let integer = || match stream.part(*value, "java.lang.Integer")?.field("value")? {
                Value::Int(it) => Some(it.to_string()),
                _ => None,
            };
            let Some(name) = stream.text(*name) else { continue };
            budget.spend(0, name.len() + stream.text(*value).map_or(0, str::len))?;
            let value = stream.text(*value).map(String::from).or_else(integer);
            properties.extend(value.map(|it| (String::from(name), it)));
        }
        nodes.push(NodeWords { host_name, ip, properties });
    }
    Ok(nodes)
}

/// What the words of one call may cost. A stream that names one object a thousand times is short; what
/// it says is not.
struct Budget {
    values: usize,
    bytes: usize,
}

impl Budget {
    fn spend(&mut self, values: usize, bytes: usize) -> Result<(), Malformed> {
        self.values = self.values.checked_sub(values).ok_or(Malformed::TooLong)?;
        self.bytes = self.bytes.checked_sub(bytes).ok_or(Malformed::TooLong)?;
        Ok(())
    }
}

const REGISTRY_HASH: i64 = 4_905_912_898_345_647_071;
const COLLECTOR_HASH: i64 = -669_196_253_586_618_813;

/// The JVM's name of its host; eight bytes everywhere. Bounds what a lease sends back.
const ADDRESS_BYTES_MAX: usize = 64;
