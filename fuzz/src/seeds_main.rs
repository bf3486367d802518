//! Writes the seeds of a target into a directory, for libFuzzer.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};
use enforcer_fuzz::TARGETS;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, directory] = &arguments[..] else {
        bail!("usage: fuzz-seeds TARGET DIRECTORY");
    };
    let target = TARGETS.iter().find(|target| target.name == name);
    let target = target.with_context(|| format!("no target is named `{name}`"))?;
    let directory = Path::new(directory);
    fs::create_dir_all(directory)
        .with_context(|| format!("failed to make {}", directory.display()))?;
    for (number, seed) in (target.seeds)().iter().enumerate() {
        let file = directory.join(format!("seed-{number}"));
        fs::write(&file, seed).with_context(|| format!("failed to write {}", file.display()))?;
    }
    Ok(())
}
