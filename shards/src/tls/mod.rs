//! TLS for everything that the shards carry: keys and certificates from files, terms, resumption on every
//! shard, replacement while running.
//!
//! [`Keeper`] belongs to control and makes [`Security`], which shards share. Handshakes and records are
//! in [`crate::layers`].

mod der;
mod jks;
mod keeper;
mod policy;
pub mod store;

use std::fmt;
use std::sync::Arc;

use engine::config::{PeerCertificates, Tls};
use engine::stats::Certificate;
use protocols::sip::Transport;
use rustls::client::Resumption;
use rustls::crypto::ring::Ticketer;
use rustls::pki_types::PrivateKeyDer;
use rustls::server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

pub use self::keeper::Keeper;
use self::policy::{Anchors, Terms};
use self::store::{Store, StoreError};
use crate::layers::is_websocket;

/// What shards need to speak TLS. Immutable: a reload makes the next one, and what is up lives on.
pub struct Security {
    /// For clients of SIP over TLS.
    sip: Arc<ServerConfig>,
    /// For clients of WebSocket.
    websocket: Arc<ServerConfig>,
    /// For clients of HTTP and of SMPP: nobody asks them for certificates.
    http: Arc<ServerConfig>,
    smpp: Arc<ServerConfig>,
    /// Towards servers of SIP over TLS, and of SMPP.
    to_sip: Arc<ClientConfig>,
    /// Towards servers of WebSocket.
    to_websocket: Arc<ClientConfig>,
    /// Towards servers of HTTP, which are believed unless a key says otherwise.
    to_http: Arc<ClientConfig>,
    /// What we show, for `/metrics`.
    pub certificates: Vec<Certificate>,
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security").field("certificates", &self.certificates).finish_non_exhaustive()
    }
}

impl Security {
    /// Reads the files and puts everything together. Also returns what the operator must hear.
    ///
    /// # Errors
    ///
    /// [`Refused`]; nothing is half done.
    pub fn new(
        config: &Tls,
        tickets: Arc<dyn ProducesTickets>,
    ) -> Result<(Security, Vec<String>), Refused> {
        let key_store = config.key_store.as_deref().unwrap_or_default();
        let Store { identities, trusted } =
            store::read(key_store, config.key_store_password.as_deref())?;
        let Terms { provider, versions, mut warnings } = Terms::of(config);
        let mut anchors: Vec<_> = trusted;
        match &config.trust_store {
            Some(path) => {
                let store = store::read(path, config.trust_store_password.as_deref())?;
                anchors = store.trusted;
                // The same file often serves as both stores.
                anchors.extend(store.identities.into_iter().flat_map(|it| it.chain));
            }
            None => anchors.extend(identities.iter().flat_map(|it| it.chain.iter().cloned())),
        }
        let anchors = Arc::new(Anchors::new(anchors));
        if anchors.unusable > 0 {
            warnings.push(format!("{} trusted certificates cannot be read", anchors.unusable));
        }

        let mut shown = Vec::new();
        let mut certificates = Vec::new();
        for identity in identities.into_iter().filter(|it| !it.chain.is_empty()) {
            let alias = identity.alias;
            let bad = |what: String| StoreError::BadKey {
                path: key_store.to_owned(),
                alias: alias.clone(),
                what,
            };
            let Read { names, not_after, public_key } = identity
                .chain
                .first()
                .and_then(|it| read_certificate(it))
                .ok_or_else(|| bad("its certificate cannot be read".to_owned()))?;
            let key = match identity.key {
                PrivateKeyDer::Pkcs8(key) => der::with_public_key(key, &public_key).into(),
                other => other,
            };
            let key = CertifiedKey::from_der(identity.chain, key, &provider);
            let key = key.map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    bad("it does not belong to its certificate".to_owned())
                }
                error => bad(error.to_string()),
            })?;
            shown.push(Shown { names, key: Arc::new(key) });
            certificates.push(Certificate { alias, not_after });
        }
        let Some(first) = shown.first() else {
            return Err(StoreError::NoKey { path: key_store.to_owned() }.into());
        };
        let own = SingleCertAndKey::from(Arc::clone(&first.key));
        let terms = |error: rustls::Error| Refused::Terms(error.to_string());

        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(terms)?;
        let certified: Arc<dyn ResolvesServerCert> = Arc::new(Certificates { shown });
        let of_clients = |peers| anchors.of_clients(peers, &provider).map_err(Refused::Terms);
        let accepting = |clients: PeerCertificates| -> Result<ServerConfig, Refused> {
            let builder = match of_clients(clients)? {
                Some(verifier) => builder.clone().with_client_cert_verifier(verifier),
                None => builder.clone().with_no_client_auth(),
            };
            let mut it = builder.with_cert_resolver(Arc::clone(&certified));
            // Tickets are enough, and a cache of sessions would be a lock that all shards share.
            it.session_storage = Arc::new(NoServerSessionStorage {});
            it.send_tls13_tickets = 1;
            it.ignore_client_order = true;
            // A ticket from where clients are asked less must not open where they are asked more.
            let is_as_sip = clients.of_clients() == config.peers.of_clients();
            it.ticketer =
                if is_as_sip { Arc::clone(&tickets) } else { Ticketer::new().map_err(terms)? };
            Ok(it)
        };
        let mut sip = accepting(config.peers)?;
        let mut websocket = sip.clone();
        let mut http = accepting(config.http_clients)?;
        let smpp = accepting(config.smpp_clients)?;
        http.alpn_protocols = vec![ALPN_HTTP.to_vec(), ALPN_HTTP_1_0.to_vec()];
        sip.alpn_protocols = vec![ALPN_SIP.to_vec(), b"sip".to_vec()];
        websocket.alpn_protocols = vec![ALPN_HTTP.to_vec()];

        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&versions)
            .map_err(terms)?;
        let own = Arc::new(own);
        let towards = |peers: PeerCertificates| {
            let verifier = anchors.of_servers(peers, &provider);
            let dangerous = builder.clone().dangerous();
            let checked = dangerous.with_custom_certificate_verifier(verifier);
            let mut config = checked.with_client_cert_resolver(Arc::clone(&own) as _);
            config.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
            config
        };
        let to_sip = towards(config.peers);
        let web_nodes =
            if config.checks_web_nodes { config.peers } else { PeerCertificates::Unchecked };
        let mut to_http = towards(web_nodes);
        to_http.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        let mut to_websocket = to_sip.clone();
        to_websocket.alpn_protocols = vec![ALPN_HTTP.to_vec()];
        let security = Security {
            sip: Arc::new(sip),
            websocket: Arc::new(websocket),
            http: Arc::new(http),
            smpp: Arc::new(smpp),
            to_sip: Arc::new(to_sip),
            to_websocket: Arc::new(to_websocket),
            to_http: Arc::new(to_http),
            certificates,
        };
        Ok((security, warnings))
    }

    /// For connections that are accepted.
    pub fn server(&self, transport: Transport) -> &Arc<ServerConfig> {
        if is_websocket(transport) { &self.websocket } else { &self.sip }
    }

    /// For clients of a stream relay.
    pub fn stream_server(&self, protocol: StreamProtocol) -> &Arc<ServerConfig> {
        match protocol {
            StreamProtocol::Http => &self.http,
            StreamProtocol::Smpp => &self.smpp,
        }
    }

    /// Towards servers of a stream relay.
    pub fn stream_client(&self, protocol: StreamProtocol) -> &Arc<ClientConfig> {
        match protocol {
            StreamProtocol::Http => &self.to_http,
            StreamProtocol::Smpp => &self.to_sip,
        }
    }

    /// For connections that we open.
    pub fn client(&self, transport: Transport) -> &Arc<ClientConfig> {
        if is_websocket(transport) { &self.to_websocket } else { &self.to_sip }
    }
}

