//! The agent: the only writer of all state on a node.
//!
//! | module | holds |
//! |---|---|
//! | [`agent`] | what the parts share, and admission to run |
//! | [`store`] | what is known, durably |
//! | [`machine`] | one task per instance: start, sleep, wake, stop, recovery |
//! | [`bases`] | what machines begin from: made, chosen, collected |
//! | [`policy`] | when a machine is put to sleep by itself |
//! | [`alarms`] | which machines are woken when, for what they plan |
//! | [`spares`] | how many VMMs are started ahead |
//! | [`pools`] | builds, rollbacks and collections of pools' images |
//! | [`scrub`] | reads what is at rest through |
//! | [`session`] | the host's end of a guest's control channel |
//! | [`hostbound`] | port 53: what gateways ask |
//! | [`denials`] | how many of them are audited when they may not be |
//! | [`publish`] | ports of the host that lead to machines |
//! | [`resolver`] | names that machines reach, at each tenant's `.1` |
//! | [`deploy`] | from a manifest to what is there |
//! | [`backup`] | data disks to files and back |
//! | [`create`] | ids, addresses, uids and disks for new instances |
//! | [`scale`] | a pool brought to its counts |
//! | [`status`] | wakes, messages, what is wrong |
//! | [`usage`] | what machines and the node take |
//! | [`destroy`] | the end of tenants and instances |
//! | [`doctor`] | whether this host can have an agent at all |
//! | [`seal`] | secrets at rest |
//! | `systemd` | a socket opened ahead, and word of how the agent is |
//! | [`api`] | HTTP over the agent's Unix socket |

pub mod agent;
pub mod alarms;
pub mod api;
pub mod backup;
pub mod bases;
pub mod create;
pub mod denials;
pub mod deploy;
pub mod destroy;
pub mod doctor;
pub mod hostbound;
pub mod machine;
pub mod policy;
pub mod pools;
pub mod publish;
pub mod resolver;
pub mod scale;
pub mod scrub;
pub mod seal;
pub mod session;
pub mod spares;
pub mod status;
pub mod store;
pub mod usage;
pub mod users;

mod serve;
mod systemd;

pub use agent::Config;
pub use serve::{ServeError, serve};
