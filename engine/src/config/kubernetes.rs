//! What the operator says of pods: values of the keys of that section.

use std::time::Duration;

/// Nodes as pods of Kubernetes (`http-smpp-registry.md` 3.6).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KubernetesConfig {
    /// Pods are looked for.
    pub is_on: bool,
    /// From one repetition to the next.
    pub pull_period: Duration,
    /// Beginning of the names of pods that are nodes.
    pub node_name: String,
}

impl KubernetesConfig {
    /// The name of the Java class that `configclass` names says it.
    pub(super) fn choose(&mut self, class: Option<&str>) {
        let name = class.and_then(|it| it.rsplit('.').next()).unwrap_or_default();
        self.is_on = name.to_ascii_lowercase().contains("kube");
    }
}
