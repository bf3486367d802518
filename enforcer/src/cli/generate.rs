//! `enforcer generate`: writes what a package contains besides the binary, from the definition of
//! the command line itself.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate_to};
use clap_mangen::{Man, roff};
use enforcer_policy::text;

use super::{Cli, Outcome};

/// Write man pages and shell completions into a directory, for packages
///
/// Writes `man/enforcer.8` and a page for each command, and `completions/` for bash, zsh and fish.
///
/// Example: enforcer generate target/dist/generated
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct Arguments {
    /// Where to write; created if it does not exist
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

pub fn run(arguments: &Arguments) -> Outcome {
    let directory = &arguments.directory;
    write(directory).with_context(|| format!("failed to write into {}", text::path(directory)))?;
    Ok(())
}

fn write(directory: &Path) -> io::Result<()> {
    let (man, completions) = (directory.join("man"), directory.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    let mut cli = Cli::command().disable_help_subcommand(true);
    cli.build();
    page(&cli, "enforcer", &man)?;
    for command in cli.get_subcommands().filter(|c| !c.is_hide_set()) {
        let name = format!("enforcer-{}", command.get_name());
        page(&command.clone(), &name, &man)?;
    }
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut Cli::command(), "enforcer", &completions)?;
    }
    Ok(())
}

/// The man page of a command, in section 8.
fn page(command: &clap::Command, name: &str, directory: &Path) -> io::Result<()> {
    let page = Man::new(command.clone().display_name(name))
        .title(name)
        .section("8")
        .manual("enforcer")
        .source(concat!("enforcer ", env!("CARGO_PKG_VERSION")));
    let mut bytes = Vec::new();
    page.render(&mut bytes)?;
    if name == "enforcer" {
        service(&mut bytes)?;
    }
    fs::write(directory.join(format!("{name}.8")), bytes)
}

/// What no option describes: the service, its files, and what stopping it means.
fn service(to: &mut Vec<u8>) -> io::Result<()> {
    let mut page = roff::Roff::new();
    page.control("SH", ["SERVICE"]);
    for paragraph in SERVICE {
        page.control("PP", []);
        page.text([roff::roman(paragraph)]);
    }
    page.control("SH", ["FILES"]);
    for (file, about) in FILES {
        page.control("TP", []);
        page.text([roff::bold(file)]);
        page.text([roff::roman(about)]);
    }
    page.to_writer(to)
}

const SERVICE: [&str; 5] = [
    "The package's unit enforcer.service runs the agent. It starts only if /etc/enforcer/policy holds a file.",
    "\"systemctl stop enforcer\" ends the agent, not enforcement: the policy stays in force, denials are counted and \
     recorded, and cgroups and interfaces that come later are not known to it. \"systemctl start enforcer\" takes over \
     without a gap.",
    "\"enforcer detach\" ends the agent and detaches everything. The unit stays enabled: at the next boot it \
     enforces again. \"systemctl disable enforcer\" prevents that.",
    "\"systemctl reload enforcer\" is \"enforcer apply\": it reads the policy again, and fails if that is not valid.",
    "Removing the package detaches. Upgrading it starts the new agent in place of the old one; enforcement goes on meanwhile.",
];

const FILES: [(&str, &str); 6] = [
    ("/etc/enforcer/policy/", "the policy: every YAML file in it"),
    (
        "/etc/enforcer/enforcer.env",
        "options of the service's agent",
    ),
    (
        "/usr/share/enforcer/policies/",
        "policies and cases to begin with",
    ),
    (
        "/var/lib/enforcer/",
        "the policies that were confirmed last",
    ),
    ("/run/enforcer/", "lock and control socket of the agent"),
    (
        "/sys/fs/bpf/enforcer/",
        "what is in force: maps and links, pinned",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_each_command_and_completions_for_three_shells() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        let read = |name: &str| fs::read_to_string(directory.path().join(name)).unwrap();
        let main = read("man/enforcer.8");
        assert!(
            main.contains(".SH SERVICE") && main.contains("ends the agent, not enforcement"),
            "{main}"
        );
        let run = read("man/enforcer-run.8");
        assert!(run.contains("dry\\-run"), "{run}");
        assert!(!directory.path().join("man/enforcer-generate.8").exists());
        assert!(read("completions/enforcer.bash").contains("--dry-run"));
        assert!(read("completions/_enforcer").contains("#compdef enforcer"));
        assert!(read("completions/enforcer.fish").contains("complete -c enforcer"));
    }
}
