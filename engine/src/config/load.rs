//! From bytes to a [`Config`]: finds the format, gives every entry to its row, keeps where it came from.

use std::fmt;

use super::draft::Draft;
use super::keys::{Generation, Key, Status, keys};
use super::{Config, contradictions, properties, xml};

/// What a file and the command line say.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Usable if [`Loaded::has_errors`] is false.
    pub config: Config,
    /// File name, as given.
    pub file: String,
    /// Format that the file had.
    pub generation: Generation,
    /// One per key of the table, in its order.
    pub origins: Vec<Setting>,
    /// Everything the operator should hear, errors first, then by line.
    pub findings: Vec<Finding>,
}

/// Where one key stands.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Row of the table.
    pub key: &'static Key,
    /// The text that counts, default or written.
    pub text: String,
    /// Who wrote it.
    pub origin: Origin,
    /// The name it was written under; the row's own where nothing was written.
    pub name: String,
}

/// Who set a value.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Origin {
    /// Nobody.
    Default,
    /// This line of the file.
    Line(u32),
    /// `-Dkey=value`.
    Override,
}

/// Something the operator should hear.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The key, as it was written.
    pub key: Option<String>,
    /// Line of the file; `None` for `-D` and for what is missing.
    pub line: Option<u32>,
    /// What is wrong and what is allowed.
    pub text: String,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Severity {
    /// The start is refused; a reload keeps the old configuration.
    Error,
    /// Something will not be as the operator may think.
    Warning,
    /// Good to know.
    Note,
}

/// Reads a configuration. Never fails and never panics; a broken file yields errors among the findings.
///
/// `overrides` are the `-Dkey=value` of the command line, in order; they win over the file under
/// whatever name a key has.
pub fn load(file_name: &str, bytes: &[u8], overrides: &[(String, String)]) -> Loaded {
    let mut findings = Vec::new();
    let (generation, entries) = read(bytes, &mut findings);
    let mut settings: Vec<Setting> = keys()
        .map(|key| Setting {
            key,
            text: key.default_in(generation).to_owned(),
            origin: Origin::Default,
            name: key.name().to_owned(),
        })
        .collect();
    file_entries(&entries, generation, &mut settings, &mut findings);
    override_entries(overrides, &mut settings, &mut findings);

    let mut draft = Draft::defaults(generation);
    apply(&mut draft, &settings, &mut findings);
    draft.assemble();
    let is_default =
        |it: &&Setting| it.origin == Origin::Default && !it.key.default_in(generation).is_empty();
    let ports =
        settings.iter().filter(is_default).filter_map(|it| it.key.port(&mut draft)).collect();
    draft.config.unwritten_ports = ports;
    contradictions::find(&draft, generation, &settings, &mut findings);
    findings.sort_by_key(|it| (it.severity, it.line.unwrap_or(u32::MAX)));
    Loaded {
        config: draft.config,
        file: file_name.to_owned(),
        generation,
        origins: settings,
        findings,
    }
}

impl Loaded {
    /// Whether the start must be refused.
    pub fn has_errors(&self) -> bool {
        self.findings.iter().any(|it| it.severity == Severity::Error)
    }

    /// A finding as one line: file, line, severity, key, text.
    pub fn line(&self, finding: &Finding) -> String {
        match finding.line {
            Some(line) => format!("{}:{line}: {finding}", self.file),
            None => format!("{}: {finding}", self.file),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        match &self.key {
            Some(key) => write!(f, "{severity}: {}: {}", key.escape_debug(), self.text),
            None => write!(f, "{severity}: {}", self.text),
        }
    }
}

impl Finding {
    pub(super) fn error(key: Option<&str>, line: Option<u32>, text: String) -> Finding {
        Finding::new(Severity::Error, key, line, text)
    }

    pub(super) fn warning(key: Option<&str>, line: Option<u32>, text: String) -> Finding {
        Finding::new(Severity::Warning, key, line, text)
    }

    pub(super) fn note(key: Option<&str>, line: Option<u32>, text: String) -> Finding {
        Finding::new(Severity::Note, key, line, text)
    }

    fn new(severity: Severity, key: Option<&str>, line: Option<u32>, text: String) -> Finding {
        Finding { severity, key: key.map(str::to_owned), line, text }
    }
}

impl Origin {
    /// Line of the file, if it came from there.
    pub const fn line(self) -> Option<u32> {
        match self {
            Origin::Line(line) => Some(line),
            Origin::Default | Origin::Override => None,
        }
    }
}

/// One entry of a file, not yet understood.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Entry {
    pub(super) name: Name,
    pub(super) text: String,
    pub(super) line: u32,
    /// The line follows a comment: it may be the comment's wrapped end.
    pub(super) after_comment: bool,
}

/// How a file names a key.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Name {
    /// A key of a properties file or of the SIP stack.
    Property(String),
    /// A path in an XML file.
    Element(String),
}

