//! Files and directories.

use super::*;

/// A small valid policy.
const SMALL: &str = "\
apiVersion: enforcer.dev/v1alpha1
kind: Inventory
metadata: { name: test }
spec:
  nodes:
    cp1: { addresses: [10.0.0.11], roles: [control-plane, etcd] }
  components:
    backup: { addresses: [192.0.2.7] }
---
apiVersion: enforcer.dev/v1alpha1
kind: PathPolicy
metadata: { name: small }
spec:
  mode: DryRun
  otherTraffic: Allow
  paths:
    - { name: backup-to-etcd, from: [backup], to: 'etcd:client', because: nightly snapshot }
";

fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

fn error_of(inputs: &[PathBuf]) -> String {
    load(inputs).expect_err("an error").to_string()
}

#[test]
fn a_directory_is_its_policy_files_in_order() {
    let (inventory, policy) = SMALL.split_once("---\n").unwrap();
    let directory = directory(&[
        ("b.yml", policy.as_bytes()),
        ("a.yaml", inventory.as_bytes()),
        ("a.cases.yaml", b"not: read"),
        (".a.yaml", b"not: read"),
        ("README.md", b"not read"),
    ]);
    let inputs = [directory.path().to_path_buf()];
    let sources = read_sources(&inputs).unwrap();
    let names: Vec<_> = sources
        .iter()
        .map(|source| source.name.rsplit('/').next().unwrap())
        .collect();
    assert_eq!(names, ["a.yaml", "b.yml"]);
    assert_eq!(
        load(&inputs).unwrap().paths.last().unwrap().origin,
        format!("{}:8", sources[1].name)
    );

    let twice = [
        directory.path().to_path_buf(),
        directory.path().join("b.yml"),
    ];
    assert_eq!(
        read_sources(&twice).unwrap(),
        sources,
        "a file that is named twice is read once"
    );
}

#[test]
fn a_file_with_only_comments_is_skipped() {
    let all = [
        ("a.yaml", SMALL.as_bytes()),
        ("b.yaml", &b"# to be written\n"[..]),
        ("c.yaml", &b"# to be written\n---\n# or not\n"[..]),
        ("d.yaml", &b""[..]),
    ];
    let with = directory(&all);
    assert!(load(&[with.path().to_owned()]).is_ok());
    let without = directory(&all[1..]);
    let message = error_of(&[without.path().to_owned()]);
    assert!(
        message.contains("there is no document in this file"),
        "{message}"
    );
}

#[test]
fn unreadable_files_are_reported() {
    let long = vec![b'#'; SourceText::MAX_BYTES as usize + 1];
    let directory = directory(&[
        ("long.yaml", &long),
        ("latin.yaml", b"kind: x\nname: caf\xe9\n"),
        ("empty.yaml", b""),
        ("utf16.yaml", b"\xff\xfek\0i\0"),
    ]);
    let file = |name: &str| [directory.path().join(name)];
    for (name, fragments) in [
        (
            "long.yaml",
            &["long.yaml", "longer than 32 MiB", "split it"][..],
        ),
        (
            "latin.yaml",
            &[
                "latin.yaml:2:10",
                "byte 17 is not UTF-8",
                "name: caf",
                "save the file as UTF-8",
            ],
        ),
        ("utf16.yaml", &["utf16.yaml:1:1", "byte 0 is not UTF-8"]),
        (
            "empty.yaml",
            &["empty.yaml", "there is no document in this file"],
        ),
        (
            "missing.yaml",
            &["missing.yaml", "failed to read", "No such file"],
        ),
    ] {
        let message = error_of(&file(name));
        for fragment in fragments {
            assert!(
                message.contains(fragment),
                "{name}: no {fragment:?} in\n{message}"
            );
        }
    }
    let none = tempfile::tempdir().unwrap();
    assert!(
        error_of(&[none.path().to_path_buf()]).contains("there is no policy in this directory")
    );
    assert!(error_of(&[]).contains("there is no Inventory in the input"));
}

