//! Where things are in a machine.

/// This program, for services.
pub const PROGRAM: &str = "/run/mvm/mvm-guest";
/// The memory-backed folder of config and secrets.
pub const DRIVES: &str = "/run/mvm/drives";
/// Where config is found.
pub const CONFIG: &str = "/etc/mvm-config";
/// Where secrets are found.
pub const SECRETS: &str = "/run/secrets";
/// The services' logs.
pub const LOGS: &str = "/run/mvm/log";
/// The way to the host, port 53.
pub const HOST_SOCKET: &str = "/run/mvm/host.sock";
/// The data disk.
pub const DATA_DEVICE: &str = "/dev/vdb";
/// Where the data disk is mounted.
pub const DATA: &str = "/data";
