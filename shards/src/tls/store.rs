//! Key stores and trust stores as files: JKS, PKCS12 and PEM, told apart by their content.

use std::fmt;
use std::io;

use p12_keystore::error::Error as Pkcs12Error;
use p12_keystore::{KeyStore, KeyStoreEntry, Pkcs12Archive, Pkcs12ImportPolicy};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::jks;

/// What a store holds.
#[derive(Debug, Default)]
pub struct Store {
    /// Keys with their certificates.
    pub identities: Vec<Identity>,
    /// Certificates that are trusted.
    pub trusted: Vec<CertificateDer<'static>>,
}

/// A key with its certificates.
#[derive(Debug)]
pub struct Identity {
    /// Name in the store, or the file's.
    pub alias: String,
    /// The key.
    pub key: PrivateKeyDer<'static>,
    /// Its own certificate first.
    pub chain: Vec<CertificateDer<'static>>,
}

/// Why a store cannot be used. The operator's to mend; text says how.
#[derive(Debug)]
pub enum StoreError {
    /// There is no such file. At the start the ports of TLS stay closed.
    Missing {
        /// Which.
        path: String,
    },
    /// It cannot be read.
    Unreadable {
        /// Which.
        path: String,
        /// The system's reason.
        error: io::Error,
    },
    /// The password is wrong.
    Password {
        /// Of which file.
        path: String,
    },
    /// It is there and is none of the three formats, or is damaged.
    Malformed {
        /// Which.
        path: String,
        /// What is wrong.
        what: String,
    },
    /// No private key with a certificate is in it.
    NoKey {
        /// Which.
        path: String,
    },
    /// A key does not belong to its certificate, or is of a kind that cannot be used.
    BadKey {
        /// Which.
        path: String,
        /// Its name.
        alias: String,
        /// What is wrong.
        what: String,
    },
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Missing { path } => write!(f, "{path}: no such file"),
            StoreError::Unreadable { path, error } => write!(f, "{path}: {error}"),
            StoreError::Password { path } => {
                write!(f, "{path}: the password is wrong, or the file is damaged")
            }
            StoreError::Malformed { path, what } => write!(f, "{path}: {what}"),
            StoreError::NoKey { path } => {
                write!(f, "{path}: there is no private key with a certificate in it")
            }
            StoreError::BadKey { path, alias, what } => write!(f, "{path}: key {alias}: {what}"),
        }
    }
}

impl std::error::Error for StoreError {}

/// Reads one store; `paths` may be several PEM files apart by commas.
///
/// # Errors
///
/// [`StoreError`], for the first file that is wrong.
pub fn read(paths: &str, password: Option<&str>) -> Result<Store, StoreError> {
    let mut loose = Loose::default();
    let mut store = Store::default();
    for path in paths.split(',').map(str::trim).filter(|it| !it.is_empty()) {
        let bytes = load(path)?;
        if is_pem(&bytes) {
            store.identities.extend(loose.read(path, &bytes)?);
        } else if jks::is_jks(&bytes) {
            read_jks(path, &bytes, password, &mut store)?;
        } else if jks::is_jceks(&bytes) {
            let what =
                "JCEKS is not read; convert it: keytool -importkeystore -deststoretype PKCS12";
            return Err(StoreError::Malformed { path: path.to_owned(), what: what.to_owned() });
        } else {
            read_pkcs12(path, &bytes, password, &mut store)?;
        }
    }
    loose.tie(&mut store);
    Ok(store)
}

fn load(path: &str) -> Result<Vec<u8>, StoreError> {
    let unreadable = |error| StoreError::Unreadable { path: path.to_owned(), error };
    match std::fs::metadata(path) {
        Ok(it) if it.len() > FILE_BYTES_MAX => {
            let what = format!("larger than {FILE_BYTES_MAX} bytes");
            Err(StoreError::Malformed { path: path.to_owned(), what })
        }
        Ok(_) => std::fs::read(path).map_err(unreadable),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StoreError::Missing { path: path.to_owned() })
        }
        Err(error) => Err(unreadable(error)),
    }
}

fn is_pem(bytes: &[u8]) -> bool {
    bytes.windows(BEGIN.len()).take(PEM_PREAMBLE_BYTES_MAX).any(|it| it == BEGIN)
}

/// Keys and certificates of PEM files that hold only the one or the other.
#[derive(Default)]
struct Loose {
    alias: String,
    keys: Vec<PrivateKeyDer<'static>>,
    certificates: Vec<CertificateDer<'static>>,
}

