//! The package on a separate system: Debian with systemd, in an emulated machine. It is installed,
//! started, stopped, upgraded, removed and purged there, by `service/try.sh`.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    bpf_toolchain::tools_path,
    kernels::{Emulator, packages},
    setup::apt,
    shell,
};

/// The machine's kernel.
const SERIES: &str = "6.1";
/// The time limit.
const LIMIT: Duration = Duration::from_secs(1200);

/// Tests a package.
pub fn try_package(package: &Path) -> Result<()> {
    if let Some(obstacle) = packages::obstacle() {
        bail!("{obstacle}");
    }
    ensure!(
        shell::is_root(),
        "a system of its own takes root to be made: run this as root"
    );
    let emulator = Emulator::install()?;
    let kernel = packages::kernel(SERIES)?;
    let image = image(package, &kernel)?;
    let log = shell::log_path("service")?;
    println!(
        "trying {} with systemd on Linux {}",
        package.display(),
        kernel.release
    );
    let mut machine = emulator.start(&kernel, &image, "systemd.show_status=0", log.clone())?;
    machine.wait(LIMIT)?;
    let (text, took) = (machine.text()?, machine.age());
    ensure!(text.contains("@@ all good"), "{}", shell::failure(&log));
    for line in text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("@@ "))
    {
        println!("       {line}");
    }
    println!("took {} s; see {}", took.as_secs(), log.display());
    Ok(())
}

/// The machine's file system, in an archive that the kernel unpacks into memory.
fn image(package: &Path, kernel: &packages::Kernel) -> Result<PathBuf> {
    let directory = shell::workspace().join("target/service");
    let root = directory.join("root");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&root).with_context(|| format!("failed to create {}", root.display()))?;
    let log = shell::log_path("service-image")?;
    run(
        Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-xf")
            .arg(base()?),
        &log,
    )?;
    let modules = root.join("lib/modules").join(&kernel.release);
    fs::create_dir_all(modules.join("kernel"))
        .with_context(|| format!("failed to create {}", modules.display()))?;
    for part in ["kernel/net", "kernel/lib", "kernel/drivers/net"] {
        let from = kernel.modules.join(part);
        if from.is_dir() {
            let to = modules.join(part);
            let above = to.parent().unwrap_or(&modules);
            fs::create_dir_all(above).context("failed to create a directory of modules")?;
            run(Command::new("cp").arg("-a").arg(&from).arg(above), &log)?;
        }
    }
    for list in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        let _ = fs::copy(kernel.modules.join(list), modules.join(list));
    }
    let home = root.join("root");
    copy(package, &home.join("enforcer_1.deb"))?;
    newer(
        package,
        &directory.join("newer"),
        &home.join("enforcer_2.deb"),
        &log,
    )?;
    write(&home.join("try.sh"), include_str!("service/try.sh"))?;
    write(&root.join("etc/systemd/system/try.service"), UNIT)?;
    let wants = root.join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir_all(&wants).context("failed to create a directory of units")?;
    symlink("../try.service", wants.join("try.service")).context("failed to enable a unit")?;
    let init = root.join("init");
    let _ = fs::remove_file(&init);
    write(&init, INIT)?;
    for program in [&init, &home.join("try.sh")] {
        fs::set_permissions(program, fs::Permissions::from_mode(0o755))
            .context("failed to make a program executable")?;
    }
    let image = directory.join("image");
    let pack = format!(
        "find . -print0 | cpio --null --create --format=newc --quiet >{}",
        image.display()
    );
    run(
        Command::new("sh").args(["-euc", &pack]).current_dir(&root),
        &log,
    )?;
    Ok(image)
}

/// The unit that runs the trial in the machine.
const UNIT: &str = "[Unit]\nAfter=basic.target\n[Service]\nType=oneshot\nExecStart=/root/try.sh\nStandardOutput=tty\n\
                    StandardError=tty\nTTYPath=/dev/console\n";

/// The first process: moves the system to a file system that permits new mount namespaces. The
/// kernel's first one cannot be left.
const INIT: &str = "#!/bin/sh\nmkdir /new\nmount -t tmpfs -o size=2g,mode=755 tmpfs /new\n\
                    for part in bin boot dev etc home lib lib32 lib64 libx32 media mnt opt proc root run sbin srv sys tmp usr var; do\n\
                    [ -e /$part ] && cp -a /$part /new/\ndone\nexec switch_root /new /sbin/init\n";

/// A small Debian with systemd, created once.
fn base() -> Result<PathBuf> {
    let directory = tools_path(shell::workspace()).join("service");
    let base = directory.join("root.tar");
    if base.is_file() {
        return Ok(base);
    }
    if shell::which("mmdebstrap").is_none() {
        println!("installing mmdebstrap");
        apt::install(&["mmdebstrap"])?;
    }
    println!("making a small Debian with systemd");
    fs::create_dir_all(&directory)
        .with_context(|| format!("failed to create {}", directory.display()))?;
    let made = directory.join("root.new.tar");
    let mut make = Command::new("mmdebstrap");
    make.args(["--mode=root", "--variant=minbase"])
        .arg("--include=systemd,systemd-sysv,dbus,kmod,iproute2,udev")
        .args([
            "--dpkgopt=path-exclude=/usr/share/doc/*",
            "--dpkgopt=path-exclude=/usr/share/locale/*",
        ])
        .arg("bookworm")
        .arg(&made);
    // This machine's own sources.
    let sources = [
        "/etc/apt/sources.list",
        "/etc/apt/sources.list.d/debian.sources",
    ];
    make.args(sources.iter().filter(|source| Path::new(source).is_file()));
    run(&mut make, &shell::log_path("service-debian")?)?;
    fs::rename(&made, &base).with_context(|| format!("failed to rename {}", made.display()))?;
    Ok(base)
}

/// The same package with a newer version.
fn newer(package: &Path, scratch: &Path, newer: &Path, log: &Path) -> Result<()> {
    run(
        Command::new("dpkg-deb").arg("-R").arg(package).arg(scratch),
        log,
    )?;
    let control = scratch.join("DEBIAN/control");
    let text = fs::read_to_string(&control).context("failed to read a package's fields")?;
    let lines = text
        .lines()
        .map(|line| match line.strip_prefix("Version: ") {
            Some(version) => format!("Version: {version}+newer\n"),
            None => format!("{line}\n"),
        });
    write(&control, &lines.collect::<String>())?;
    run(
        Command::new("dpkg-deb")
            .args(["-Znone", "-b"])
            .arg(scratch)
            .arg(newer),
        log,
    )
}

fn run(command: &mut Command, log: &Path) -> Result<()> {
    if !shell::run_logged(command, log)? {
        bail!(
            "{} failed:\n{}",
            shell::display(command),
            shell::failure(log)
        );
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("failed to copy {}", from.display()))?;
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
}
