//! The original's logging configuration (`http-smpp-registry.md` 5.1): of a log4j XML file the level of the
//! root logger, the console and the files that it writes to, how large they grow, and the layout of lines.
//!
//! Levels of single classes, filters and appenders over a network have no effect: the classes are gone, and
//! a log shipper does the rest better. Each such thing is a warning.

use std::path::PathBuf;

use log::LevelFilter;
use roxmltree::{Document, Node, ParsingOptions};

use super::value;

/// What a log4j file comes to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Log4j {
    /// Level of the root logger.
    pub level: Option<LevelFilter>,
    /// Where the root logger writes; empty if it names nothing that we can write to.
    pub appenders: Vec<Appender>,
    /// One for each thing in it that has no effect here.
    pub warnings: Vec<String>,
}

/// Where lines go, and what they look like.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Appender {
    /// The file; `None`: standard output.
    pub file: Option<LogFile>,
    /// Of each line.
    pub layout: Layout,
}

/// A file that lines go to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct LogFile {
    /// Where it is.
    pub path: PathBuf,
    /// What is there at the start stays.
    pub appends: bool,
    /// It is renamed once it is so large; `None`: it grows for ever.
    pub bytes_max: Option<u64>,
    /// Renamed files that are kept: `file.1` is the latest.
    pub backups: u32,
}

/// The look of a line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Layout(pub Vec<Piece>);

/// A part of a line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Piece {
    /// As it is.
    Text(String),
    /// When, in the manual's form: `2016-02-08 15:54:28,036`.
    Date,
    /// The level, filled up with blanks to a width; below 0 on the right.
    Level(i8),
    /// Name of the thread, likewise.
    Thread(i8),
    /// What there is to say.
    Message,
}

impl Default for Layout {
    /// `%d %p %t - %m%n`, as the guide shows lines.
    fn default() -> Layout {
        let text = |it: &str| Piece::Text(it.to_owned());
        let [one, two] = [text(" "), text(" ")];
        let (level, thread) = (Piece::Level(0), Piece::Thread(0));
        Layout(vec![Piece::Date, one, level, two, thread, text(" - "), Piece::Message, text("\n")])
    }
}

/// Reads a log4j file. Never fails: what is not understood is a warning.
pub fn log4j(text: &str) -> Log4j {
    let mut it = Log4j::default();
    // The DOCTYPE is customary; the file is the operator's own.
    let options = ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = match Document::parse_with_options(text, options) {
        Ok(document) => document,
        Err(error) => {
            let text = format!("it is not XML, the only format that is read: {error}");
            it.warnings.push(text);
            return it;
        }
    };
    let elements = || document.descendants().filter(Node::is_element);
    let root = elements().find(|it| it.has_tag_name("root"));
    let root_level = root.and_then(|it| {
        it.children().find(|it| it.has_tag_name("priority") || it.has_tag_name("level"))
    });
    if let Some(text) = root_level.map(|it| it.attribute("value").unwrap_or_default()) {
        it.level = value::log_level(text).ok();
        if it.level.is_none() {
            it.warnings.push(format!("the root level \"{text}\" is not a level"));
        }
    }
    let named = |name: &str| {
        elements().find(|it| it.has_tag_name("appender") && it.attribute("name") == Some(name))
    };
    for name in root.iter().flat_map(|it| references(*it)) {
        match named(name) {
            None => it.warnings.push(format!("there is no appender \"{name}\"")),
            // An asynchronous appender hands everything to others.
            Some(appender) if class(appender) == "AsyncAppender" => {
                for appender in references(appender).filter_map(named) {
                    read(appender, &mut it);
                }
            }
            Some(appender) => read(appender, &mut it),
        }
    }
    for name in ["logger", "category"] {
        if elements().any(|it| it.has_tag_name(name)) {
            it.warnings.push(format!("<{name}> has no effect: there is one level for everything"));
        }
    }
    it
}

/// Names of the appenders that an element refers to.
fn references<'d>(element: Node<'d, 'd>) -> impl Iterator<Item = &'d str> {
    let children = element.children().filter(|it| it.has_tag_name("appender-ref"));
    children.filter_map(|it| it.attribute("ref"))
}

/// Last segment of an element's class.
fn class<'d>(element: Node<'d, 'd>) -> &'d str {
    element.attribute("class").and_then(|it| it.rsplit('.').next()).unwrap_or_default()
}

