//! How single values look in tables.

use std::collections::BTreeMap;

use comfy_table::{Cell, Color};
use mvm_model::InstanceState;

/// Instances by state: `2 running, 1 sleeping`.
pub fn by_state(instances: &BTreeMap<String, usize>) -> String {
    let counted = instances.iter().filter(|(_, count)| **count > 0);
    let parts: Vec<_> = counted.map(|(state, count)| format!("{count} {state}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

/// A state, and what is being done about it: `sleeping (waking)`.
pub fn state(state: InstanceState, act: Option<&str>) -> String {
    match act {
        Some(act) => format!("{state} ({act})"),
        None => state.to_string(),
    }
}

/// A state in its colour.
pub fn state_cell(now: InstanceState, act: Option<&str>) -> Cell {
    let cell = Cell::new(state(now, act));
    match now {
        _ if act.is_some() => cell.fg(Color::Yellow),
        InstanceState::Running => cell.fg(Color::Green),
        InstanceState::Warm | InstanceState::Sleeping => cell.fg(Color::Blue),
        InstanceState::Failed => cell.fg(Color::Red),
        _ => cell,
    }
}

/// A number of bytes, in binary units.
pub fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

/// A time that something took, to a tenth of a second.
pub fn seconds(time: f64) -> String {
    format!("{time:.1} s")
}

/// `1 pool`, `2 pools`.
pub fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

/// A list on one line, `none` where it is empty.
pub fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<_> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_counted_and_acts_are_named() {
        let instances = [("running", 2), ("failed", 0), ("sleeping", 1)];
        let instances = instances.into_iter().map(|(state, count)| (state.to_owned(), count)).collect();
        assert_eq!(by_state(&instances), "2 running, 1 sleeping");
        assert_eq!(by_state(&BTreeMap::new()), "none");
        assert_eq!(state(InstanceState::Sleeping, Some("waking")), "sleeping (waking)");
    }
}
