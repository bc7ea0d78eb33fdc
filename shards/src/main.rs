//! The balancer.

use std::io::Write as _;
use std::process::ExitCode;

use shards::args::{Command, EXIT_FAILED, EXIT_OK, EXIT_USAGE, Usage, parse};
use shards::control;
use shards::names::Sources;

/// Threads of one core each, freeing where they allocate, are what it is made for.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    shards::sys::forgo_huge_pages();
    // Before any thread: they inherit the mask, and signals then reach the control thread alone.
    control::block_signals();
    let arguments: Vec<String> =
        std::env::args_os().skip(1).map(|it| it.to_string_lossy().into_owned()).collect();
    let code = match parse(&arguments) {
        Ok(Command::Run(run)) => control::run(run, Sources::default(), shards::service::start),
        Ok(Command::Demo { stay }) => match shards::demo::run(stay) {
            Ok(()) => EXIT_OK,
            Err(why) => complain(&why, EXIT_FAILED),
        },
        Ok(Command::Say(text)) => {
            let _ = std::io::stdout().write_all(text.as_bytes());
            EXIT_OK
        }
        Err(Usage(text)) => complain(&format!("{text}\nTry: trunkline --help"), EXIT_USAGE),
    };
    ExitCode::from(code)
}

fn complain(text: &str, code: u8) -> u8 {
    let _ = writeln!(std::io::stderr(), "trunkline: {text}");
    code
}
