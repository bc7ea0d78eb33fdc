//! Java object serialization streams, as structure: what an object consists of, never what it is.
//!
//! Reads the grammar of the Java Object Serialization Specification §6.4.2 but for what RMI never sends
//! (exceptions, class objects, protocol version 1). Nothing is instantiated: a class is the list of fields that its
//! descriptor in the stream tells, and fields are found by name. Bytes may come in any pieces: reading
//! stops before a token that is not complete and costs nothing to resume. Every stream is bounded in nesting,
//! elements and values; who feeds it bounds its bytes.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use self::grammar::Frame;
use self::token::{MAGIC, TC_BLOCKDATA, TC_BLOCKDATALONG, TC_RESET, block};

mod grammar;
mod token;

/// One stream: what was read of it so far.
///
/// Objects refer to each other in any way, in circles too: follow [`Value::Item`] with a bound.
#[derive(Debug, Default)]
pub struct Stream {
    /// The magic number was read.
    open: bool,
    items: Vec<Item>,
    /// What back references count: emptied by a reset, unlike `items`.
    handles: Vec<Id>,
    /// What is half read, innermost last.
    frames: Vec<Frame>,
    /// What the innermost frame waits for, once it is there.
    done: Option<Value>,
    /// Values read, of [`VALUES_MAX`].
    values: usize,
}

/// What stands at the top level of a stream.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Content {
    /// Primitive data.
    Block(Vec<u8>),
    /// An object.
    Value(Value),
}

/// One value: a field, an element, an object.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Value {
    /// `null`.
    Null,
    /// An `int`.
    Int(i32),
    /// A `long`.
    Long(i64),
    /// A `short`.
    Short(i16),
    /// A primitive of another type.
    Other,
    /// Something with an identity, of the stream that gave it.
    Item(Id),
}

/// Index of an item in the [`Stream`] that gave it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Id(usize);

/// What an object is as an instance of one of its classes.
#[derive(Clone, Copy, Debug)]
pub struct Part<'s> {
    class: &'s Class,
    data: &'s Data,
}

/// Why bytes are not a stream that we read. It is lost for good: close the connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Malformed {
    /// It does not begin with `aced0005`.
    Magic,
    /// This type code is unknown, or does not belong where it stands.
    Tag {
        /// The type code.
        tag: u8,
    },
    /// A back reference to nothing, or to something of another kind than belongs there.
    Handle,
    /// A field of a type that does not exist.
    FieldType {
        /// The type code.
        kind: u8,
    },
    /// An array that says it is none, or an object of no class.
    Class,
    /// Data of a class that only the class itself could read.
    Opaque,
    /// A string is not modified UTF-8.
    Text,
    /// Nested deeper than [`DEPTH_MAX`].
    Depth,
    /// More elements in one place than [`ELEMENTS_MAX`], or more values in all than [`VALUES_MAX`].
    Count,
}

impl Stream {
    /// Reads the next thing at the top level off the front of `input`; `None` needs more bytes.
    ///
    /// Consumes every token that is complete: hand in the rest again with what follows it. One token
    /// is at most a string, a block, or an array of primitives.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: the stream is lost.
    pub fn read(&mut self, input: &mut &[u8]) -> Result<Option<Content>, Malformed> {
        if !self.open {
            let Some((magic, rest)) = input.split_first_chunk::<4>() else { return Ok(None) };
            if *magic != MAGIC {
                return Err(Malformed::Magic);
            }
            (self.open, *input) = (true, rest);
        }
        loop {
            if self.frames.is_empty() {
                if let Some(value) = self.done.take() {
                    return Ok(Some(Content::Value(value)));
                }
                match input.first() {
                    Some(&TC_RESET) => {
                        self.handles.clear();
                        *input = input.get(1..).unwrap_or_default();
                        continue;
                    }
                    Some(&(TC_BLOCKDATA | TC_BLOCKDATALONG)) => {
                        return Ok(block(input).map(|it| Content::Block(it.to_vec())));
                    }
                    _ => {}
                }
            }
            if !self.step(input)? {
                return Ok(None);
            }
        }
    }

