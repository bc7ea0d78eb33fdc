//! Java's own key store format, JKS: what keytool wrote before Java 9 and carriers still have.
//!
//! The format is not published; this follows how its files are laid out: a list of entries, each with an
//! alias, and a SHA-1 over password and content at the end. Keys are hidden by a stream of SHA-1 digests
//! of password and salt. Reads only; JCEKS, which hides keys otherwise, is refused.

use sha1_smol::Sha1;

use super::der::{OBJECT_IDENTIFIER, OCTET_STRING, SEQUENCE, element};

/// One entry of a store.
#[derive(Debug, Eq, PartialEq)]
pub(super) enum Entry {
    /// A key with its certificates, its own first.
    Key {
        /// Name in the store.
        alias: String,
        /// PKCS#8, DER.
        key: Vec<u8>,
        /// X.509, DER.
        chain: Vec<Vec<u8>>,
    },
    /// A certificate that is trusted.
    Trusted {
        /// X.509, DER.
        certificate: Vec<u8>,
    },
}

/// Why a store cannot be read. The operator's to mend.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Malformed {
    /// The digest at the end is for another password, or the file is damaged.
    Password,
    /// The password of the store is not that of this key.
    KeyPassword {
        /// Whose.
        alias: String,
    },
    /// Cut off or damaged: something is missing at this byte.
    Cut {
        /// Where.
        at: usize,
    },
    /// Another version, or an entry of a kind that JKS does not have.
    Unknown {
        /// What it says.
        number: u32,
    },
    /// The key is protected by something else than JKS has.
    Protection {
        /// Whose.
        alias: String,
    },
}

/// Whether a file begins like a store of this format.
pub(super) fn is_jks(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Whether a file begins like a store of the format that we do not read.
pub(super) fn is_jceks(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0xce, 0xce, 0xce, 0xce])
}

/// Reads a whole store. Without a password its digest is not checked, as in Java, and keys cannot be read.
pub(super) fn read(bytes: &[u8], password: Option<&str>) -> Result<Vec<Entry>, Malformed> {
    let cut = Malformed::Cut { at: bytes.len() };
    let (content, digest) = bytes.split_last_chunk::<DIGEST_BYTES>().ok_or(cut)?;
    let secret: Vec<u8> =
        password.unwrap_or_default().encode_utf16().flat_map(u16::to_be_bytes).collect();
    if password.is_some() && digest_of(&[&secret, WHITENER, content]) != *digest {
        return Err(Malformed::Password);
    }
    let mut reader = Reader { bytes: content, at: MAGIC.len() };
    let version = reader.number()?;
    if !matches!(version, 1 | 2) {
        return Err(Malformed::Unknown { number: version });
    }
    let mut entries = Vec::new();
    for _ in 0..reader.number()? {
        let tag = reader.number()?;
        let alias = reader.text()?;
        reader.take(TIME_BYTES)?;
        entries.push(match tag {
            1 => {
                let hidden = reader.block()?;
                let key = reveal(hidden, &secret, &alias)?;
                let mut chain = Vec::new();
                for _ in 0..reader.number()? {
                    chain.push(reader.certificate(version)?);
                }
                Entry::Key { alias, key, chain }
            }
            2 => Entry::Trusted { certificate: reader.certificate(version)? },
            number => return Err(Malformed::Unknown { number }),
        });
    }
    Ok(entries)
}

/// Takes the protection off a key (the algorithm 1.3.6.1.4.1.42.2.17.1.1).
fn reveal(der: &[u8], secret: &[u8], alias: &str) -> Result<Vec<u8>, Malformed> {
    let foreign = || Malformed::Protection { alias: alias.to_owned() };
    let (info, _) = element(der, SEQUENCE).ok_or_else(foreign)?;
    let (algorithm, rest) = element(info, SEQUENCE).ok_or_else(foreign)?;
    let (oid, _) = element(algorithm, OBJECT_IDENTIFIER).ok_or_else(foreign)?;
    let (hidden, _) = element(rest, OCTET_STRING).ok_or_else(foreign)?;
    if oid != KEY_PROTECTOR {
        return Err(foreign());
    }
    let (salt, hidden) = hidden.split_first_chunk::<DIGEST_BYTES>().ok_or_else(foreign)?;
    let (hidden, check) = hidden.split_last_chunk::<DIGEST_BYTES>().ok_or_else(foreign)?;
    let mut stream = *salt;
    let mut key = Vec::with_capacity(hidden.len());
    for chunk in hidden.chunks(DIGEST_BYTES) {
        stream = digest_of(&[secret, &stream]);
        key.extend(chunk.iter().zip(stream).map(|(byte, mask)| byte ^ mask));
    }
    if digest_of(&[secret, &key]) == *check {
        Ok(key)
    } else {
        Err(Malformed::KeyPassword { alias: alias.to_owned() })
    }
}

fn digest_of(parts: &[&[u8]]) -> [u8; DIGEST_BYTES] {
    let mut hash = Sha1::new();
    parts.iter().for_each(|it| hash.update(it));
    hash.digest().bytes()
}