impl Loose {
    /// Reads a file. What is in one file with its key is an identity of its own.
    fn read(&mut self, path: &str, bytes: &[u8]) -> Result<Option<Identity>, StoreError> {
        let malformed = |what: String| StoreError::Malformed { path: path.to_owned(), what };
        if bytes.windows(ENCRYPTED.len()).any(|it| it == ENCRYPTED) {
            let what = "its key has a password; take it off: openssl pkey -in FILE -out FILE";
            return Err(malformed(what.to_owned()));
        }
        let broken = |error: pem::Error| malformed(format!("broken PEM: {error:?}"));
        let chain = CertificateDer::pem_slice_iter(bytes).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(broken)?;
        let key = PrivateKeyDer::pem_slice_iter(bytes).next().transpose().map_err(broken)?;
        match key {
            Some(key) if !chain.is_empty() => {
                return Ok(Some(Identity { alias: path.to_owned(), key, chain }));
            }
            key => self.keys.extend(key),
        }
        self.certificates.extend(chain);
        if self.alias.is_empty() {
            path.clone_into(&mut self.alias);
        }
        Ok(None)
    }

    /// A key in a file of its own owns the loose certificates, in the order of the files; without a key
    /// they are trusted.
    fn tie(self, store: &mut Store) {
        let Loose { alias, keys, certificates } = self;
        match keys.into_iter().next() {
            Some(key) => store.identities.push(Identity { alias, key, chain: certificates }),
            None => store.trusted.extend(certificates),
        }
    }
}

fn read_jks(
    path: &str,
    bytes: &[u8],
    password: Option<&str>,
    store: &mut Store,
) -> Result<(), StoreError> {
    let path = path.to_owned();
    let entries = jks::read(bytes, password).map_err(|malformed| match malformed {
        jks::Malformed::Password => StoreError::Password { path: path.clone() },
        jks::Malformed::KeyPassword { alias } => {
            let what = "the password of the store is not that of the key; both must be the same";
            StoreError::BadKey { path: path.clone(), alias, what: what.to_owned() }
        }
        jks::Malformed::Protection { alias } => {
            let what = "hidden in a way that JKS does not have".to_owned();
            StoreError::BadKey { path: path.clone(), alias, what }
        }
        jks::Malformed::Cut { at } => {
            StoreError::Malformed { path: path.clone(), what: format!("cut off at byte {at}") }
        }
        jks::Malformed::Unknown { number } => {
            let what = format!("a version or entry {number} that JKS does not have");
            StoreError::Malformed { path: path.clone(), what }
        }
    })?;
    for entry in entries {
        match entry {
            jks::Entry::Key { alias, key, chain } => store.identities.push(Identity {
                alias,
                key: PrivatePkcs8KeyDer::from(key).into(),
                chain: chain.into_iter().map(CertificateDer::from).collect(),
            }),
            jks::Entry::Trusted { certificate } => store.trusted.push(certificate.into()),
        }
    }
    Ok(())
}

fn read_pkcs12(
    path: &str,
    bytes: &[u8],
    password: Option<&str>,
    store: &mut Store,
) -> Result<(), StoreError> {
    let password = password.unwrap_or_default();
    let failed = |error: Pkcs12Error| match error {
        Pkcs12Error::MacError(_) | Pkcs12Error::UnpadError | Pkcs12Error::Pkcs5Error(_) => {
            StoreError::Password { path: path.to_owned() }
        }
        error => StoreError::Malformed {
            path: path.to_owned(),
            what: format!("neither JKS nor PKCS12 nor PEM, or damaged ({error})"),
        },
    };
    let read = KeyStore::from_pkcs12(bytes, password, Pkcs12ImportPolicy::Relaxed);
    for (alias, entry) in read.map_err(failed)?.entries() {
        match entry {
            KeyStoreEntry::PrivateKeyChain(it) => store.identities.push(Identity {
                alias: alias.clone(),
                key: PrivatePkcs8KeyDer::from(it.key().as_der().to_vec()).into(),
                chain: it.certs().iter().map(|it| it.as_der().to_vec().into()).collect(),
            }),
            KeyStoreEntry::Certificate(it) => store.trusted.push(it.as_der().to_vec().into()),
            KeyStoreEntry::Secret(_) => {}
        }
    }
    if store.identities.is_empty() && store.trusted.is_empty() {
        // Only Java marks what it trusts; in a store without keys there is no other purpose.
        let all = Pkcs12Archive::from_pkcs12(bytes, password).map_err(failed)?;
        store.trusted.extend(all.certs.iter().map(|it| it.cert.as_der().to_vec().into()));
    }
    Ok(())
}

const BEGIN: &[u8] = b"-----BEGIN ";
const ENCRYPTED: &[u8] = b"ENCRYPTED";
/// openssl writes text in front.
const PEM_PREAMBLE_BYTES_MAX: usize = 64 * 1024;
/// All certificate authorities of the world fit twice.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
