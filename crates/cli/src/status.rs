//! `mvm status`: a page about one deployment, or about the node.

use clap::Args;
use comfy_table::{Cell, Color};
use mvm_model::TenantId;
use mvm_protocol::api::{
    DeploymentLine, LastMessage, MachineStatus, NodeStatus, PoolStatus, PortStatus, StartReport,
    TenantStatus, Trouble, Wakes,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::clock;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::node::{folder, memory};
use crate::output::{Output, properties, table};
use crate::screen;
use crate::view::{by_state, counted, list, state_cell};

/// A page about one deployment, or about the node: what runs, what happened last, what is wrong and what helps
///
/// Starts no agent.
#[derive(Debug, Args)]
pub struct Status {
    /// The tenant; without it, the node
    tenant: Option<TenantId>,
    /// Keep it on the screen, drawn anew every second, until q or Ctrl-C
    #[arg(short, long)]
    watch: bool,
    /// How to write the result; with --watch every second
    #[command(flatten)]
    output: Output,
}

impl Status {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        match &self.tenant {
            Some(tenant) => self.show(connection, &format!("/v1/status/{tenant}"), of_tenant).await,
            None => self.show(connection, "/v1/status", of_node).await,
        }
    }

    async fn show<T: Serialize + DeserializeOwned>(
        &self,
        connection: &Connection,
        path: &str,
        people: fn(&T) -> String,
    ) -> Result<u8, Failure> {
        let client = connection.client();
        let status: T = client.get(path).await?;
        if self.watch {
            screen::watch(&client, path, status, self.output, people).await?;
        } else {
            self.output.show(&status, people)?;
        }
        Ok(0)
    }
}

fn of_tenant(status: &TenantStatus) -> String {
    let now = clock::now();
    let TenantStatus { summary, ports, pool_status, machines, last_message, wakes, troubles } = status;
    let head = properties([
        ("tenant", Some(summary.id.to_string())),
        ("network", Some(format!("{} (net {})", summary.subnet, summary.net_id))),
        ("published", Some(list(ports.iter().map(port)))),
        ("machines", Some(by_state(&summary.instances))),
        (
            "last message",
            Some(last_message.as_ref().map_or("none that is known".to_owned(), |m| message(now, m))),
        ),
        ("wakes", Some(wakes_in_words(now, wakes))),
    ]);
    let pools = pool_status.iter().map(|pool| {
        let PoolStatus { summary, desired } = pool;
        [
            summary.id.to_string().into(),
            summary.role.into(),
            summary.image.clone().into(),
            by_state(&summary.instances).into(),
            desired.total().into(),
        ]
    });
    let pools = table(["POOL", "ROLE", "IMAGE", "MACHINES", "WANTED"], pools, "no pools");
    let machines = machines.iter().map(|machine| line(now, machine));
    let headings = ["MACHINE", "STATE", "SINCE", "IP", "HOLDS", "LAST MESSAGE", "LAST START", "NEXT WAKE"];
    let machines = table(headings, machines, "no machines");
    format!("{head}\n\n{pools}\n\n{machines}\n\n{}", wrong(troubles))
}

fn port(port: &PortStatus) -> String {
    let PortStatus { publish, open } = port;
    let closed = if *open { "" } else { " (not open)" };
    format!("{}:{} → {}:{}{closed}", publish.bind, publish.port, publish.pool, publish.target_port)
}

fn message(now: u64, LastMessage { instance, at_ms }: &LastMessage) -> String {
    format!("{} ago, to {instance}", clock::age(now, at_ms / 1000))
}

fn wakes_in_words(now: u64, wakes: &Wakes) -> String {
    let cold = match wakes.cold {
        0 => String::new(),
        cold => format!("; {cold} more had to start cold"),
    };
    let (Some(last), Some(median), Some(slowest)) = (wakes.last_ms, wakes.median_ms, wakes.slowest_ms) else {
        return format!("none in the last 24 hours{cold}");
    };
    format!(
        "{} in the last 24 hours, {} of them for messages; {median:.0} ms in the middle, {slowest:.0} ms at most; the last \
         {} ago{cold}",
        wakes.count,
        wakes.for_messages,
        clock::age(now, last / 1000)
    )
}

