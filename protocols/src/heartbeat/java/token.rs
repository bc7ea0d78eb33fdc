//! Tokens and letters of the grammar.

use alloc::string::String;
use alloc::vec::Vec;

use super::{Malformed, Value};

/// The bytes of a block of primitive data.
pub(super) fn block<'b>(input: &mut &'b [u8]) -> Option<&'b [u8]> {
    let mut rest = *input;
    let length = match take(&mut rest)? {
        [TC_BLOCKDATA] => take(&mut rest).map(|[it]| usize::from(it))?,
        _ => take(&mut rest).map(|it| usize::try_from(u32::from_be_bytes(it)).unwrap_or(!0))?,
    };
    let bytes = take_slice(&mut rest, length)?;
    *input = rest;
    Some(bytes)
}

pub(super) fn take<const N: usize>(input: &mut &[u8]) -> Option<[u8; N]> {
    let (first, rest) = input.split_first_chunk::<N>()?;
    *input = rest;
    Some(*first)
}

pub(super) fn take_slice<'b>(input: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (first, rest) = input.split_at_checked(length)?;
    *input = rest;
    Some(first)
}

/// A string with its length in two bytes.
pub(super) fn short_text<'b>(input: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = take(input).map(u16::from_be_bytes)?;
    take_slice(input, usize::from(length))
}

pub(super) const fn primitive_bytes(kind: u8) -> Option<usize> {
    match kind {
        b'B' | b'Z' => Some(1),
        b'C' | b'S' => Some(2),
        b'F' | b'I' => Some(4),
        b'D' | b'J' => Some(8),
        _ => None,
    }
}

pub(super) fn primitive(kind: u8, mut bytes: &[u8]) -> Value {
    let value = match kind {
        b'I' => take(&mut bytes).map(|it| Value::Int(i32::from_be_bytes(it))),
        b'J' => take(&mut bytes).map(|it| Value::Long(i64::from_be_bytes(it))),
        b'S' => take(&mut bytes).map(|it| Value::Short(i16::from_be_bytes(it))),
        _ => None,
    };
    value.unwrap_or(Value::Other)
}

/// Java's own UTF-8: NUL in two bytes, characters beyond the basic plane as two surrogates of three
/// bytes each (`java.io.DataInput`). A surrogate alone becomes U+FFFD.
pub(super) fn modified_utf8(bytes: &[u8]) -> Result<String, Malformed> {
    if bytes.is_ascii() {
        return String::from_utf8(bytes.to_vec()).map_err(|_| Malformed::Text);
    }
    let mut units: Vec<u16> = Vec::with_capacity(bytes.len());
    let mut rest = bytes.iter().map(|it| u16::from(*it));
    let more = |rest: &mut dyn Iterator<Item = u16>| match rest.next() {
        Some(it @ 0x80..=0xbf) => Ok(it & 0x3f),
        _ => Err(Malformed::Text),
    };
    while let Some(first) = rest.next() {
        units.push(match first {
            0x00..=0x7f => first,
            0xc0..=0xdf => (first & 0x1f) << 6 | more(&mut rest)?,
            0xe0..=0xef => (first & 0x0f) << 12 | more(&mut rest)? << 6 | more(&mut rest)?,
            _ => return Err(Malformed::Text),
        });
    }
    Ok(char::decode_utf16(units).map(|it| it.unwrap_or(char::REPLACEMENT_CHARACTER)).collect())
}

pub(super) const MAGIC: [u8; 4] = [0xac, 0xed, 0, 5];
pub(super) const FIRST_HANDLE: u32 = 0x7e_0000;

pub(super) const TC_NULL: u8 = 0x70;
pub(super) const TC_REFERENCE: u8 = 0x71;
pub(super) const TC_CLASSDESC: u8 = 0x72;
pub(super) const TC_OBJECT: u8 = 0x73;
pub(super) const TC_STRING: u8 = 0x74;
pub(super) const TC_ARRAY: u8 = 0x75;
pub(super) const TC_BLOCKDATA: u8 = 0x77;
pub(super) const TC_ENDBLOCKDATA: u8 = 0x78;
pub(super) const TC_RESET: u8 = 0x79;
pub(super) const TC_BLOCKDATALONG: u8 = 0x7a;
pub(super) const TC_LONGSTRING: u8 = 0x7c;
pub(super) const TC_PROXYCLASSDESC: u8 = 0x7d;
pub(super) const TC_ENUM: u8 = 0x7e;

pub(super) const SC_WRITE_METHOD: u8 = 1;
pub(super) const SC_SERIALIZABLE: u8 = 2;
pub(super) const SC_EXTERNALIZABLE: u8 = 4;
pub(super) const SC_BLOCK_DATA: u8 = 8;
