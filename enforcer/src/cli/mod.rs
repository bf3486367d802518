//! The command line. Results go to standard output, everything else to standard error. Exit status:
//! 0 fine, 1 the answer is no (an invalid policy, a denied connection, a failed case), 2 wrong
//! usage or it could not be done. If the reader of the results stops reading, this process ends as
//! other tools do.
//!
//! With `-o json`, standard output holds one document (`events` and `run`: one per line for each
//! event), or nothing. What prevented the result is a document of kind `Error`, the last line of
//! standard error.
//!
//! Everything that is printed goes through `print_result`, `print_json` or `print_message`, which keep text from
//! elsewhere from affecting a terminal; a name within a line additionally goes through
//! [`text::shown`].

mod apply;
mod catalog;
mod check;
mod detach;
mod events;
mod explain;
mod generate;
mod preflight;
mod run;
mod status;
mod usage;

use std::{
    env,
    ffi::OsString,
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
    agent::{AgentError, AgentOptions, PIN_DIR, RUN_DIR},
    api::{self, Document, Error, ErrorCode},
    files,
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

/// How every command writes its results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// The values of `-o`.
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
    Preflight(preflight::Arguments),
    Apply(apply::Arguments),
    Confirm(apply::Answered),
    Rollback(apply::RolledBack),
    Detach(detach::Arguments),
    Generate(generate::Arguments),
    /// Print the JSON Schema of policies, for editors, or of what -o json prints
    Schema {
        /// Which one
        #[arg(value_enum, default_value_t = Schema::Policy)]
        of: Schema,
    },
}

/// What there is a schema for.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Schema {
    /// Inventory, PathPolicy and PathCases
    Policy,
    /// What every command prints under -o json, and the agent's control socket
    Api,
}

impl Schema {
    fn text(self) -> String {
        match self {
            Self::Policy => schema::json(),
            Self::Api => api::schema(),
        }
    }
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

/// This node's place in the inventory.
#[derive(Debug, Args)]
struct NodeArguments {
    /// Which node of the inventory this is; found by its addresses or host name if not given
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// An interface towards other hosts, instead of the inventory's; name or glob, may be repeated
    #[arg(long = "uplink", value_name = "INTERFACE")]
    uplinks: Vec<String>,
    /// Host ends of pods' interfaces, instead of the inventory's; name or glob, may be repeated
    #[arg(long = "pod-interface", value_name = "INTERFACE")]
    pod_interfaces: Vec<String>,
    /// The cgroup whose processes are subject to the policy, instead of the inventory's
    #[arg(long, value_name = "PATH")]
    cgroup_root: Option<PathBuf>,
}

impl NodeArguments {
    /// The options of an agent, with its defaults for the rest.
    fn options(self, policy: Vec<PathBuf>, agent: AgentArguments) -> AgentOptions {
        let given = |patterns: Vec<String>| (!patterns.is_empty()).then_some(patterns);
        AgentOptions {
            node: self.node,
            uplinks: given(self.uplinks),
            pod_interfaces: given(self.pod_interfaces),
            cgroup_root: self.cgroup_root,
            run_dir: agent.run_dir,
            pin_dir: agent.pin_dir,
            ..AgentOptions::new(policy)
        }
    }
}

/// Why a command has no result.
enum Failure {
    /// The answer is no, and has been printed.
    No,
    /// The policy is invalid.
    Policy(PolicyErrors),
    /// It could not be done.
    Cannot(Box<Error>),
    /// The reader of the output is gone.
    Closed,
}

impl Failure {
    fn cannot(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::Cannot(Box::new(Error::new(code, message)))
    }
}

type Outcome = Result<(), Failure>;

impl From<PolicyErrors> for Failure {
    fn from(errors: PolicyErrors) -> Self {
        Self::Policy(errors)
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        let (code, message) = (error.code(), text::chain(&error));
        let mut document = Error {
            code,
            ..Error::new(ErrorCode::Failed, message)
        };
        match error {
            AgentError::Policy(errors) => return Self::Policy(errors),
            AgentError::Leftovers { filters } => document.leftovers = filters,
            AgentError::Unattended(unattended) => document.unattended = Some(*unattended),
            AgentError::WouldCutSession(preflight) | AgentError::NotClean(preflight) => {
                document.preflight = Some(preflight);
            }
            _ => {}
        }
        Self::Cannot(Box::new(document))
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::cannot(ErrorCode::Failed, text::chain(error.as_ref()))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::Closed
        } else {
            let message = format!("failed to write the result: {}", text::chain(&error));
            Self::cannot(ErrorCode::Output, message)
        }
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let arguments = arguments.iter().skip(1);
            let format = usage::format_of(arguments.map(|argument| argument.to_string_lossy()));
            return ExitCode::from(usage::report(&error, format));
        }
    };
    let format = match (cli.output, &cli.command) {
        (Style::Text, _) => Format::Text,
        // Commands that write YAML check the style themselves.
        (Style::Json, _) | (Style::Yaml, Command::Catalog(_)) => Format::Json,
        (Style::Yaml, _) => {
            let error = Cli::command().error(
                ErrorKind::InvalidValue,
                "`-o yaml` is for `enforcer catalog`; here it is text or json",
            );
            return ExitCode::from(usage::report(&error, Format::Text));
        }
    };
    let result = match cli.command {
        Command::Check(arguments) => check::run(&arguments, format),
        Command::Run(arguments) => run::run(arguments, format),
        Command::Status(arguments) => status::run(&arguments, format),
        Command::Events(arguments) => events::run(&arguments, format),
        Command::Explain(arguments) => explain::run(&arguments, format),
        Command::Catalog(arguments) => catalog::run(&arguments, cli.output),
        Command::Preflight(arguments) => preflight::run(arguments, format),
        Command::Apply(arguments) => apply::apply(&arguments, format),
        Command::Confirm(arguments) => apply::confirm(&arguments, format),
        Command::Rollback(arguments) => apply::roll_back(&arguments, format),
        Command::Detach(arguments) => detach::run(&arguments, format),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Schema { of } => print_result(of.text().trim_end()),
    };
    ExitCode::from(match result {
        Ok(()) => FINE,
        Err(failure) => failure.report(format),
    })
}

