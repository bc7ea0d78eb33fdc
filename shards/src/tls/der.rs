//! The little of DER (X.690) that key files need: elements, and the repair of Java's EC keys.

use rustls::pki_types::PrivatePkcs8KeyDer;

/// Tag of a sequence.
pub(super) const SEQUENCE: u8 = 0x30;
/// Tag of an object identifier.
pub(super) const OBJECT_IDENTIFIER: u8 = 0x06;
/// Tag of an octet string.
pub(super) const OCTET_STRING: u8 = 0x04;

/// Content of the element at the front, if it has this tag, and what follows it.
pub(super) fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (_, rest) = der.split_first().filter(|(first, _)| **first == tag)?;
    let (length, rest) = rest.split_first()?;
    let (length, rest) = match length {
        0..=0x7f => (usize::from(*length), rest),
        0x81 => rest.split_first().map(|(it, rest)| (usize::from(*it), rest))?,
        0x82 => rest
            .split_first_chunk()
            .map(|(it, rest)| (usize::from(u16::from_be_bytes(*it)), rest))?,
        _ => return None, // no key is longer than 64 KiB
    };
    rest.split_at_checked(length)
}

/// Appends an element.
fn write(tag: u8, content: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    match u8::try_from(content.len()) {
        Ok(length @ ..0x80) => out.push(length),
        Ok(length) => out.extend([0x81, length]),
        Err(_) => {
            out.push(0x82);
            let length = u16::try_from(content.len()).unwrap_or(u16::MAX);
            out.extend(length.to_be_bytes());
        }
    }
    out.extend_from_slice(content);
}

/// Java leaves the public half out of EC keys, and ring insists on it: puts it in from the certificate
/// (RFC 5915 §3). Other keys, and those that are whole, stay as they are.
pub(super) fn with_public_key<'k>(
    key: PrivatePkcs8KeyDer<'k>,
    public_key: &[u8],
) -> PrivatePkcs8KeyDer<'k> {
    completed(key.secret_pkcs8_der(), public_key).map_or(key, PrivatePkcs8KeyDer::from)
}

fn completed(pkcs8: &[u8], public_key: &[u8]) -> Option<Vec<u8>> {
    let (info, _) = element(pkcs8, SEQUENCE)?;
    let (version, rest) = element(info, INTEGER)?;
    let (algorithm, rest) = element(rest, SEQUENCE)?;
    let (oid, _) = element(algorithm, OBJECT_IDENTIFIER)?;
    let (inner, _) = element(rest, OCTET_STRING)?;
    if oid != EC_PUBLIC_KEY {
        return None;
    }
    let (key, _) = element(inner, SEQUENCE)?;
    let (key_version, rest) = element(key, INTEGER)?;
    let (scalar, rest) = element(rest, OCTET_STRING)?;
    let behind_parameters = element(rest, PARAMETERS_TAG).map_or(rest, |(_, rest)| rest);
    if element(behind_parameters, PUBLIC_KEY_TAG).is_some() {
        return None; // it is whole
    }
    let [mut bits, mut tagged, mut key, mut inner, mut info, mut out] = [const { Vec::new() }; 6];
    let unused_bits = 0;
    write(BIT_STRING, &[&[unused_bits], public_key].concat(), &mut bits);
    write(PUBLIC_KEY_TAG, &bits, &mut tagged);
    write(INTEGER, key_version, &mut key);
    write(OCTET_STRING, scalar, &mut key);
    key.extend(tagged);
    write(SEQUENCE, &key, &mut inner);
    write(INTEGER, version, &mut info);
    write(SEQUENCE, algorithm, &mut info);
    write(OCTET_STRING, &inner, &mut info);
    write(SEQUENCE, &info, &mut out);
    Some(out)
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const PARAMETERS_TAG: u8 = 0xa0;
const PUBLIC_KEY_TAG: u8 = 0xa1;
/// 1.2.840.10045.2.1
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::tls) fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write(tag, content, &mut out);
        out
    }

    #[test]
    fn elements_of_every_length_are_read_as_written() {
        for length in [0, 1, 127, 128, 255, 256, 65_535] {
            let content = vec![7; length];
            let written = [der(SEQUENCE, &content), b"rest".to_vec()].concat();
            assert_eq!(element(&written, SEQUENCE), Some((&content[..], &b"rest"[..])), "{length}");
            assert_eq!(element(&written, OCTET_STRING), None);
            for cut in 0..written.len() - 4 {
                assert_eq!(element(&written[..cut], SEQUENCE), None, "{length} cut at {cut}");
            }
        }
    }

    #[test]
    fn an_ec_key_without_its_public_half_gets_it_and_others_stay() {
        let whole = rcgen::KeyPair::generate().unwrap();
        let public = whole.public_key_raw();
        assert_eq!(completed(&whole.serialize_der(), public), None, "whole already");
        // As Java writes it: no parameters, no public key.
        let algorithm = [
            der(OBJECT_IDENTIFIER, EC_PUBLIC_KEY),
            der(OBJECT_IDENTIFIER, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]),
        ];
        let (info, _) = element(whole.serialized_der(), SEQUENCE).unwrap();
        let (_, rest) = element(info, INTEGER).unwrap();
        let (_, rest) = element(rest, SEQUENCE).unwrap();
        let (inner, _) = element(rest, OCTET_STRING).unwrap();
        let (inner, _) = element(inner, SEQUENCE).unwrap();
        let (_, rest) = element(inner, INTEGER).unwrap();
        let (scalar, _) = element(rest, OCTET_STRING).unwrap();
        let key = der(SEQUENCE, &[der(INTEGER, &[1]), der(OCTET_STRING, scalar)].concat());
        let parts =
            [der(INTEGER, &[0]), der(SEQUENCE, &algorithm.concat()), der(OCTET_STRING, &key)];
        let javas = der(SEQUENCE, &parts.concat());
        let mended = completed(&javas, public).expect("mended");
        let parse = |it: &[u8]| {
            let key = PrivatePkcs8KeyDer::from(it.to_vec());
            rustls::crypto::ring::sign::any_ecdsa_type(&key.into())
        };
        assert!(parse(&javas).is_err(), "ring has learned it: this file can go");
        assert!(parse(&mended).is_ok());
        for cut in 0..javas.len() {
            let _ = completed(&javas[..cut], public);
        }
    }
}
