//! TLS and WebSocket: keys and certificates, what is asked of peers, limits.

use std::time::Duration;

use super::{Key, Kind};
use crate::config::{PeerCertificates, value};

pub(super) const TLS: &[Key] = &[
    Key::new(
        &["javax.net.ssl.keyStore"],
        &["ssl/keyStore"],
        "",
        "File with our certificate and key: JKS, PKCS12 or PEM. Several PEM files apart by commas: each with \
         a certificate and its key, shown to who asks for one of its names, or one of each. Read again when it \
         changes. Without it, the ports of TLS stay closed.",
        "/etc/lb/keystore.jks",
        Kind::Text(|it| &mut it.config.tls.key_store),
    ),
    Key::new(
        &["javax.net.ssl.keyStorePassword"],
        &["ssl/keyStorePassword"],
        "",
        "Password of that file.",
        "123456",
        Kind::Text(|it| &mut it.config.tls.key_store_password),
    )
    .secret(),
    Key::new(
        &["javax.net.ssl.trustStore"],
        &["ssl/trustStore"],
        "",
        "File with the certificates that we trust. Unset: those in the key store.",
        "/etc/lb/truststore.jks",
        Kind::Text(|it| &mut it.config.tls.trust_store),
    ),
    Key::new(
        &["javax.net.ssl.trustStorePassword"],
        &["ssl/trustStorePassword"],
        "",
        "Password of that file.",
        "123456",
        Kind::Text(|it| &mut it.config.tls.trust_store_password),
    )
    .secret(),
    Key::new(
        &["gov.nist.javax.sip.TLS_CLIENT_PROTOCOLS", "tlsClientProtocols"],
        &["ssl/tlsClientProtocols"],
        "",
        "TLS versions, a comma list of TLSv1.2 and TLSv1.3. Older ones are named in the log and left out. \
         Unset: both.",
        "TLSv1.2",
        Kind::Other {
            allowed: "a comma list of TLSv1.2, TLSv1.3 and older names",
            set: |draft, text| {
                value::list(text, protocol).map(|it| draft.config.tls.protocols = it)
            },
            differs: |a, b| a.tls.protocols != b.tls.protocols,
        },
    ),
    Key::new(
        &["gov.nist.javax.sip.ENABLED_CIPHER_SUITES", "enabledCipherSuites"],
        &["ssl/enabledCipherSuites"],
        "",
        "Cipher suites by their Java names, a comma list. What cannot be had is named in the log and left \
         out. Unset: every suite there is.",
        "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
        Kind::Other {
            allowed: "a comma list of names such as TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
            set: |draft, text| {
                value::list(text, cipher_suite).map(|it| draft.config.tls.cipher_suites = it)
            },
            differs: |a, b| a.tls.cipher_suites != b.tls.cipher_suites,
        },
    ),
    Key::new(
        &["gov.nist.javax.sip.TLS_CLIENT_AUTH_TYPE"],
        &["ssl/tlsClientAuthType"],
        "Default",
        "Enabled: clients must have a certificate that we trust. Want: they are asked for one. Disabled or \
         Default: they are not asked, nodes that we connect to must have one. DisabledAll: nobody is checked.",
        "Enabled",
        Kind::Other {
            allowed: "Default, Enabled, Want, Disabled or DisabledAll",
            set: |draft, text| {
                draft.config.tls.peers = match text {
                    "Default" => PeerCertificates::ServersOnly,
                    "DisabledAll" => PeerCertificates::Unchecked,
                    _ => clients(text).map_err(|_| {
                        format!("\"{text}\"; allowed is Default, Enabled, Want, Disabled or DisabledAll")
                    })?,
                };
                Ok(())
            },
            differs: |a, b| a.tls.peers != b.tls.peers,
        },
    ),
    Key::new(
        &["httpTlsClientAuthType"],
        &["http/httpTlsClientAuthType"],
        "Disabled",
        "Certificates of clients on httpsPort. Enabled: they must have one that we trust. Want: they are asked \
         for one. Disabled: they are not.",
        "Enabled",
        Kind::Other {
            allowed: "Enabled, Want or Disabled",
            set: |draft, text| {
                clients(text).map(|it| draft.config.tls.http_clients = it)
            },
            differs: |a, b| a.tls.http_clients != b.tls.http_clients,
        },
    ),
    Key::new(
        &["smppTlsClientAuthType"],
        &["smpp/smppTlsClientAuthType"],
        "Disabled",
        "The same of clients on smppSslPort.",
        "Enabled",
        Kind::Other {
            allowed: "Enabled, Want or Disabled",
            set: |draft, text| {
                clients(text).map(|it| draft.config.tls.smpp_clients = it)
            },
            differs: |a, b| a.tls.smpp_clients != b.tls.smpp_clients,
        },
    ),
    Key::new(
        &["terminateTLSTraffic"],
        &["ssl/terminateTLSTraffic"],
        "false",
        "TLS becomes TCP and WebSocket over TLS becomes WebSocket towards nodes.",
        "true",
        Kind::Flag(|it| &mut it.config.terminate_tls),
    ),
    Key::new(
        &["gov.nist.javax.sip.SSL_HANDSHAKE_TIMEOUT"],
        &[],
        "-1",
        "Longest handshake of TLS or WebSocket, seconds. 0 and below: our own limit of 10.",
        "20",
        Kind::Other {
            allowed: "a whole number of seconds, or -1",
            set: |draft, text| {
                let seconds = value::number::<i64>(text, -1, SECONDS_MAX)?;
                let seconds = u64::try_from(seconds).ok().filter(|it| *it > 0);
                draft.config.handshake_time = seconds.map_or(HANDSHAKE_TIME, Duration::from_secs);
                Ok(())
            },
            differs: |a, b| a.handshake_time != b.handshake_time,
        },
    ),
    Key::new(
        &["gov.nist.javax.sip.PATCH_SIP_WEBSOCKETS_HEADERS"],
        &[],
        "true",
        "Hosts of WebSocket clients that end with .invalid become the client's real address.",
        "false",
        Kind::Flag(|it| &mut it.config.patch_websocket_headers),
    ),
    Key::new(
        &["gov.nist.javax.sip.USE_TLS_GATEWAY"],
        &[],
        "false",
        "TLS is somebody else's matter in front of us: the WSS ports speak WebSocket without it, connections \
         that we open too, and the WS ports speak it. What messages say stays WSS and WS.",
        "true",
        Kind::Flag(|it| &mut it.config.tls_gateway),
    )
    .restart(),
];

