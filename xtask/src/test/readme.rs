//! Checks the commands in the documents: each subcommand and flag must be in the help text of its
//! command, and `enforcer check` on shipped files is run as written.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{build, shell};

/// Checks the documents in the root that show commands, and those in `docs`.
pub fn check() -> Result<()> {
    let mut problems = Vec::new();
    let mut checked = 0;
    for document in documents()? {
        let text = fs::read_to_string(&document)
            .with_context(|| format!("failed to read {}", document.display()))?;
        for (number, line) in command_lines(&text) {
            let Some((tool, arguments)) = invocation(&line) else {
                continue;
            };
            checked += 1;
            if let Err(error) = check_invocation(tool, &arguments) {
                let name = document
                    .strip_prefix(shell::workspace())
                    .unwrap_or(&document);
                problems.push(format!("{}:{number}: `{line}`: {error:#}", name.display()));
            }
        }
    }
    if !problems.is_empty() {
        bail!("{}", problems.join("\n"));
    }
    if checked == 0 {
        bail!("no document shows a command of ours in a ```sh or ```console block");
    }
    Ok(())
}

/// Which command line it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tool {
    Enforcer,
    Xtask,
}

impl Tool {
    fn binary(self) -> Result<PathBuf> {
        match self {
            Self::Enforcer => Ok(build::binary("enforcer")),
            Self::Xtask => this_program(),
        }
    }
}

/// This program, or the one that a build has put in its place since it was started.
fn this_program() -> Result<PathBuf> {
    const GONE: &str = " (deleted)";
    let program = env::current_exe().context("failed to find this program")?;
    let name = program.to_string_lossy();
    Ok(name
        .strip_suffix(GONE)
        .map_or_else(|| program.clone(), PathBuf::from))
}

/// The documents in the root that show commands.
const IN_ROOT: [&str; 2] = ["README.md", "CONTRIBUTING.md"];

