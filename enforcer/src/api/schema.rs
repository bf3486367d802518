//! The documents as JSON Schema: for programs, and for the page that is made of it.

use enforcer_policy::explain::Explanation;
use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};

use super::{
    Kind,
    catalog::Catalog,
    check::CheckResult,
    error::Error,
    event::Event,
    head::Head,
    preflight::Preflight,
    request::{Applied, DetachResult, Request, Sources},
    status::Status,
};

/// The schema as JSON text, with a newline at the end.
pub fn json() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    text.push('\n');
    text
}

/// One of the documents, and a definition for each type in them.
pub(super) fn schema() -> Schema {
    // As they are written. Readers need less.
    let mut generator = SchemaSettings::draft07().for_serialize().into_generator();
    let kinds = [
        document::<Status>(&mut generator),
        document::<Event>(&mut generator),
        document::<Explanation>(&mut generator),
        document::<CheckResult>(&mut generator),
        document::<Catalog<'_>>(&mut generator),
        document::<Preflight>(&mut generator),
        document::<Applied>(&mut generator),
        document::<DetachResult>(&mut generator),
        document::<Error>(&mut generator),
        document::<Request>(&mut generator),
        document::<Sources>(&mut generator),
    ];
    let definitions = generator.take_definitions(true);
    json_schema!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "What enforcer writes as JSON",
        "oneOf": kinds,
        "definitions": definitions,
    })
}

fn document<T: Kind + JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let head = generator.subschema_for::<Head>();
    let body = generator.subschema_for::<T>();
    json_schema!({
        "title": T::KIND,
        "properties": { "kind": { "const": T::KIND } },
        "allOf": [head, body],
    })
}
