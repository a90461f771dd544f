//! The tables. A change is a further step at the end of [`migrations`], never an edit of an earlier one.

use rusqlite_migration::{M, Migrations};

/// Every step from an empty file to this version.
pub fn migrations() -> Migrations<'static> {
    Migrations::new(vec![
        M::up(FIRST_LIGHT),
        M::up(CLONES),
        M::up(DOOMED_POOLS),
        M::up(USERS),
        M::up(TIMERS),
        M::up(SECRETS_FROM_FILES),
        M::up(ACCOUNTS),
    ])
}

const FIRST_LIGHT: &str = "
CREATE TABLE tenants (
    id TEXT PRIMARY KEY,
    net_id INTEGER NOT NULL UNIQUE,
    subnet TEXT NOT NULL UNIQUE,
    uplink TEXT NOT NULL UNIQUE,
    quotas TEXT NOT NULL,
    routes TEXT NOT NULL,
    publish TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    -- Being destroyed: finished when the agent starts again.
    doomed INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE pools (
    tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    id TEXT NOT NULL,
    spec TEXT NOT NULL,
    revision TEXT NOT NULL,
    PRIMARY KEY (tenant, id)
) STRICT;

CREATE TABLE instances (
    id INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    pool TEXT NOT NULL,
    -- Offset of its address in the tenant's subnet; held from create to destroy.
    offset INTEGER NOT NULL,
    -- Uid of its VMM; unique on the node.
    uid INTEGER NOT NULL UNIQUE,
    machine_id TEXT NOT NULL,
    state TEXT NOT NULL,
    since INTEGER NOT NULL,
    -- What it is to become without anyone asking again: where new ones begin, what a policy wants.
    goal TEXT,
    generation INTEGER NOT NULL DEFAULT 0,
    -- Raised before every launch: a snapshot of an older epoch fits no more.
    disk_epoch INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    -- What its VMM was launched with: revision, resources. Kept for the wake that must match it.
    launched TEXT,
    -- Its VMM's process, while there is one.
    process TEXT,
    -- Its snapshot, while there is one that was not consumed.
    snapshot TEXT,
    last_start TEXT,
    -- The act that was begun and not finished.
    intent TEXT,
    FOREIGN KEY (tenant, pool) REFERENCES pools (tenant, id) ON DELETE CASCADE,
    UNIQUE (tenant, offset)
) STRICT;

CREATE TABLE secrets (
    tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    sealed BLOB NOT NULL,
    PRIMARY KEY (tenant, scope, key)
) STRICT;

CREATE TABLE tenant_keys (
    tenant TEXT PRIMARY KEY REFERENCES tenants (id) ON DELETE CASCADE,
    wrapped BLOB NOT NULL
) STRICT;

CREATE TABLE audit (
    tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    subject TEXT NOT NULL,
    kind TEXT NOT NULL,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL,
    PRIMARY KEY (tenant, seq)
) STRICT;
";

const CLONES: &str = "
-- What machines begin from: memory and device state of one that was nobody yet.
CREATE TABLE bases (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    pool TEXT NOT NULL,
    revision TEXT NOT NULL,
    shape TEXT NOT NULL,
    memory_bytes INTEGER NOT NULL,
    made_at INTEGER NOT NULL,
    FOREIGN KEY (tenant, pool) REFERENCES pools (tenant, id) ON DELETE CASCADE
) STRICT;

-- Every revision that a pool has had, in order: what a rollback goes back to.
CREATE TABLE revisions (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    tenant TEXT NOT NULL,
    pool TEXT NOT NULL,
    revision TEXT NOT NULL,
    since INTEGER NOT NULL,
    FOREIGN KEY (tenant, pool) REFERENCES pools (tenant, id) ON DELETE CASCADE
) STRICT;

INSERT INTO revisions (tenant, pool, revision, since) SELECT tenant, id, revision, unixepoch() FROM pools;
";

const DOOMED_POOLS: &str = "
-- Being destroyed: finished when the agent starts again.
ALTER TABLE pools ADD COLUMN doomed INTEGER NOT NULL DEFAULT 0;
";

const USERS: &str = "
ALTER TABLE tenants ADD COLUMN endpoints TEXT NOT NULL DEFAULT '{}';

CREATE TABLE users (
    tenant TEXT NOT NULL REFERENCES tenants (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    telegram INTEGER,
    monthly_limit_cents INTEGER,
    -- Their worker, until it is destroyed.
    instance INTEGER UNIQUE REFERENCES instances (id) ON DELETE SET NULL,
    -- Of the code of a one-time link, of which only whoever is to open it has more.
    code_sha256 TEXT,
    code_expires_at INTEGER,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, name),
    UNIQUE (tenant, telegram)
) STRICT;
";

const TIMERS: &str = "
-- When its workload wants to be woken, in seconds since 1970, as it said when it last fell asleep.
ALTER TABLE instances ADD COLUMN wake_at INTEGER;
";

const SECRETS_FROM_FILES: &str = "
-- When its value was last another, in seconds since 1970; not known of those that are older than this column.
ALTER TABLE secrets ADD COLUMN set_at INTEGER;
-- The file that it was read from, by whoever gave it: what a rotation reads again.
ALTER TABLE secrets ADD COLUMN file TEXT;
";

const ACCOUNTS: &str = "
-- As whom its service knows whoever has this value; none where nobody has asked. Another value has another, or none.
ALTER TABLE secrets ADD COLUMN account TEXT;
";

#[cfg(test)]
mod tests {
    #[test]
    fn the_steps_are_sound() {
        super::migrations().validate().unwrap();
    }
}
