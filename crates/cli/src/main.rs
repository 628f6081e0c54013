//! The `pixart` program: arguments in, progress and one line of result out.

mod allocator;
mod args;
mod bench;
mod control;
mod convert;
mod decode;
mod encode;
mod eval;
mod features;
mod generate;
mod info;
mod interrupt;
mod open;
mod output;
mod progress;
mod quantize;
mod train;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Args, Command};

/// What the shell reports of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    allocator::keep_large_pages();
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(tracing::Level::WARN)
        .with_target(false)
        .without_time()
        .init();
    let result = match args.command {
        Command::Generate(args) => generate::run(args),
        Command::ControlImage(args) => control::run(args),
        Command::Encode(args) => encode::run(args),
        Command::Decode(args) => decode::run(args),
        Command::Info(args) => info::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Features(args) => features::run(args),
        Command::Train(args) => train::run(args),
        Command::Eval { what } => eval::run(what),
        Command::Bench(args) => bench::run(args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "pixart", &mut script);
            output::print(&String::from_utf8_lossy(&script))
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.downcast_ref().is_some_and(|error| matches!(error, pixart::Error::Cancelled)) => {
            output::complain("stopped");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            output::complain(&format!("error: {}", format!("{error:#}").replace('\n', " ")));
            ExitCode::FAILURE
        }
    }
}
