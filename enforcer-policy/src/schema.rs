//! The JSON Schema of the documents, for editors. Generated from the types that read them.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

use crate::read::source::{API_VERSION, InventorySpec, Metadata, PathCasesSpec, PathPolicySpec};

/// The schema as JSON text, with a newline at the end: what `policies/enforcer.schema.json` holds.
pub fn json() -> String {
    let mut text = serde_json::to_string_pretty(&schema()).unwrap_or_default();
    text.push('\n');
    text
}

fn schema() -> Schema {
    let mut generator = SchemaSettings::draft07().into_generator();
    let kinds = [
        object::<InventorySpec>(&mut generator, "Inventory"),
        object::<PathPolicySpec>(&mut generator, "PathPolicy"),
        object::<PathCasesSpec>(&mut generator, "PathCases"),
    ];
    let definitions = generator.take_definitions(true);
    json_schema!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "enforcer: Inventory, PathPolicy and PathCases",
        // The kind selects the schema, so that an editor offers the fields of one kind only.
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": { "const": API_VERSION },
            "kind": { "enum": ["Inventory", "PathPolicy", "PathCases"] },
        },
        "oneOf": kinds,
        "definitions": definitions,
    })
}

fn object<T: JsonSchema>(generator: &mut SchemaGenerator, kind: &str) -> Schema {
    let metadata = generator.subschema_for::<Metadata>();
    let spec = generator.subschema_for::<T>();
    json_schema!({
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": false,
        "properties": {
            "apiVersion": { "const": API_VERSION },
            "kind": { "const": kind },
            "metadata": metadata,
            "spec": spec,
        },
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_published_schema_is_the_generated_one() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../policies/enforcer.schema.json"
        );
        let published = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            published == super::json(),
            "policies/enforcer.schema.json is out of date; write it anew with: \
             enforcer schema > policies/enforcer.schema.json"
        );
    }
}
