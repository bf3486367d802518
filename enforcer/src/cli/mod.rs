//! The command line. Results go to standard output, everything else to standard error. Exit status:
//! 0 fine, 1 the answer is no (an invalid policy, a denied connection, a failed case), 2 wrong usage
//! or it could not be done. Who reads the results may stop: then this ends as other tools do.
//!
//! Everything that is printed goes through `say`, `say_json` or `complain`, which let no text of others do
//! anything to a terminal; a name within a line is [`text::shown`] besides.

mod catalog;
mod check;
mod detach;
mod events;
mod explain;
mod run;
mod status;

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum, error::ErrorKind};
use enforcer_policy::{
    SourceText,
    error::{Paint, PolicyErrors},
    from_texts,
    model::{Mode, Policy},
    schema, text,
};
use nix::sys::signal::{SigHandler, Signal, raise, signal};
use serde::Serialize;

use crate::{
    agent::{AgentError, PIN_DIR, RUN_DIR},
    files,
    kernel::filters::Leftover,
};

/// Drops connections to the guarded ports of a Kubernetes node that no documented component path allows.
///
/// A policy says where the cluster's components are and which paths may be used; kernel programs at
/// the TC and cgroup hooks enforce it. With `otherTraffic: Drop` they drop everything else, too. Begin with `enforcer check`,
/// then `enforcer run --dry-run`, which drops nothing and reports what it would have dropped.
#[derive(Debug, Parser)]
#[command(name = "enforcer", version, max_term_width = 100)]
struct Cli {
    /// How results are written
    #[arg(short, long, global = true, value_enum, default_value_t = Style::Text)]
    output: Style,
    #[command(subcommand)]
    command: Command,
}

/// How results are written, by every command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// How results may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Style {
    /// For people
    #[value(alias = "table")]
    Text,
    /// For programs, with names that stay
    Json,
    /// A policy: `catalog` alone
    Yaml,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Arguments),
    Run(run::Arguments),
    Status(status::Arguments),
    Events(events::Arguments),
    Explain(explain::Arguments),
    Catalog(catalog::Arguments),
    Detach(detach::Arguments),
    /// Print the JSON Schema of policies, for editors
    Schema,
}

/// Where the policy is.
#[derive(Debug, Args)]
struct PolicyArguments {
    /// A file with policy documents, or a directory of such files, or - for standard input; may be
    /// given several times
    #[arg(short, long = "policy", value_name = "FILE|DIR", required = true)]
    policy: Vec<PathBuf>,
}

/// Where the agent is.
#[derive(Debug, Args)]
struct AgentArguments {
    /// Directory of the agent's lock and control socket
    #[arg(long, value_name = "DIR", default_value = RUN_DIR)]
    run_dir: PathBuf,
    /// Directory on a BPF file system where what is in force is pinned
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
}

/// Why a command has no result.
enum Failure {
    /// The answer is no, and has been said.
    No,
    /// The policy is invalid.
    Policy(PolicyErrors),
    /// It could not be done.
    Cannot(anyhow::Error),
    /// Nobody can be asked, but filters are there.
    Leftovers(Vec<Leftover>),
    /// Nobody reads any more.
    Closed,
}

type Outcome = Result<(), Failure>;

