//! What the agent knows, durably: SQLite in WAL mode with `synchronous=FULL` and one writer.
//!
//! Whatever was acknowledged is committed here first. Intents are written before acts, so that an agent that died in
//! the middle of one knows what to finish or undo.

mod audit;
mod bases;
mod instances;
mod schema;
mod secrets;
mod tenants;
mod users;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub use audit::{Audit, entries, first_broken, recent_entries};
pub use bases::{BaseRow, bases, forget_revision, has_base, latest_revisions, remove_base};
pub use instances::{
    Goal, InstanceRow, Intent, NewInstance, Place, Recorded, Upgrade, count_instances, instance, instances,
    remove_instance, uids,
};
pub use secrets::{SealedRow, bot, replace_secrets, save_tenant_key, secrets, tenant_key};
pub use tenants::{PoolRow, TenantRow, pool, pools, remove_pool, remove_tenant, tenant, tenants};
pub use users::{UserRow, user, users};

/// The store could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database's own failure.
    #[error("the store {path}: {source}", path = .path.display())]
    Database {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// Its schema is not one of this version.
    #[error("the store {path} cannot be brought to this version's schema: {source}; is it of a newer mvm?", path = .path.display())]
    Schema {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: rusqlite_migration::Error,
    },
}

/// What a transaction of the store gives.
pub type Sql<T> = rusqlite::Result<T>;

/// How a store's schema is to this version's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Age {
    /// It would be converted.
    Older,
    /// It is the same.
    Same,
    /// It cannot be used.
    Newer,
}

/// Looks at a store that is there, without changing it.
///
/// # Errors
/// Where the file cannot be read, or is none.
pub fn age(path: &Path) -> Result<Age, StoreError> {
    let database = |source| StoreError::Database { path: path.to_owned(), source };
    let connection =
        Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(database)?;
    let pending = schema::migrations().pending_migrations(&connection);
    let pending = pending.map_err(|source| StoreError::Schema { path: path.to_owned(), source })?;
    Ok(match pending {
        1.. => Age::Older,
        0 => Age::Same,
        _ => Age::Newer,
    })
}

/// The store. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Store {
    connection: Arc<Mutex<Connection>>,
    path: PathBuf,
}

impl Store {
    /// Opens the store, making it where it is missing and bringing its schema up to date.
    ///
    /// # Errors
    /// [`StoreError`] where the file is no store of this version or older.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = |source| StoreError::Database { path: path.to_owned(), source };
        let mut connection = Connection::open(path).map_err(database)?;
        connection.pragma_update(None, "journal_mode", "WAL").map_err(database)?;
        connection.pragma_update(None, "synchronous", "FULL").map_err(database)?;
        connection.pragma_update(None, "foreign_keys", "ON").map_err(database)?;
        // Secrets are sealed before they come here; their sealed bytes go too when they are deleted.
        connection.pragma_update(None, "secure_delete", "ON").map_err(database)?;
        schema::migrations()
            .to_latest(&mut connection)
            .map_err(|source| StoreError::Schema { path: path.to_owned(), source })?;
        Ok(Self { connection: Arc::new(Mutex::new(connection)), path: path.to_owned() })
    }

    /// Runs `act` in one transaction and commits it durably.
    ///
    /// # Errors
    /// Whatever `act` or the commit fails with; nothing is changed then.
    pub async fn write<T, F>(&self, act: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Sql<T> + Send + 'static,
    {
        self.blocking(move |connection| {
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = act(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
        .await
    }

    /// Reads a consistent view.
    ///
    /// # Errors
    /// The database's own.
    pub async fn read<T, F>(&self, look: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Sql<T> + Send + 'static,
    {
        self.blocking(move |connection| look(&connection.transaction()?)).await
    }

    /// Empties the journal into the database. What was deleted is in neither then: the database overwrites it, the journal
    /// would keep it until it is full.
    ///
    /// # Errors
    /// The database's own.
    pub async fn empty_journal(&self) -> Result<(), StoreError> {
        self.blocking(|connection| connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())))
            .await
    }

    async fn blocking<T, F>(&self, act: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Sql<T> + Send + 'static,
    {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || act(&mut store.lock())).await;
        // A panic inside would be a defect here; it is passed on, not hidden as a failure of the database.
        let result = done.unwrap_or_else(|join| std::panic::resume_unwind(join.into_panic()));
        result.map_err(|source| StoreError::Database { path: self.path.clone(), source })
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        // A transaction that panicked was rolled back when it was dropped: the connection is sound.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A column that holds JSON.
fn to_json<T: serde::Serialize>(value: &T) -> Sql<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(e.into()))
}

/// A column that holds JSON.
fn from_json<T: serde::de::DeserializeOwned>(row: &rusqlite::Row<'_>, column: &str) -> Sql<T> {
    parse_column(row, column, |text| serde_json::from_str(text).map_err(Into::into))
}

/// A column that holds the text of a value.
fn from_text<T>(row: &rusqlite::Row<'_>, column: &str) -> Sql<T>
where
    T: std::str::FromStr,
    T::Err: std::error::Error + Send + Sync + 'static,
{
    parse_column(row, column, |text| text.parse().map_err(|e: T::Err| e.into()))
}

type Parsed<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

fn parse_column<T>(row: &rusqlite::Row<'_>, column: &str, parse: impl Fn(&str) -> Parsed<T>) -> Sql<T> {
    let index = row.as_ref().column_index(column)?;
    let text: String = row.get(index)?;
    parse(&text)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(index, rusqlite::types::Type::Text, error))
}

/// Seconds since 1970, by the host's clock.
pub fn now_secs() -> u64 {
    now_millis() / 1000
}

/// Milliseconds since 1970, by the host's clock.
pub fn now_millis() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let now = since.map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
    now.saturating_sub(clock_behind())
}

/// By how much the agent takes the host's clock to be ahead of the time: so tests put machines to sleep in the past.
#[cfg(debug_assertions)]
fn clock_behind() -> u64 {
    static BEHIND: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    let read = || std::env::var("MVM_CLOCK_BEHIND_SECONDS").ok().and_then(|text| text.parse::<u64>().ok());
    *BEHIND.get_or_init(|| read().unwrap_or(0) * 1000)
}

/// A release takes the host's clock as it is.
#[cfg(not(debug_assertions))]
fn clock_behind() -> u64 {
    0
}
