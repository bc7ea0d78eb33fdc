//! The command line: the original's wrapper scripts must go on working, people want something shorter.
//!
//! Understands `-mobicents-balancer-config=FILE` and `-Dkey=value` anywhere (`http-smpp-registry.md`
//! 5.1), and what argh makes of the rest.

use std::path::PathBuf;

use argh::FromArgs;

/// What the operator asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// The service.
    Run(Run),
    /// No configuration: calls over loopback, to look at.
    Demo {
        /// Do not stop when the demonstration is over.
        stay: bool,
    },
    /// This text, and no more.
    Say(String),
}

/// How to run the service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Configuration file.
    pub file: PathBuf,
    /// `-Dkey=value` in order: they win over the file.
    pub overrides: Vec<(String, String)>,
    /// `-DlogConfigFile`: a log4j file.
    pub log_config: Option<PathBuf>,
}

/// A command line that means nothing. The process says so and ends with [`EXIT_USAGE`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Usage(pub String);

/// Reads the arguments, without the program's own name.
///
/// # Errors
///
/// [`Usage`]: print it and end with [`EXIT_USAGE`].
pub fn parse(arguments: &[String]) -> Result<Command, Usage> {
    let mut run = Run::default();
    let mut file = None;
    let mut rest = Vec::new();
    for argument in arguments {
        if let Some(path) = argument
            .strip_prefix("-mobicents-balancer-config=")
            .or_else(|| argument.strip_prefix("--mobicents-balancer-config="))
        {
            name_file(&mut file, path)?;
        } else if let Some(property) = argument.strip_prefix("-D") {
            // Java takes a property without a value as an empty one.
            let (key, value) = property.split_once('=').unwrap_or((property, ""));
            match key {
                "" => return Err(Usage(format!("{argument}: -D needs a name, -Dkey=value"))),
                "logLevel" => {
                    let level = crate::logs::level(value).ok_or_else(|| {
                        Usage(format!("{argument}: not a log level ({})", crate::logs::LEVELS))
                    })?;
                    // log4j's names are more than the configuration's.
                    run.overrides.push((key.to_owned(), level.to_string()));
                }
                "logConfigFile" => run.log_config = Some(value.into()),
                _ => run.overrides.push((key.to_owned(), value.to_owned())),
            }
        } else {
            rest.push(argument.as_str());
        }
    }
    let line = match Line::from_args(&["trunkline"], &rest) {
        Ok(line) => line,
        Err(exit) if exit.status.is_ok() => return Ok(Command::Say(exit.output)),
        Err(exit) => return Err(Usage(exit.output.trim_end().to_owned())),
    };
    if line.version {
        return Ok(Command::Say(format!("trunkline {}\n", env!("CARGO_PKG_VERSION"))));
    }
    if let Some(path) = &line.file {
        name_file(&mut file, path)?;
    }
    match file {
        Some(_) if line.stay => Err(Usage("--stay is for the demo, without a file".into())),
        Some(file) => Ok(Command::Run(Run { file, ..run })),
        None if run == Run::default() => Ok(Command::Demo { stay: line.stay }),
        None => Err(Usage("-D settings without a configuration file".into())),
    }
}

/// Ended as asked.
pub const EXIT_OK: u8 = 0;
/// The configuration is wrong, or the start failed because of it.
pub const EXIT_CONFIG: u8 = 1;
/// A shard failed: the process must be started again.
pub const EXIT_FAILED: u8 = 3;
/// The command line is wrong.
pub const EXIT_USAGE: u8 = 2;

fn name_file(file: &mut Option<PathBuf>, path: &str) -> Result<(), Usage> {
    if path.is_empty() {
        return Err(Usage("an empty configuration file name".into()));
    }
    match file.replace(path.into()) {
        Some(first) => {
            Err(Usage(format!("two configuration files: {} and {path}", first.display())))
        }
        None => Ok(()),
    }
}

/// A load balancer for telecom application servers. Without a file: a demonstration on loopback.
#[derive(FromArgs)]
#[argh(note = "Also: -mobicents-balancer-config=FILE names the file as the original does.
-Dkey=value overrides a key of the file; -DlogLevel=DEBUG and -DlogConfigFile=FILE set logging.

Signals: SIGTERM and SIGINT drain and stop, a second one stops at once; SIGHUP reloads the file.
Exit codes: 0 stopped as asked, 1 the configuration is wrong, 2 the command line is wrong, 3 failed.")]
struct Line {
    /// configuration file, properties or XML
    #[argh(positional)]
    file: Option<String>,

    /// keep the demonstration up when it is over
    #[argh(switch)]
    stay: bool,

    /// print the version
    #[argh(switch)]
    version: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Result<Command, Usage> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        parse(&arguments)
    }

    fn run(overrides: &[(&str, &str)]) -> Result<Command, Usage> {
        Ok(Command::Run(Run {
            file: "lb.properties".into(),
            overrides: overrides.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect(),
            log_config: None,
        }))
    }

    #[test]
    fn both_spellings_start_the_service() {
        let cases = [
            ("lb.properties", run(&[])),
            ("-mobicents-balancer-config=lb.properties", run(&[])),
            (
                "-mobicents-balancer-config=lb.properties -DlogLevel=DEBUG -DexternalPort=5070",
                run(&[("logLevel", "DEBUG"), ("externalPort", "5070")]),
            ),
            (
                "-DexternalPort=5070 -Da=b=c -DlogLevel=all lb.properties -Dempty",
                run(&[
                    ("externalPort", "5070"),
                    ("a", "b=c"),
                    ("logLevel", "TRACE"),
                    ("empty", ""),
                ]),
            ),
            ("", Ok(Command::Demo { stay: false })),
            ("--stay", Ok(Command::Demo { stay: true })),
        ];
        for (line, want) in cases {
            assert_eq!(of(line), want, "{line}");
        }
        let Ok(Command::Run(run)) = of("-DlogConfigFile=./log4j.xml lb.properties") else {
            panic!("starts")
        };
        assert_eq!(run.log_config, Some("./log4j.xml".into()));
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        let cases = [
            ("a b", "Unrecognized argument: b"),
            ("a -mobicents-balancer-config=b", "two configuration files"),
            ("-mobicents-balancer-config=", "empty configuration file name"),
            ("--wrong", "Unrecognized argument: --wrong"),
            ("a -D=3", "-D needs a name"),
            ("a -DlogLevel=LOUD", "not a log level"),
            ("-Da=b", "without a configuration file"),
            ("--stay a", "--stay is for the demo"),
        ];
        for (line, want) in cases {
            match of(line) {
                Err(Usage(text)) => assert!(text.contains(want), "{line}: {text}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn help_and_version_are_said() {
        for (line, want) in [
            ("--help", "-mobicents-balancer-config=FILE"),
            ("--help", "Exit codes"),
            ("--version", env!("CARGO_PKG_VERSION")),
        ] {
            match of(line) {
                Ok(Command::Say(text)) => assert!(text.contains(want), "{line}: {text}"),
                other => panic!("{line}: {other:?}"),
            }
        }
    }
}
