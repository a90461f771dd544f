//! Running `nft`, and comparing what it lists.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::{Error, Result};

/// Loads rules in one transaction, in the calling thread's namespace: all of it, or nothing.
pub(crate) fn load(script: &str) -> Result<()> {
    run(&["-f", "-"], Some(script)).map(drop)
}

/// What `nft -j list …` says about the calling thread's namespace, without its header.
pub(crate) fn list(what: &[&str]) -> Result<Vec<Value>> {
    // -s leaves out counters, -n keeps numbers.
    let arguments: Vec<&str> = ["-j", "-s", "-n", "list"].into_iter().chain(what.iter().copied()).collect();
    let text = run(&arguments, None)?;
    let unexpected = |detail: &str| Error::ToolOutput {
        command: format!("nft {}", arguments.join(" ")),
        detail: detail.to_owned(),
    };
    let mut document: Value =
        serde_json::from_slice(&text).map_err(|error| unexpected(&error.to_string()))?;
    match document.get_mut("nftables").map(Value::take) {
        Some(Value::Array(objects)) => {
            Ok(objects.into_iter().filter(|object| object.get("metainfo").is_none()).collect())
        }
        _ => Err(unexpected("no array `nftables`")),
    }
}

/// What `nft list …` says, as text.
pub(crate) fn text(what: &[&str]) -> Result<String> {
    let arguments: Vec<&str> = ["-s", "-n", "list"].into_iter().chain(what.iter().copied()).collect();
    Ok(String::from_utf8_lossy(&run(&arguments, None)?).into_owned())
}

/// What it calls itself: `nftables v1.0.6 (Lester Gooch #5)`.
pub(crate) fn version() -> Result<String> {
    Ok(String::from_utf8_lossy(&run(&["--version"], None)?).trim().to_owned())
}

fn run(arguments: &[&str], input: Option<&str>) -> Result<Vec<u8>> {
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| Error::ToolMissing { tool: "nft", package: "nftables", source })?;
    // nft reads all of its input before it writes, so this cannot block on a full pipe of its output.
    let written = match (child.stdin.take(), input) {
        (Some(mut pipe), Some(text)) => pipe.write_all(text.as_bytes()),
        _ => Ok(()),
    };
    let Output { status, stdout, stderr } =
        child.wait_with_output().map_err(Error::kernel("wait for nft"))?;
    if !status.success() {
        let command = format!("nft {}", arguments.join(" "));
        return Err(Error::Tool { command, stderr: String::from_utf8_lossy(&stderr).trim().to_owned() });
    }
    written.map_err(Error::kernel("write rules to nft"))?;
    Ok(stdout)
}

/// A ruleset in a form that two of them can be compared in: the objects of each chain, set or map in their order,
/// without handles; elements of sets in no order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ruleset(BTreeMap<String, Vec<Value>>);

/// A chain, set or table that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Difference {
    pub(crate) object: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Ruleset {
    /// The calling thread's namespace's tables that `belongs` (given family and name) picks.
    pub(crate) fn read(belongs: impl Fn(&str, &str) -> bool) -> Result<Self> {
        let mut ruleset = Self::default();
        for object in list(&["ruleset"])? {
            ruleset.add(object, &belongs);
        }
        Ok(ruleset)
    }

    /// Without one object, as "set inet mvm_1a2b3c switched".
    pub(crate) fn without(self, object: &str) -> Self {
        self.without_all(|found| found == object)
    }

    /// Without the objects that are picked.
    pub(crate) fn without_all(mut self, picked: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|object, _| !picked(object));
        self
    }

    /// Whether there is such an object.
    pub(crate) fn has(&self, object: &str) -> bool {
        self.0.contains_key(object)
    }

    /// Only the tables that `belongs` picks.
    pub(crate) fn keep(&self, belongs: impl Fn(&str, &str) -> bool) -> Self {
        let picked = |key: &str| {
            let mut words = key.split(' ').skip(1);
            belongs(words.next().unwrap_or_default(), words.next().unwrap_or_default())
        };
        Self(
            self.0
                .iter()
                .filter(|(key, _)| picked(key))
                .map(|(key, objects)| (key.clone(), objects.clone()))
                .collect(),
        )
    }

    fn add(&mut self, object: Value, belongs: impl Fn(&str, &str) -> bool) {
        let Value::Object(wrapper) = object else { return };
        for (kind, mut body) in wrapper {
            let text = |key: &str| body.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let family = text("family");
            let (table, name) = match kind.as_str() {
                "table" => (text("name"), String::new()),
                "rule" => (text("table"), text("chain")),
                _ => (text("table"), text("name")),
            };
            if !belongs(&family, &table) {
                continue;
            }
            let kind_of_key = if kind == "rule" { "chain" } else { &kind };
            let key = format!("{kind_of_key} {family} {table} {name}").trim_end().to_owned();
            if has_timeouts(&body) {
                // Its elements come and go.
                body.as_object_mut().map(|fields| fields.remove("elem"));
            }
            normalise(&mut body);
            self.0.entry(key).or_default().push(body);
        }
    }

    /// What differs from `expected`.
    pub(crate) fn differences(&self, expected: &Self) -> Vec<Difference> {
        let mut keys: Vec<&String> = self.0.keys().chain(expected.0.keys()).collect();
        keys.sort();
        keys.dedup();
        keys.into_iter()
            .filter(|key| self.0.get(*key) != expected.0.get(*key))
            .map(|key| {
                let (expected, found) = first_difference(expected.0.get(key), self.0.get(key));
                Difference { object: key.clone(), expected, found }
            })
            .collect()
    }
}