/// What a stream relay speaks inside TLS.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum StreamProtocol {
    /// HTTP/1.1.
    Http,
    /// SMPP.
    Smpp,
}

impl fmt::Display for StreamProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StreamProtocol::Http => "HTTP",
            StreamProtocol::Smpp => "SMPP",
        })
    }
}

/// Why there is no [`Security`]. The operator's to mend.
#[derive(Debug)]
pub enum Refused {
    /// A file cannot be used.
    Store(StoreError),
    /// What is asked for does not go together.
    Terms(String),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Refused {
        Refused::Store(error)
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refused::Store(error) => error.fmt(f),
            Refused::Terms(text) => f.write_str(text),
        }
    }
}

/// The certificates that we show, by the name that a client asks for (RFC 6066 §3).
#[derive(Debug)]
struct Certificates {
    shown: Vec<Shown>,
}

#[derive(Debug)]
struct Shown {
    /// DNS names, in lower case.
    names: Vec<String>,
    key: Arc<CertifiedKey>,
}

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let serves = |it: &&Shown| it.key.key.choose_scheme(hello.signature_schemes()).is_some();
        let named = |it: &&Shown| {
            hello.server_name().is_some_and(|name| it.names.iter().any(|it| covers(it, name)))
        };
        // Nobody's name: the first, as before there were names.
        let all = || self.shown.iter().filter(serves);
        all().find(named).or_else(|| all().next()).map(|it| Arc::clone(&it.key))
    }
}

/// Whether a name of a certificate, perhaps `*.example.com`, covers a host.
fn covers(of_certificate: &str, host: &str) -> bool {
    match of_certificate.strip_prefix('*') {
        Some(domain) => {
            let label = host.find('.').and_then(|at| host.get(at..));
            label.is_some_and(|it| it.eq_ignore_ascii_case(domain))
        }
        None => of_certificate.eq_ignore_ascii_case(host),
    }
}

/// What we need of a certificate.
struct Read {
    /// DNS names, in lower case.
    names: Vec<String>,
    /// Second since 1970 that it ends at.
    not_after: i64,
    /// Content of its bit string.
    public_key: Vec<u8>,
}

fn read_certificate(der: &[u8]) -> Option<Read> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.iter().flat_map(|it| &it.value.general_names).filter_map(|it| match it {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Some(Read {
        names: names.collect(),
        not_after: certificate.validity().not_after.timestamp(),
        public_key: certificate.public_key().subject_public_key.data.to_vec(),
    })
}

/// IANA's names of application protocols (RFC 7301).
const ALPN_SIP: &[u8] = b"sip/2";
const ALPN_HTTP: &[u8] = b"http/1.1";
/// Old clients, and curl when it is told to be one, offer nothing else.
const ALPN_HTTP_1_0: &[u8] = b"http/1.0";
/// Sessions that we could resume: one per node and shard, and room for carriers.
const SESSIONS_MAX: usize = 1_024;