    /// What it costs beyond the bytes that it was read from, at most.
    pub const fn held_bytes(&self) -> usize {
        self.values * VALUE_BYTES
    }

    /// The text of a string.
    pub fn text(&self, value: Value) -> Option<&str> {
        match self.item(value)? {
            Item::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The contents of a `byte[]`.
    pub fn bytes(&self, value: Value) -> Option<&[u8]> {
        match self.item(value)? {
            Item::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// What an object is as an instance of the class of this name; `None` if it is no such object.
    pub fn part(&self, value: Value, class: &str) -> Option<Part<'_>> {
        let Item::Object(parts) = self.item(value)? else { return None };
        parts.iter().find_map(|data| {
            let known = self.class(data.class)?;
            (known.name == class).then_some(Part { class: known, data })
        })
    }

    fn item(&self, value: Value) -> Option<&Item> {
        match value {
            Value::Item(Id(index)) => self.items.get(index),
            _ => None,
        }
    }

    fn class(&self, id: Id) -> Option<&Class> {
        match self.items.get(id.0)? {
            Item::Class(class) => Some(class),
            _ => None,
        }
    }
}

impl<'s> Part<'s> {
    /// The value of the field of this name.
    pub fn field(&self, name: &str) -> Option<Value> {
        let index = self.class.fields.iter().position(|it| it.name == name)?;
        self.data.fields.get(index).copied()
    }

    /// The objects that the class wrote by its own hand: elements of a list, keys and values of a map.
    pub fn written(&self) -> &'s [Value] {
        &self.data.annotation
    }

    /// How much there is to look at.
    pub fn values(&self) -> usize {
        self.data.fields.len() + self.data.annotation.len()
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Magic => f.write_str("no serialization stream"),
            Malformed::Tag { tag } => write!(f, "type code {tag:#04x} out of place"),
            Malformed::Handle => f.write_str("back reference to nothing of that kind"),
            Malformed::FieldType { kind } => write!(f, "field of type {kind:#04x}"),
            Malformed::Class => f.write_str("object of no such class"),
            Malformed::Opaque => f.write_str("data that only its class can read"),
            Malformed::Text => f.write_str("string that is not modified UTF-8"),
            Malformed::Depth => write!(f, "nested deeper than {DEPTH_MAX}"),
            Malformed::Count => {
                write!(f, "more than {ELEMENTS_MAX} elements or {VALUES_MAX} values")
            }
        }
    }
}

impl core::error::Error for Malformed {}

#[derive(Debug)]
enum Item {
    Class(Class),
    Text(String),
    Bytes(Vec<u8>),
    /// By class, the most general first.
    Object(Vec<Data>),
    /// Has a handle and nothing that we read.
    Opaque,
}

#[derive(Debug, Default)]
struct Class {
    /// Empty for a proxy's.
    name: String,
    flags: u8,
    fields: Vec<Field>,
    parent: Option<Id>,
}

#[derive(Debug)]
struct Field {
    /// The first letter of its type.
    kind: u8,
    name: String,
}

/// What an object has as an instance of one class.
#[derive(Debug)]
struct Data {
    class: Id,
    /// As the class lists them.
    fields: Vec<Value>,
    annotation: Vec<Value>,
}

/// Nested objects and descriptors. A heartbeat nests six deep.
pub const DEPTH_MAX: usize = 32;

/// Elements of one array or list, fields of one class.
pub const ELEMENTS_MAX: usize = 10_000;

/// Fields, elements and objects of one stream together; a node with 20 properties has 150.
pub const VALUES_MAX: usize = 20_000;

/// What one of them costs, the room that vectors keep for more included.
const VALUE_BYTES: usize = 200;
const _: () = assert!(2 * (size_of::<Item>() + size_of::<Id>()) <= VALUE_BYTES);
const _: () =
    assert!(4 * size_of::<Data>() <= 2 * VALUE_BYTES, "a part of an object is two values");