impl Name {
    fn as_str(&self) -> &str {
        match self {
            Name::Property(it) | Name::Element(it) => it,
        }
    }

    /// Whether it is an element that has keys below it; some files leave one empty.
    fn is_section(&self) -> bool {
        let Name::Element(path) = self else { return false };
        let is_below =
            |it: &&str| it.strip_prefix(path.as_str()).is_some_and(|it| it.starts_with('/'));
        path == "sipStack" || keys().flat_map(|it| it.xml).any(is_below)
    }

    /// Its row, and its rank among the row's names.
    fn find(&self) -> Option<(usize, &'static Key, usize)> {
        keys().enumerate().find_map(|(index, key)| {
            let rank = match self {
                Name::Property(it) => key.rank_of_property(it),
                Name::Element(it) => key.rank_of_element(it),
            };
            rank.map(|rank| (index, key, rank))
        })
    }
}

fn read(bytes: &[u8], findings: &mut Vec<Finding>) -> (Generation, Vec<Entry>) {
    if bytes.len() > FILE_BYTES_MAX {
        let text = format!("{} bytes; allowed are {FILE_BYTES_MAX}", bytes.len());
        findings.push(Finding::error(None, None, text));
        return (Generation::Properties, Vec::new());
    }
    let text = match bytes {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => {
            let text = "the file is UTF-16; allowed is UTF-8 or Latin-1".to_owned();
            findings.push(Finding::error(None, None, text));
            return (Generation::Properties, Vec::new());
        }
        [0xef, 0xbb, 0xbf, rest @ ..] => text_of(rest),
        _ => text_of(bytes),
    };
    if text.trim_start_matches(|it: char| it.is_whitespace() || it == '\u{feff}').starts_with('<') {
        // Blank lines before `<?xml` are against the standard; lines must still be counted.
        let start = text.find('<').unwrap_or(0);
        let lines = text.bytes().take(start).filter(|it| *it == b'\n').count();
        let skipped = u32::try_from(lines).unwrap_or(u32::MAX);
        let first = findings.len();
        let mut entries = xml::read(text.get(start..).unwrap_or_default(), findings);
        for entry in &mut entries {
            entry.line = entry.line.saturating_add(skipped);
        }
        for line in findings.iter_mut().skip(first).filter_map(|it| it.line.as_mut()) {
            *line = line.saturating_add(skipped);
        }
        (Generation::Xml, entries)
    } else {
        (Generation::Properties, properties::read(&text, findings))
    }
}

/// UTF-8 where all of it is, else Latin-1, which is never wrong.
fn text_of(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(it) => it.to_owned(),
        Err(_) => bytes.iter().copied().map(char::from).collect(),
    }
}

/// Gives the file's entries to their rows.
fn file_entries(
    entries: &[Entry],
    generation: Generation,
    settings: &mut [Setting],
    findings: &mut Vec<Finding>,
) {
    let mut ranks: Vec<Option<usize>> = vec![None; settings.len()];
    let mut unknown: Vec<&str> = Vec::new();
    for entry in entries {
        let name = entry.name.as_str();
        let line = Some(entry.line);
        let Some((index, key, rank)) = entry.name.find() else {
            if entry.text.is_empty() && entry.name.is_section() {
                continue;
            }
            if !unknown.contains(&name) && unknown.len() < UNKNOWN_MAX {
                unknown.push(name);
                findings.push(Finding::warning(Some(name), line, unknown_text(entry)));
            }
            continue;
        };
        let (Some(setting), Some(before)) = (settings.get_mut(index), ranks.get_mut(index)) else {
            continue;
        };
        if entry.text.is_empty() && !key.is_empty_value {
            continue;
        }
        let is_first = match *before {
            None => true,
            Some(_) if key.is_family(name) => continue,
            Some(rank_before) => {
                // The better name wins; of the same name Java keeps the last, the XML reader the first.
                let wins = rank < rank_before
                    || (rank == rank_before && generation == Generation::Properties);
                if setting.text != entry.text {
                    let (winner, loser) = if wins {
                        (entry.line, setting.origin.line())
                    } else {
                        (setting.origin.line().unwrap_or_default(), line)
                    };
                    let text = format!("set more than once; line {winner} counts");
                    findings.push(Finding::warning(Some(key.name()), loser, text));
                }
                wins
            }
        };
        if is_first {
            *before = Some(rank);
            setting.text.clone_from(&entry.text);
            setting.origin = Origin::Line(entry.line);
            name.clone_into(&mut setting.name);
        }
    }
    if unknown.len() == UNKNOWN_MAX {
        let text = format!("more than {UNKNOWN_MAX} unknown keys; the others are not listed");
        findings.push(Finding::warning(None, None, text));
    }
}

