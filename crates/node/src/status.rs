//! What a status says beyond what listings do: wakes and messages, out of the audit log, and what is wrong.

use std::collections::HashMap;

use mvm_host::Finding;
use mvm_model::{InstanceState, RestartPolicy};
use mvm_protocol::api::{AuditEntry, Folder, MachineStatus, PoolStatus, PortStatus, Trouble, Wakes};

use crate::machine::{Asker, CameUp};
use crate::usage::Memory;

/// How far back wakes are counted, in milliseconds.
pub const DAY_MS: u64 = 24 * 60 * 60 * 1000;
/// Entries that [`Recent`] reads something out of.
pub const KINDS: [&str; 4] = ["InstanceWoken", "InstanceStarted", "InstanceResumed", "WakeRefused"];
/// Free space below which images and snapshots cannot be expected to fit.
const LITTLE_DISK: u64 = 1 << 30;

/// What the audit log says of a day.
#[derive(Debug, Default, PartialEq)]
pub struct Recent {
    /// Wakes from sleep.
    pub wakes: Wakes,
    /// When a message last made a machine run, by its address.
    pub messages: HashMap<String, u64>,
}

impl Recent {
    /// Reads entries of [`KINDS`], oldest first.
    pub fn read(entries: &[AuditEntry]) -> Self {
        let mut recent = Self::default();
        let mut times = Vec::new();
        for entry in entries {
            let came_up = CameUp::parse(&entry.detail);
            let asker = came_up.as_ref().map(|came_up| came_up.asker);
            if asker == Some(Asker::Message) || entry.detail == Asker::Message.purpose() {
                recent.messages.insert(entry.subject.clone(), entry.at_ms);
            }
            match entry.kind.as_str() {
                "InstanceWoken" => {
                    recent.wakes.count += 1;
                    recent.wakes.for_messages += usize::from(asker == Some(Asker::Message));
                    recent.wakes.last_ms = Some(entry.at_ms);
                    times.extend(came_up.map(|came_up| came_up.ms));
                }
                "WakeRefused" => recent.wakes.cold += 1,
                _ => {}
            }
        }
        times.sort_by(f64::total_cmp);
        recent.wakes.median_ms = times.get(times.len().saturating_sub(1) / 2).copied();
        recent.wakes.slowest_ms = times.last().copied();
        recent
    }
}

/// A pool, for what may be wrong with it.
pub struct Pool<'a> {
    /// What is shown of it.
    pub status: &'a PoolStatus,
    /// Whether its machines come back by themselves.
    pub restart: RestartPolicy,
    /// Whether messages are for it: by a published port or a route.
    pub gets_messages: bool,
}