#[test]
fn special_files_are_refused_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe.yaml");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRUSR).unwrap();
    let link = directory.path().join("loop.yaml");
    std::os::unix::fs::symlink("loop.yaml", &link).unwrap();
    for (input, expected) in [
        (pipe.as_path(), "a named pipe is not a file"),
        (
            directory.path(),
            "failed to read: Too many levels of symbolic links",
        ),
        (Path::new("/dev/zero"), "a device is not a file"),
        (
            link.as_path(),
            "failed to read: Too many levels of symbolic links",
        ),
    ] {
        let inputs = [input.to_owned()];
        let errors = read_repeatable(&inputs).unwrap_err();
        assert!(errors.is_unreadable());
        let message = errors.to_string();
        assert!(message.contains(expected), "{message}");
        let source = SourceText {
            name: text::path(input),
            text: String::new(),
        };
        assert!(!is_unchanged(&inputs, &[source]));
    }
    // Those who read once do not wait for a pipe in a directory either.
    fs::remove_file(&link).unwrap();
    let message = read_sources(&[directory.path().to_owned()])
        .unwrap_err()
        .to_string();
    assert!(message.contains("a named pipe is not a file"), "{message}");
}

#[test]
fn unchanged_files_are_recognized() {
    let directory = tempfile::tempdir().unwrap();
    let inputs = [directory.path().to_owned()];
    let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
    assert!(!is_unchanged(&inputs, &[]), "nothing there is an error");
    // Longer than one read.
    let long = "# a policy\n".repeat(20_000);
    write("a.yaml", &long);
    write("b.yaml", "");
    let sources = read_sources(&inputs).unwrap();
    assert!(is_unchanged(&inputs, &sources));
    for (name, changed, before) in [
        ("a.yaml", format!("{long}#"), &*long),
        ("a.yaml", long[1..].to_owned(), &long),
        ("a.yaml", long.replacen('p', "P", 1), &long),
        ("b.yaml", "#".to_owned(), ""),
    ] {
        write(name, &changed);
        assert!(!is_unchanged(&inputs, &sources), "{name}");
        write(name, before);
        assert!(is_unchanged(&inputs, &sources), "{name}");
    }
    write("c.yaml", "");
    assert!(!is_unchanged(&inputs, &sources), "one more");
    fs::remove_file(directory.path().join("c.yaml")).unwrap();
    fs::remove_file(directory.path().join("a.yaml")).unwrap();
    assert!(!is_unchanged(&inputs, &sources), "one less");
}

#[test]
fn a_file_being_written_is_not_read_halfway() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    let whole = "first: half\nsecond: half\n";
    fs::write(&file, "first: half\n").unwrap();
    let inputs = [file.clone()];
    // The writer pauses after each line.
    let mut lines = whole.lines();
    let mut written = String::new();
    let texts = read_settled(&inputs, || {
        if let Some(line) = lines.next() {
            written.push_str(line);
            written.push('\n');
            fs::write(&file, &written).unwrap();
        }
    })
    .unwrap();
    assert_eq!(texts[0].text, whole);

    // If one file is exchanged for another, the two are not mixed; a file that disappears is
    // reported at the end.
    let other = dir.path().join("other");
    let mut gone = false;
    let error = read_settled(&inputs, || {
        if !gone {
            fs::write(&other, "another\n").unwrap();
            fs::rename(&other, &file).unwrap();
            fs::remove_file(&file).unwrap();
            gone = true;
        }
    })
    .unwrap_err();
    assert!(error.to_string().contains("a.yaml"), "{error}");

    // A file that never stops changing is not waited for indefinitely.
    let mut count = 0;
    let error = read_settled(&inputs, || {
        count += 1;
        fs::write(&file, "x".repeat(count)).unwrap();
    })
    .unwrap_err();
    assert!(error.to_string().contains("keep changing"), "{error}");
}
