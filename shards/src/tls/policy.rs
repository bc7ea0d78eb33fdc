//! What is negotiated and whom we believe: versions and cipher suites by their Java names, certificates
//! of clients and servers.

use std::sync::Arc;

use engine::config::{PeerCertificates, Tls};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, KeyProvider, SupportedKxGroup, aws_lc_rs, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SigningKey;
use rustls::{
    CertificateError, CipherSuite, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureAlgorithm, SignatureScheme, SupportedProtocolVersion,
};

/// Versions and cipher suites.
pub(super) struct Terms {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) versions: Vec<&'static SupportedProtocolVersion>,
    /// What the configuration asks for and cannot have.
    pub(super) warnings: Vec<String>,
}

impl Terms {
    pub(super) fn of(config: &Tls) -> Terms {
        let mut warnings = Vec::new();
        let all = [&rustls::version::TLS13, &rustls::version::TLS12];
        let asks_for = |version: &SupportedProtocolVersion| {
            let name = if version.version == rustls::ProtocolVersion::TLSv1_3 {
                "TLSv1.3"
            } else {
                "TLSv1.2"
            };
            config.protocols.iter().any(|it| it == name)
        };
        let mut versions: Vec<_> = all.into_iter().filter(|it| asks_for(it)).collect();
        let old: Vec<_> = config
            .protocols
            .iter()
            .map(String::as_str)
            .filter(|it| !matches!(*it, "TLSv1.2" | "TLSv1.3"))
            .collect();
        if !old.is_empty() {
            let what = if versions.is_empty() { "; TLSv1.2 and TLSv1.3 are used" } else { "" };
            let old = old.join(", ");
            warnings.push(format!("TLS_CLIENT_PROTOCOLS: {old} is broken and not spoken{what}"));
        }
        if versions.is_empty() {
            versions = all.to_vec();
        }

        let mut provider = ring::default_provider();
        provider.key_provider = &Signers;
        provider.kx_groups = KEY_EXCHANGES.to_vec();
        // AWS-LC gathers entropy when the process first needs some, 40 ms long and on a busy host for seconds:
        // now, and not in the first handshake, where a whole shard would stand still.
        drop(KEY_EXCHANGES.first().map(|it| it.start()));
        provider.cipher_suites.sort_by_key(|it| it.suite() != CIPHER_SUITE_FIRST);
        let wanted = &config.cipher_suites;
        if !wanted.is_empty() {
            let all = std::mem::take(&mut provider.cipher_suites);
            let is_had = |name: &String| all.iter().any(|it| java_name(it) == *name);
            let missing: Vec<_> =
                wanted.iter().filter(|it| !is_had(it)).map(String::as_str).collect();
            if !missing.is_empty() {
                let missing = missing.join(", ");
                warnings.push(format!("ENABLED_CIPHER_SUITES: without {missing}: not to be had"));
            }
            // In the operator's order of preference.
            let found = |name: &String| all.iter().find(|it| java_name(it) == *name).copied();
            provider.cipher_suites = wanted.iter().filter_map(found).collect();
            let is_usable = provider
                .cipher_suites
                .iter()
                .any(|suite| versions.iter().any(|it| it.version == suite.version().version));
            if !is_usable {
                warnings.push(
                    "ENABLED_CIPHER_SUITES: none is left; every suite there is is used".to_owned(),
                );
                provider.cipher_suites = all;
            }
        }
        Terms { provider: Arc::new(provider), versions, warnings }
    }
}

/// AWS-LC's, which exchange a key by X25519 in half of ring's time, and resumed sessions do that too.
const KEY_EXCHANGES: &[&dyn SupportedKxGroup] =
    &[aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1, aws_lc_rs::kx_group::SECP384R1];

/// The suite that every implementation of TLS 1.3 has (RFC 8446 section 9.1): a third of the handshake's
/// hashing where the processor knows SHA-256.
const CIPHER_SUITE_FIRST: CipherSuite = CipherSuite::TLS13_AES_128_GCM_SHA256;

/// Makes what signs with our keys: ring, and AWS-LC for RSA, where it is twice as fast with AVX-512 and
/// every full handshake signs once.
#[derive(Debug)]
struct Signers;

impl KeyProvider for Signers {
    fn load_private_key(&self, key: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, Error> {
        let signer = ring::sign::any_supported_type(&key)?;
        if signer.algorithm() == SignatureAlgorithm::RSA {
            aws_lc_rs::sign::any_supported_type(&key)
        } else {
            Ok(signer)
        }
    }
}

/// As Java names it: rustls marks those of TLS 1.3.
fn java_name(suite: &rustls::SupportedCipherSuite) -> String {
    suite.suite().as_str().unwrap_or_default().replace("TLS13_", "TLS_")
}

/// Whom we believe.
pub(super) struct Anchors {
    roots: Arc<RootCertStore>,
    /// Believed as they are, whoever signed them, as Java does.
    pinned: Vec<CertificateDer<'static>>,
    /// Certificates that cannot be anchors.
    pub(super) unusable: usize,
}

impl Anchors {
    pub(super) fn new(certificates: Vec<CertificateDer<'static>>) -> Anchors {
        let mut roots = RootCertStore::empty();
        let (_, unusable) = roots.add_parsable_certificates(certificates.iter().cloned());
        Anchors { roots: Arc::new(roots), pinned: certificates, unusable }
    }