fn documents() -> Result<Vec<PathBuf>> {
    let mut documents: Vec<PathBuf> = IN_ROOT
        .iter()
        .map(|name| shell::workspace().join(name))
        .collect();
    if let Ok(entries) = shell::workspace().join("docs").read_dir() {
        documents.extend(entries.flatten().map(|entry| entry.path()));
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.sort();
    Ok(documents)
}

/// The commands in a document, each with the number of its first line. In a ```sh block, every line
/// is one; in a ```console block, those after a `$` are. A `\` at the end joins lines.
fn command_lines(document: &str) -> Vec<(usize, String)> {
    let mut commands: Vec<(usize, String)> = Vec::new();
    let mut fence = None;
    let mut continued = false;
    for (index, line) in document.lines().enumerate() {
        let line = line.trim();
        if let Some(language) = line.strip_prefix("```") {
            fence = if fence.is_none() {
                Some(language.trim())
            } else {
                None
            };
            continued = false;
            continue;
        }
        let command = match fence {
            Some("sh" | "bash" | "console") if continued => Some(line),
            Some("sh" | "bash") => Some(line),
            Some("console") => line.strip_prefix("$ ").or_else(|| line.strip_prefix("# ")),
            _ => None,
        };
        let Some(command) = command else { continue };
        let body = command.strip_suffix('\\').unwrap_or(command).trim();
        match commands.last_mut() {
            Some((_, joined)) if continued => {
                joined.push(' ');
                joined.push_str(body);
            }
            _ => commands.push((index + 1, body.to_owned())),
        }
        continued = command.ends_with('\\');
    }
    commands
}

/// The tool and its arguments, if the line calls one of ours: without `sudo`, variables, and what
/// follows the command in a pipe, list or comment.
fn invocation(line: &str) -> Option<(Tool, Vec<String>)> {
    let end = |word: &&str| {
        !matches!(*word, "|" | "||" | "&&" | ";" | "&") && !word.starts_with(['#', '>', '<'])
    };
    let mut words = line.split_whitespace().take_while(end).peekable();
    while words
        .next_if(|word| *word == "sudo" || *word == "env" || is_assignment(word))
        .is_some()
    {}
    let program = words.next()?;
    let tool = match Path::new(program).file_name()?.to_str()? {
        "enforcer" => Tool::Enforcer,
        "cargo" if words.next_if_eq(&"xtask").is_some() => Tool::Xtask,
        _ => return None,
    };
    let unquoted = words.map(|word| word.trim_matches(['"', '\'']).to_owned());
    Some((tool, unquoted.collect()))
}

fn is_assignment(word: &str) -> bool {
    let name = word
        .trim_start_matches('"')
        .split_once('=')
        .map(|(name, _)| name);
    name.is_some_and(|name| {
        !name.is_empty() && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    })
}

fn check_invocation(tool: Tool, arguments: &[String]) -> Result<()> {
    check_against_help(tool, arguments)?;
    let is_policy_check = tool == Tool::Enforcer
        && arguments.first().is_some_and(|first| first == "check")
        && arguments.iter().any(|word| word.starts_with("policies/"));
    if is_policy_check {
        run_policy_check(arguments)
    } else {
        Ok(())
    }
}

fn check_against_help(tool: Tool, arguments: &[String]) -> Result<()> {
    let subcommand = arguments.iter().find(|word| !word.starts_with('-'));
    let mut command = Command::new(tool.binary()?);
    command.args(subcommand).arg("--help");
    let Some(help) = shell::output_of(&mut command) else {
        bail!(
            "there is no such subcommand: `{}` fails",
            shell::display(&command)
        );
    };
    // What follows `--` is for another program.
    let own = arguments.iter().take_while(|word| *word != "--");
    for flag in own.filter(|word| word.starts_with('-') && *word != "-") {
        let flag = flag.split('=').next().unwrap_or(flag);
        if !is_in_help(&help, flag) {
            bail!("{flag} is not in the help text of this command");
        }
    }
    Ok(())
}

/// Whether a help text lists a flag, as a word.
fn is_in_help(help: &str, flag: &str) -> bool {
    let mut words = help.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'));
    words.any(|word| word == flag)
}

fn run_policy_check(arguments: &[String]) -> Result<()> {
    let mut command = Command::new(build::binary("enforcer"));
    command
        .args(arguments)
        .current_dir(shell::workspace())
        .env("RUST_BACKTRACE", "0");
    let output = command.output().context("failed to run")?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("fails ({}):\n{}", output.status, stderr.trim_end());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_in_shell_blocks_only() {
        let document = "\
enforcer nothing
```console
$ cargo xtask demo
some output
# enforcer run \\
    --dry-run
```
```rust
enforcer code
```
```sh
enforcer check -p policies/
```
";
        let expected = [
            (3, "cargo xtask demo"),
            (5, "enforcer run --dry-run"),
            (12, "enforcer check -p policies/"),
        ];
        let found = command_lines(document);
        let found: Vec<_> = found
            .iter()
            .map(|(number, line)| (*number, line.as_str()))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn only_our_own_commands_are_checked() {
        let rows = [
            ("ls -l", None),
            ("cargo build --release", None),
            (
                "cargo xtask test --no-lab # no root",
                Some("Xtask: test --no-lab"),
            ),
            (
                "sudo enforcer run -p x.yaml | less",
                Some("Enforcer: run -p x.yaml"),
            ),
            (
                "sudo env \"PATH=$PATH\" cargo xtask lab",
                Some("Xtask: lab"),
            ),
            (
                "./target/release/enforcer status > f",
                Some("Enforcer: status"),
            ),
        ];
        for (line, expected) in rows {
            let found =
                invocation(line).map(|(tool, words)| format!("{tool:?}: {}", words.join(" ")));
            assert_eq!(found.as_deref(), expected, "{line}");
        }
    }

    #[test]
    fn a_flag_is_a_whole_word_of_the_help() {
        let help = "  -p, --policy <FILE>  a file\n      --dry-run";
        assert!(is_in_help(help, "-p"));
        assert!(is_in_help(help, "--dry-run"));
        assert!(!is_in_help(help, "--dry"));
        assert!(!is_in_help(help, "-y"));
    }
}
