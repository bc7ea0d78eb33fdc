//! `cargo xtask`: chores of the source tree.

use std::path::Path;
use std::process::ExitCode;

use argh::FromArgs;
use tools::line;

/// Chores of the source tree.
#[derive(FromArgs)]
struct Line {
    #[argh(subcommand)]
    chore: Chore,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Chore {
    Manual(Manual),
}

/// Write engine/example.properties from the key table.
#[derive(FromArgs)]
#[argh(subcommand, name = "manual")]
struct Manual {}

fn main() -> ExitCode {
    let Line { chore: Chore::Manual(Manual {}) } = match line::read("xtask") {
        Ok(line) => line,
        Err(code) => return code,
    };
    let path = Path::new(EXAMPLE);
    match std::fs::write(path, engine::config::manual()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            line::complain("xtask", &format!("{}: {error}", path.display()));
            ExitCode::FAILURE
        }
    }
}

/// The tree that this was built from.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../engine/example.properties");
