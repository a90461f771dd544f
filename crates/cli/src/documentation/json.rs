//! docs/json.md and docs/schema.json: what each command answers with `-o json`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use mvm_protocol::api;
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};
use snapbox::{assert_data_eq, file};

use super::leaves;

/// How a command's answer is made of a type.
enum Form {
    /// One.
    One,
    /// A list.
    List,
}

/// A command's answer.
struct Answer {
    command: &'static str,
    form: Form,
    schema: fn(&mut SchemaGenerator) -> Schema,
    note: &'static str,
}

const fn one<T: JsonSchema>(command: &'static str) -> Answer {
    Answer { command, form: Form::One, schema: SchemaGenerator::subschema_for::<T>, note: "" }
}

const fn list<T: JsonSchema>(command: &'static str) -> Answer {
    Answer { form: Form::List, ..one::<T>(command) }
}

const fn noted(answer: Answer, note: &'static str) -> Answer {
    Answer { note, ..answer }
}

/// Every command that has an answer.
fn answers() -> Vec<Answer> {
    vec![
        one::<crate::outcome::Outcome>("mvm deploy"),
        one::<crate::outcome::Outcome>("mvm new openclaw"),
        list::<api::UserSummary>("mvm user list"),
        one::<crate::outcome::Link>("mvm user link"),
        list::<api::TenantSummary>("mvm tenant list"),
        one::<api::TenantInfo>("mvm tenant info"),
        one::<crate::outcome::Outcome>("mvm tenant create"),
        one::<crate::outcome::Outcome>("mvm tenant update"),
        list::<api::SecretInfo>("mvm tenant secrets list"),
        one::<api::SecretsSet>("mvm tenant secrets set"),
        one::<api::SecretsSet>("mvm tenant secrets rotate"),
        one::<api::Destroyed>("mvm tenant destroy"),
        list::<api::PoolSummary>("mvm pool list"),
        one::<api::PoolInfo>("mvm pool info"),
        one::<crate::outcome::Outcome>("mvm pool create"),
        one::<crate::outcome::Outcome>("mvm pool update"),
        one::<api::Destroyed>("mvm pool destroy"),
        one::<crate::pool::Built>("mvm pool build"),
        one::<api::RolledBack>("mvm pool rollback"),
        one::<api::Collected>("mvm pool gc"),
        one::<api::Scaled>("mvm pool scale"),
        list::<api::InstanceSummary>("mvm instance list"),
        one::<api::InstanceInfo>("mvm instance info"),
        list::<crate::outcome::Created>("mvm instance create"),
        one::<api::ActDone>("mvm instance start"),
        one::<api::ActDone>("mvm instance stop"),
        one::<api::ActDone>("mvm instance sleep"),
        one::<api::ActDone>("mvm instance wake"),
        one::<api::ActDone>("mvm instance warm"),
        one::<api::ActDone>("mvm instance resume"),
        noted(list::<api::InstanceStats>("mvm instance stats"), "Also of one instance."),
        one::<crate::copy::Done>("mvm instance cp"),
        noted(one::<crate::backup::Made>("mvm instance backup"), "None where it goes to standard output."),
        one::<api::Restored>("mvm instance restore"),
        one::<api::Destroyed>("mvm instance destroy"),
        one::<api::AgentInfo>("mvm agent status"),
        one::<api::NodeInfo>("mvm node info"),
        one::<api::NodeStats>("mvm node stats"),
        one::<api::ScrubReport>("mvm node scrub"),
        one::<api::NodeDisk>("mvm node disk"),
        one::<api::NetReport>("mvm net verify"),
        noted(
            one::<StatusAnswer>("mvm status"),
            "With a tenant the first, without one the second. With `--watch` a line every second.",
        ),
        noted(list::<api::AuditEntry>("mvm events"), "With `--follow` an entry a line, as it happens."),
        one::<api::DoctorReport>("mvm doctor"),
    ]
}

/// `mvm status` has two.
#[derive(JsonSchema)]
#[serde(untagged)]
#[allow(dead_code, clippy::large_enum_variant)]
enum StatusAnswer {
    Tenant(api::TenantStatus),
    Node(api::NodeStatus),
}

/// What each command answers, by its name, and all types.
fn schemas() -> (BTreeMap<&'static str, Value>, Map<String, Value>) {
    let mut generator = SchemaSettings::draft2020_12().for_serialize().into_generator();
    let mut commands = BTreeMap::new();
    for answer in answers() {
        let of = (answer.schema)(&mut generator).to_value();
        let schema = match answer.form {
            Form::One => of,
            Form::List => json!({ "type": "array", "items": of }),
        };
        commands.insert(answer.command, schema);
    }
    let mut types = generator.take_definitions(true);
    // A choice without a name of its own in the API.
    if let Some(choice) = types.remove("StatusAnswer") {
        commands.insert("mvm status", json!({ "anyOf": choice["anyOf"] }));
    }
    (commands, types)
}

