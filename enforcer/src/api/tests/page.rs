//! `docs/json.md`, made from the types, and whether the types say what is written.

use std::{fmt::Write as _, fs, path::Path};

use serde_json::{Map, Value};

use super::samples;
use crate::api::schema::schema;

#[test]
fn the_page_is_made_from_the_types() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/json.md");
    let page = page(&schema().to_value());
    if std::env::var_os("ENFORCER_WRITE_DOCS").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let published = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        published == page,
        "docs/json.md is out of date: run this test with ENFORCER_WRITE_DOCS=1"
    );
}

/// The examples have every field that is always there, and none that the schema does not know.
#[test]
fn what_is_written_fits_the_schema() {
    let schema = schema().to_value();
    for ((kind, sample), of_kind) in samples::all().into_iter().zip(kinds(&schema)) {
        assert_eq!(of_kind["title"], kind);
        let sample: Value = serde_json::from_str(&sample).unwrap();
        let mut missing = Vec::new();
        let parts = array(&of_kind["allOf"])
            .iter()
            .map(|part| resolved(&schema, part));
        let parts: Vec<&Value> = parts.collect();
        let fields = sample.as_object().unwrap();
        for field in fields.keys() {
            let known = parts
                .iter()
                .any(|part| variant(part, fields)["properties"][field].is_object());
            if !known {
                missing.push(field.clone());
            }
        }
        for part in parts {
            fits(&schema, variant(part, fields), &sample, kind, &mut missing);
        }
        assert!(missing.is_empty(), "{kind}: {missing:?} in {sample:#}");
    }
}

/// Of a request, its own variant.
fn variant<'a>(schema: &'a Value, fields: &Map<String, Value>) -> &'a Value {
    let mut variants = array(&schema["oneOf"]).iter();
    let own =
        variants.find(|one| Some(&one["properties"]["request"]["const"]) == fields.get("request"));
    own.unwrap_or(schema)
}

/// Collects where a value is not what its schema says.
fn fits(root: &Value, schema: &Value, value: &Value, at: &str, wrong: &mut Vec<String>) {
    let schema = resolved(root, schema);
    match value {
        Value::Object(fields) => {
            let required = array(&schema["required"]).iter().filter_map(Value::as_str);
            for field in required.filter(|field| !fields.contains_key(*field)) {
                wrong.push(format!("{at}.{field} is missing"));
            }
            let properties = &schema["properties"];
            for (field, value) in fields {
                if properties[field].is_object() {
                    fits(
                        root,
                        &properties[field],
                        value,
                        &format!("{at}.{field}"),
                        wrong,
                    );
                } else if at.contains('.') {
                    wrong.push(format!("{at}.{field} is unknown"));
                }
            }
        }
        Value::Array(items) => {
            let items = items.iter();
            items.for_each(|item| fits(root, &schema["items"], item, &format!("{at}[]."), wrong));
        }
        Value::String(_) if schema["anyOf"].is_array() || schema["const"].is_string() => {}
        value => {
            let types = [&[schema["type"].clone()][..], array(&schema["type"])].concat();
            let own = match value {
                Value::String(_) => "string",
                Value::Bool(_) => "boolean",
                Value::Number(_) => "integer",
                _ => "null",
            };
            if !types.iter().any(|name| name == own) {
                wrong.push(format!("{at} is {own}, and not {types:?}"));
            }
        }
    }
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn kinds(schema: &Value) -> &[Value] {
    array(&schema["oneOf"])
}

/// The name of the type that a schema refers to, where it does.
fn reference(schema: &Value) -> Option<&str> {
    let direct = schema["$ref"].as_str();
    let mut parts = array(&schema["allOf"])
        .iter()
        .chain(array(&schema["anyOf"]));
    let found = direct.or_else(|| parts.find_map(|part| part["$ref"].as_str()));
    found?.strip_prefix("#/definitions/")
}

fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    reference(schema).map_or(schema, |name| &root["definitions"][name])
}