fn first_difference(expected: Option<&Vec<Value>>, found: Option<&Vec<Value>>) -> (String, String) {
    let nothing = || "nothing".to_owned();
    let (Some(expected), Some(found)) = (expected, found) else {
        let present = |side: Option<&Vec<Value>>| side.map_or_else(nothing, |_| "present".to_owned());
        return (present(expected), present(found));
    };
    let at = (0..expected.len().max(found.len())).find(|i| expected.get(*i) != found.get(*i)).unwrap_or(0);
    let text = |side: &[Value]| side.get(at).map_or_else(nothing, ToString::to_string);
    (text(expected), text(found))
}

/// Whether a set's elements have a time after which they are gone. Versions of nft write one flag as a text or as a list.
fn has_timeouts(set: &Value) -> bool {
    match set.get("flags") {
        Some(Value::String(flag)) => flag == "timeout",
        Some(Value::Array(flags)) => flags.iter().any(|flag| flag == "timeout"),
        _ => false,
    }
}

fn normalise(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("handle");
            for (key, field) in fields.iter_mut() {
                normalise(field);
                if let (true, Value::Array(elements)) = (key == "elem", field) {
                    elements.sort_by_cached_key(ToString::to_string);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(normalise),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ruleset(objects: &[Value]) -> Ruleset {
        let mut ruleset = Ruleset::default();
        for object in objects {
            ruleset.add(object.clone(), |family, table| (family, table) == ("ip", "mvm"));
        }
        ruleset
    }

    fn rule(handle: u32, expression: &str) -> Value {
        json!({"rule": {"family": "ip", "table": "mvm", "chain": "c", "handle": handle, "expr": [expression]}})
    }

    #[test]
    fn handles_and_the_order_of_elements_do_not_matter() {
        let set = |elements: &[&str]| json!({"set": {"family": "ip", "table": "mvm", "name": "s", "elem": elements}});
        let one = ruleset(&[rule(1, "a"), set(&["x", "y"])]);
        let two = ruleset(&[set(&["y", "x"]), rule(9, "a")]);
        assert_eq!(one.differences(&two), []);
    }

    #[test]
    fn elements_that_come_and_go_do_not_matter() {
        let set = |flags: Value, elements: &[&str]| json!({"set": {"family": "ip", "table": "mvm", "name": "s", "flags": flags, "elem": elements}});
        let timed = |elements| ruleset(&[set(json!(["timeout"]), elements)]);
        assert_eq!(timed(&["x"]).differences(&timed(&[])), []);
        let kept = |elements| ruleset(&[set(json!("interval"), elements)]);
        assert_eq!(kept(&["x"]).differences(&kept(&[])).len(), 1);
    }

    #[test]
    fn the_order_of_rules_matters_and_others_tables_do_not() {
        let one = ruleset(&[rule(1, "a"), rule(2, "b")]);
        let two =
            ruleset(&[rule(1, "b"), rule(2, "a"), json!({"table": {"family": "ip", "name": "docker"}})]);
        let differences = two.differences(&one);
        assert_eq!(differences.len(), 1);
        assert_eq!(differences[0].object, "chain ip mvm c");
        assert!(differences[0].expected.contains("\"a\"") && differences[0].found.contains("\"b\""));
        assert_eq!(ruleset(&[]).differences(&one)[0].found, "nothing");
    }
}
