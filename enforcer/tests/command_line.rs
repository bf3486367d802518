//! The command line as scripts use it: standard output and standard error with `-o json`, and the
//! exit status. The test plays the agents.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
    path::Path,
    process::{Command, Output},
    thread,
};

use serde_json::{Value, json};

const POLICIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../policies");

fn enforcer(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enforcer"));
    command.args(arguments).output().unwrap()
}

/// The single document on standard output, with nothing on standard error.
fn result(arguments: &[&str], status: i32) -> Value {
    let output = enforcer(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), &*stderr), (Some(status), ""));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The single document on standard error, in one line, with nothing on standard output.
fn error(arguments: &[&str], status: i32) -> Value {
    let output = enforcer(arguments);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        output.status.code(),
        Some(status),
        "{arguments:?}: {stderr}"
    );
    assert!(output.stdout.is_empty(), "{arguments:?}: {stderr}");
    let [line] = stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("{arguments:?}: {stderr}");
    };
    let error: Value = serde_json::from_str(line).unwrap();
    assert_eq!(error["apiVersion"], "api.enforcer.dev/v1", "{error:#}");
    assert_eq!(error["kind"], "Error", "{error:#}");
    assert!(error["message"].is_string(), "{error:#}");
    error
}

/// Answers one connection with one line.
fn agent(run_dir: &Path, answer: &Value) {
    let listener = UnixListener::bind(run_dir.join("agent.sock")).unwrap();
    let answer = format!("{answer}\n");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(&stream)
            .read_line(&mut String::new())
            .unwrap();
        stream.write_all(answer.as_bytes()).unwrap();
    });
}

#[test]
fn wrong_usage_is_json_where_json_was_asked_for() {
    for arguments in [
        &["-o", "json"][..],
        &["-o", "json", "frobnicate"],
        &["status", "--nonsense", "-o", "json"],
        &["events", "-fojson", "--nonsense"],
        &["check", "--output=json"],
        &["explain", "-o", "json", "--from", "x"],
    ] {
        assert_eq!(error(arguments, 2)["code"], "Usage", "{arguments:?}");
    }
    let unknown = error(&["status", "--nonsense", "-o", "json"], 2);
    let message = unknown["message"].as_str().unwrap();
    assert!(
        message.contains("unexpected argument '--nonsense'"),
        "{unknown:#}"
    );
    assert!(
        unknown["help"].as_str().unwrap().contains("Usage:"),
        "{unknown:#}"
    );
    // Without `-o json`, the text for people is unchanged.
    let output = enforcer(&["status", "--nonsense"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stderr.starts_with(b"error: unexpected argument"));
    // Help was asked for, so it is no error.
    let help = enforcer(&["status", "-o", "json", "--help"]);
    assert!(help.status.success() && help.stderr.is_empty());
}

#[test]
fn an_invalid_policy_is_a_result_of_check_and_an_error_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("p.yaml");
    fs::write(&file, "apiVersion: enforcer.dev/v1alpha1\nkind: Nonsense\n").unwrap();
    let file = file.to_str().unwrap();
    let checked = result(&["check", "-p", file, "-o", "json"], 1);
    assert_eq!(checked["kind"], "CheckResult");
    assert_eq!(checked["valid"], false);
    let explain = [
        "explain", "-p", file, "--from", "x", "--to", "y", "-o", "json",
    ];
    let refused = error(&explain, 1);
    assert_eq!(refused["code"], "InvalidPolicy");
    assert_eq!(refused["errors"], checked["errors"]);
    let first = &refused["errors"][0];
    assert_eq!(first["file"], file, "{refused:#}");
    assert_eq!(first["line"], 2, "{refused:#}");
    for field in ["column", "message", "help"] {
        assert!(!first[field].is_null(), "{field}: {refused:#}");
    }
    let missing = error(&["check", "-p", "/missing.yaml", "-o", "json"], 2);
    assert_eq!(missing["code"], "UnreadableFile");
    assert_eq!(missing["errors"][0]["file"], "/missing.yaml");
}

