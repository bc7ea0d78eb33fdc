//! The key table: one row per key drives both readers, `check`, the example file and the tests.

mod addresses;
mod balancing;
mod heartbeats;
mod http;
mod ignored;
mod ip_load_balancer;
mod kubernetes;
mod process;
mod sip;
mod smpp;
mod tls;

use std::fmt;
use std::time::Duration;

use super::Config;
use super::draft::Draft;
use super::value;

/// Rows that belong together, under one heading of the manual.
pub struct Section {
    /// Heading.
    pub title: &'static str,
    /// Its rows.
    pub keys: &'static [Key],
}

/// The whole table. Rows are applied in this order: what speaks for a group of keys stands before them.
pub const SECTIONS: &[Section] = &[
    Section { title: "Addresses", keys: addresses::HOSTS },
    Section { title: "Ports", keys: addresses::PORTS },
    Section { title: "IP load balancer in front", keys: ip_load_balancer::IP_LOAD_BALANCER },
    Section { title: "Nodes", keys: balancing::NODES },
    Section { title: "Balancing algorithm", keys: balancing::ALGORITHM },
    Section { title: "Health of nodes", keys: balancing::HEALTH },
    Section { title: "SIP", keys: sip::BEHAVIOUR },
    Section { title: "SIP stack", keys: sip::STACK },
    Section { title: "Process", keys: process::PROCESS },
    Section { title: "Statistics and administration", keys: process::ADMINISTRATION },
    Section { title: "TLS and WebSocket", keys: tls::TLS },
    Section { title: "Heartbeats by RMI and HTTP", keys: heartbeats::HEARTBEATS },
    Section { title: "Kubernetes", keys: kubernetes::KUBERNETES },
    Section { title: "HTTP", keys: http::HTTP },
    Section { title: "SMPP", keys: smpp::SMPP },
    Section { title: "Accepted without effect", keys: ignored::IGNORED },
];

/// Every row, in the order of the table.
pub fn keys() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|it| it.keys)
}

/// One key.
pub struct Key {
    /// Names in properties files; the first is ours, the others are aliases and old misspellings. A key
    /// that only XML has goes by its path with dots.
    pub names: &'static [&'static str],
    /// Paths in XML files; the first is the usual one.
    pub xml: &'static [&'static str],
    /// Text that counts where nothing is written; empty is unset.
    pub default: &'static str,
    /// The same for XML files, where it differs.
    pub xml_default: Option<&'static str>,
    /// One or two sentences for the manual.
    pub help: &'static str,
    /// Whether it does anything.
    pub status: Status,
    /// When a change takes effect.
    pub reload: Reload,
    /// Never printed.
    pub is_secret: bool,
    /// An empty value is a value, not the default.
    pub is_empty_value: bool,
    /// Keys for which this one speaks where they are not set.
    pub covers: &'static [&'static str],
    /// An alias that counts where a properties file has our own name, too.
    pub stronger_alias: Option<&'static str>,
    /// A value that is allowed and not the default.
    pub example: &'static str,
    pub(super) kind: Kind,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a key does anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Status {
    /// It does what it says.
    Active,
    /// It does, but there is a better one.
    Deprecated {
        /// The better one.
        use_instead: &'static str,
    },
    /// Accepted without effect.
    Ignored {
        /// Why nothing is lost.
        why: &'static str,
    },
}

/// When a change takes effect.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Reload {
    /// As soon as the file is read again.
    Live,
    /// At the next start.
    Restart,
}

/// File format, where defaults depend on it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Generation {
    /// Java properties (first and second generation).
    Properties,
    /// XML (third generation).
    Xml,
}

