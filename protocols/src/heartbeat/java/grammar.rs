//! The grammar, one token at a time: a stack of what is half read instead of recursion, so that nesting
//! is bounded by a number and reading resumes where the bytes ended.

use alloc::vec::Vec;

use super::token::{
    FIRST_HANDLE, SC_BLOCK_DATA, SC_EXTERNALIZABLE, SC_SERIALIZABLE, SC_WRITE_METHOD, TC_ARRAY,
    TC_BLOCKDATA, TC_BLOCKDATALONG, TC_CLASSDESC, TC_ENDBLOCKDATA, TC_ENUM, TC_LONGSTRING, TC_NULL,
    TC_OBJECT, TC_PROXYCLASSDESC, TC_REFERENCE, TC_STRING, block, modified_utf8, primitive,
    primitive_bytes, short_text, take, take_slice,
};
use super::{
    Class, DEPTH_MAX, Data, ELEMENTS_MAX, Field, Id, Item, Malformed, Stream, VALUES_MAX, Value,
};

/// What is half read, and how far.
#[derive(Clone, Copy, Debug)]
pub(super) enum Frame {
    Fields {
        class: Id,
        left: u16,
    },
    /// The name of the type of the field before.
    FieldType {
        class: Id,
        left: u16,
    },
    ClassAnnotation {
        class: Id,
    },
    Parent {
        class: Id,
    },
    ObjectClass,
    Values {
        object: Id,
        part: usize,
        field: usize,
    },
    Annotation {
        object: Id,
        part: usize,
    },
    ArrayClass,
    ArrayLength {
        class: Id,
    },
    Elements {
        array: Id,
        left: u32,
    },
    EnumClass,
    EnumName {
        id: Id,
    },
}

impl Stream {
    /// One token. `false`: it is not complete.
    pub(super) fn step(&mut self, input: &mut &[u8]) -> Result<bool, Malformed> {
        let done = self.done.take();
        match (self.frames.last().copied(), done) {
            (None, _) => self.content(input),
            (Some(Frame::Fields { class, left: 0 }), _) => {
                self.replace(Frame::ClassAnnotation { class })
            }
            (Some(Frame::Fields { class, left }), _) => self.field(class, left - 1, input),
            (Some(Frame::FieldType { .. }), None) => match input.first() {
                None | Some(&(TC_STRING | TC_REFERENCE)) => self.content(input),
                Some(&tag) => Err(Malformed::Tag { tag }),
            },
            (Some(Frame::FieldType { class, left }), Some(name)) => {
                self.text(name).ok_or(Malformed::Handle)?;
                self.replace(Frame::Fields { class, left })
            }
            (Some(Frame::ClassAnnotation { class }), _) => {
                self.annotation(Frame::Parent { class }, input)
            }
            (Some(Frame::Parent { .. }), None) => self.class_descriptor(input),
            (Some(Frame::Parent { class }), Some(parent)) => self.end_class(class, parent),
            (Some(Frame::ObjectClass | Frame::ArrayClass | Frame::EnumClass), None) => {
                self.class_descriptor(input)
            }
            (Some(Frame::ObjectClass), Some(class)) => self.begin_object(class),
            (Some(Frame::ArrayClass), Some(class)) => {
                let Value::Item(class) = class else { return Err(Malformed::Class) };
                self.replace(Frame::ArrayLength { class })
            }
            (Some(Frame::ArrayLength { class }), _) => self.begin_array(class, input),
            (Some(Frame::Elements { array, left: 0 }), _) => self.finish(array),
            (Some(Frame::Elements { .. }), None) => self.content(input),
            (Some(Frame::Elements { array, left }), Some(_)) => {
                self.spend()?;
                self.replace(Frame::Elements { array, left: left - 1 })
            }
            (Some(Frame::EnumClass), Some(_)) => {
                let id = self.add(Item::Opaque)?;
                self.replace(Frame::EnumName { id })
            }
            (Some(Frame::EnumName { .. }), None) => self.content(input),
            (Some(Frame::EnumName { id }), Some(_)) => self.finish(id),
            (Some(Frame::Values { object, part, field }), done) => {
                self.values((object, part, field), done, input)
            }
            (Some(Frame::Annotation { object, part }), done) => {
                if let Some(value) = done {
                    self.file(object, part, |it| it.annotation.push(value))?;
                }
                self.annotation(Frame::Values { object, part: part + 1, field: 0 }, input)
            }
        }
    }

