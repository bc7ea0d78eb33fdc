//! How nodes announce themselves, besides SIP.

use super::{Key, Kind};
use crate::config::value;

pub(super) const HEARTBEATS: &[Key] = &[
    Key::new(
        &["rmiRegistryPort"],
        &["heartbeat/heartbeatConfig/rmiRegistryPort"],
        "2000",
        "Port of the RMI registry that Java nodes send their heartbeats to, on host. 0: closed. If it is not \
         written and taken already, nodes cannot use RMI and a warning says so.",
        "7000",
        Kind::Port(|it| &mut it.heartbeats.rmi_port),
    )
    .restart(),
    Key::new(
        &["rmiRemoteObjectPort", "rmiRemoteOjectPort"],
        &["heartbeat/heartbeatConfig/rmiRemoteObjectPort"],
        "2001",
        "Port of the RMI object that the registry names. 0: the registry's own.",
        "7001",
        Kind::Port(|it| &mut it.heartbeats.rmi_object_port),
    )
    .restart(),
    Key::new(
        &["rmiStubHost"],
        &["heartbeat/heartbeatConfig/rmiStubHost"],
        "",
        "Where nodes are told to find the RMI object. Unset: the address that each of them has connected to.",
        "lb.example.com",
        Kind::Host(|it| &mut it.heartbeats.rmi_stub_host),
    ),
    Key::new(
        &["heartbeatPort"],
        &["heartbeat/heartbeatConfig/heartbeatPort"],
        "",
        "Port of heartbeats by HTTP and JSON, on host. Unset: closed, in XML files 2610.",
        "2610",
        Kind::Port(|it| &mut it.heartbeats.http_port),
    )
    .xml_default("2610")
    .restart(),
    Key::new(
        &["heartbeat.configclass"],
        &["heartbeat@configclass"],
        "",
        "Java class that says how nodes send their heartbeats; its name tells whether that is RMI, HTTP or \
         pods of Kubernetes (HeartbeatConfigKube). Unset: RMI, and HTTP where its port is written; in XML \
         files HTTP.",
        "HeartbeatConfigHttp",
        Kind::Other {
            allowed: "text",
            set: |draft, text| {
                draft.heartbeat_class = (!text.is_empty()).then(|| value::text(text)).transpose()?;
                Ok(())
            },
            // RMI and HTTP are seen under the ports that it opens and closes.
            differs: |old, new| old.kubernetes.is_on != new.kubernetes.is_on,
        },
    )
    .restart(),
    Key::ignored(
        &["heartbeat.protocolClassName"],
        &[
            "heartbeat/heartbeatConfig/protocolClassName",
            "heartbeat/heartbeatConfig/ProtocolClassName",
        ],
        "the name of heartbeat.configclass says it",
    ),
];
