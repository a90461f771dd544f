//! What a person does with a machine every day, on real ones.

#![allow(clippy::unwrap_used)]

#[path = "daily/backup.rs"]
mod backup;

#[path = "daily/commands.rs"]
mod commands;

#[path = "daily/completions.rs"]
mod completions;

#[path = "daily/copy.rs"]
mod copy;

#[path = "daily/deploy.rs"]
mod deploy;

#[path = "daily/destroy.rs"]
mod destroy;

#[path = "daily/doctor.rs"]
mod doctor;

#[path = "daily/events.rs"]
mod events;

#[path = "daily/forward.rs"]
mod forward;

#[path = "daily/gateway.rs"]
mod gateway;

#[path = "daily/idle.rs"]
mod idle;

#[path = "daily/json.rs"]
mod json;

#[path = "daily/logs.rs"]
mod logs;

#[path = "daily/package.rs"]
mod package;

#[path = "daily/reboot.rs"]
mod reboot;

#[path = "daily/secrets.rs"]
mod secrets;

#[path = "daily/service.rs"]
mod service;

#[path = "daily/shell.rs"]
mod shell;

#[path = "daily/status.rs"]
mod status;

#[path = "daily/upgrade.rs"]
mod upgrade;

#[path = "daily/upgrade_pool.rs"]
mod upgrade_pool;