/// A version by its Java name. Those that nobody has any more are taken: the log says what becomes of them.
fn protocol(text: &str) -> Result<String, String> {
    let known = ["SSLv2Hello", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"];
    let found = known.iter().find(|it| it.eq_ignore_ascii_case(text));
    found.map(|it| (*it).to_owned()).ok_or_else(|| {
        format!("\"{}\" is not allowed here; allowed is {}", text.escape_debug(), known.join(", "))
    })
}

fn cipher_suite(text: &str) -> Result<String, String> {
    let is_name =
        !text.is_empty() && text.bytes().all(|it| it.is_ascii_alphanumeric() || it == b'_');
    if is_name {
        Ok(text.to_owned())
    } else {
        let text = text.escape_debug();
        Err(format!(
            "\"{text}\" is no cipher suite; allowed is a name such as TLS_AES_128_GCM_SHA256"
        ))
    }
}

/// A phone on a bad line needs two or three seconds.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
const SECONDS_MAX: i64 = 3_600;

/// What is asked of clients.
fn clients(text: &str) -> Result<PeerCertificates, String> {
    match text {
        "Enabled" => Ok(PeerCertificates::Required),
        "Want" => Ok(PeerCertificates::Wanted),
        "Disabled" => Ok(PeerCertificates::ServersOnly),
        _ => Err(format!("\"{text}\"; allowed is Enabled, Want or Disabled")),
    }
}