const FINE: u8 = 0;
const NO: u8 = 1;
const CANNOT: u8 = 2;

impl Failure {
    /// Reports the failure, and returns the exit status.
    fn report(self, format: Format) -> u8 {
        match self {
            Self::Closed => die_of_a_closed_pipe(),
            Self::No => NO,
            Self::Policy(errors) => {
                match format {
                    Format::Text => print_policy_errors(&errors),
                    Format::Json => print_error(Error::from(&errors)),
                }
                if errors.is_unreadable() { CANNOT } else { NO }
            }
            Self::Cannot(error) => {
                match format {
                    Format::Text => print_message(&format!("error: {}", error.message)),
                    Format::Json => print_error(*error),
                }
                CANNOT
            }
        }
    }
}

/// Ends this process the way the kernel ends one that writes to a closed pipe. Rust ignores the
/// signal, so that the write returns an error instead.
fn die_of_a_closed_pipe() -> u8 {
    // SAFETY: the default action is no handler, so no code runs at a time when it must not.
    let default = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) };
    let _ = default.and_then(|_| raise(Signal::SIGPIPE));
    // Reached only if the signal is blocked.
    CANNOT
}

fn print_policy_errors(errors: &PolicyErrors) {
    if io::stderr().is_terminal() {
        // In colour, that is with control sequences: text in the errors was already escaped when
        // they were made.
        let _ = writeln!(io::stderr(), "{}", errors.render(Paint::Coloured));
    } else {
        print_message(&errors.render(Paint::Plain));
    }
}

/// Prints an error as a JSON document in one line on standard error: standard output holds only
/// results.
fn print_error(error: Error) {
    let document = serde_json::to_string(&Document::new(error)).unwrap_or_default();
    print_message(&text::json(&document));
}

/// Prints lines to standard error. If nobody reads that either, only the exit status tells.
fn print_message(message: &str) {
    let _ = writeln!(io::stderr(), "{}", text::lines(message));
}

/// Prints lines to standard output.
fn print_result(message: &str) -> Outcome {
    Ok(writeln!(io::stdout().lock(), "{}", text::lines(message))?)
}

/// Prints a JSON document to standard output.
fn print_json(value: &impl Serialize) -> Outcome {
    let document = serde_json::to_string_pretty(value).map_err(anyhow::Error::from)?;
    print_result(&text::json(&document))
}

/// Prints a JSON document in one line to standard output.
fn print_json_line(value: &impl Serialize) -> Outcome {
    let document = serde_json::to_string(value).map_err(anyhow::Error::from)?;
    print_result(&text::json(&document))
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
    fn the_command_line_definition_is_consistent() {
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