fn read(appender: Node<'_, '_>, into: &mut Log4j) {
    let name = appender.attribute("name").unwrap_or_default();
    let class = class(appender);
    let warnings = &mut into.warnings;
    let is_rolling = class == "RollingFileAppender";
    let mut file = match class {
        "ConsoleAppender" => None,
        "FileAppender" | "RollingFileAppender" | "DailyRollingFileAppender" => Some(LogFile {
            path: PathBuf::new(),
            appends: true,
            bytes_max: is_rolling.then_some(ROLLING_BYTES),
            backups: 1,
        }),
        other => {
            let text = format!("appender {name}: {other} has no effect");
            return warnings.push(text);
        }
    };
    let mut layout = Layout::default();
    for element in appender.children().filter(Node::is_element) {
        match element.tag_name().name() {
            "param" => {
                let (param, text) = parameter(element);
                match &mut file {
                    Some(file) => of_file(file, is_rolling, name, param, text, warnings),
                    None if param.eq_ignore_ascii_case("Target") => {}
                    None => warnings.push(format!("appender {name}: {param} has no effect")),
                }
            }
            "layout" => {
                let mut params = element.children().filter(|it| it.has_tag_name("param"));
                let pattern = params.find(|it| parameter(*it).0 == "ConversionPattern");
                if let Some(pattern) = pattern {
                    layout = Layout::parse(parameter(pattern).1);
                }
            }
            other => warnings.push(format!("appender {name}: <{other}> has no effect")),
        }
    }
    if class == "DailyRollingFileAppender" {
        let text = "is not renamed by the day: RollingFileAppender renames by size";
        warnings.push(format!("appender {name}: its file {text}"));
    }
    match &file {
        Some(it) if it.path.as_os_str().is_empty() => {
            warnings.push(format!("appender {name}: no File is named; it has no effect"));
        }
        Some(it) if it.path.to_string_lossy().contains("${") => {
            let path = it.path.display();
            warnings.push(format!("appender {name}: {path}: ${{}} is not known; it has no effect"));
        }
        _ => into.appenders.push(Appender { file, layout }),
    }
}

fn parameter<'d>(element: Node<'d, 'd>) -> (&'d str, &'d str) {
    let of = |name| element.attribute(name).unwrap_or_default();
    (of("name"), of("value").trim())
}

fn of_file(
    file: &mut LogFile,
    is_rolling: bool,
    appender: &str,
    param: &str,
    text: &str,
    warnings: &mut Vec<String>,
) {
    let refused = || format!("appender {appender}: {param}={text} is not understood");
    match param.to_ascii_lowercase().as_str() {
        "file" => file.path = text.into(),
        "append" => file.appends = !text.eq_ignore_ascii_case("false"),
        "maxfilesize" | "maximumfilesize" if is_rolling => match bytes(text) {
            Some(it) => file.bytes_max = Some(it),
            None => warnings.push(refused()),
        },
        "maxbackupindex" if is_rolling => match text.parse() {
            Ok(it) => file.backups = it,
            Err(_) => warnings.push(refused()),
        },
        // Every line is written at once, in UTF-8; what days have to do with it is said elsewhere.
        "immediateflush" | "bufferedio" | "buffersize" | "encoding" | "datepattern" => {}
        _ => warnings.push(format!("appender {appender}: {param} has no effect")),
    }
}

