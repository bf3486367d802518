//! `enforcer`: arguments, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    enforcer::cli::main()
}