/// A type, as a person reads it.
fn type_of(schema: &Value) -> String {
    if let Some(name) = reference(schema) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    let names = [&[schema["type"].clone()][..], array(&schema["type"])].concat();
    let name = names
        .iter()
        .filter_map(Value::as_str)
        .find(|name| *name != "null");
    match name {
        Some("array") => format!("list of {}", type_of(&schema["items"])),
        Some("integer") => "number".to_owned(),
        Some(name) => name.to_owned(),
        None => "string".to_owned(),
    }
}

/// A description in one line of a table.
fn described(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

fn fields(schema: &Value, page: &mut String) {
    let required = array(&schema["required"]);
    page.push_str("| field | type | always | meaning |\n|---|---|---|---|\n");
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let always = if required.iter().any(|known| known == name) {
            "yes"
        } else {
            ""
        };
        let _ = writeln!(
            page,
            "| `{name}` | {} | {always} | {} |",
            type_of(field),
            described(field)
        );
    }
}

fn words(schema: &Value, page: &mut String) {
    page.push_str("| word | meaning |\n|---|---|\n");
    for word in array(&schema["anyOf"]) {
        if let Some(name) = word["const"].as_str() {
            let _ = writeln!(page, "| `{name}` | {} |", described(word));
        }
    }
}

fn requests(schema: &Value, page: &mut String) {
    page.push_str("| `request` | field | type | meaning |\n|---|---|---|---|\n");
    for request in array(&schema["oneOf"]) {
        let name = request["properties"]["request"]["const"]
            .as_str()
            .unwrap_or_default();
        let _ = writeln!(page, "| `{name}` | | | {} |", described(request));
        for (field, of_field) in request["properties"].as_object().into_iter().flatten() {
            if field != "request" {
                let _ = writeln!(
                    page,
                    "| | `{field}` | {} | {} |",
                    type_of(of_field),
                    described(of_field)
                );
            }
        }
    }
}

fn page(schema: &Value) -> String {
    let mut page = INTRODUCTION.to_owned();
    let definitions = schema["definitions"].as_object();
    let definitions: Vec<(&String, &Value)> = definitions.into_iter().flatten().collect();
    page.push_str("\n## Documents\n\nEvery document begins with these fields.\n\n");
    fields(&schema["definitions"]["Head"], &mut page);
    let mut documents = vec!["Head"];
    for (of_kind, (kind, sample)) in kinds(schema).iter().zip(samples::all()) {
        let body = array(&of_kind["allOf"]).get(1).unwrap_or(&Value::Null);
        let name = reference(body).unwrap_or_default();
        documents.push(name);
        let body = resolved(schema, body);
        let _ = write!(
            page,
            "\n### {kind}\n\n{}\n{}\n\n",
            described(body),
            printed_by(kind)
        );
        match body["oneOf"].is_array() {
            true => requests(body, &mut page),
            false => fields(body, &mut page),
        }
        // Not this release's: the page need not change with it.
        let sample = sample.replace(env!("CARGO_PKG_VERSION"), "1.2.3");
        let _ = write!(page, "\n```json\n{sample}\n```\n");
    }
    let is_words = |schema: &Value| schema["anyOf"].is_array();
    let others = || {
        definitions
            .iter()
            .filter(|(name, _)| !documents.contains(&name.as_str()))
    };
    page.push_str("\n## Objects in documents\n");
    for (name, schema) in others().filter(|(_, schema)| schema["properties"].is_object()) {
        let _ = write!(page, "\n### {name}\n\n{}\n\n", described(schema));
        fields(schema, &mut page);
    }
    page.push_str(
        "\n## Words\n\nText has the same words, except `would deny` for `wouldDeny`, `cgroup link` for `cgroupLink`, `same node` \
         for\n`sameNode`, and `TLS` for `tls`.\n",
    );
    for (name, schema) in others().filter(|(_, schema)| is_words(schema)) {
        let _ = write!(page, "\n### {name}\n\n{}\n\n", described(schema));
        words(schema, &mut page);
    }
    for (name, schema) in others() {
        let rest = !is_words(schema) && !schema["properties"].is_object();
        if rest {
            let _ = write!(page, "\n### {name}\n\n{}\n", described(schema));
        }
    }
    page
}