/// `10MB`, `500KB`, `1GB`, or bytes.
fn bytes(text: &str) -> Option<u64> {
    let text = text.to_ascii_uppercase();
    let units = [("KB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30)];
    let unit = units.iter().find_map(|(unit, bytes)| Some((text.strip_suffix(unit)?, *bytes)));
    let (number, factor) = unit.unwrap_or((&text, 1));
    number.trim().parse::<u64>().ok()?.checked_mul(factor).filter(|it| *it > 0)
}

impl Layout {
    /// Reads a `ConversionPattern`: `%d %p %t %m %n` and `%%`, with a width. Other conversions leave
    /// nothing.
    fn parse(pattern: &str) -> Layout {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = pattern.chars().peekable();
        while let Some(it) = rest.next() {
            if it != '%' {
                text.push(it);
                continue;
            }
            let mut width = String::new();
            while let Some(it) = rest.next_if(|it| it.is_ascii_digit() || "-.".contains(*it)) {
                width.push(it);
            }
            // After the point stands how much is cut off: nothing is.
            let width = width.split('.').next().and_then(|it| it.parse().ok()).unwrap_or(0);
            let conversion = rest.next();
            if rest.peek() == Some(&'{') {
                rest.by_ref().find(|it| *it == '}');
            }
            let piece = match conversion {
                Some('d') => Piece::Date,
                Some('p') => Piece::Level(width),
                Some('t') => Piece::Thread(width),
                Some('m') => Piece::Message,
                Some('n') => {
                    text.push('\n');
                    continue;
                }
                Some('%') => {
                    text.push('%');
                    continue;
                }
                _ => continue,
            };
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            pieces.push(piece);
        }
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Layout(pieces)
    }
}

/// What log4j gives a rolling file that says nothing of its size.
const ROLLING_BYTES: u64 = 10 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(it: &str) -> Piece {
        Piece::Text(it.to_owned())
    }

    /// A file as it is deployed: the level, one file with its backups, and what does not count.
    #[test]
    fn the_root_loggers_level_file_and_layout_are_read() {
        let read = log4j(
            r#"<?xml version="1.0"?><!DOCTYPE log4j:configuration SYSTEM "log4j.dtd">
            <log4j:configuration xmlns:log4j="http://jakarta.apache.org/log4j/">
              <appender name="CONSOLE" class="org.apache.log4j.ConsoleAppender">
                <param name="Threshold" value="INFO"/>
              </appender>
              <appender name="FILE" class="org.apache.log4j.RollingFileAppender">
                <param name="File" value="log/lb.log"/><param name="Append" value="false"/>
                <param name="MaxFileSize" value="500KB"/><param name="MaxBackupIndex" value="10"/>
                <layout class="org.apache.log4j.PatternLayout">
                  <param name="ConversionPattern" value="%d{ISO8601} %-5p [%c{1}] %t: 100%% %m%n"/>
                </layout>
              </appender>
              <category name="gov.nist"><priority value="ERROR"/></category>
              <root><priority value="debug"/><appender-ref ref="FILE"/></root>
            </log4j:configuration>"#,
        );
        let file = LogFile {
            path: "log/lb.log".into(),
            appends: false,
            bytes_max: Some(500 * 1024),
            backups: 10,
        };
        let layout = Layout(vec![
            Piece::Date,
            text(" "),
            Piece::Level(-5),
            text(" [] "),
            Piece::Thread(0),
            text(": 100% "),
            Piece::Message,
            text("\n"),
        ]);
        assert_eq!(read.level, Some(LevelFilter::Debug));
        assert_eq!(read.appenders, [Appender { file: Some(file), layout }]);
        assert_eq!(read.warnings, ["<category> has no effect: there is one level for everything"]);
    }

    #[test]
    fn what_is_not_written_is_log4js_and_what_has_no_effect_is_told() {
        let both = |appender: &str| {
            let read = log4j(&format!(
                "<c>{appender}<root><appender-ref ref='A'/><appender-ref ref='B'/></root>\
                 <appender name='B' class='org.apache.log4j.ConsoleAppender'/></c>"
            ));
            let files: Vec<_> = read.appenders.iter().map(|it| it.file.clone()).collect();
            (files, read.warnings.join("; "))
        };
        let file = |path: &str, bytes_max| {
            Some(LogFile { path: path.into(), appends: true, bytes_max, backups: 1 })
        };
        let cases = [
            ("", vec![None], "there is no appender \"A\""),
            (
                "<appender name='A' class='org.apache.log4j.FileAppender'><param name='file' value='x'/></appender>",
                vec![file("x", None), None],
                "",
            ),
            (
                "<appender name='A' class='org.apache.log4j.RollingFileAppender'><param name='File' value='x'/><param name='MaxFileSize' value='much'/></appender>",
                vec![file("x", Some(10 << 20)), None],
                "appender A: MaxFileSize=much is not understood",
            ),
            (
                "<appender name='A' class='org.apache.log4j.DailyRollingFileAppender'><param name='File' value='x'/><param name='DatePattern' value=\"'.'yyyy\"/></appender>",
                vec![file("x", None), None],
                "appender A: its file is not renamed by the day: RollingFileAppender renames by size",
            ),
            (
                "<appender name='A' class='org.apache.log4j.FileAppender'><param name='File' value='${home}/x'/></appender>",
                vec![None],
                "appender A: ${home}/x: ${} is not known; it has no effect",
            ),
            (
                "<appender name='A' class='org.apache.log4j.FileAppender'/>",
                vec![None],
                "appender A: no File is named; it has no effect",
            ),
            (
                "<appender name='A' class='org.apache.log4j.AsyncAppender'><appender-ref ref='C'/></appender><appender name='C' class='FileAppender'><param name='File' value='y'/><param name='Threshold' value='WARN'/><filter/></appender>",
                vec![file("y", None), None],
                "appender C: Threshold has no effect; appender C: <filter> has no effect",
            ),
            (
                "<appender name='A' class='org.apache.log4j.net.SyslogAppender'/>",
                vec![None],
                "appender A: SyslogAppender has no effect",
            ),
        ];
        for (appender, files, warnings) in cases {
            assert_eq!(both(appender), (files, warnings.to_owned()), "{appender}");
        }
        assert_eq!(log4j("log4j.rootLogger=INFO").warnings.len(), 1);
    }

    #[test]
    fn levels_are_log4js() {
        for (xml, want, warnings) in [
            ("<a><root><level value='FATAL'/></root></a>", Some(LevelFilter::Error), 0),
            ("<a><root><priority value='all'/></root></a>", Some(LevelFilter::Trace), 0),
            ("<a><root><level value='LOUD'/></root></a>", None, 1),
            ("<a><root/></a>", None, 0),
            ("<a><root", None, 1),
            ("", None, 1),
        ] {
            let read = log4j(xml);
            assert_eq!((read.level, read.warnings.len()), (want, warnings), "{xml}");
        }
    }

    #[test]
    fn sizes_have_units() {
        let cases = [
            ("10MB", Some(10 << 20)),
            ("1 gb", Some(1 << 30)),
            ("4096", Some(4096)),
            ("0", None),
            ("-1", None),
            ("99999999999GB", None),
            ("", None),
        ];
        for (text, want) in cases {
            assert_eq!(bytes(text), want, "{text}");
        }
    }
}
