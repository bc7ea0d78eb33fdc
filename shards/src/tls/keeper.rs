//! Keeps [`Security`] up to date with the configuration and its files.

use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use engine::config::{PeerCertificates, Tls};
use log::{error, info, warn};
use rustls::crypto::ring::Ticketer;
use rustls::server::ProducesTickets;

use super::store::StoreError;
use super::{Refused, Security};

/// Owns what was read from the files, and notices when they change.
#[derive(Debug)]
pub struct Keeper {
    /// What was tried last.
    config: Tls,
    stamps: Vec<Option<Stamp>>,
    /// Seals tickets; the same for all shards, and its keys change by themselves.
    tickets: Arc<dyn ProducesTickets>,
    current: Option<Arc<Security>>,
}

/// What tells one state of a file from the next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Stamp {
    modified: (i64, i64),
    bytes: u64,
    inode: u64,
}

impl Keeper {
    /// Reads the files for the first time. A key store that is not set or not there is no error: the ports
    /// of TLS stay closed.
    ///
    /// # Errors
    ///
    /// What the operator has to change.
    pub fn open(config: &Tls) -> Result<Keeper, String> {
        let tickets = Ticketer::new().map_err(|error| format!("no randomness: {error}"))?;
        let mut keeper =
            Keeper { config: config.clone(), stamps: stamps(config), tickets, current: None };
        if config.key_store.is_none() {
            return Ok(keeper);
        }
        match Security::new(config, Arc::clone(&keeper.tickets)) {
            Ok(made) => keeper.take(made),
            Err(Refused::Store(missing @ StoreError::Missing { .. })) => {
                warn!("{missing}: the ports of TLS stay closed");
            }
            Err(refused) => return Err(refused.to_string()),
        }
        Ok(keeper)
    }

    /// What is in force.
    pub const fn current(&self) -> Option<&Arc<Security>> {
        self.current.as_ref()
    }

    /// Reads the files again if they or the configuration have changed; `true`: there is something new.
    /// What cannot be used leaves things as they are.
    pub fn refresh(&mut self, config: &Tls) -> bool {
        let stamps = stamps(config);
        if *config == self.config && stamps == self.stamps {
            return false;
        }
        let is_asked =
            matches!(config.peers, PeerCertificates::Required | PeerCertificates::Wanted);
        let is_other_trust = config.peers != self.config.peers
            || (is_asked && config.trust_store.is_none())
            || config.trust_store != self.config.trust_store
            || stamps.last() != self.stamps.last();
        self.config = config.clone();
        self.stamps = stamps;
        if self.current.is_none() {
            if config.key_store.is_some() {
                warn!("The ports of TLS open at the next start.");
            }
            return false;
        }
        if is_other_trust && let Ok(tickets) = Ticketer::new() {
            // Who was let in before must show again who he is.
            self.tickets = tickets;
        }
        match Security::new(config, Arc::clone(&self.tickets)) {
            Ok(made) => {
                self.take(made);
                info!("Certificates have been read again; connections that are up live on.");
                true
            }
            Err(refused) => {
                error!("Certificates cannot be read again: {refused}; the old ones stay");
                false
            }
        }
    }

    fn take(&mut self, (security, warnings): (Security, Vec<String>)) {
        warnings.iter().for_each(|it| warn!("{it}"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        for it in &security.certificates {
            let days = (it.not_after - now) / DAY_SECONDS;
            if it.not_after <= now {
                error!(
                    "Certificate {} has expired {} days ago: clients will refuse it",
                    it.alias, -days
                );
            } else if days < SOON_DAYS {
                warn!("Certificate {} expires in {days} days", it.alias);
            } else {
                info!("Certificate {} is valid for {days} days", it.alias);
            }
        }
        self.current = Some(Arc::new(security));
    }
}

/// Of every file that is read, the trust store's last.
fn stamps(config: &Tls) -> Vec<Option<Stamp>> {
    let files = config.key_store.iter().flat_map(|it| it.split(',').map(str::trim));
    let trust = config.trust_store.as_deref().into_iter();
    let mut stamps: Vec<_> = files.chain(trust).map(stamp).collect();
    if config.trust_store.is_none() {
        stamps.push(None);
    }
    stamps
}

fn stamp(path: &str) -> Option<Stamp> {
    let it = std::fs::metadata(path).ok()?;
    Some(Stamp { modified: (it.mtime(), it.mtime_nsec()), bytes: it.size(), inode: it.ino() })
}

const DAY_SECONDS: i64 = 86_400;
/// Time enough to order another.
const SOON_DAYS: i64 = 30;