/// What a value may be and where it goes. The places serve reading and comparing alike.
pub(super) enum Kind {
    /// true or false.
    Flag(fn(&mut Draft) -> &mut bool),
    /// A duration that is always there.
    Time { unit: Unit, min: u32, at: fn(&mut Draft) -> &mut Duration },
    /// A duration that may be unset.
    Span { unit: Unit, min: u32, at: fn(&mut Draft) -> &mut Option<Duration> },
    /// A number.
    Count { min: u32, max: u32, at: fn(&mut Draft) -> &mut u32 },
    /// A number that may be unset.
    Limit { min: u32, max: u32, at: fn(&mut Draft) -> &mut Option<u32> },
    /// A number of things in memory.
    Size { min: u32, max: u32, at: fn(&mut Draft) -> &mut usize },
    /// A port.
    Port(fn(&mut Draft) -> &mut Option<u16>),
    /// An address or a name.
    Host(fn(&mut Draft) -> &mut Option<String>),
    /// A comma list of addresses or names.
    Hosts(fn(&mut Draft) -> &mut Vec<String>),
    /// Printable text.
    Text(fn(&mut Draft) -> &mut Option<String>),
    /// A regular expression.
    Pattern(fn(&mut Draft) -> &mut Option<super::Pattern>),
    /// Anything with a shape of its own.
    Other {
        allowed: &'static str,
        set: fn(&mut Draft, &str) -> Result<(), String>,
        differs: fn(&Config, &Config) -> bool,
    },
    /// Checked, kept nowhere.
    Unkept { allowed: &'static str, check: fn(&str) -> Result<(), String> },
}

/// Unit of a duration in the file.
#[derive(Clone, Copy)]
pub(super) enum Unit {
    /// Seconds.
    Seconds,
    /// Milliseconds.
    Millis,
}

impl Unit {
    fn duration(self, count: u32) -> Duration {
        match self {
            Unit::Seconds => Duration::from_secs(u64::from(count)),
            Unit::Millis => Duration::from_millis(u64::from(count)),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Unit::Seconds => "seconds",
            Unit::Millis => "milliseconds",
        }
    }
}

impl Key {
    /// A row that is active, changes at run time, and has no surprises.
    pub(super) const fn new(
        names: &'static [&'static str],
        xml: &'static [&'static str],
        default: &'static str,
        help: &'static str,
        example: &'static str,
        kind: Kind,
    ) -> Key {
        Key {
            names,
            xml,
            default,
            xml_default: None,
            help,
            status: Status::Active,
            reload: Reload::Live,
            is_secret: false,
            is_empty_value: false,
            covers: &[],
            stronger_alias: None,
            example,
            kind,
        }
    }

    pub(super) const fn restart(mut self) -> Key {
        self.reload = Reload::Restart;
        self
    }

    pub(super) const fn defaulting(mut self, text: &'static str) -> Key {
        self.default = text;
        self
    }

    pub(super) const fn xml_default(mut self, text: &'static str) -> Key {
        self.xml_default = Some(text);
        self
    }

    pub(super) const fn secret(mut self) -> Key {
        self.is_secret = true;
        self
    }

    pub(super) const fn empty_is_value(mut self) -> Key {
        self.is_empty_value = true;
        self
    }

    pub(super) const fn covering(mut self, keys: &'static [&'static str]) -> Key {
        self.covers = keys;
        self
    }

    pub(super) const fn outranked_by(mut self, alias: &'static str) -> Key {
        self.stronger_alias = Some(alias);
        self
    }

    pub(super) const fn deprecated(mut self, use_instead: &'static str) -> Key {
        self.status = Status::Deprecated { use_instead };
        self
    }

    pub(super) const fn ignored(
        names: &'static [&'static str],
        xml: &'static [&'static str],
        why: &'static str,
    ) -> Key {
        let kind = Kind::Unkept { allowed: "anything", check: |_| Ok(()) };
        let mut key = Key::new(names, xml, "", why, "x", kind);
        key.status = Status::Ignored { why };
        key
    }

    /// The name that messages and the manual use.
    pub fn name(&self) -> &'static str {
        self.names.first().or(self.xml.first()).copied().unwrap_or_default()
    }

    /// Text that counts where nothing is written.
    pub fn default_in(&self, generation: Generation) -> &'static str {
        match (generation, self.xml_default) {
            (Generation::Xml, Some(it)) => it,
            _ => self.default,
        }
    }

    /// Whether its value ends up in the [`Config`].
    pub fn takes_effect(&self) -> bool {
        matches!(self.status, Status::Active | Status::Deprecated { .. })
    }

    /// What the value may be, in words.
    pub fn allowed(&self) -> String {
        let count =
            |min: u32, max: u32, of: &str| format!("a whole number{of} from {min} to {max}");
        match &self.kind {
            Kind::Flag(_) => "true or false".to_owned(),
            Kind::Time { unit, min, .. } | Kind::Span { unit, min, .. } => {
                count(*min, TIME_MAX, &format!(" of {}", unit.as_str()))
            }
            Kind::Count { min, max, .. }
            | Kind::Limit { min, max, .. }
            | Kind::Size { min, max, .. } => count(*min, *max, ""),
            Kind::Port(_) => value::PORT.to_owned(),
            Kind::Host(_) => "an address or a host name".to_owned(),
            Kind::Hosts(_) => "a comma list of addresses or host names".to_owned(),
            Kind::Text(_) => "text".to_owned(),
            Kind::Pattern(_) => "a regular expression that matches the whole value".to_owned(),
            Kind::Other { allowed, .. } | Kind::Unkept { allowed, .. } => (*allowed).to_owned(),
        }
    }

    /// Reads `text` into the draft; an empty one unsets.
    pub(super) fn set(&self, draft: &mut Draft, text: &str) -> Result<(), String> {
        let time = |unit: Unit, min| value::number(text, min, TIME_MAX).map(|it| unit.duration(it));
        let is_set = !text.is_empty();
        match &self.kind {
            Kind::Flag(at) => value::flag(text).map(|it| *at(draft) = it),
            Kind::Time { unit, min, at } => time(*unit, *min).map(|it| *at(draft) = it),
            Kind::Span { unit, min, at } => {
                optional(is_set, || time(*unit, *min)).map(|it| *at(draft) = it)
            }
            Kind::Count { min, max, at } => {
                value::number(text, *min, *max).map(|it| *at(draft) = it)
            }
            Kind::Limit { min, max, at } => {
                optional(is_set, || value::number(text, *min, *max)).map(|it| *at(draft) = it)
            }
            Kind::Size { min, max, at } => value::number(text, *min, *max)
                .map(|it: u32| *at(draft) = usize::try_from(it).unwrap_or(usize::MAX)),
            Kind::Port(at) => {
                let port = if is_set { value::port(text)? } else { None };
                *at(draft) = port;
                Ok(())
            }
            Kind::Host(at) => optional(is_set, || value::host(text)).map(|it| *at(draft) = it),
            Kind::Hosts(at) => value::list(text, value::host).map(|it| *at(draft) = it),
            Kind::Text(at) => optional(is_set, || value::text(text)).map(|it| *at(draft) = it),
            Kind::Pattern(at) => {
                optional(is_set, || value::pattern(text)).map(|it| *at(draft) = it)
            }
            Kind::Other { set, .. } => set(draft, text),
            Kind::Unkept { check, .. } if is_set => check(text),
            Kind::Unkept { .. } => Ok(()),
        }
    }

    /// The port that the draft has in the place of this key, if it is a port and takes effect.
    pub(super) fn port(&self, draft: &mut Draft) -> Option<u16> {
        match self.kind {
            Kind::Port(at) if self.takes_effect() => *at(draft),
            _ => None,
        }
    }

    /// Whether two configurations differ in what this key says. Leaves both as they are: the places
    /// are for writing, and one place per key serves reading, too.
    pub(super) fn differs(&self, old: &mut Draft, new: &mut Draft) -> bool {
        fn apart<T: PartialEq>(
            at: fn(&mut Draft) -> &mut T,
            old: &mut Draft,
            new: &mut Draft,
        ) -> bool {
            *at(old) != *at(new)
        }
        match &self.kind {
            Kind::Flag(at) => apart(*at, old, new),
            Kind::Time { at, .. } => apart(*at, old, new),
            Kind::Span { at, .. } => apart(*at, old, new),
            Kind::Count { at, .. } => apart(*at, old, new),
            Kind::Limit { at, .. } => apart(*at, old, new),
            Kind::Size { at, .. } => apart(*at, old, new),
            Kind::Port(at) => apart(*at, old, new),
            Kind::Host(at) | Kind::Text(at) => apart(*at, old, new),
            Kind::Hosts(at) => apart(*at, old, new),
            Kind::Pattern(at) => apart(*at, old, new),
            Kind::Other { differs, .. } => differs(&old.config, &new.config),
            Kind::Unkept { .. } => false,
        }
    }

    /// Rank of a name among the row's own, as a properties file or `-D` writes it; the lowest wins where
    /// several are written. Paths with dots are names, too.
    pub(super) fn rank_of_property(&self, name: &str) -> Option<usize> {
        let repaired = name.strip_prefix(STACK_MISSPELT).map(|it| format!("{STACK}{it}"));
        let name = repaired.as_deref().unwrap_or(name);
        let is_path =
            |it: &str| it.len() == name.len() && (it == name || it.replace('/', ".") == name);
        if self.stronger_alias == Some(name) {
            return Some(0);
        }
        let paths = self.xml.iter().position(|it| is_path(it));
        let rank = self.names.iter().position(|it| matches_name(it, name));
        rank.or_else(|| paths.map(|it| it + self.names.len())).map(|it| it + 1)
    }

    /// Position of an XML path among the row's own.
    pub(super) fn rank_of_element(&self, path: &str) -> Option<usize> {
        self.xml.iter().position(|it| matches_name(it, path))
    }

    /// Whether one row stands for any number of names: repeating it is no mistake.
    pub(super) fn is_family(&self, name: &str) -> bool {
        let is_listed = |it: &&str| *it == name;
        !self.names.iter().chain(self.xml).any(is_listed)
            && self.names.iter().chain(self.xml).any(|it| it.ends_with('*'))
    }
}

/// A name of the table against one of a file; a star at the end stands for anything.
fn matches_name(of_table: &str, name: &str) -> bool {
    match of_table.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => of_table == name,
    }
}

fn optional<T>(is_set: bool, read: impl Fn() -> Result<T, String>) -> Result<Option<T>, String> {
    if is_set { read().map(Some) } else { Ok(None) }
}

/// Prefix of stack properties.
const STACK: &str = "gov.nist.javax.sip.";
/// As the guide spells it.
const STACK_MISSPELT: &str = "gov.nist.java.sip.";
/// Java's largest int: what an old file can say at most.
const TIME_MAX: u32 = 0x7fff_ffff;