    /// Checks clients; `None`: they are not asked.
    ///
    /// # Errors
    ///
    /// Clients are to be checked and nobody is trusted.
    pub(super) fn of_clients(
        self: &Arc<Self>,
        peers: PeerCertificates,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, String> {
        let is_required = match peers {
            PeerCertificates::Required => true,
            PeerCertificates::Wanted => false,
            PeerCertificates::ServersOnly | PeerCertificates::Unchecked => return Ok(None),
        };
        let roots = Arc::clone(&self.roots);
        let builder = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(provider));
        let builder = if is_required { builder } else { builder.allow_unauthenticated() };
        let chains = builder.build().map_err(|error| {
            format!("clients are asked for certificates, but none is trusted: {error}")
        })?;
        Ok(Some(Arc::new(Clients { chains, anchors: Arc::clone(self) })))
    }

    /// Checks servers that we connect to.
    pub(super) fn of_servers(
        self: &Arc<Self>,
        peers: PeerCertificates,
        provider: &Arc<CryptoProvider>,
    ) -> Arc<dyn ServerCertVerifier> {
        let roots = Arc::clone(&self.roots);
        let chains = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(provider));
        Arc::new(Servers {
            // Without any anchor there is nothing to chain to.
            chains: chains.build().ok(),
            anchors: Arc::clone(self),
            provider: Arc::clone(provider),
            is_unchecked: peers == PeerCertificates::Unchecked,
        })
    }

    fn pins(&self, certificate: &CertificateDer<'_>) -> bool {
        self.pinned.iter().any(|it| it == certificate)
    }
}

#[derive(Debug)]
struct Clients {
    chains: Arc<dyn ClientCertVerifier>,
    anchors: Arc<Anchors>,
}

impl ClientCertVerifier for Clients {
    fn offer_client_auth(&self) -> bool {
        self.chains.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.chains.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chains.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.chains.verify_client_cert(end_entity, intermediates, now) {
            Err(_) if self.anchors.pins(end_entity) => Ok(ClientCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}

/// Servers are nodes and carriers by address: their certificate must be trusted, whatever name it has, as
/// it was with the original.
#[derive(Debug)]
struct Servers {
    chains: Option<Arc<WebPkiServerVerifier>>,
    anchors: Arc<Anchors>,
    provider: Arc<CryptoProvider>,
    is_unchecked: bool,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.is_unchecked || self.anchors.pins(end_entity) {
            return Ok(ServerCertVerified::assertion());
        }
        let Some(chains) = &self.chains else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        // The name is looked at last, when all else is well.
        match chains.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        {
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

impl std::fmt::Debug for Anchors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} certificates", self.pinned.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(protocols: &[&str], suites: &[&str]) -> Tls {
        let list = |of: &[&str]| of.iter().map(|it| (*it).to_owned()).collect();
        Tls { protocols: list(protocols), cipher_suites: list(suites), ..Tls::default() }
    }

    #[test]
    fn what_is_asked_for_is_had_or_named() {
        type Case<'c> = (&'c [&'c str], &'c [&'c str], usize, usize, &'c [&'c str]);
        let cases: &[Case<'_>] = &[
            (&[], &[], 2, 9, &[]),
            (&["TLSv1.2"], &[], 1, 9, &[]),
            (&["TLSv1.2", "TLSv1.1", "TLSv1"], &[], 1, 9, &["TLSv1.1, TLSv1 is broken"]),
            (&["TLSv1"], &[], 2, 9, &["TLSv1 is broken and not spoken; TLSv1.2 and TLSv1.3"]),
            (&[], &["TLS_AES_128_GCM_SHA256"], 2, 1, &[]),
            (
                &["TLSv1.2"],
                &["TLS_RSA_WITH_AES_128_CBC_SHA", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
                1,
                1,
                &["without TLS_RSA_WITH_AES_128_CBC_SHA"],
            ),
            (&[], &["SSL_RSA_WITH_RC4_128_MD5"], 2, 9, &["without SSL_RSA", "none is left"]),
            (&["TLSv1.2"], &["TLS_AES_128_GCM_SHA256"], 1, 9, &["none is left"]),
        ];
        for (protocols, suites, versions, had, warnings) in cases {
            let terms = Terms::of(&config(protocols, suites));
            assert_eq!(terms.versions.len(), *versions, "{protocols:?}");
            assert_eq!(terms.provider.cipher_suites.len(), *had, "{suites:?}");
            assert_eq!(terms.warnings.len(), warnings.len(), "{:?}", terms.warnings);
            for (text, want) in terms.warnings.iter().zip(*warnings) {
                assert!(text.contains(want), "{text}");
            }
        }
    }
}