fn line(now: u64, machine: &MachineStatus) -> [Cell; 8] {
    let MachineStatus { summary, holds, last_start, last_message_ms, wake_at, .. } = machine;
    let since = |at: u64| format!("{} ago", clock::age(now, at));
    [
        format!("{}/{}", summary.pool, summary.id).into(),
        state_cell(summary.state, summary.act.as_deref()),
        clock::age(now, summary.since).into(),
        summary.ip.into(),
        holds.into(),
        last_message_ms.map_or("-".to_owned(), |at| since(at / 1000)).into(),
        last_start.as_ref().map_or("-".to_owned(), start).into(),
        wake_at.map_or("-".to_owned(), |at| format!("in {}", clock::age(at, now))).into(),
    ]
}

fn start(report: &StartReport) -> String {
    format!("{} in {:.0} ms", report.how, report.total_ms)
}

fn of_node(status: &NodeStatus) -> String {
    let now = clock::now();
    let NodeStatus { node, started_at, deployments, troubles } = status;
    let head = properties([
        ("node", Some(node.host.clone())),
        ("agent", Some(format!("version {} since {}", node.version, clock::age(now, *started_at)))),
        ("engine", Some(node.engine.clone())),
        ("memory", Some(memory(node.memory_bytes, node.available_bytes))),
        ("disk", Some(folder(&node.data_dir))),
        ("machines", Some(by_state(&node.instances))),
    ]);
    let rows = deployments.iter().map(|line| {
        let DeploymentLine { tenant, instances, last_message_ms, troubles } = line;
        let troubled = match troubles {
            0 => "nothing".into(),
            count => Cell::new(counted(*count, "thing")).fg(Color::Red),
        };
        let message =
            last_message_ms.map_or("-".to_owned(), |at| format!("{} ago", clock::age(now, at / 1000)));
        [tenant.into(), by_state(instances).into(), message.into(), troubled]
    });
    let nothing = "no tenants: `mvm deploy deployment.toml` makes one";
    let tenants = table(["TENANT", "MACHINES", "LAST MESSAGE", "WRONG"], rows, nothing);
    let more = match deployments.iter().find(|line| line.troubles > 0) {
        Some(line) => format!("\n`mvm status {}` says what is wrong there", line.tenant),
        None => String::new(),
    };
    format!("{head}\n\n{tenants}\n\n{}{more}", wrong(troubles))
}

fn wrong(troubles: &[Trouble]) -> String {
    let rows = troubles.iter().map(|Trouble { what, remedy }| [format!("{what}\n→ {remedy}").into()]);
    table(["WRONG"], rows, "nothing is wrong")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wakes_are_told_in_one_sentence() {
        let mut wakes = Wakes::default();
        assert_eq!(wakes_in_words(100, &wakes), "none in the last 24 hours");
        wakes.cold = 1;
        assert_eq!(wakes_in_words(100, &wakes), "none in the last 24 hours; 1 more had to start cold");
        wakes = Wakes {
            count: 3,
            for_messages: 2,
            cold: 0,
            median_ms: Some(92.6),
            slowest_ms: Some(180.0),
            last_ms: Some(88_000),
        };
        let expected = "3 in the last 24 hours, 2 of them for messages; 93 ms in the middle, 180 ms at most; the last 12s ago";
        assert_eq!(wakes_in_words(100, &wakes), expected);
    }

    #[test]
    fn what_is_wrong_comes_with_what_helps() {
        assert_eq!(wrong(&[]), "nothing is wrong");
        let trouble =
            Trouble { what: "a/w/i-1 has failed".into(), remedy: "`mvm instance start a/w/i-1`".into() };
        assert_eq!(wrong(&[trouble]), "WRONG\na/w/i-1 has failed\n→ `mvm instance start a/w/i-1`");
    }
}