#[test]
fn every_command_that_takes_a_format_has_an_answer() {
    let formatted: BTreeSet<String> = leaves()
        .into_iter()
        .filter(|(_, command)| command.get_arguments().any(|argument| argument.get_id() == "output"))
        .map(|(path, _)| path)
        .collect();
    let documented: BTreeSet<_> = answers().into_iter().map(|answer| answer.command.to_owned()).collect();
    assert_eq!(formatted, documented, "give it an answer in crates/cli/src/documentation/json.rs");
}

#[test]
fn the_schema_is_what_the_types_say() {
    let (commands, types) = schemas();
    let document = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "description": "What each command of mvm answers with -o json: commands/<command>, over the types in $defs.",
        "commands": commands,
        "$defs": types,
    });
    let text = serde_json::to_string_pretty(&document).unwrap() + "\n";
    assert_data_eq!(text, file!["../../../../docs/schema.json": Text].raw());
}

const HEAD: &str = "\
# What `-o json` answers

Made from the types of the agent's API. [schema.json](schema.json) says the same as a JSON Schema: `commands` has an entry for each
command, over the types in `$defs`. YAML has the same fields. Fields may be added; those that are here stay. Times are seconds, or
(`…_ms`) milliseconds, since 1970. A field with “or null” or “may be absent” has no value where there is none.

| command | answers | |
|---|---|---|
";

#[test]
fn the_page_is_what_the_types_say() {
    let (commands, types) = schemas();
    let mut page = HEAD.to_owned();
    for answer in answers() {
        let of = kind(&commands[answer.command]);
        writeln!(page, "| `{}` | {of} | {} |", answer.command, answer.note).unwrap();
    }
    for (name, schema) in &types {
        write!(page, "\n## {name}\n\n").unwrap();
        describe(&mut page, schema).unwrap();
    }
    assert_data_eq!(page, file!["../../../../docs/json.md"].raw());
}

fn describe(page: &mut String, schema: &Value) -> std::fmt::Result {
    if let Some(text) = schema["description"].as_str() {
        writeln!(page, "{}", line(text))?;
    }
    let Some(fields) = schema["properties"].as_object() else {
        let alternatives = schema["oneOf"].as_array().or(schema["anyOf"].as_array());
        let Some(alternatives) = alternatives else {
            return writeln!(page, "\nWritten as {}.", kind(schema));
        };
        page.push('\n');
        for alternative in alternatives {
            let text = alternative["description"]
                .as_str()
                .map(|text| format!(": {}", line(text)))
                .unwrap_or_default();
            writeln!(page, "- {}{text}", kind(alternative))?;
        }
        return Ok(());
    };
    let required =
        |name: &String| schema["required"].as_array().is_some_and(|all| all.contains(&json!(name)));
    page.push_str("\n| field | is | |\n|---|---|---|\n");
    for (name, field) in fields {
        let absent = if required(name) { "" } else { ", may be absent" };
        let text = field["description"].as_str().map(line).unwrap_or_default();
        writeln!(page, "| `{name}` | {}{absent} | {text} |", kind(field))?;
    }
    Ok(())
}

fn line(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|").replace("[`", "`").replace("`]", "`")
}

/// What a schema allows, in words.
fn kind(schema: &Value) -> String {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(constant) = schema.get("const") {
        return format!("`{constant}`");
    }
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(|value| format!("`{value}`")).collect::<Vec<_>>().join(", ");
    }
    if let Some(several) = schema["anyOf"].as_array().or(schema["oneOf"].as_array()) {
        return several.iter().map(kind).collect::<Vec<_>>().join(" or ");
    }
    match &schema["type"] {
        Value::Array(names) => {
            names.iter().map(|name| by_name(name, schema)).collect::<Vec<_>>().join(" or ")
        }
        name => by_name(name, schema),
    }
}

fn by_name(name: &Value, schema: &Value) -> String {
    match name.as_str() {
        Some("array") => match &schema["items"] {
            Value::Null => "a list".to_owned(),
            items => format!("a list, each {}", kind(items)),
        },
        Some("object") => match schema["properties"].as_object().filter(|fields| fields.len() == 1) {
            Some(field) => {
                field.iter().map(|(name, of)| format!("`{{\"{name}\": …}}` with {}", kind(of))).collect()
            }
            None => match &schema["additionalProperties"] {
                of @ Value::Object(_) => format!("by name, each {}", kind(of)),
                _ => "an object".to_owned(),
            },
        },
        Some("string") => "a text".to_owned(),
        Some("integer") => "a whole number".to_owned(),
        Some("number") => "a number".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("null") => "null".to_owned(),
        _ => "anything".to_owned(),
    }
}
