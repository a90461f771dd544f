//! One append-only log per tenant; each entry names the hash of the one before.

use mvm_model::TenantId;
use mvm_protocol::api::AuditEntry;
use rusqlite::{OptionalExtension, Transaction, params};
use sha2::{Digest, Sha256};

use super::{Sql, now_millis};

/// An entry to be.
#[derive(Debug, Clone)]
pub struct Audit {
    /// What it is about, as an address.
    pub subject: String,
    /// What happened: `InstanceStarted`.
    pub kind: &'static str,
    /// In words.
    pub detail: String,
}

impl Audit {
    /// An entry about something.
    pub fn new(subject: impl ToString, kind: &'static str, detail: impl Into<String>) -> Self {
        Self { subject: subject.to_string(), kind, detail: detail.into() }
    }

    /// Appends it to the tenant's log.
    pub fn append(&self, tx: &Transaction<'_>, tenant: &TenantId) -> Sql<()> {
        let last: Option<(u64, String)> = tx
            .prepare_cached("SELECT seq, hash FROM audit WHERE tenant = ?1 ORDER BY seq DESC LIMIT 1")?
            .query_row([tenant.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let (last_seq, last_hash) = last.unwrap_or_default();
        let mut entry = AuditEntry {
            seq: last_seq + 1,
            at_ms: now_millis(),
            subject: self.subject.clone(),
            kind: self.kind.to_owned(),
            detail: self.detail.clone(),
            hash: String::new(),
        };
        entry.hash = hash(&last_hash, &entry);
        tx.prepare_cached(
            "INSERT INTO audit (tenant, seq, at_ms, subject, kind, detail, hash) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
        )?
        .execute(params![
            tenant.as_str(),
            entry.seq,
            entry.at_ms,
            entry.subject,
            entry.kind,
            entry.detail,
            entry.hash
        ])?;
        Ok(())
    }
}

/// A tenant's log after an entry, oldest first; the whole log after 0.
pub fn entries(tx: &Transaction<'_>, tenant: &TenantId, after: u64) -> Sql<Vec<AuditEntry>> {
    tx.prepare_cached(
        "SELECT seq, at_ms, subject, kind, detail, hash FROM audit WHERE tenant = ?1 AND seq > ?2 ORDER BY seq",
    )?
    .query_map((tenant.as_str(), after), entry)?
    .collect()
}

/// What of some kinds happened since a time, in milliseconds since 1970, oldest first.
pub fn recent_entries(
    tx: &Transaction<'_>,
    tenant: &TenantId,
    kinds: &[&str],
    since_ms: u64,
) -> Sql<Vec<AuditEntry>> {
    // From the end: what is older is not even read.
    let mut statement = tx.prepare_cached(
        "SELECT seq, at_ms, subject, kind, detail, hash FROM audit WHERE tenant = ?1 ORDER BY seq DESC",
    )?;
    let mut recent = Vec::new();
    for found in statement.query_map([tenant.as_str()], entry)? {
        let found = found?;
        if found.at_ms < since_ms {
            break;
        }
        if kinds.contains(&found.kind.as_str()) {
            recent.push(found);
        }
    }
    recent.reverse();
    Ok(recent)
}

fn entry(row: &rusqlite::Row<'_>) -> Sql<AuditEntry> {
    Ok(AuditEntry {
        seq: row.get(0)?,
        at_ms: row.get(1)?,
        subject: row.get(2)?,
        kind: row.get(3)?,
        detail: row.get(4)?,
        hash: row.get(5)?,
    })
}

/// SHA-256 over the hash before and every field, each with its length so that no two entries look alike.
fn hash(before: &str, entry: &AuditEntry) -> String {
    let mut digest = Sha256::new();
    let numbers = [entry.seq.to_string(), entry.at_ms.to_string()];
    for field in [before, &numbers[0], &numbers[1], &entry.subject, &entry.kind, &entry.detail] {
        digest.update((field.len() as u64).to_be_bytes());
        digest.update(field.as_bytes());
    }
    hex::encode(digest.finalize())
}

/// Whether every entry names the one before; the first that does not, otherwise.
pub fn first_broken(entries: &[AuditEntry]) -> Option<u64> {
    let mut before = String::new();
    for (index, entry) in entries.iter().enumerate() {
        if entry.seq != index as u64 + 1 || entry.hash != hash(&before, entry) {
            return Some(entry.seq);
        }
        before.clone_from(&entry.hash);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(details: &[&str]) -> Vec<AuditEntry> {
        let mut before = String::new();
        let mut entries = Vec::new();
        for (index, detail) in details.iter().enumerate() {
            let mut entry = AuditEntry {
                seq: index as u64 + 1,
                at_ms: 7,
                subject: "a".into(),
                kind: "K".into(),
                detail: (*detail).into(),
                hash: String::new(),
            };
            entry.hash = hash(&before, &entry);
            before.clone_from(&entry.hash);
            entries.push(entry);
        }
        entries
    }

    #[test]
    fn a_changed_or_missing_entry_breaks_the_chain() {
        let entries = chain(&["one", "two", "three"]);
        assert_eq!(first_broken(&entries), None);
        let mut changed = entries.clone();
        changed[1].detail = "2".into();
        assert_eq!(first_broken(&changed), Some(2));
        let mut missing = entries;
        missing.remove(1);
        assert_eq!(first_broken(&missing), Some(3));
    }
}