struct Reader<'s> {
    bytes: &'s [u8],
    at: usize,
}

impl<'s> Reader<'s> {
    fn take(&mut self, count: usize) -> Result<&'s [u8], Malformed> {
        let end = self.at.saturating_add(count);
        let taken = self.bytes.get(self.at..end).ok_or(Malformed::Cut { at: self.at })?;
        self.at = end;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        let at = self.at;
        let bytes = self.take(4)?.first_chunk().ok_or(Malformed::Cut { at })?;
        Ok(u32::from_be_bytes(*bytes))
    }

    fn block(&mut self) -> Result<&'s [u8], Malformed> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        self.take(length)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let at = self.at;
        let length = self.take(2)?.first_chunk().ok_or(Malformed::Cut { at })?;
        let text = self.take(usize::from(u16::from_be_bytes(*length)))?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    fn certificate(&mut self, version: u32) -> Result<Vec<u8>, Malformed> {
        if version == 2 {
            self.text()?; // always X.509
        }
        self.block().map(<[u8]>::to_vec)
    }
}

const MAGIC: [u8; 4] = [0xfe, 0xed, 0xfe, 0xed];
/// Sun's salt for the digest at the end.
const WHITENER: &[u8] = b"Mighty Aphrodite";
const DIGEST_BYTES: usize = 20;
const TIME_BYTES: usize = 8;
/// 1.3.6.1.4.1.42.2.17.1.1
const KEY_PROTECTOR: &[u8] = &[0x2b, 6, 1, 4, 1, 0x2a, 2, 0x11, 1, 1];

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tls::der::tests::der;

    fn block(bytes: &[u8]) -> Vec<u8> {
        [&u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    fn text(text: &str) -> Vec<u8> {
        [&u16::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
    }

    fn hide(key: &[u8], secret: &[u8]) -> Vec<u8> {
        let salt = [7; 20];
        let (mut stream, mut hidden) = (salt, Vec::new());
        for chunk in key.chunks(20) {
            stream = digest_of(&[secret, &stream]);
            hidden.extend(chunk.iter().zip(stream).map(|(byte, mask)| byte ^ mask));
        }
        let check = digest_of(&[secret, key]);
        let algorithm =
            der(SEQUENCE, &[der(OBJECT_IDENTIFIER, KEY_PROTECTOR), vec![5, 0]].concat());
        let hidden = der(OCTET_STRING, &[salt.as_slice(), &hidden, &check].concat());
        der(SEQUENCE, &[algorithm, hidden].concat())
    }

    /// A store as keytool writes it, with one key and one trusted certificate.
    pub(in crate::tls) fn store(
        key: &[u8],
        chain: &[&[u8]],
        trusted: &[u8],
        password: &str,
    ) -> Vec<u8> {
        let secret: Vec<u8> = password.encode_utf16().flat_map(u16::to_be_bytes).collect();
        let certificate = |it: &[u8]| [text("X.509"), block(it)].concat();
        let mut out = [MAGIC.as_slice(), &[0, 0, 0, 2, 0, 0, 0, 2]].concat();
        out.extend([vec![0, 0, 0, 1], text("lb"), vec![0; 8], block(&hide(key, &secret))].concat());
        out.extend(u32::try_from(chain.len()).unwrap().to_be_bytes());
        chain.iter().for_each(|it| out.extend(certificate(it)));
        out.extend([vec![0, 0, 0, 2], text("ca"), vec![0; 8], certificate(trusted)].concat());
        let digest = digest_of(&[&secret, WHITENER, &out]);
        out.extend(digest);
        out
    }

    #[test]
    fn a_store_gives_its_keys_and_certificates() {
        let bytes = store(&[9; 70], &[b"leaf", b"root"], b"trusted", "geheim\u{e4}");
        assert!(is_jks(&bytes) && !is_jceks(&bytes));
        let entries = read(&bytes, Some("geheim\u{e4}")).unwrap();
        let want = [
            Entry::Key {
                alias: "lb".into(),
                key: vec![9; 70],
                chain: vec![b"leaf".to_vec(), b"root".to_vec()],
            },
            Entry::Trusted { certificate: b"trusted".to_vec() },
        ];
        assert_eq!(entries, want);
        assert_eq!(read(&bytes, Some("other")), Err(Malformed::Password));
        let alias = "lb".to_owned();
        assert_eq!(read(&bytes, None), Err(Malformed::KeyPassword { alias }));
    }

    #[test]
    fn damage_is_an_error_wherever_it_is() {
        let bytes = store(&[9; 70], &[b"leaf"], b"trusted", "x");
        for at in 0..bytes.len() {
            assert!(read(&bytes[..at], Some("x")).is_err(), "cut at {at}");
            assert!(read(&bytes[..at], None).is_err(), "cut at {at}");
            for value in [0, 0x7f, 0xff] {
                let mut damaged = bytes.clone();
                damaged[at] = value;
                let _ = read(&damaged, None); // no panic, no endless list
            }
        }
    }
}
