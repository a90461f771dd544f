//! `mvm instance stats`

use std::str::FromStr;

use clap::Args;
use mvm_model::InvalidId;
use mvm_protocol::api::InstanceStats;

use crate::address::{InstanceAddress, InvalidPoolAddress, Owner};
use crate::clock;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::{Output, table};
use crate::view;

/// Show what machines take of the host: memory, CPU, disk
///
/// MEMORY counts what a VMM shares with others by its share (PSS), RESIDENT in full. CPU% is in percent of one core,
/// over the half second that the command measures for; CPU is the time since its VMM started. DISK and SNAPSHOT are
/// what is really taken of the host's disk.
#[derive(Debug, Args)]
pub struct Stats {
    /// Only this tenant's, pool's or instance's, as alice, alice/workers or alice/workers/i-0000002a
    address: Option<Which>,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

/// Whose.
#[derive(Debug, Clone)]
enum Which {
    Owner(Owner),
    Instance(InstanceAddress),
}

/// What is neither.
#[derive(Debug, thiserror::Error)]
enum InvalidWhich {
    #[error(transparent)]
    Owner(#[from] InvalidPoolAddress),
    #[error(transparent)]
    Instance(#[from] InvalidId),
}

impl FromStr for Which {
    type Err = InvalidWhich;
    fn from_str(text: &str) -> Result<Self, InvalidWhich> {
        match text.matches('/').count() {
            0 | 1 => Ok(Which::Owner(text.parse()?)),
            _ => Ok(Which::Instance(text.parse()?)),
        }
    }
}

impl Stats {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let path = match self.address {
            None => "/v1/stats".to_owned(),
            Some(Which::Owner(owner)) => format!("/v1/stats{}", owner.query()),
            Some(Which::Instance(instance)) => format!("{}/stats", instance.path()),
        };
        let stats: Vec<InstanceStats> = connection.agent().await?.get(&path).await?;
        self.output.show(&stats, |stats| listing(stats))?;
        Ok(0)
    }
}

fn listing(stats: &[InstanceStats]) -> String {
    let absent = || "-".to_owned();
    let rows = stats.iter().map(|one| {
        [
            InstanceAddress::of(&one.tenant, &one.pool, one.id).into(),
            view::state_cell(one.state, None),
            one.proportional_bytes.map_or_else(absent, view::bytes).into(),
            one.resident_bytes.map_or_else(absent, view::bytes).into(),
            one.cpu_percent.map_or_else(absent, |percent| format!("{percent:.0}%")).into(),
            one.cpu_seconds.map_or_else(absent, view::seconds).into(),
            one.uptime_seconds.map_or_else(absent, |seconds| clock::age(seconds, 0)).into(),
            view::bytes(one.data_disk_bytes).into(),
            view::bytes(one.snapshot_bytes).into(),
        ]
    });
    let headings = ["INSTANCE", "STATE", "MEMORY", "RESIDENT", "CPU%", "CPU", "UPTIME", "DISK", "SNAPSHOT"];
    table(headings, rows, "no instances")
}

#[cfg(test)]
mod tests {
    use mvm_model::{InstanceId, InstanceState};

    use super::*;

    #[test]
    fn what_only_a_vmm_has_is_absent_without_one() {
        let sleeping = InstanceStats {
            tenant: "alice".parse().unwrap(),
            pool: "workers".parse().unwrap(),
            id: InstanceId::new(0x2a),
            state: InstanceState::Sleeping,
            pid: None,
            mem_mib: 256,
            resident_bytes: None,
            proportional_bytes: None,
            cpu_seconds: None,
            cpu_percent: None,
            uptime_seconds: None,
            data_disk_bytes: 1 << 20,
            snapshot_bytes: 512 << 10,
        };
        let running = InstanceStats {
            state: InstanceState::Running,
            pid: Some(7),
            resident_bytes: Some(90 << 20),
            proportional_bytes: Some(60 << 20),
            cpu_seconds: Some(2.345),
            cpu_percent: Some(101.6),
            uptime_seconds: Some(125),
            snapshot_bytes: 0,
            ..sleeping.clone()
        };
        let expected = "\
INSTANCE                  STATE     MEMORY     RESIDENT   CPU%  CPU    UPTIME  DISK      SNAPSHOT
alice/workers/i-0000002a  running   60.00 MiB  90.00 MiB  102%  2.3 s  2m      1.00 MiB  0 B
alice/workers/i-0000002a  sleeping  -          -          -     -      -       1.00 MiB  512.00 KiB";
        assert_eq!(listing(&[running, sleeping]), expected);
    }

    #[test]
    fn one_part_is_a_tenant_two_are_a_pool_three_an_instance() {
        assert!(matches!("alice".parse(), Ok(Which::Owner(_))));
        assert!(matches!("alice/workers".parse(), Ok(Which::Owner(_))));
        assert!(matches!("alice/workers/i-00".parse(), Ok(Which::Instance(_))));
        assert!("alice/workers/bob".parse::<Which>().is_err());
        assert!("Alice".parse::<Which>().is_err());
    }
}
