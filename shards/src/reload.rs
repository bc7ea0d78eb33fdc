//! The configuration file while the process runs: noticed when it changes, applied as far as possible.
//!
//! What cannot change without closing a listener keeps its old value and is named in the log
//! (`http-smpp-registry.md` 5.3, `sip.md` 1.2 rule 9). A broken file changes nothing.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use engine::config::{
    Changes, Config, HeartbeatConfig, HttpConfig, KubernetesConfig, Loaded, Origin, Severity,
    SmppConfig, changed, load,
};
use log::{error, info, warn};
use protocols::time::Time;

/// A configuration file and what of it is in force.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
    overrides: Vec<(String, String)>,
    stamp: Option<Stamp>,
    /// What the last look found, where that was new: who writes may not be done.
    unsettled: Option<Stamp>,
    next_check: Time,
    current: Arc<Config>,
}

/// What tells one state of a file from the next. An editor that writes a new file and renames it changes
/// the inode, whatever the times say.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    modified_seconds: i64,
    modified_nanos: i64,
    bytes: u64,
    inode: u64,
}

impl File {
    /// Reads the file for the first time and logs what is to be said about it.
    ///
    /// # Errors
    ///
    /// Every error in it as one line with file, line and key: the process must not start.
    pub fn open(
        path: PathBuf,
        overrides: Vec<(String, String)>,
        now: Time,
    ) -> Result<(File, Loaded), Vec<String>> {
        let stamp = stamp(&path);
        let loaded = read(&path, &overrides)?;
        remarks(&loaded);
        let current = Arc::new(loaded.config.clone());
        let next_check = now + CHECK_PERIOD;
        let unsettled = None;
        Ok((File { path, overrides, stamp, unsettled, next_check, current }, loaded))
    }

    /// What is in force.
    pub fn config(&self) -> &Arc<Config> {
        &self.current
    }

    /// When to look at the file again.
    pub const fn poll_timeout(&self) -> Time {
        self.next_check
    }

    /// Looks whether the file has changed, if it is time. Returns the new configuration if there is one.
    ///
    /// A changed file is applied when the next look finds it as this one did: half of a file may well be a
    /// configuration, and one without nodes.
    pub fn handle_timeout(&mut self, now: Time) -> Option<Arc<Config>> {
        if now < self.next_check {
            return None;
        }
        self.next_check = now + CHECK_PERIOD;
        let stamp = stamp(&self.path);
        if stamp == self.stamp || stamp.is_none() {
            self.unsettled = None;
            return None; // A file that is gone for a moment is being replaced.
        }
        if stamp != self.unsettled {
            self.unsettled = stamp;
            self.next_check = now + SETTLING_TIME;
            return None;
        }
        self.reload()
    }

    /// Reads the file again, changed or not.
    pub fn reload(&mut self) -> Option<Arc<Config>> {
        self.stamp = stamp(&self.path);
        self.unsettled = None;
        info!("Configuration file changed, applying changes.");
        let loaded = match read(&self.path, &self.overrides) {
            Ok(loaded) => loaded,
            Err(errors) => {
                errors.iter().for_each(|it| error!("{it}"));
                warn!(
                    "Problem reloading configuration {}: nothing is changed",
                    self.path.display()
                );
                return None;
            }
        };
        remarks(&loaded);
        let Changes { live, restart } = changed(&self.current, &loaded.config);
        if !restart.is_empty() {
            warn!("Changed, but needs a restart: {}", restart.join(", "));
        }
        if live.is_empty() {
            info!("Nothing to apply.");
            return None;
        }
        info!("Changed and applied: {}", live.join(", "));
        self.current = Arc::new(applicable(&self.current, loaded.config));
        Some(Arc::clone(&self.current))
    }
}

/// Whether the operator named a log level, in the file or by `-D`.
pub fn names_log_level(loaded: &Loaded) -> bool {
    loaded.origins.iter().any(|it| it.key.name() == "logLevel" && it.origin != Origin::Default)
}

/// The new configuration with the old one's listeners, shards and buffers.
fn applicable(old: &Config, new: Config) -> Config {
    Config {
        host: old.host.clone(),
        public_ip: old.public_ip.clone(),
        public_ipv6: old.public_ipv6.clone(),
        ipv6_host: old.ipv6_host.clone(),
        external: old.external.clone(),
        internal: old.internal.clone(),
        ip_load_balancer_in_via: old.ip_load_balancer_in_via,
        statistic_port: old.statistic_port,
        kubernetes: KubernetesConfig {
            pull_period: new.kubernetes.pull_period,
            ..old.kubernetes.clone()
        },
        heartbeats: HeartbeatConfig {
            rmi_stub_host: new.heartbeats.rmi_stub_host.clone(),
            ..old.heartbeats.clone()
        },
        shards: old.shards,
        steering: old.steering,
        tls_gateway: old.tls_gateway,
        connections_max: old.connections_max,
        udp_receive_buffer_bytes: old.udp_receive_buffer_bytes,
        udp_send_buffer_bytes: old.udp_send_buffer_bytes,
        unwritten_ports: old.unwritten_ports.clone(),
        http: HttpConfig { port: old.http.port, tls_port: old.http.tls_port, ..new.http },
        smpp: SmppConfig {
            host: old.smpp.host.clone(),
            external_host: old.smpp.external_host.clone(),
            internal_host: old.smpp.internal_host.clone(),
            port: old.smpp.port,
            tls_port: old.smpp.tls_port,
            mux: old.smpp.mux,
            ..new.smpp
        },
        ..new
    }
}