    /// Anything but a class descriptor. It is in `done` afterwards, or a frame begins.
    fn content(&mut self, input: &mut &[u8]) -> Result<bool, Malformed> {
        let Some((tag, mut rest)) = input.split_first() else { return Ok(false) };
        match *tag {
            TC_NULL => self.done = Some(Value::Null),
            TC_REFERENCE => return self.reference(input),
            TC_OBJECT => self.push(Frame::ObjectClass)?,
            TC_ARRAY => self.push(Frame::ArrayClass)?,
            TC_ENUM => self.push(Frame::EnumClass)?,
            TC_STRING | TC_LONGSTRING => {
                let length = if *tag == TC_STRING {
                    take(&mut rest).map(|it| usize::from(u16::from_be_bytes(it)))
                } else {
                    take(&mut rest).map(|it| usize::try_from(u64::from_be_bytes(it)).unwrap_or(!0))
                };
                let Some(bytes) = length.and_then(|it| take_slice(&mut rest, it)) else {
                    return Ok(false);
                };
                let id = self.add(Item::Text(modified_utf8(bytes)?))?;
                self.done = Some(Value::Item(id));
            }
            tag => return Err(Malformed::Tag { tag }),
        }
        *input = rest;
        Ok(true)
    }

    fn reference(&mut self, input: &mut &[u8]) -> Result<bool, Malformed> {
        let mut rest = input.get(1..).unwrap_or_default();
        let Some(handle) = take(&mut rest).map(u32::from_be_bytes) else { return Ok(false) };
        let index = handle.checked_sub(FIRST_HANDLE).and_then(|it| usize::try_from(it).ok());
        let id = index.and_then(|it| self.handles.get(it)).ok_or(Malformed::Handle)?;
        self.done = Some(Value::Item(*id));
        *input = rest;
        Ok(true)
    }

    /// A class descriptor, or no class. It is in `done` afterwards, or a frame begins.
    fn class_descriptor(&mut self, input: &mut &[u8]) -> Result<bool, Malformed> {
        let Some((tag, mut rest)) = input.split_first() else { return Ok(false) };
        match *tag {
            TC_NULL => self.done = Some(Value::Null),
            TC_REFERENCE => {
                if !self.reference(input)? {
                    return Ok(false);
                }
                return match self.done {
                    Some(Value::Item(id)) if self.class(id).is_some() => Ok(true),
                    _ => Err(Malformed::Handle),
                };
            }
            TC_CLASSDESC => {
                let Some(name) = short_text(&mut rest) else { return Ok(false) };
                let Some(_version) = take::<8>(&mut rest) else { return Ok(false) };
                let Some([flags]) = take(&mut rest) else { return Ok(false) };
                let Some(left) = take(&mut rest).map(u16::from_be_bytes) else { return Ok(false) };
                if usize::from(left) > ELEMENTS_MAX {
                    return Err(Malformed::Count);
                }
                let name = modified_utf8(name)?;
                let class = Class { name, flags, fields: Vec::new(), parent: None };
                let class = self.add(Item::Class(class))?;
                self.push(Frame::Fields { class, left })?;
            }
            TC_PROXYCLASSDESC => {
                let Some(count) = take(&mut rest).map(u32::from_be_bytes) else { return Ok(false) };
                if usize::try_from(count).is_ok_and(|it| it > INTERFACES_MAX) {
                    return Err(Malformed::Count);
                }
                for _ in 0..count {
                    let Some(_name) = short_text(&mut rest) else { return Ok(false) };
                }
                let class = Class { flags: SC_SERIALIZABLE, ..Class::default() };
                let class = self.add(Item::Class(class))?;
                self.push(Frame::ClassAnnotation { class })?;
            }
            tag => return Err(Malformed::Tag { tag }),
        }
        *input = rest;
        Ok(true)
    }

    /// One field of a class descriptor; the name of its type follows if it is no primitive.
    fn field(&mut self, class: Id, left: u16, input: &mut &[u8]) -> Result<bool, Malformed> {
        let mut rest = *input;
        let Some([kind]) = take(&mut rest) else { return Ok(false) };
        let Some(name) = short_text(&mut rest) else { return Ok(false) };
        let next = match kind {
            b'L' | b'[' => Frame::FieldType { class, left },
            _ if primitive_bytes(kind).is_some() => Frame::Fields { class, left },
            _ => return Err(Malformed::FieldType { kind }),
        };
        self.spend()?;
        let field = Field { kind, name: modified_utf8(name)? };
        if let Some(Item::Class(class)) = self.items.get_mut(class.0) {
            class.fields.push(field);
        }
        *input = rest;
        self.replace(next)
    }

    fn end_class(&mut self, id: Id, parent: Value) -> Result<bool, Malformed> {
        if let (Some(Item::Class(class)), Value::Item(parent)) = (self.items.get_mut(id.0), parent)
        {
            class.parent = Some(parent);
        }
        self.finish(id)
    }

    /// An object has data as an instance of each of its classes, the most general one first.
    fn begin_object(&mut self, class: Value) -> Result<bool, Malformed> {
        let Value::Item(mut next) = class else { return Err(Malformed::Class) };
        let mut parts = Vec::new();
        loop {
            self.spend()?;
            if parts.len() >= DEPTH_MAX {
                return Err(Malformed::Depth); // also who is their own ancestor
            }
            parts.push(Data { class: next, fields: Vec::new(), annotation: Vec::new() });
            match self.class(next).ok_or(Malformed::Class)?.parent {
                Some(parent) => next = parent,
                None => break,
            }
        }
        parts.reverse();
        let object = self.add(Item::Object(parts))?;
        self.replace(Frame::Values { object, part: 0, field: 0 })
    }

