//! The table and a configuration as text: the manual, `trunkctl check`, what a reload changes.

use std::fmt::{self, Write};

use super::draft::Draft;
use super::keys::{Generation, Kind, SECTIONS};
use super::load::{Loaded, Origin, Setting, Severity};
use super::{Config, Key, Reload, Status, keys};

/// What differs between two configurations, by key.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Changes {
    /// Applied at run time.
    pub live: Vec<&'static str>,
    /// Take effect at the next start.
    pub restart: Vec<&'static str>,
}

/// Which keys changed, and which of them need a restart.
///
/// A change by a key that speaks for others (`externalPort`) is named by those (`externalUdpPort`).
pub fn changed(old: &Config, new: &Config) -> Changes {
    let (mut old, mut new) = (Draft::of(old.clone()), Draft::of(new.clone()));
    let mut changes = Changes::default();
    for key in keys() {
        if !key.takes_effect() || !key.differs(&mut old, &mut new) {
            continue;
        }
        match key.reload {
            Reload::Live => changes.live.push(key.name()),
            Reload::Restart => changes.restart.push(key.name()),
        }
    }
    changes
}

/// What a configuration means: findings, every key with its value and source, what has no effect.
pub fn check(loaded: &Loaded) -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = write_check(&mut out, loaded);
    out
}

/// The example file: every key with what it does, its default and unit. It starts a balancer on
/// loopback as it stands.
pub fn manual() -> String {
    let mut out = String::new();
    // Writing into a String cannot fail.
    let _ = write_manual(&mut out);
    out
}

fn write_check(out: &mut String, loaded: &Loaded) -> fmt::Result {
    let count = |severity| loaded.findings.iter().filter(|it| it.severity == severity).count();
    let format = match loaded.generation {
        Generation::Properties => "properties",
        Generation::Xml => "XML",
    };
    writeln!(
        out,
        "{} ({format}): {} errors, {} warnings, {} notes",
        loaded.file,
        count(Severity::Error),
        count(Severity::Warning),
        count(Severity::Note)
    )?;
    for finding in &loaded.findings {
        writeln!(out, "{}", loaded.line(finding))?;
    }
    let mut draft = Draft::of(loaded.config.clone());
    for section in SECTIONS {
        let rows = || {
            let is_here =
                |it: &&Setting| section.keys.iter().any(|key| key.name() == it.key.name());
            loaded.origins.iter().filter(is_here)
        };
        let is_shown =
            |it: &Setting| it.origin != Origin::Default || it.key.status == Status::Active;
        if !rows().any(is_shown) {
            continue;
        }
        writeln!(out, "\n# {}", section.title)?;
        for setting in rows().filter(|it| is_shown(it)) {
            write_setting(out, setting, loaded, &mut draft)?;
        }
    }
    Ok(())
}

fn write_setting(
    out: &mut String,
    setting: &Setting,
    loaded: &Loaded,
    draft: &mut Draft,
) -> fmt::Result {
    let key = setting.key;
    let text = match (&key.kind, setting.text.as_str()) {
        (_, text) if key.is_secret && !text.is_empty() => "(not shown)".to_owned(),
        // A port may be open by a key that speaks for several.
        (Kind::Port(at), _) if key.takes_effect() => {
            at(draft).map_or_else(String::new, |it| it.to_string())
        }
        (_, text) => text.replace(char::is_control, "?"),
    };
    let group = loaded.origins.iter().find(|it| {
        it.origin != Origin::Default && it.key.takes_effect() && it.key.covers.contains(&key.name())
    });
    let source = match (setting.origin, group) {
        (Origin::Line(line), _) => format!("line {line}"),
        (Origin::Override, _) => "-D".to_owned(),
        (Origin::Default, Some(group)) if !text.is_empty() => {
            let line = group.origin.line().map_or_else(String::new, |it| format!(", line {it}"));
            format!("by {}{line}", group.name)
        }
        (Origin::Default, _) if text.is_empty() => "unset".to_owned(),
        (Origin::Default, _) => "default".to_owned(),
    };
    let effect = match key.status {
        Status::Active => "",
        Status::Deprecated { .. } => "; outdated",
        Status::Ignored { .. } => "; no effect",
    };
    let line = format!("{}={text}", key.name());
    writeln!(out, "{line:<48} # {source}{effect}")
}

fn write_manual(out: &mut String) -> fmt::Result {
    let top = "Trunkline: every key. Written by the program from its key table; edit a copy. \
               Lines that are commented out show the default, or an example where there is none.";
    comment(out, top)?;
    for section in SECTIONS {
        writeln!(out, "\n\n## {}", section.title)?;
        for key in section.keys {
            write_key(out, key)?;
        }
    }
    Ok(())
}

fn write_key(out: &mut String, key: &Key) -> fmt::Result {
    writeln!(out)?;
    match key.status {
        Status::Ignored { why } => {
            comment(out, &format!("{}: accepted without effect: {why}.", key.name()))?;
            return Ok(());
        }
        Status::Deprecated { use_instead } => {
            comment(out, &format!("{} Outdated; better: {use_instead}.", key.help))?;
        }
        Status::Active => comment(out, key.help)?,
    }
    let default = match key.default {
        "" => "unset".to_owned(),
        it => it.to_owned(),
    };
    let xml_default = key.xml_default.map_or_else(String::new, |it| format!(" (in XML {it})"));
    let reload = match (key.takes_effect(), key.reload) {
        (true, Reload::Live) => " Changes at run time.",
        (true, Reload::Restart) => " Changes with a restart.",
        (false, _) => "",
    };
    comment(out, &format!("Allowed: {}. Default: {default}{xml_default}.{reload}", key.allowed()))?;
    let also = key.names.iter().skip(1).map(|it| (*it).to_owned());
    let also: Vec<String> = also.chain(key.xml.iter().map(|it| format!("<{it}>"))).collect();
    if !also.is_empty() {
        comment(out, &format!("Also: {}", also.join(", ")))?;
    }
    let starter = STARTER.iter().find(|it| it.0 == key.name());
    match starter {
        Some((name, text)) => writeln!(out, "{name}={text}"),
        None if key.default.is_empty() => {
            writeln!(out, "# Example:\n#{}={}", key.name(), key.example.replace('\\', "\\\\"))
        }
        None => writeln!(out, "#{}={}", key.name(), key.default),
    }
}

/// Writes a comment, broken into lines of at most [`COLUMNS`].
fn comment(out: &mut String, text: &str) -> fmt::Result {
    let mut column = 0;
    for word in text.split_whitespace() {
        if column > 0 && column + 1 + word.len() > COLUMNS {
            writeln!(out)?;
            column = 0;
        }
        let lead = if column == 0 { "# " } else { " " };
        write!(out, "{lead}{word}")?;
        column += lead.len() + word.len();
    }
    writeln!(out)
}

/// What the example file sets, so that it starts.
const STARTER: [(&str, &str); 4] = [
    ("host", "127.0.0.1"),
    ("externalPort", "5060"),
    ("internalPort", "5065"),
    ("statisticPort", "2006"),
];
/// Width of the manual.
const COLUMNS: usize = 100;
