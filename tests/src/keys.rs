//! Certificates for plays: one authority per test process, and stores made from it.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_RSA_SHA256,
};
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};

use crate::peer::unique;

/// An authority and what it has signed.
pub struct Keys {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    authority: CertificateDer<'static>,
}

/// A certificate with its key.
pub struct Signed {
    /// The certificate alone.
    pub certificate: CertificateDer<'static>,
    /// As PEM, for stores.
    pub pem: String,
    /// PKCS#8.
    pub key: Vec<u8>,
}

/// The authority of this test process.
pub fn keys() -> &'static Keys {
    static KEYS: OnceLock<Keys> = OnceLock::new();
    KEYS.get_or_init(Keys::new)
}

impl Keys {
    /// An authority that nobody knows yet.
    #[allow(clippy::new_without_default)] // it writes files
    pub fn new() -> Keys {
        let directory = std::env::temp_dir().join(format!("trunkline-keys-{}", unique()));
        fs::create_dir_all(&directory).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "Plays' authority");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let keys = Keys {
            authority: certificate.der().clone(),
            issuer: Issuer::new(params, key),
            directory,
        };
        fs::write(keys.path("ca.pem"), certificate.pem()).unwrap();
        fs::write(keys.path("lb.pem"), keys.sign("lb.test", |_| {}).pem).unwrap();
        keys
    }

    /// A file beside the others.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// A new certificate, for this name and for loopback.
    pub fn sign(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Signed {
        self.certify(name, &KeyPair::generate().unwrap(), change)
    }

    /// As [`Keys::sign`], for an RSA key in PEM: rustls has no way to make one.
    pub fn sign_rsa(&self, name: &str, pem: &str) -> Signed {
        let key = KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_RSA_SHA256).unwrap();
        self.certify(name, &key, |_| {})
    }

    fn certify(
        &self,
        name: &str,
        key: &KeyPair,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Signed {
        let names = vec![name.to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        change(&mut params);
        let certificate = params.signed_by(key, &self.issuer).unwrap();
        Signed {
            certificate: certificate.der().clone(),
            pem: format!("{}{}", certificate.pem(), key.serialize_pem()),
            key: key.serialize_der(),
        }
    }

    /// Whom everyone here trusts.
    pub fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.clone()).unwrap();
        Arc::new(roots)
    }

    /// Terms of a client that believes the authority, with a certificate if one is given.
    pub fn client(&self, own: Option<&Signed>) -> ClientConfig {
        self.client_of(own, rustls::ALL_VERSIONS)
    }

    /// As [`Keys::client`], speaking only these versions.
    pub fn client_of(
        &self,
        own: Option<&Signed>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(self.roots());
        match own {
            None => builder.with_no_client_auth(),
            Some(own) => {
                builder.with_client_auth_cert(vec![own.certificate.clone()], own.key()).unwrap()
            }
        }
    }

    /// Terms of a server with a certificate of the authority; `asks`: it wants its clients' certificates.
    pub fn server(&self, own: &Signed, asks: bool) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .unwrap();
        let builder = if asks {
            let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        } else {
            builder.with_no_client_auth()
        };
        builder.with_single_cert(vec![own.certificate.clone()], own.key()).unwrap()
    }
}

impl Signed {
    /// The key as rustls takes it.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.clone().into())
    }
}
