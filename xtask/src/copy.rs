//! A copy of the tree, to change something in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{bpf_toolchain::tools_path, shell};

/// What git knows of, as it is now, with the tools of this clone.
pub fn copy_tree(tree: &Path) -> Result<()> {
    let mut list = Command::new("git");
    list.current_dir(shell::workspace()).args(["ls-files"]);
    let listed = shell::output_of(&mut list).context("git does not list this clone's files")?;
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("failed to remove {}", tree.display()))?;
    }
    for name in listed.lines() {
        let (from, to) = (shell::workspace().join(name), tree.join(name));
        let parent = to.parent().map(PathBuf::from).unwrap_or_default();
        fs::create_dir_all(&parent)
            .and_then(|()| fs::copy(&from, &to))
            .with_context(|| format!("failed to copy {name}"))?;
    }
    let tools = tools_path(tree);
    tools
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| std::os::unix::fs::symlink(tools_path(shell::workspace()), &tools))
        .context("failed to link the tools")
}
