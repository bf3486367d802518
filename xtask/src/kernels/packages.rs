//! Kernels, from Debian's packages.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{bpf_toolchain::tools_path, setup::apt, shell};

/// A kernel that has been unpacked.
pub struct Kernel {
    /// The release as `uname -r` prints it.
    pub release: String,
    /// The image to boot.
    pub image: PathBuf,
    /// Its modules, in directories.
    pub modules: PathBuf,
}

/// Why this cannot be done here, if so.
pub fn obstacle() -> Option<String> {
    if env::consts::ARCH != "x86_64" {
        return Some("the kernels that are tried are built for x86-64, and this is not".to_owned());
    }
    if !apt::available() {
        return Some(
            "kernels and qemu come from Debian's packages, and apt is not here".to_owned(),
        );
    }
    let missing = shell::which("qemu-system-x86_64").is_none() || shell::which("cpio").is_none();
    if missing && !shell::is_root() {
        return Some(
            "qemu and cpio are missing: sudo apt-get install -y --no-install-recommends qemu-system-x86 cpio"
                .to_owned(),
        );
    }
    None
}

/// The newest available kernel of a series, unpacked below `target/tools`.
pub fn kernel(series: &str) -> Result<Kernel> {
    let directory = tools_path(shell::workspace()).join("kernels").join(series);
    if let Some(kernel) = unpacked(&directory) {
        return Ok(kernel);
    }
    let package = match newest(series) {
        Some(package) => package,
        None => {
            apt::update();
            newest(series).with_context(|| {
                format!("there is no package linux-image-{series}.*-cloud-amd64 for this system")
            })?
        }
    };
    println!("downloading {package}");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory)
        .with_context(|| format!("failed to create {}", directory.display()))?;
    let download = || {
        let mut command = Command::new("apt-get");
        command
            .args(["-q", "-o", "APT::Sandbox::User=root", "download", &package])
            .current_dir(&directory);
        shell::run_logged(&mut command, &shell::log_path("setup-kernels")?)
    };
    if !download()? {
        apt::update();
        if !download()? {
            bail!("failed to download {package}; see target/xtask-logs/setup-kernels.log");
        }
    }
    let deb = files(&directory)
        .into_iter()
        .find(|file| file.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt-get has not left {package} behind"))?;
    let mut unpack = Command::new("dpkg-deb");
    unpack.arg("-x").arg(&deb).arg(&directory);
    if !shell::run_logged(&mut unpack, &shell::log_path("setup-kernels")?)? {
        bail!("failed to unpack {}", deb.display());
    }
    fs::remove_file(&deb).with_context(|| format!("failed to remove {}", deb.display()))?;
    unpacked(&directory).with_context(|| format!("{package} holds no kernel"))
}

fn unpacked(directory: &Path) -> Option<Kernel> {
    let image = files(&directory.join("boot"))
        .into_iter()
        .find(|file| super::name_of(file).starts_with("vmlinuz-"))?;
    let release = super::name_of(&image).strip_prefix("vmlinuz-")?.to_owned();
    let below = ["lib/modules", "usr/lib/modules"];
    let modules = below
        .iter()
        .map(|below| directory.join(below).join(&release))
        .find(|modules| modules.is_dir())?;
    Some(Kernel {
        release,
        image,
        modules,
    })
}

fn newest(series: &str) -> Option<String> {
    let pattern = format!(
        "^linux-image-{}\\.[0-9][^ ]*-cloud-amd64$",
        series.replace('.', "\\.")
    );
    let found = shell::output_of(Command::new("apt-cache").env("LC_ALL", "C").args([
        "search",
        "--names-only",
        &pattern,
    ]))?;
    let names = found
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    names
        .filter(|name| apt::candidate(name).is_some())
        .max_by_key(|name| numbers(name))
        .map(str::to_owned)
}

/// The numbers in a name, in order, so that 6.1.0-9 sorts before 6.1.0-10.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

/// The files in a directory, in the order of their names.
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = directory
        .read_dir()
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_one_with_the_highest_numbers() {
        let names = [
            "linux-image-6.1.0-9-cloud-amd64",
            "linux-image-6.1.0-50-cloud-amd64",
            "linux-image-6.1.0-10-cloud-amd64",
        ];
        let newest = names.into_iter().max_by_key(|name| numbers(name));
        assert_eq!(newest, Some("linux-image-6.1.0-50-cloud-amd64"));
    }
}