    /// Reads what one class has in an object: its fields as its descriptor lists them, then what it wrote
    /// by its own hand.
    fn values(
        &mut self,
        (object, part, field): (Id, usize, usize),
        done: Option<Value>,
        input: &mut &[u8],
    ) -> Result<bool, Malformed> {
        if let Some(value) = done {
            self.file(object, part, |it| it.fields.push(value))?;
            return self.replace(Frame::Values { object, part, field: field + 1 });
        }
        let Some(Item::Object(parts)) = self.items.get(object.0) else {
            return Err(Malformed::Class);
        };
        let Some(data) = parts.get(part) else { return self.finish(object) };
        let class = self.class(data.class).ok_or(Malformed::Class)?;
        if class.flags & SC_EXTERNALIZABLE != 0 {
            return match class.flags & SC_BLOCK_DATA {
                0 => Err(Malformed::Opaque),
                _ => self.replace(Frame::Annotation { object, part }),
            };
        }
        let fields = if class.flags & SC_SERIALIZABLE != 0 { class.fields.as_slice() } else { &[] };
        match fields.get(field).map(|it| (it.kind, primitive_bytes(it.kind))) {
            Some((kind, Some(bytes))) => {
                let Some(bytes) = take_slice(input, bytes) else { return Ok(false) };
                let value = primitive(kind, bytes);
                self.file(object, part, |it| it.fields.push(value))?;
                self.replace(Frame::Values { object, part, field: field + 1 })
            }
            Some((_, None)) => self.content(input),
            None if class.flags & SC_WRITE_METHOD != 0 => {
                self.replace(Frame::Annotation { object, part })
            }
            None => self.replace(Frame::Values { object, part: part + 1, field: 0 }),
        }
    }

    fn begin_array(&mut self, class: Id, input: &mut &[u8]) -> Result<bool, Malformed> {
        let mut rest = *input;
        let Some(left) = take(&mut rest).map(u32::from_be_bytes) else { return Ok(false) };
        let length = usize::try_from(left).ok().filter(|it| *it <= ELEMENTS_MAX);
        let length = length.ok_or(Malformed::Count)?;
        let name = self.class(class).map(|it| it.name.as_bytes());
        let Some([b'[', kind, ..]) = name else { return Err(Malformed::Class) };
        let (kind, element_bytes) = (*kind, primitive_bytes(*kind));
        let Some(element_bytes) = element_bytes else {
            *input = rest;
            let array = self.add(Item::Opaque)?;
            return self.replace(Frame::Elements { array, left });
        };
        let Some(bytes) = take_slice(&mut rest, length * element_bytes) else { return Ok(false) };
        *input = rest;
        let item = if kind == b'B' { Item::Bytes(bytes.to_vec()) } else { Item::Opaque };
        let array = self.add(item)?;
        self.finish(array)
    }

    /// Data that a class wrote by its own hand: blocks are skipped, objects read, up to its end.
    fn annotation(&mut self, next: Frame, input: &mut &[u8]) -> Result<bool, Malformed> {
        match input.first() {
            Some(&TC_ENDBLOCKDATA) => {
                *input = input.get(1..).unwrap_or_default();
                self.replace(next)
            }
            Some(&(TC_BLOCKDATA | TC_BLOCKDATALONG)) => Ok(block(input).is_some()),
            _ => self.content(input),
        }
    }

    /// Puts a value into an object.
    fn file(
        &mut self,
        object: Id,
        part: usize,
        put: impl FnOnce(&mut Data),
    ) -> Result<(), Malformed> {
        self.spend()?;
        if let Some(Item::Object(parts)) = self.items.get_mut(object.0)
            && let Some(data) = parts.get_mut(part)
        {
            if data.annotation.len() >= ELEMENTS_MAX {
                return Err(Malformed::Count);
            }
            put(data);
        }
        Ok(())
    }

    /// A new item gets the next handle.
    fn add(&mut self, item: Item) -> Result<Id, Malformed> {
        self.spend()?;
        let id = Id(self.items.len());
        self.items.push(item);
        self.handles.push(id);
        Ok(id)
    }

    fn push(&mut self, frame: Frame) -> Result<(), Malformed> {
        if self.frames.len() >= DEPTH_MAX {
            return Err(Malformed::Depth);
        }
        self.frames.push(frame);
        Ok(())
    }

    fn replace(&mut self, frame: Frame) -> Result<bool, Malformed> {
        if let Some(last) = self.frames.last_mut() {
            *last = frame;
        }
        Ok(true)
    }

    /// The innermost frame ends with this item.
    fn finish(&mut self, id: Id) -> Result<bool, Malformed> {
        self.frames.pop();
        self.done = Some(Value::Item(id));
        Ok(true)
    }

    fn spend(&mut self) -> Result<(), Malformed> {
        self.values += 1;
        if self.values > VALUES_MAX { Err(Malformed::Count) } else { Ok(()) }
    }
}

/// Interfaces of a proxy: all their names are one token.
const INTERFACES_MAX: usize = 32;