#[test]
fn every_failure_has_a_code() {
    let policy = format!("{POLICIES}/worker.yaml");
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().to_str().unwrap();
    let explain = ["explain", "-p", &policy, "-o", "json", "--to"];
    let explain = |rest: &[&'static str]| error(&[&explain[..], rest].concat(), 2);
    for (found, code) in [
        (
            error(&["status", "--run-dir", run_dir, "-ojson"], 2),
            "NoAgent",
        ),
        (
            error(&["events", "--run-dir", run_dir, "-ojson"], 2),
            "NoAgent",
        ),
        (error(&["catalog", "etdc", "-ojson"], 2), "UnknownName"),
        (
            error(&["check", "-p", &policy, "--node", "x9", "-ojson"], 2),
            "UnknownNode",
        ),
        (error(&["run", "-p", "-", "-ojson"], 2), "Usage"),
        (
            explain(&["etcd:client", "--from", "pod:1.2.3", "--node", "w1"]),
            "BadQuestion",
        ),
        (
            explain(&["etcd:client", "--from", "world", "--node", "x9"]),
            "UnknownNode",
        ),
    ] {
        assert_eq!(found["code"], code, "{found:#}");
    }
}

#[test]
fn a_denial_is_a_result() {
    let policy = format!("{POLICIES}/control-plane-stacked-etcd.yaml");
    let explain = ["explain", "-p", &policy, "--node", "cp1", "-o", "json"];
    let asked = |from, to| [&explain[..], &["--from", from, "--to", to]].concat();
    let denied = result(&asked("pod:10.244.0.5", "etcd:client"), 1);
    assert_eq!(denied["kind"], "Explanation");
    assert_eq!(denied["verdict"], "wouldDeny");
    assert_eq!(denied["reason"], "NoPath");
    assert_eq!(denied["hook"], "tc/ingress");
    let allowed = result(&asked("apiserver", "etcd:client"), 0);
    assert_eq!(allowed["verdict"], "allowed");
    assert_eq!(allowed["locks"], json!(["tls"]));
}

#[test]
fn documents_say_what_they_are() {
    let policy = format!("{POLICIES}/worker.yaml");
    for (arguments, kind) in [
        (&["check", "-p", &policy, "-o", "json"][..], "CheckResult"),
        (&["catalog", "-o", "json"], "Catalog"),
        (&["catalog", "etcd:client", "-o", "json"], "Catalog"),
    ] {
        let document = result(arguments, 0);
        assert_eq!(document["kind"], kind);
        assert_eq!(document["apiVersion"], "api.enforcer.dev/v1");
        assert_eq!(document["enforcerVersion"], env!("CARGO_PKG_VERSION"));
    }
}

#[test]
fn an_agent_of_another_version_is_an_error_that_names_both() {
    let answer = json!({ "apiVersion": "api.enforcer.dev/v2", "kind": "Status", "enforcerVersion": "2.1.0" });
    for json in [true, false] {
        let directory = tempfile::tempdir().unwrap();
        let run_dir = directory.path().to_str().unwrap();
        agent(directory.path(), &answer);
        let message = if json {
            let error = error(&["status", "--run-dir", run_dir, "-o", "json"], 2);
            assert_eq!(error["code"], "VersionMismatch");
            error["message"].as_str().unwrap().to_owned()
        } else {
            let output = enforcer(&["status", "--run-dir", run_dir]);
            assert_eq!(output.status.code(), Some(2));
            String::from_utf8(output.stderr).unwrap()
        };
        let own = format!(
            "this is enforcer {} (api.enforcer.dev/v1)",
            env!("CARGO_PKG_VERSION")
        );
        for part in [
            "the agent is enforcer 2.1.0 (api.enforcer.dev/v2)",
            &own,
            "this one is older",
        ] {
            assert!(message.contains(part), "{message}");
        }
    }
}

#[test]
fn words_of_a_newer_agent_are_passed_on() {
    let directory = tempfile::tempdir().unwrap();
    let run_dir = directory.path().to_str().unwrap();
    let event = json!({
        "apiVersion": "api.enforcer.dev/v1", "kind": "Event", "enforcerVersion": "1.9.0",
        "verdict": "denied", "reason": "NoTicket", "sentence": "no \u{1b}[2Jticket", "hook": "netkit/primary",
        "subject": { "kind": "pod", "id": 1, "name": "default/x" },
        "count": 1, "firstSeen": "", "lastSeen": "", "generation": 1, "ticket": 7,
    });
    agent(directory.path(), &event);
    let found = result(&["events", "--run-dir", run_dir, "-o", "json"], 0);
    assert_eq!(found["enforcerVersion"], "1.9.0");
    assert_eq!(found["reason"], "NoTicket");
    fs::remove_file(directory.path().join("agent.sock")).unwrap();
    agent(directory.path(), &event);
    let output = enforcer(&["events", "--run-dir", run_dir]);
    let line = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        line,
        "denied pod default/x → an unreadable packet: no \\u{1b}[2Jticket [NoTicket, netkit/primary]\n"
    );
}

#[test]
fn the_schemas_are_printed() {
    for (which, title) in [
        (&[][..], "Inventory"),
        (&["policy"], "Inventory"),
        (&["api"], "JSON"),
    ] {
        let output = enforcer(&[&["schema"], which].concat());
        let schema: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(schema["title"].as_str().unwrap().contains(title));
    }
}
