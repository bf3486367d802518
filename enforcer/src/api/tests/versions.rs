//! Readers of this version and documents of others.

use enforcer_common::{record::Hook, verdict::Reason};
use serde_json::{Value, json};

use super::samples::{event, status};
use crate::api::{
    Decision, Document, Error, ErrorCode, Event, Kind, ReadError, Request, Status, UNDERSTOOD,
    read, read_request,
};

fn value<T: Kind + serde::Serialize>(body: T) -> Value {
    serde_json::to_value(Document::new(body)).unwrap()
}

fn failed<T: Kind + serde::de::DeserializeOwned>(document: &Value) -> ReadError {
    match read::<T>(&document.to_string()) {
        Err(error) => error,
        Ok(_) => panic!("{document} is understood"),
    }
}

#[test]
fn a_document_goes_there_and_back() {
    let document = Document::new(event());
    let json = serde_json::to_string(&document).unwrap();
    let start = r#"{"apiVersion":"api.enforcer.dev/v1","kind":"Event","enforcerVersion":""#;
    assert!(json.starts_with(start), "{json}");
    assert_eq!(read::<Event>(&json).unwrap(), document);
}

#[test]
fn fields_and_words_of_a_newer_version_are_no_errors() {
    let mut newer = value(event());
    newer["weather"] = json!({ "sunny": true });
    newer["subject"]["mood"] = json!("good");
    newer["reason"] = json!("Teleported");
    newer["hook"] = json!("netkit/primary");
    newer["protocol"] = json!("quic");
    newer["enforcerVersion"] = json!("1.99.0");
    let read = read::<Event>(&newer.to_string()).unwrap();
    assert_eq!(read.head.enforcer_version, "1.99.0");
    assert_ne!(read.body.reason, Reason::NoPath);
    let shown = read.body.to_string();
    assert!(shown.contains("2379/quic"), "{shown}");
    assert!(shown.ends_with("[Teleported, netkit/primary]"), "{shown}");
    // Passed on as they came.
    let written = serde_json::to_value(&read).unwrap();
    assert_eq!(written["reason"], "Teleported");
}

#[test]
fn fields_that_an_older_agent_does_not_send_are_no_errors() {
    let mut older = value(status());
    let fields = older.as_object_mut().unwrap();
    for later in [
        "cgroups",
        "warnings",
        "listeners",
        "problems",
        "cutPackets",
        "repaired",
    ] {
        fields.remove(later);
    }
    let read = read::<Status>(&older.to_string()).unwrap().body;
    assert_eq!((read.cut_packets, read.repaired), (0, None));
    // Without its node it is none.
    older.as_object_mut().unwrap().remove("node");
    assert!(matches!(failed::<Status>(&older), ReadError::Shape { .. }));
}

#[test]
fn of_two_versions_it_says_which_is_older() {
    let mut other = value(status());
    other["enforcerVersion"] = json!("7.0.0");
    other["apiVersion"] = json!("api.enforcer.dev/v7");
    let own = env!("CARGO_PKG_VERSION");
    let expected = format!(
        "the agent is enforcer 7.0.0 (api.enforcer.dev/v7), this is enforcer {own} (api.enforcer.dev/v1), and \
         they do not understand each other: this one is older; ask the agent with its own version"
    );
    assert_eq!(failed::<Status>(&other).to_string(), expected);
    other["apiVersion"] = json!("api.enforcer.dev/v0");
    let said = failed::<Status>(&other).to_string();
    assert!(
        said.contains(": the agent is older; start it again with this version"),
        "{said}"
    );
    // As agents answered before answers had versions.
    let said = failed::<Status>(&json!({ "error": "not a request" })).to_string();
    assert!(
        said.starts_with("the agent is an enforcer that names no version, this is enforcer ")
            && said.contains("the agent is older"),
        "{said}"
    );
    other["apiVersion"] = json!("somebody.example/v1");
    let said = failed::<Status>(&other).to_string();
    assert!(
        said.ends_with("and they do not understand each other"),
        "{said}"
    );
    let hostile = json!({ "apiVersion": "\u{1b}[2J", "enforcerVersion": "\u{1b}[2J" });
    let said = failed::<Status>(&hostile).to_string();
    assert!(!said.contains('\u{1b}'), "{said}");
}

