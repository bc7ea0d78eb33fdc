//! Numbers: CPU per call, calls per second and latency, against the balancers people use today.

use std::process::ExitCode;

use argh::FromArgs;
use tools::line;

mod compare;
mod floor;
mod http;
mod instructions;
mod limits;
mod nodes;
mod secure;
mod smpp;

/// Measures the balancer and its peers.
#[derive(FromArgs)]
struct Arguments {
    #[argh(subcommand)]
    what: What,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum What {
    Compare(compare::Arguments),
    Floor(floor::Arguments),
    Http(http::Arguments),
    HttpFloor(http::floor::Arguments),
    Instructions(instructions::Arguments),
    Limits(limits::Arguments),
    Secure(secure::Arguments),
    Nodes(nodes::Arguments),
    Smpp(smpp::Arguments),
}

fn main() -> ExitCode {
    let Arguments { what } = match line::read("perf") {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let result = match what {
        What::Compare(arguments) => compare::run(&arguments),
        What::Floor(arguments) => floor::run(&arguments),
        What::Limits(arguments) => limits::run(&arguments),
        What::Http(arguments) => http::run(&arguments),
        What::HttpFloor(arguments) => http::floor::run(&arguments),
        What::Secure(arguments) => secure::run(&arguments),
        What::Nodes(arguments) => nodes::run(&arguments),
        What::Smpp(arguments) => smpp::run(&arguments),
        What::Instructions(arguments) => {
            instructions::run(&arguments).map_err(std::io::Error::other)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            line::complain("perf", &error.to_string());
            ExitCode::from(line::EXIT_USAGE)
        }
    }
}
