//! Nodes as pods.

use super::{Key, Kind, Unit};
use crate::config::value;

pub(super) const KUBERNETES: &[Key] = &[
    Key::new(
        &["heartbeat.pullPeriod"],
        &["heartbeat/heartbeatConfig/pullPeriod"],
        "5000",
        "How often pods count as having sent a heartbeat, milliseconds; must be below nodeTimeout. Changes \
         of pods are seen at once.",
        "1000",
        Kind::Time { unit: Unit::Millis, min: 15, at: |it| &mut it.config.kubernetes.pull_period },
    ),
    Key::new(
        &["heartbeat.nodeName"],
        &["heartbeat/heartbeatConfig/nodeName"],
        "defaultNode",
        "Beginning of the names of pods that are nodes, and of the container in them that must be ready. Pods \
         are those of our own namespace (or the kubeconfig's), where we need the verbs list and watch; what \
         they are is in their labels: udpPort and the other ports, version, sessionId, hostName, jvmRoute, \
         lbs (addresses of the balancers that they are for), graceful-shutdown.",
        "restcomm",
        Kind::Other {
            allowed: "text",
            set: |draft, text| {
                draft.config.kubernetes.node_name = value::text(text)?;
                Ok(())
            },
            differs: |old, new| old.kubernetes.node_name != new.kubernetes.node_name,
        },
    )
    .restart(),
];