#[test]
fn an_error_is_an_error_and_another_kind_is_said() {
    let refused = value(Error::new(ErrorCode::TooManyFollowers, "no more"));
    match failed::<Event>(&refused) {
        ReadError::Refused(error) => assert_eq!(error.code, ErrorCode::TooManyFollowers),
        other => panic!("{other}"),
    }
    let said = failed::<Event>(&value(status())).to_string();
    assert!(said.contains("of kind `Status`, and not `Event`"), "{said}");
    for none in ["", "[", "7", "null", "[]"] {
        assert!(
            matches!(read::<Event>(none), Err(ReadError::NoDocument(_))),
            "{none}"
        );
    }
}

#[test]
fn requests_of_any_version_are_read_or_answered() {
    let known = [Request::Status {}, Request::Sources {}, Request::Detach {}];
    for request in known {
        let line = value(&request).to_string();
        assert_eq!(read_request(&line).unwrap(), request, "{line}");
    }
    let follow = Request::Events {
        follow: true,
        denied: false,
    };
    // By hand, and of a newer command line of this version of the interface.
    for line in [
        r#"{"request":"events","follow":true}"#,
        r#"{"apiVersion":"api.enforcer.dev/v1","request":"events","follow":true,"since":"yesterday"}"#,
    ] {
        assert_eq!(read_request(line).unwrap(), follow, "{line}");
    }
    let code = |line: &str| read_request(line).unwrap_err();
    let unknown = code(r#"{"apiVersion":"api.enforcer.dev/v1","request":"reboot\u001b[31m"}"#);
    assert_eq!(unknown.code, ErrorCode::UnknownRequest);
    let expected = format!(
        "this agent (enforcer {}) does not know the request `reboot\\u{{1b}}[31m`; it knows {}",
        env!("CARGO_PKG_VERSION"),
        UNDERSTOOD.join(", ")
    );
    assert_eq!(unknown.message, expected);
    assert_eq!(code("{}").code, ErrorCode::UnknownRequest);
    let long = format!(r#"{{"request":"{}"}}"#, "x".repeat(4000));
    assert!(code(&long).message.len() < 200);
    for bad in [
        "",
        "status",
        "[]",
        r#"{"request":7}"#,
        r#"{"request":"events","follow":"yes"}"#,
    ] {
        assert_eq!(code(bad).code, ErrorCode::BadRequest, "{bad}");
    }
    let next =
        r#"{"apiVersion":"api.enforcer.dev/v2","enforcerVersion":"2.0.0","request":"status"}"#;
    let difference = code(next);
    assert_eq!(difference.code, ErrorCode::VersionMismatch);
    assert!(
        difference.message.contains("enforcer 2.0.0"),
        "{difference:?}"
    );
}

#[test]
fn any_version_can_end_an_agent() {
    let later = r#"{"apiVersion":"api.enforcer.dev/v9","request":"detach","gently":true}"#;
    assert_eq!(read_request(later).unwrap(), Request::Detach {});
}

#[test]
fn text_and_json_have_the_same_words() {
    let dry_run = Event {
        verdict: Decision::WouldDeny.into(),
        ..event()
    };
    assert!(dry_run.to_string().starts_with("would deny "));
    assert_eq!(value(&dry_run)["verdict"], "wouldDeny");
    for hook in Hook::ALL {
        let event = Event {
            hook: hook.into(),
            ..event()
        };
        let json = value(&event);
        let hook = json["hook"].as_str().unwrap();
        assert!(event.to_string().contains(&format!(", {hook}]")), "{hook}");
    }
}
