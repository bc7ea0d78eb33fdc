//! HTTP, HTTPS and WebSocket (`http-smpp-registry.md` 9.2).

use super::addresses::port;
use super::{Key, Kind, Unit};
use crate::config::{HostPort, rewrite, value};

pub(super) const HTTP: &[Key] = &[
    port(&["httpPort"], &["http/httpPort"], "Port of HTTP and WebSocket.", "8080", |it| {
        &mut it.config.http.port
    })
    .defaulting("2080"),
    port(
        &["httpsPort"],
        &["http/httpsPort"],
        "Port of HTTPS and of WebSocket over TLS.",
        "2081",
        |it| &mut it.config.http.tls_port,
    ),
    Key::new(
        &["httpToHttpsRedirect"],
        &["http/httpToHttpsRedirect"],
        "false",
        "Requests on httpPort are answered with a redirect to httpsPort, if that is open; those that name no port \
         to 443, where httpPort is not 80 itself: somebody in front of us maps ports.",
        "true",
        Kind::Flag(|it| &mut it.config.http.redirects_to_tls),
    )
    .xml_default("true"),
    Key::new(
        &["httpReencrypt"],
        &["http/httpReencrypt"],
        "false",
        "HTTPS requests reach nodes by TLS, on their sslPort, unless terminateTLSTraffic is true.",
        "true",
        Kind::Flag(|it| &mut it.config.http.reencrypts),
    )
    .xml_default("true"),
    Key::new(
        &["httpVerifyNodes"],
        &["http/httpVerifyNodes"],
        "false",
        "Nodes that HTTP reaches by TLS must have a certificate that we trust.",
        "true",
        Kind::Flag(|it| &mut it.config.tls.checks_web_nodes),
    ),
    Key::new(
        &["isRemoteServerSsl"],
        &["common/isRemoteServerSsl"],
        "false",
        "HTTP and SMPP reach their servers by TLS. HTTP takes a node's sslPort, or its httpPort if it has \
         no other.",
        "true",
        Kind::Flag(|it| &mut it.config.remote_server_ssl),
    ),
    Key::new(
        &["maxContentLength"],
        &["http/maxContentLength"],
        "0",
        "Longest body of a request, bytes; 0 is unlimited. Bodies are passed on as they come, whatever \
         their length.",
        "1048576",
        Kind::Count { min: 0, max: MAX, at: |it| &mut it.config.http.body_bytes_max },
    ),
    Key::new(
        &["unavailableHost"],
        &["http/unavailableHost"],
        "",
        "Host, with a port other than 80 if need be, that requests are forwarded to when there is no node.",
        "sorry.example.com:8080",
        Kind::Other {
            allowed: "host or host:port",
            set: |draft, text| {
                let read = |text| {
                    let (host, port) = value::host_and_port(text)?;
                    Ok::<_, String>(HostPort { host, port: port.unwrap_or(80) })
                };
                draft.config.http.unavailable =
                    if text.is_empty() { None } else { Some(read(text)?) };
                Ok(())
            },
            differs: |a, b| a.http.unavailable != b.http.unavailable,
        },
    ),
    Key::new(
        &["unavailableRedirect"],
        &["http/unavailableRedirect"],
        "false",
        "Clients are redirected to unavailableHost (302) instead.",
        "true",
        Kind::Flag(|it| &mut it.config.http.unavailable_redirects),
    ),
    Key::new(
        &["requestCheckPattern"],
        &["http/requestCheckPattern"],
        "",
        "A node that answers 400 to 599 to a request whose target this is found in gets no new work.",
        "(/Accounts/)",
        Kind::Other {
            allowed: "a regular expression that is found in request targets",
            set: |draft, text| {
                draft.config.http.check =
                    if text.is_empty() { None } else { Some(value::search(text)?) };
                Ok(())
            },
            differs: |a, b| a.http.check != b.http.check,
        },
    ),
    Key::new(
        &["http.urlrewrite"],
        &["http/urlrewrite"],
        "",
        "Rules that rewrite request targets, in order: the elements of urlrewrite.",
        "<rule><from>someCompany</from><to>restcomm</to></rule>",
        Kind::Other {
            allowed: "<rule> elements with <from> and <to>",
            set: |draft, text| {
                rewrite::parse(text, &mut draft.warnings).map(|it| draft.config.http.rewrite = it)
            },
            differs: |a, b| a.http.rewrite != b.http.rewrite,
        },
    ),
    Key::new(
        &["httpConnectTimeout"],
        &["http/httpConnectTimeout"],
        "2000",
        "Longest wait for a connection to a node; then the next node is tried.",
        "1000",
        Kind::Time { unit: Unit::Millis, min: 1, at: |it| &mut it.config.http.connect_time },
    ),
    Key::new(
        &["httpResponseTimeout"],
        &["http/httpResponseTimeout"],
        "60000",
        "Longest wait for the head of a response once the request is sent; then 504.",
        "10000",
        Kind::Time { unit: Unit::Millis, min: 1, at: |it| &mut it.config.http.response_time },
    ),
    Key::new(
        &["httpBodyTimeout"],
        &["http/httpBodyTimeout"],
        "60000",
        "Longest time in which a body makes no progress.",
        "10000",
        Kind::Time { unit: Unit::Millis, min: 1, at: |it| &mut it.config.http.body_idle },
    ),
    Key::new(
        &["httpHeadTimeout"],
        &["http/httpHeadTimeout"],
        "10000",
        "Longest time that a client takes to send the head of a request; then 408.",
        "5000",
        Kind::Time { unit: Unit::Millis, min: 1, at: |it| &mut it.config.http.head_time },
    ),
    Key::new(
        &["httpKeepAliveTimeout"],
        &["http/httpKeepAliveTimeout"],
        "60000",
        "How long a client's connection is kept without a request.",
        "15000",
        Kind::Time { unit: Unit::Millis, min: 1, at: |it| &mut it.config.http.client_idle },
    ),
    Key::new(
        &["httpNodeIdleTimeout"],
        &["http/httpNodeIdleTimeout"],
        "15000",
        "How long a connection to a node is kept without a request. Less than the node's own limit.",
        "5000",
        Kind::Time { unit: Unit::Millis, min: 1, at: |it| &mut it.config.http.node_idle },
    ),
    Key::new(
        &["httpTunnelTimeout"],
        &["http/httpTunnelTimeout"],
        "3600000",
        "How long a WebSocket connection may be silent.",
        "600000",
        Kind::Time { unit: Unit::Millis, min: 1, at: |it| &mut it.config.http.tunnel_idle },
    ),
    Key::new(
        &["httpReplayBytesMax"],
        &["http/httpReplayBytesMax"],
        "65536",
        "Most bytes of a request that are kept so that another node can have it when one fails.",
        "16384",
        Kind::Size { min: 1_024, max: 16_777_216, at: |it| &mut it.config.http.replay_bytes_max },
    ),
    Key::new(
        &["httpSourceConnectionsMax"],
        &["http/httpSourceConnectionsMax"],
        "0",
        "Most HTTP connections of one client address, or of one /64 of IPv6, on all shards together, TLS \
         handshakes included; 0 is any number. With httpProxyProtocol the client is who that header names. Heads \
         are limited for each request: 64 KiB and 256 lines.",
        "100",
        Kind::Size { min: 0, max: 10_000_000, at: |it| &mut it.config.http.source_connections_max },
    ),
    Key::new(
        &["httpXForwarded"],
        &["http/httpXForwarded"],
        "false",
        "Write X-Forwarded-For and X-Forwarded-Proto.",
        "true",
        Kind::Flag(|it| &mut it.config.http.x_forwarded),
    ),
    Key::new(
        &["httpVia"],
        &["http/httpVia"],
        "false",
        "Write Via.",
        "true",
        Kind::Flag(|it| &mut it.config.http.via),
    ),
    Key::new(
        &["httpProxyProtocol"],
        &["http/httpProxyProtocol"],
        "false",
        "Connections on httpPort and httpsPort must begin with a PROXY protocol header, version 1 or 2.",
        "true",
        Kind::Flag(|it| &mut it.config.http.proxy_protocol),
    ),
    Key::new(
        &["httpPipelining"],
        &["http/httpPipelining"],
        "false",
        "GET, HEAD and OPTIONS requests that a client pipelines go on to their session's node at once, up to \
         16 of them. A node that closes with requests unread may cut the answer before them short \
         (RFC 9112, 9.6): nginx and Tomcat do not.",
        "true",
        Kind::Flag(|it| &mut it.config.http.pipelines),
    ),
];

/// Java's largest int: what an old file can say at most.
const MAX: u32 = 0x7fff_ffff;