impl From<PolicyErrors> for Failure {
    fn from(errors: PolicyErrors) -> Self {
        Self::Policy(errors)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::Policy(errors) => Self::Policy(errors),
            AgentError::Leftovers { filters } => Self::Leftovers(filters),
            error => Self::Cannot(error.into()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Cannot(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Closed
        } else {
            Self::Cannot(anyhow::Error::from(error).context("failed to write the result"))
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(said) => return ExitCode::from(tell_usage(&said)),
    };
    let format = match (cli.output, &cli.command) {
        (Style::Text, _) => Format::Text,
        // Whoever writes YAML has it from the style itself.
        (Style::Json, _) | (Style::Yaml, Command::Catalog(_)) => Format::Json,
        (Style::Yaml, _) => Cli::command()
            .error(
                ErrorKind::InvalidValue,
                "`-o yaml` is for `enforcer catalog`; here it is text or json",
            )
            .exit(),
    };
    let result = match cli.command {
        Command::Check(arguments) => check::run(&arguments, format),
        Command::Run(arguments) => run::run(arguments, format),
        Command::Status(arguments) => status::run(&arguments, format),
        Command::Events(arguments) => events::run(&arguments, format),
        Command::Explain(arguments) => explain::run(&arguments, format),
        Command::Catalog(arguments) => catalog::run(&arguments, cli.output),
        Command::Detach(arguments) => detach::run(&arguments, format),
        Command::Schema => say(schema::json().trim_end()),
    };
    ExitCode::from(match result {
        Ok(()) => FINE,
        Err(failure) => failure.tell(format),
    })
}

const FINE: u8 = 0;
const NO: u8 = 1;
const CANNOT: u8 = 2;

impl Failure {
    /// Tells it, and says with which status to exit.
    fn tell(self, format: Format) -> u8 {
        match self {
            Self::Closed => die_of_a_closed_pipe(),
            Self::No => NO,
            Self::Policy(errors) => {
                let status = if errors.is_unreadable() { CANNOT } else { NO };
                match tell_policy_errors(&errors, format) {
                    Ok(()) => status,
                    Err(failure) => failure.tell(Format::Text),
                }
            }
            Self::Leftovers(filters) => {
                let error = AgentError::Leftovers {
                    filters: filters.clone(),
                };
                complain(&format!("error: {error}"));
                let value = serde_json::json!({ "error": error.to_string(), "leftovers": filters });
                match format {
                    Format::Json => {
                        say_json(&value).map_or_else(|f| f.tell(Format::Text), |()| CANNOT)
                    }
                    Format::Text => CANNOT,
                }
            }
            Self::Cannot(error) => {
                complain(&format!("error: {}", text::chain(error.as_ref())));
                CANNOT
            }
        }
    }
}

/// What clap has to say: help, the version, or what is wrong with the arguments.
fn tell_usage(said: &clap::Error) -> u8 {
    let printed = said.print().and_then(|()| io::stdout().flush());
    match printed {
        Ok(()) => u8::try_from(said.exit_code()).unwrap_or(CANNOT),
        Err(error) => Failure::from(error).tell(Format::Text),
    }
}

/// Ends this process as the kernel ends one that writes where nobody reads. Rust has the kernel return an error
/// instead.
fn die_of_a_closed_pipe() -> u8 {
    // SAFETY: the default is no handler, so nothing runs at a time when it may not.
    let default = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = default.and_then(|_| raise(Signal::SIGPIPE));
    // Who has it blocked goes on here.
    CANNOT
}

fn tell_policy_errors(errors: &PolicyErrors, format: Format) -> Outcome {
    if format == Format::Json {
        // Whoever asked for JSON reads it from standard output.
        return say_json(&serde_json::json!({ "valid": false, "errors": errors }));
    }
    if io::stderr().is_terminal() {
        // In colours, which are control sequences: what is in the errors was made harmless when they were made.
        let _ = writeln!(io::stderr(), "{}", errors.render(Paint::Coloured));
    } else {
        complain(&errors.render(Paint::Plain));
    }
    Ok(())
}

/// A line, or several, to standard error. If nobody reads that, either, only the exit status tells.
fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "{}", text::lines(message));
}

/// A line, or several, to standard output.
fn say(message: &str) -> Outcome {
    Ok(writeln!(io::stdout().lock(), "{}", text::lines(message))?)
}

/// A JSON document to standard output.
fn say_json(value: &impl Serialize) -> Outcome {
    let document = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    say(&text::json(&document))
}

/// A JSON document in one line to standard output.
fn say_json_line(value: &impl Serialize) -> Outcome {
    let document = serde_json::to_string(value).map_err(anyhow::Error::from)?;
    say(&text::json(&document))
}

/// The policy from files, or else the one that the agent has in force, with its node and mode.
fn policy_of(
    files: &[PathBuf],
    agent: &AgentArguments,
) -> Result<(Policy, Option<String>, Option<Mode>), Failure> {
    if !files.is_empty() {
        return Ok((files::load(files)?, None, None));
    }
    let sources = crate::agent::client::sources(&agent.run_dir)?;
    let texts: Vec<SourceText> = sources
        .sources
        .into_iter()
        .map(|source| SourceText {
            name: source.name,
            text: source.text,
        })
        .collect();
    let mode = sources.mode_override.map(|_| Mode::DryRun);
    Ok((from_texts(&texts)?, Some(sources.node), mode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        let mut cli = Cli::command();
        cli.build();
        let commands = cli.get_subcommands_mut();
        for command in commands.filter(|c| !["help", "schema"].contains(&c.get_name())) {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{help}");
        }
    }
}
