//! Command lines, read alike by all programs.

use std::io::Write as _;
use std::process::ExitCode;

use argh::TopLevelCommand;

/// Reads the arguments of the process; `name` is the program's.
///
/// # Errors
///
/// Nothing is left to do but to end with this code: help was asked for and has been printed, or the line
/// is wrong ([`EXIT_USAGE`]), which has been said. A closed pipe (`--help | head -1`) is no error, and
/// that is why argh's own printing does not serve.
pub fn read<T: TopLevelCommand>(name: &str) -> Result<T, ExitCode> {
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|it| it.to_string_lossy().into_owned()).collect();
    parse(name, &arguments)
}

/// The same of these arguments.
///
/// # Errors
///
/// As [`read`].
pub fn parse<T: TopLevelCommand>(name: &str, arguments: &[String]) -> Result<T, ExitCode> {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    T::from_args(&[name], &arguments).map_err(|exit| {
        if exit.status.is_ok() {
            say(&exit.output);
            ExitCode::SUCCESS
        } else {
            let why = exit.output.trim_end();
            complain(name, &format!("{why}\nRun {name} --help for more information."));
            ExitCode::from(EXIT_USAGE)
        }
    })
}

/// Prints for whoever still reads.
pub fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    if !text.ends_with('\n') {
        let _ = out.write_all(b"\n");
    }
}

/// Says what went wrong.
pub fn complain(name: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "{name}: {}", why.trim_end());
}

/// The command line is wrong.
pub const EXIT_USAGE: u8 = 2;
