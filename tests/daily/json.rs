//! What commands answer with `-o json` is what docs/schema.json says, and nothing beside it.

use mvm_harness::{Echo, Lab, Value, checkout, json};

/// The schema of each command's answer.
struct Schema(Value);

impl Schema {
    fn read() -> Self {
        let text = std::fs::read_to_string(checkout().join("docs/schema.json")).unwrap();
        let mut schema: Value = text.parse().unwrap();
        close(&mut schema["$defs"]);
        Self(schema)
    }

    /// Runs a command, whose name is its first `words` words, and compares its answer.
    #[track_caller]
    fn fits(&self, lab: &Lab, command: &str, words: usize) {
        let arguments: Vec<&str> = command.split(' ').collect();
        let output = lab.try_mvm(&[&arguments[..], &["-o", "json"]].concat());
        let answer = serde_json::from_slice(&output.stdout);
        let answer: Value = answer.unwrap_or_else(|error| panic!("{command}: {error}: {output:?}"));
        let name = format!("mvm {}", arguments[..words].join(" "));
        let mut schema = self.0["commands"][&name].clone();
        assert!(schema.is_object(), "{name} has no schema");
        schema["$defs"] = self.0["$defs"].clone();
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let wrong: Vec<String> = validator
            .iter_errors(&answer)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(wrong.is_empty(), "{command}: {wrong:#?} in {answer:#}");
    }
}

/// Fields that a schema does not name are refused: they would not be documented.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(entries) => {
            entries.values_mut().for_each(close);
            if entries.get("properties").is_some_and(Value::is_object) && entries.contains_key("type") {
                entries.entry("additionalProperties").or_insert(json!(false));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

#[test]
fn every_answer_is_as_it_is_documented() {
    let lab = Lab::new();
    let schema = Schema::read();
    let wrong = json!({ "tenants": 1, "surprise": 2 });
    let agent = json!({ "$ref": "#/$defs/AgentInfo", "$defs": schema.0["$defs"] });
    let validator = jsonschema::draft202012::new(&agent).unwrap();
    let told: Vec<String> = validator.iter_errors(&wrong).map(|error| error.to_string()).collect();
    assert!(told.iter().any(|error| error.contains("surprise")), "what is not documented is found: {told:?}");

    let more = "[secrets]\nkey = { file = \"key\" }\n[tenant.quotas]\nmax_running = 8\n";
    let keys = "egress = [\"192.0.2.0/24:443\"]\nsecret_scopes = [{ integration = \"default\", keys = [\"KEY\"] }]\n";
    lab.file("key", "secret");
    let manifest = Echo { more, worker_keys: keys, ..Echo::default() }.manifest();
    let path = lab.file("deployment.toml", &manifest);
    schema.fits(&lab, &format!("deploy {}", path.display()), 1);
    assert_eq!(lab.get(8080, "/").status, 200);
    let dry = manifest.replace("max_running = 8", "max_running = 9");
    let dry = lab.file("dry.toml", &dry);
    schema.fits(&lab, &format!("deploy --dry-run {}", dry.display()), 1);
    for command in ["sleep", "wake", "warm", "resume", "sleep"] {
        schema.fits(&lab, &format!("instance {command} alice/workers"), 2);
    }
    for command in [
        "tenant list",
        "tenant info alice",
        "pool list",
        "pool info alice/workers",
        "pool info alice/gateways",
        "pool build alice/workers",
        "pool gc alice/workers",
        "tenant create bob",
        "tenant update bob --max-running 3",
        "pool create bob/workers --image minimal --vcpus 1 --mem-mib 256",
        "pool update bob/workers --vcpus 2",
        "instance create bob/workers",
        "pool destroy bob/workers --force",
        "instance list",
        "instance info alice/workers",
        "instance info alice/gateways",
        "instance stats",
        "instance stop alice/workers",
        "instance info alice/workers",
        "instance start alice/workers",
        "pool scale alice/workers --running 2",
        "agent status",
        "node info",
        "node stats",
        "node disk",
        "node scrub",
        "net verify",
    ] {
        schema.fits(&lab, command, 2);
    }
    let copied = lab.file("copied", "").display().to_string();
    let running = lab.instances("alice/gateways").remove(0);
    schema.fits(&lab, &format!("instance cp {running}:/etc/hostname {copied}"), 2);
    for command in ["status", "status alice", "doctor", "events alice"] {
        schema.fits(&lab, command, 1);
    }
    schema.fits(&lab, &format!("instance destroy --force {}", lab.instances("alice/workers").remove(0)), 2);
    schema.fits(&lab, "status alice", 1);
    schema.fits(&lab, "tenant destroy alice --force", 2);
}