/// What is wrong with a tenant.
pub fn of_tenant(pools: &[Pool<'_>], machines: &[MachineStatus], ports: &[PortStatus]) -> Vec<Trouble> {
    let closed = ports.iter().filter(|port| !port.open).map(|port| Trouble {
        what: format!(
            "{}:{} is not published: something else listens there",
            port.publish.bind, port.publish.port
        ),
        remedy: "`ss -ltnp` names it; end it, then restart the agent (`mvm agent stop`; machines run on)"
            .to_owned(),
    });
    let of_pools = pools.iter().flat_map(|pool| of_pool(pool, machines));
    closed.chain(of_pools).collect()
}

fn of_pool(pool: &Pool<'_>, machines: &[MachineStatus]) -> Vec<Trouble> {
    let summary = &pool.status.summary;
    let address = format!("{}/{}", summary.tenant, summary.id);
    let own: Vec<&MachineStatus> =
        machines.iter().filter(|machine| machine.summary.pool == summary.id).collect();
    let mut troubles: Vec<Trouble> =
        own.iter().filter_map(|machine| of_machine(machine, pool.restart)).collect();
    let wanted = pool.status.desired.total() as usize;
    if own.len() < wanted {
        troubles.push(Trouble {
            what: format!("{address} has {} of the {wanted} instances that are wanted", own.len()),
            remedy: "deploy the manifest again, or `mvm pool scale`, to create the others".to_owned(),
        });
    }
    let all_stopped = own.iter().all(|machine| machine.summary.state == InstanceState::Stopped);
    if pool.gets_messages && !own.is_empty() && all_stopped {
        troubles.push(Trouble {
            what: format!("messages to {address} are refused: all of its machines were stopped"),
            remedy: format!("`mvm instance start {}`", address_of(own[0])),
        });
    }
    troubles
}

fn of_machine(machine: &MachineStatus, restart: RestartPolicy) -> Option<Trouble> {
    let address = address_of(machine);
    let reason = machine.reason.as_deref();
    match machine.summary.state {
        InstanceState::Failed => {
            let again = match restart {
                RestartPolicy::OnFailure => "it is started again by itself; ",
                RestartPolicy::OnDemand => "the next message starts it, and so does ",
                RestartPolicy::Never => "",
            };
            Some(Trouble {
                what: format!("{address} has failed: {}", reason.unwrap_or("nobody knows why")),
                remedy: format!(
                    "{again}`mvm instance start {address}`; `mvm instance logs {address}` says more"
                ),
            })
        }
        // Where it was to run and was not let.
        InstanceState::Created | InstanceState::Ready => reason.map(|reason| Trouble {
            what: format!("{address} does not run: {reason}"),
            remedy: format!("when that is mended: `mvm instance start {address}`"),
        }),
        _ => None,
    }
}

fn address_of(machine: &MachineStatus) -> String {
    let summary = &machine.summary;
    format!("{}/{}/{}", summary.tenant, summary.pool, summary.id)
}

/// A finding about a network as a trouble.
pub fn of_network(finding: Finding) -> Trouble {
    let Finding { object, expected, found, remedy } = finding;
    Trouble { what: format!("{object}: {found} in place of {expected}"), remedy }
}

/// What is wrong with the node itself.
pub fn of_node(memory: Memory, shortage: Option<String>, data_dir: &Folder) -> Vec<Trouble> {
    let disk = (data_dir.free_bytes < LITTLE_DISK).then(|| Trouble {
        what: format!(
            "{} MiB are free in {}: sleeps and builds may fail",
            data_dir.free_bytes >> 20,
            data_dir.path
        ),
        remedy: "`mvm node disk` says what takes how much; `mvm pool gc` removes what nothing needs"
            .to_owned(),
    });
    let memory = shortage.map(|shortage| Trouble {
        what: format!("{shortage} ({} MiB in all)", memory.total_mib()),
        remedy: "put machines to sleep: `mvm instance stats` says what each takes".to_owned(),
    });
    disk.into_iter().chain(memory).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(at_ms: u64, subject: &str, kind: &str, detail: &str) -> AuditEntry {
        AuditEntry {
            seq: at_ms,
            at_ms,
            subject: subject.to_owned(),
            kind: kind.to_owned(),
            detail: detail.to_owned(),
            hash: String::new(),
        }
    }

    #[test]
    fn wakes_and_messages_are_read_out_of_the_log() {
        let recent = Recent::read(&[
            entry(1, "a/w/1", "InstanceStarted", "cold boot in 2812 ms, for policy"),
            entry(2, "a/w/1", "InstanceWoken", "wake in 90 ms, for a message"),
            entry(3, "a/w/1", "InstanceWoken", "wake in 70 ms, for a person"),
            entry(4, "a/w/2", "InstanceResumed", "for a message"),
            entry(5, "a/w/2", "WakeRefused", "the snapshot is of another disk"),
            entry(6, "a/w/2", "InstanceStarted", "cold boot in 3000 ms, for a message"),
            entry(7, "a/w/1", "InstanceWoken", "wake in 110 ms, for a person"),
        ]);
        let wakes = Wakes {
            count: 3,
            for_messages: 1,
            cold: 1,
            median_ms: Some(90.0),
            slowest_ms: Some(110.0),
            last_ms: Some(7),
        };
        assert_eq!(recent.wakes, wakes);
        assert_eq!(recent.messages, [("a/w/1".to_owned(), 2), ("a/w/2".to_owned(), 6)].into());
        assert_eq!(Recent::read(&[]).wakes, Wakes::default());
    }

    #[test]
    fn a_full_disk_is_told_with_what_helps() {
        let memory = Memory { total: 8 << 30, available: 5 << 30 };
        let folder = |free| Folder { path: "/d".to_owned(), free_bytes: free, total_bytes: 1 << 40 };
        assert_eq!(of_node(memory, None, &folder(1 << 40)), []);
        let troubles = of_node(memory, Some("the host has 1 MiB".to_owned()), &folder(5 << 20));
        assert_eq!(troubles.len(), 2);
        assert!(
            troubles[0].what.starts_with("5 MiB are free in /d")
                && troubles[0].remedy.contains("mvm pool gc")
        );
    }
}
