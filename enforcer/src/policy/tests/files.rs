//! Files and directories.

use std::fs;
use std::path::PathBuf;

use super::SMALL;
use crate::policy::load::MAX_FILE_BYTES;
use crate::policy::{load, read_sources};

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
        format!("{}:9", sources[1].name)
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
fn a_file_of_comments_is_none_of_the_policys() {
    let all = [
        ("a.yaml", SMALL.as_bytes()),
        ("b.yaml", &b"# to be written\n"[..]),
        ("c.yaml", &b"# to be written\n---\n# or not\n"[..]),
        ("d.yaml", &b""[..]),
    ];
    let with = directory(&all);
    assert!(load(&[with.path().to_owned()]).is_ok());
    let without = directory(&all[1..]);
    let said = error_of(&[without.path().to_owned()]);
    assert!(said.contains("there is no document in this file"), "{said}");
}

#[test]
fn what_cannot_be_read_is_told() {
    let long = vec![b'#'; MAX_FILE_BYTES as usize + 1];
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
        let said = error_of(&file(name));
        for fragment in fragments {
            assert!(
                said.contains(fragment),
                "{name}: no {fragment:?} in\n{said}"
            );
        }
    }
    let none = tempfile::tempdir().unwrap();
    assert!(
        error_of(&[none.path().to_path_buf()]).contains("there is no policy in this directory")
    );
    assert!(error_of(&[]).contains("there is no Inventory in the input"));
}
