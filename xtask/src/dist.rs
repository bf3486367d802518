//! `cargo xtask dist`: the Debian package. The binary writes its own man pages and completions;
//! cargo-deb creates the package.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{bpf_toolchain::tools_path, build, setup, shell};

/// The version of cargo-deb to install.
const CARGO_DEB: &str = "3.8.0";

/// Options of `cargo xtask dist`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Installs, starts, upgrades, removes and purges the package in an emulated machine with systemd (as root, minutes).
    #[arg(long)]
    try_it: bool,
}

/// Builds the package, checks its contents, and says where it is.
pub fn run(args: &Args) -> Result<ExitCode> {
    setup::ensure(&[setup::Part::Toolchain])?;
    shell::run_in_sight(&mut build::release())?;
    let package = package()?;
    println!("packed {}", package.display());
    if args.try_it {
        crate::service::try_package(&package)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Packages the result of a release build, and checks the package.
pub fn package() -> Result<PathBuf> {
    let directory = shell::workspace().join("target/dist");
    let generated = directory.join("generated");
    let _ = fs::remove_dir_all(&generated);
    fs::create_dir_all(&generated)
        .with_context(|| format!("failed to create {}", generated.display()))?;
    let mut generate = Command::new(build::binary("enforcer"));
    shell::run_in_sight(generate.arg("generate").arg(&generated))?;
    write(&generated.join("changelog"), &changelog())?;
    write(&generated.join("copyright"), COPYRIGHT)?;
    let mut pack = Command::new(cargo_deb()?);
    pack.current_dir(shell::workspace())
        .args([
            "--package",
            "enforcer",
            "--no-build",
            "--quiet",
            "--strip",
            "--output",
        ])
        .arg(&directory);
    shell::run_in_sight(&mut pack)?;
    let package = directory.join(format!("enforcer_{}_amd64.deb", env!("CARGO_PKG_VERSION")));
    check(&package)?;
    Ok(package)
}

/// The package contains everything that a node needs, with the right permissions.
fn check(package: &Path) -> Result<()> {
    let listed = shell::output_of(Command::new("dpkg-deb").arg("--contents").arg(package))
        .with_context(|| format!("dpkg-deb does not read {}", package.display()))?;
    let missing: Vec<&str> = CONTENTS
        .into_iter()
        .filter(|(mode, path)| {
            let is_it = |line: &str| line.starts_with(mode) && line.ends_with(path);
            !listed.lines().any(is_it)
        })
        .map(|(_, path)| path)
        .collect();
    ensure!(
        missing.is_empty(),
        "{} lacks {}, or their modes are others:\n{listed}",
        package.display(),
        missing.join(", ")
    );
    let fields = shell::output_of(Command::new("dpkg-deb").arg("--field").arg(package));
    let fields = fields.context("dpkg-deb does not read the package's fields")?;
    let version = format!("Version: {}", env!("CARGO_PKG_VERSION"));
    for field in [
        "Package: enforcer",
        &version,
        "Architecture: amd64",
        "systemd (>=",
    ] {
        ensure!(
            fields.contains(field),
            "the package does not say `{field}`:\n{fields}"
        );
    }
    if shell::which("lintian").is_some() {
        lint(package)?;
    }
    Ok(())
}

/// Runs Debian's own checks. Only errors count; warnings are in the log.
fn lint(package: &Path) -> Result<()> {
    let log = shell::log_path("lintian")?;
    let mut command = Command::new("lintian");
    command
        .args(["--allow-root", "--fail-on", "error", "--suppress-tags"])
        .arg(NOT_FOR_US.join(","))
        .arg(package);
    if !shell::run_logged(&mut command, &log)? {
        bail!(
            "lintian finds errors in the package:\n{}",
            shell::failure(&log)
        );
    }
    Ok(())
}

/// Restarting only if the agent runs is none of debhelper's snippets.
const NOT_FOR_US: [&str; 1] = ["maintainer-script-calls-systemctl"];

/// Files of the package, each with its mode.
const CONTENTS: [(&str, &str); 16] = [
    ("-rwxr-xr-x", "./usr/bin/enforcer"),
    ("-rw-r--r--", "/enforcer.service"),
    ("-rw-r--r--", "./etc/enforcer/enforcer.env"),
    ("-rw-r--r--", "./usr/lib/sysusers.d/enforcer.conf"),
    ("-rw-r--r--", "./usr/lib/tmpfiles.d/enforcer.conf"),
    (
        "-rw-r--r--",
        "./usr/share/enforcer/policies/control-plane-single.yaml",
    ),
    (
        "-rw-r--r--",
        "./usr/share/enforcer/policies/control-plane-single.cases.yaml",
    ),
    ("-rw-r--r--", "./usr/share/enforcer/policies/worker.yaml"),
    (
        "-rw-r--r--",
        "./usr/share/enforcer/policies/enforcer.schema.json",
    ),
    ("-rw-r--r--", "./usr/share/man/man8/enforcer.8.gz"),
    ("-rw-r--r--", "./usr/share/man/man8/enforcer-run.8.gz"),
    ("-rw-r--r--", "./usr/share/man/man8/enforcer-detach.8.gz"),
    (
        "-rw-r--r--",
        "./usr/share/bash-completion/completions/enforcer",
    ),
    ("-rw-r--r--", "./usr/share/zsh/vendor-completions/_enforcer"),
    (
        "-rw-r--r--",
        "./usr/share/fish/vendor_completions.d/enforcer.fish",
    ),
    ("-rw-r--r--", "./usr/share/doc/enforcer/copyright"),
];

/// The tool, built into `target/tools` unless it is there.
fn cargo_deb() -> Result<PathBuf> {
    let root = tools_path(shell::workspace()).join("cargo-deb");
    let tool = root.join("bin/cargo-deb");
    let version = || shell::output_of(Command::new(&tool).arg("--version"));
    if version().is_some_and(|version| version.ends_with(CARGO_DEB)) {
        return Ok(tool);
    }
    println!("installing cargo-deb {CARGO_DEB}");
    let log = shell::log_path("setup-cargo-deb")?;
    let mut command = shell::cargo();
    command
        .args([
            "install",
            "cargo-deb",
            "--version",
            CARGO_DEB,
            "--locked",
            "--force",
        ])
        .arg("--root")
        .arg(&root)
        .arg("--target-dir")
        .arg(root.join("build"));
    if !shell::run_logged(&mut command, &log)? {
        bail!(
            "{} failed:\n{}",
            shell::display(&command),
            shell::failure(&log)
        );
    }
    // Only the binary is needed later; leftovers do no harm.
    let _ = fs::remove_dir_all(root.join("build"));
    Ok(tool)
}

/// A changelog in Debian's format, dated by the last commit.
fn changelog() -> String {
    let mut date = Command::new("git");
    date.current_dir(shell::workspace())
        .args(["log", "-1", "--format=%aD"]);
    let date = shell::output_of(&mut date).unwrap_or("Thu, 01 Jan 1970 00:00:00 +0000".to_owned());
    format!(
        "enforcer ({}) unstable; urgency=medium\n\n  * What changed is in changes.md beside this file.\n\n \
         -- The enforcer authors <maintainers@enforcer.dev>  {date}\n",
        env!("CARGO_PKG_VERSION")
    )
}

const COPYRIGHT: &str = "\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: enforcer
Source: https://github.com/enforcer-dev/enforcer

Files: *
Copyright: 2026 The enforcer authors
License: Apache-2.0 or MIT

License: Apache-2.0
 On Debian systems, the text of this license is in /usr/share/common-licenses/Apache-2.0.

License: MIT
 Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
 documentation files (the \"Software\"), to deal in the Software without restriction, including without limitation the
 rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
 persons to whom the Software is furnished to do so, subject to the following conditions:
 .
 The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
 Software.
 .
 THE SOFTWARE IS PROVIDED \"AS IS\", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
 WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
 COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
 OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
";

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}
