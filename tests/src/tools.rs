//! Finds the programs that the lab runs.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

/// Names a directory tree with `usr/bin` and `usr/sbin` in it, as `dpkg -x` creates it, for tools
/// that are not installed on the machine.
pub const TOOLS_VARIABLE: &str = "ENFORCER_LAB_TOOLS";

/// Names a directory with `lab-probe` in it, for callers whose own program is elsewhere.
pub const PROGRAMS_VARIABLE: &str = "ENFORCER_LAB_PROGRAMS";

/// Names the product's program.
pub const PRODUCT_VARIABLE: &str = "ENFORCER_BIN";

/// A program, and where its shared libraries are if it does not find them itself.
#[derive(Debug, Clone)]
pub struct Tool {
    /// The program.
    pub path: PathBuf,
    /// Directories for `LD_LIBRARY_PATH`; empty for an installed program.
    pub libraries: Vec<PathBuf>,
}

/// Finds a tool of the machine: first below the directory that [`TOOLS_VARIABLE`] names, then on
/// `PATH` and in the `sbin` directories, which an ordinary user's `PATH` lacks.
pub fn find(name: &str) -> Result<Tool> {
    let unpacked = env::var_os(TOOLS_VARIABLE).map(PathBuf::from);
    if let Some(tool) = unpacked
        .as_deref()
        .and_then(|root| find_unpacked(root, name))
    {
        return Ok(tool);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
        .map(|path| Tool {
            path,
            libraries: Vec::new(),
        })
        .with_context(|| format!("`{name}` is not on this machine; run `cargo xtask setup`"))
}

/// A module of the nginx that is used.
pub fn nginx_module(name: &str) -> Result<PathBuf> {
    let unpacked = env::var_os(TOOLS_VARIABLE).map(PathBuf::from);
    let roots = unpacked.into_iter().chain([PathBuf::from("/")]);
    roots
        .map(|root| root.join("usr/lib/nginx/modules").join(name))
        .find(|path| path.is_file())
        .with_context(|| {
            format!("nginx's `{name}` is not on this machine; run `cargo xtask setup`")
        })
}

/// The lab's own helper program, built next to the caller's.
pub fn probe() -> Result<Tool> {
    built("lab-probe", "cargo build -p enforcer-tests")
}

/// The product: what [`PRODUCT_VARIABLE`] names, or what was built next to the caller's program.
pub fn enforcer() -> Result<Tool> {
    if let Some(path) = env::var_os(PRODUCT_VARIABLE).map(PathBuf::from) {
        ensure!(
            path.is_file(),
            "{PRODUCT_VARIABLE} names {}, which is no file",
            path.display()
        );
        return Ok(Tool {
            path,
            libraries: Vec::new(),
        });
    }
    built("enforcer", "cargo build -p enforcer")
}

fn find_unpacked(root: &Path, name: &str) -> Option<Tool> {
    let path = ["usr/sbin", "usr/bin", "sbin", "bin"]
        .map(|directory| root.join(directory).join(name))
        .into_iter()
        .find(|candidate| candidate.is_file())?;
    let triplet = format!("{}-linux-gnu", env::consts::ARCH);
    let libraries = ["usr/lib", "lib"]
        .into_iter()
        .flat_map(|base| [root.join(base).join(&triplet), root.join(base)])
        .filter(|directory| directory.is_dir())
        .collect();
    Some(Tool { path, libraries })
}

/// Test programs are in `target/debug/deps`, xtask and the programs themselves in `target/debug`.
fn built(name: &str, how: &str) -> Result<Tool> {
    let own = env::current_exe().context("failed to find the own program")?;
    let named = env::var_os(PROGRAMS_VARIABLE).map(PathBuf::from);
    let beside = own.ancestors().skip(1).take(2).map(Path::to_path_buf);
    let found = named
        .into_iter()
        .chain(beside)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    match found {
        Some(path) => Ok(Tool {
            path,
            libraries: Vec::new(),
        }),
        None => bail!(
            "`{name}` is not built beside {}; run `{how}`",
            own.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unpacked_tool_comes_with_its_libraries() -> Result<()> {
        let root = tempfile::tempdir()?;
        for directory in ["usr/sbin", "usr/lib"] {
            std::fs::create_dir_all(root.path().join(directory))?;
        }
        let program = root.path().join("usr/sbin/some-server");
        std::fs::write(&program, "")?;
        let tool = find_unpacked(root.path(), "some-server").context("not found")?;
        assert_eq!(tool.path, program);
        assert_eq!(tool.libraries, [root.path().join("usr/lib")]);
        assert!(find_unpacked(root.path(), "another").is_none());
        Ok(())
    }

    #[test]
    fn a_missing_tool_says_what_to_do() {
        let error = find("no-such-program")
            .map(|tool| tool.path)
            .map_err(|error| error.to_string());
        assert_eq!(
            error.err().as_deref(),
            Some("`no-such-program` is not on this machine; run `cargo xtask setup`")
        );
    }
}
