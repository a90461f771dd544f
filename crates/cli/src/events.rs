//! `mvm events`

use clap::Args;
use mvm_model::TenantId;
use mvm_protocol::api::AuditEntry;

use crate::clock;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::{self, Output, table};

/// What happened to a tenant: its audit log, newest last
#[derive(Debug, Args)]
pub struct Events {
    /// The tenant
    tenant: TenantId,
    /// Go on with what happens from now on, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

impl Events {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let path = format!("/v1/events/{}", self.tenant);
        if self.follow {
            return self.follow(connection, &path).await;
        }
        let mut entries: Vec<AuditEntry> = connection.agent().await?.get(&path).await?;
        entries.sort_by_key(|entry| entry.seq);
        self.output.show(&entries, |entries| listing(entries))?;
        Ok(0)
    }

    async fn follow(&self, connection: &Connection, path: &str) -> Result<u8, Failure> {
        let client = connection.agent().await?;
        let mut entries = client.text(&format!("{path}/follow")).await?;
        loop {
            let entry = tokio::select! {
                entry = entries.next::<AuditEntry>() => entry?,
                () = output::nobody_reads() => return Ok(0),
            };
            let Some(entry) = entry else { return Ok(0) };
            self.output.show_next(&entry, |entry| {
                let AuditEntry { at_ms, subject, kind, detail, .. } = entry;
                format!("{}  {subject}  {kind}  {detail}", clock::utc_ms(*at_ms))
            })?;
        }
    }
}

fn listing(entries: &[AuditEntry]) -> String {
    let rows = entries.iter().map(|entry| {
        let AuditEntry { seq, at_ms, subject, kind, detail, .. } = entry;
        [seq.into(), clock::utc_ms(*at_ms).into(), subject.into(), kind.into(), detail.into()]
    });
    table(["SEQ", "TIME", "SUBJECT", "EVENT", "DETAIL"], rows, "no events")
}
