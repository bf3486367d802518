//! Runs commands: visibly, or with their output in a log.

use std::{
    env, fs,
    fs::File,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context as _, Result, bail};

/// The root of the clone.
pub fn workspace() -> &'static Path {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().unwrap_or(manifest_dir)
}

/// Where the cargo that built this program puts what it builds.
pub fn target_dir() -> PathBuf {
    // `…/debug/xtask`: this program's own path is right however the directory was set.
    let own = env::current_exe().ok();
    let found = own.as_deref().and_then(|own| own.parent()?.parent());
    found.map_or_else(|| workspace().join("target"), Path::to_owned)
}

/// Cargo, in the root of the clone, as if called by hand.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace());
    // Variables that cargo sets for this package would make build scripts run again.
    for (name, _value) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command whose output the user should see.
pub fn run_in_sight(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("failed to run {}", display(command)))?;
    if !status.success() {
        bail!("{} failed ({status})", display(command));
    }
    Ok(())
}

/// Runs a command in place of this one, as if it had been started directly.
pub fn exit_code_of(command: &mut Command) -> Result<ExitCode> {
    let status = command
        .status()
        .with_context(|| format!("failed to run {}", display(command)))?;
    match status.code() {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))),
        None => bail!("{} was ended ({status})", display(command)),
    }
}

/// Runs a command with both outputs in a log. Returns whether it succeeded.
pub fn run_logged(command: &mut Command, log: &Path) -> Result<bool> {
    let file = File::create(log).with_context(|| format!("failed to create {}", log.display()))?;
    let status = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("failed to share the log")?)
        .stderr(file)
        .status()
        .with_context(|| format!("failed to run {}", display(command)))?;
    Ok(status.success())
}

/// Runs a command and returns its output; `None` if it does not exist or fails.
pub fn output_of(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    output.status.success().then(|| text.trim().to_owned())
}

/// The log of a step, in a directory that exists.
pub fn log_path(step: &str) -> Result<PathBuf> {
    let directory = workspace().join("target").join("xtask-logs");
    fs::create_dir_all(&directory)
        .with_context(|| format!("failed to create {}", directory.display()))?;
    let name: String = step
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .collect();
    Ok(directory.join(name).with_extension("log"))
}

/// What a log says about a failure: what each failed test printed, if tests failed; otherwise the
/// end, as errors come last. A long log is better read in its file.
pub fn failure(log: &Path) -> String {
    const LINES: usize = 200;
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let tests = failed_tests(&text);
    if tests.is_empty() {
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    } else {
        tests[..tests.len().min(LINES)].join("\n")
    }
}

/// The parts between `failures:` and `test result:` of test binaries that failed. Later tests that
/// pass would push them out of the end of the log.
fn failed_tests(log: &str) -> Vec<&str> {
    let mut is_shown = false;
    log.lines()
        .filter(|line| {
            is_shown |= *line == "failures:";
            let shown = is_shown;
            is_shown &= !line.starts_with("test result:");
            shown
        })
        .collect()
}

/// A command as a person would type it.
pub fn display(command: &Command) -> String {
    let mut words = Vec::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            words.push(format!(
                "{}={}",
                name.display(),
                quote(&value.to_string_lossy())
            ));
        }
    }
    let program = command.get_program().to_string_lossy();
    let is_our_cargo = env::var_os("CARGO").as_deref() == Some(command.get_program());
    words.push(if is_our_cargo {
        "cargo".to_owned()
    } else {
        quote(&program)
    });
    words.extend(command.get_args().map(|arg| quote(&arg.to_string_lossy())));
    words.join(" ")
}

/// Whether this process is root, as the kernel sees it.
pub fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    // Real, effective, saved, file system.
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    uids.and_then(|uids| uids.split_whitespace().nth(1)) == Some("0")
}

/// A program on the path, or in the system directories that may be missing from a user's path.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}

fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=/.,:+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_displayed_command_can_be_pasted() {
        let mut command = Command::new("tool");
        command.env("FLAGS", "a b").args(["-x", "it's", ""]);
        assert_eq!(display(&command), r"FLAGS='a b' tool -x 'it'\''s' ''");
    }

    #[test]
    fn failed_tests_are_found_among_those_that_passed() {
        let log = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n---- b stdout ----\nwhy\n\nfailures:\n    b\n\n\
                   test result: FAILED. 1 passed; 1 failed\ntest c ... ok\ntest result: ok. 1 passed\n";
        assert_eq!(
            failed_tests(log),
            [
                "failures:",
                "",
                "---- b stdout ----",
                "why",
                "",
                "failures:",
                "    b",
                "",
                "test result: FAILED. 1 passed; 1 failed"
            ]
        );
        assert!(failed_tests("error: no target\ntest result: ok. 1 passed\n").is_empty());
    }
}
