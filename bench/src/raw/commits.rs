//! Durable writes like those of mvm's store: one row of about 1 KiB each.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rusqlite::Connection;

use crate::Result;

/// Commits of a clone or wake before the launch: the intent. (Here and below as in crates/node, `machine/start.rs`.)
pub const BEFORE_LAUNCH: u32 = 1;
/// After it: the process.
pub const AFTER_LAUNCH: u32 = 1;
/// Of a wake, before the guest's first instruction: the consumed mark.
pub const BEFORE_RESUME: u32 = 1;
/// Of a sleep, before anything is done: the intent. (`machine/sleep.rs`.)
pub const BEFORE_SLEEP: u32 = 1;
/// And when all is written: the point of no return.
pub const AFTER_SLEEP: u32 = 1;

/// A store.
#[derive(Debug)]
pub struct Commits {
    connection: Mutex<Connection>,
}

impl Commits {
    /// A new one.
    pub fn open(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.execute_batch(
            "CREATE TABLE machines (id INTEGER PRIMARY KEY, row TEXT NOT NULL); INSERT INTO machines VALUES (1, '');",
        )?;
        Ok(Self { connection: Mutex::new(connection) })
    }

    /// So many more.
    pub fn commit(&self, times: u32) -> Result<()> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let mut update = connection.prepare_cached("UPDATE machines SET row = ?1 WHERE id = 1")?;
        for _ in 0..times {
            update.execute(["x".repeat(1024)])?;
        }
        Ok(())
    }
}