/// Gives the command line's entries to their rows; the last of a key wins.
fn override_entries(
    overrides: &[(String, String)],
    settings: &mut [Setting],
    findings: &mut Vec<Finding>,
) {
    for (name, text) in overrides {
        let shown = format!("-D{name}");
        let Some((index, key, _)) = Name::Property(name.trim().to_owned()).find() else {
            if JAVA.iter().any(|it| name.starts_with(it)) {
                let text = "a setting of the Java machine; ignored".to_owned();
                findings.push(Finding::note(Some(&shown), None, text));
            } else {
                let text = format!("unknown; ignored{}", nearest_text(name, false));
                findings.push(Finding::warning(Some(&shown), None, text));
            }
            continue;
        };
        if text.trim().is_empty() && !key.is_empty_value {
            continue;
        }
        if let Some(setting) = settings.get_mut(index) {
            text.trim().clone_into(&mut setting.text);
            setting.origin = Origin::Override;
            setting.name = shown;
        }
        // -DexternalPort speaks for externalUdpPort of the file, too.
        for covered in settings.iter_mut().filter(|it| key.covers.contains(&it.key.name())) {
            if let Origin::Line(line) = covered.origin {
                let text = format!("-D{name} takes its place");
                findings.push(Finding::note(Some(&covered.name), Some(line), text));
                covered.origin = Origin::Default;
                covered.text.clear();
            }
        }
    }
}

/// Applies what was written, in the table's order.
fn apply(draft: &mut Draft, settings: &[Setting], findings: &mut Vec<Finding>) {
    // A key that has no effect must not have one by accident.
    let mut scratch = draft.clone();
    for setting in settings.iter().filter(|it| it.origin != Origin::Default) {
        let key = setting.key;
        let line = setting.origin.line();
        let name = Some(setting.name.as_str());
        remark(setting, findings);
        let target = if key.takes_effect() { &mut *draft } else { &mut scratch };
        match key.set(target, &setting.text) {
            Ok(()) => {}
            Err(_) if key.is_secret => {
                let text = format!("the value is not allowed; allowed is {}", key.allowed());
                findings.push(Finding::error(name, line, text));
            }
            Err(why) => findings.push(Finding::error(name, line, why)),
        }
        for text in target.warnings.drain(..) {
            findings.push(Finding::warning(name, line, text));
        }
    }
}

/// What the status of a key that was written has to say.
fn remark(setting: &Setting, findings: &mut Vec<Finding>) {
    let key = setting.key;
    let line = setting.origin.line();
    let name = Some(setting.name.as_str());
    match key.status {
        Status::Active => {}
        Status::Deprecated { use_instead } => {
            findings.push(Finding::note(name, line, format!("outdated; better: {use_instead}")));
        }
        Status::Ignored { why } => {
            findings.push(Finding::note(name, line, format!("no effect: {why}")));
        }
    }
    if key.names.iter().skip(1).any(|it| *it == setting.name) {
        findings.push(Finding::note(name, line, format!("is read as {}", key.name())));
    }
}

fn unknown_text(entry: &Entry) -> String {
    let is_element = matches!(entry.name, Name::Element(_));
    let near = nearest_text(entry.name.as_str(), is_element);
    let wrapped = if entry.after_comment && near.is_empty() {
        "; perhaps the end of the comment above that was wrapped"
    } else {
        ""
    };
    format!("unknown; ignored{near}{wrapped}")
}

/// The nearest known name, if any is near.
fn nearest_text(name: &str, is_element: bool) -> String {
    if name.len() > NAME_BYTES_MAX {
        return String::new();
    }
    let names = |key: &'static Key| if is_element { key.xml.iter() } else { key.names.iter() };
    let last_of = |it: &str| it.rsplit(['/', '.']).next().unwrap_or_default().to_lowercase();
    let last = last_of(name);
    keys()
        .flat_map(names)
        .map(|it| {
            // The same key at the wrong place of an XML file is nearer than any misspelling.
            let near = strsim::normalized_damerau_levenshtein(name, it);
            let is_moved = is_element && last_of(it) == last;
            (if is_moved { 1.0 } else { near }, it)
        })
        .filter(|(near, _)| *near >= NEAR_MIN)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(String::new, |(_, it)| format!("; did you mean {it}?"))
}

/// A configuration is a few kilobytes.
const FILE_BYTES_MAX: usize = 1024 * 1024;
/// Beyond this a file is no configuration.
const UNKNOWN_MAX: usize = 200;
/// Longer names are nobody's misspelling, and comparing costs.
const NAME_BYTES_MAX: usize = 100;
/// Below this a suggestion is a guess.
const NEAR_MIN: f64 = 0.75;
/// Settings that wrapper scripts give to the Java machine.
const JAVA: [&str; 7] = ["java.", "javax.", "sun.", "com.sun.", "user.", "file.", "log4j."];