/// Where a document comes from.
fn printed_by(kind: &str) -> &'static str {
    match kind {
        "Status" => "Printed by `enforcer status -o json`, and answered to `status`.",
        "Event" => {
            "Printed by `enforcer events -o json` and `enforcer run -o json`, one in a line, and answered to `events`."
        }
        "Explanation" => "Printed by `enforcer explain -o json`.",
        "CheckResult" => {
            "Printed by `enforcer check -o json`, also where the policy is invalid or a case fails (exit status 1)."
        }
        "Catalog" => "Printed by `enforcer catalog -o json`.",
        "Preflight" => {
            "Printed by `enforcer preflight -o json`, and part of what `apply` answers or why it refuses."
        }
        "Applied" => {
            "Printed by `enforcer apply`, `confirm` and `rollback` with `-o json`, and answered to these requests."
        }
        "DetachResult" => "Printed by `enforcer detach -o json`, and answered to `detach`.",
        "Error" => {
            "Printed to standard error by every command, and answered to a request that fails."
        }
        "Request" => "Sent to the control socket, one in a line.",
        _ => "Answered to `sources`: what `enforcer explain` asks about without `-p`.",
    }
}

const INTRODUCTION: &str = "\
# JSON

<!-- Made from the types in enforcer/src/api by the test the_page_is_made_from_the_types. Do not edit. -->

With `-o json` every command writes JSON, in documents that are made for programs: they have versions, and names in
them never change. `enforcer schema api` prints all of this as a JSON Schema.

- **Standard output** has the result: one document, or for `events` and `run` one in each line. If there is no result,
  standard output is empty.
- **Standard error** then has one document of kind [Error](#error), in one line. `enforcer run` also logs to standard
  error in plain text, so there it is the last line.
- **Exit status**: 0 fine, 1 the answer is no, 2 it could not be done. With 1 the answer is on standard output: an
  [Explanation](#explanation) that denies, a [CheckResult](#checkresult) with `valid: false` or a failed case. The one
  exception is an invalid policy given to another command than `check`: an Error with the code `InvalidPolicy`.
- Wrong arguments are an Error, too (`Usage`), if `-o json` is among them.

```console
$ enforcer status -o json | jq -r '.reasons[] | \"\\(.reason) \\(.denied)\"'
$ enforcer check -p policies/worker.yaml -o json | jq '.errors'
```

## Versions

`apiVersion` is that of the documents, not that of the policy language (`enforcer.dev/v1alpha1`). Within one version:

- no field is renamed, removed or given another meaning, and a field that is marked *always* stays;
- fields, words (such as a new reason) and kinds are added. Ignore fields that you do not know, and expect words that
  are not listed here.

The command line and the agent may be of different releases. If they share a version of the documents, they understand
each other: each ignores what it does not know, words included, and goes on without what the other does not send. A
request that the agent does not know is answered with an Error (`UnknownRequest`) that names the agent's release. If
the versions differ, the error (`VersionMismatch`) names both releases and says which side is older. `detach` works
in every case.

`enforcerVersion` is the release that made the document: for a status and for events, the agent's. A field that the
command line does not know is not printed; to see it, use the agent's own release.

## The control socket

The agent listens at `agent.sock` in its run directory (`/run/enforcer`), which only root may open. A line with a
[Request](#request) is answered with a line that holds a document, or with one line for each event. While a follower
of events has nothing new to read, it gets an empty line every few seconds. A request may have 4,096 bytes.

```console
# echo '{\"request\": \"status\"}' | socat - UNIX-CONNECT:/run/enforcer/agent.sock
```
";