fn read(path: &Path, overrides: &[(String, String)]) -> Result<Loaded, Vec<String>> {
    let name = path.display();
    let bytes = match std::fs::metadata(path) {
        Ok(it) if it.len() > FILE_BYTES_MAX => {
            return Err(vec![format!("{name}: larger than {FILE_BYTES_MAX} bytes")]);
        }
        _ => std::fs::read(path).map_err(|error| vec![format!("{name}: {error}")])?,
    };
    let loaded = load(&name.to_string(), &bytes, overrides);
    let errors: Vec<String> = loaded
        .findings
        .iter()
        .filter(|it| it.severity == Severity::Error)
        .map(|it| loaded.line(it))
        .collect();
    if errors.is_empty() { Ok(loaded) } else { Err(errors) }
}

fn remarks(loaded: &Loaded) {
    for finding in &loaded.findings {
        match finding.severity {
            Severity::Error => {}
            Severity::Warning => warn!("{}", loaded.line(finding)),
            Severity::Note => info!("{}", loaded.line(finding)),
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let it = path.metadata().ok()?;
    Some(Stamp {
        modified_seconds: it.mtime(),
        modified_nanos: it.mtime_nsec(),
        bytes: it.size(),
        inode: it.ino(),
    })
}

/// As often as the original looked.
const CHECK_PERIOD: Duration = Duration::from_secs(2);
/// From one write of an editor, or of a copy over a slow line, to the next.
const SETTLING_TIME: Duration = Duration::from_millis(500);
/// A thousand times the longest file there is.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use engine::config::{Reload, keys};

    const START: &str =
        "host=127.0.0.1\nexternalUdpPort=5060\ninternalUdpPort=5065\nnodeTimeout=5000\n";

    fn file(name: &str, text: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("trunkline-{name}-{}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn every_key_is_applied_or_kept_as_the_table_says() {
        let old = load("old", START.as_bytes(), &[]).config;
        for key in keys().filter(|it| it.takes_effect()) {
            let line = format!("{START}{}={}\n", key.name(), key.example);
            let new = load("new", line.as_bytes(), &[]).config;
            let both = changed(&old, &new);
            let applied = changed(&old, &applicable(&old, new.clone()));
            assert_eq!(applied.restart, Vec::<&str>::new(), "{}", key.name());
            assert_eq!(applied.live, both.live, "{}", key.name());
            let rest = changed(&applicable(&old, new.clone()), &new);
            assert_eq!(rest.live, Vec::<&str>::new(), "{} ({:?})", key.name(), key.reload);
            assert!(rest.restart.is_empty() || key.reload == Reload::Restart, "{}", key.name());
        }
    }

    #[test]
    fn a_changed_file_is_noticed_within_two_seconds_and_applied_once_it_is_whole() {
        let path = file("reload", START);
        let (mut it, _) = File::open(path.clone(), Vec::new(), Time::ZERO).unwrap();
        let at = Time::from_millis;
        let whole = START.replace("5000", "6000").replace("5060", "5070");
        for (millis, bytes) in [(2_000, 20), (2_500, 40), (3_000, whole.len())] {
            std::fs::write(&path, &whole[..bytes]).unwrap();
            assert_eq!(it.handle_timeout(at(millis - 1)), None, "not looked yet");
            assert_eq!(it.poll_timeout(), at(millis));
            assert_eq!(it.handle_timeout(at(millis)), None, "{bytes} bytes: it may go on");
        }
        let config = it.handle_timeout(at(3_500)).expect("it has changed");
        assert_eq!(config.node_timeout, Duration::from_secs(6));
        let udp = protocols::sip::Transport::Udp;
        assert_eq!(config.external.ports.of(udp), Some(5060), "the listener stays");
        assert_eq!(it.handle_timeout(at(5_500)), None, "applied already");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(it.handle_timeout(at(7_500)), None);
    }

    #[test]
    fn a_broken_file_changes_nothing_and_keeps_changing_nothing() {
        let path = file("broken", START);
        let (mut it, _) = File::open(path.clone(), Vec::new(), Time::ZERO).unwrap();
        let before = Arc::clone(it.config());
        std::fs::write(&path, format!("{START}heartbeatInterval=soon\n")).unwrap();
        assert_eq!(it.reload(), None);
        assert_eq!(*it.config(), before);
        let errors = File::open(path.clone(), Vec::new(), Time::ZERO).unwrap_err();
        assert!(errors[0].contains(":5:") && errors[0].contains("heartbeatInterval"), "{errors:?}");
        std::fs::write(&path, START.replace("5000", "7000")).unwrap();
        assert_eq!(it.reload().unwrap().node_timeout, Duration::from_secs(7), "repaired");
        std::fs::remove_file(&path).unwrap();
        let errors = File::open(path, Vec::new(), Time::ZERO).unwrap_err();
        assert!(errors[0].contains("No such file"), "{errors:?}");
    }

    #[test]
    fn overrides_win_after_a_reload_too() {
        let path = file("override", START);
        let overrides = vec![("nodeTimeout".to_owned(), "9000".to_owned())];
        let (mut it, _) = File::open(path.clone(), overrides, Time::ZERO).unwrap();
        std::fs::write(&path, START.replace("5000", "7000")).unwrap();
        assert_eq!(it.reload(), None, "what changed is overridden");
        assert_eq!(it.config().node_timeout, Duration::from_secs(9));
        std::fs::remove_file(&path).unwrap();
    }
}
