//! The nouns of mvm and their rules: ids, roles, states, quotas, routes, manifests. No I/O.
//!
//! | module | holds |
//! |---|---|
//! | [`id`] | typed ids and the addresses people write: `alice/workers/i-0000002a` |
//! | [`network`] | network numbers, subnets, MAC and interface names, derived from one another |
//! | [`role`] | what a pool's machines are for |
//! | [`state`] | the one table that decides every change of an instance's state |
//! | [`policy`] | restart and runtime policies |
//! | [`quota`] | what a tenant may use |
//! | [`egress`] | what a pool may reach |
//! | [`routes`] | how a gateway finds the machine a message is for |
//! | [`served`] | people, and services outside |
//! | [`service`] | what runs in a machine |
//! | [`pool`] | a pool's desired shape |
//! | [`openclaw`] | names of OpenClaw's secrets |
//! | [`requirement`] | what mvm needs of a host |
//! | [`manifest`] | `deployment.toml`, parsed with the place of every mistake |

pub mod egress;
pub mod id;
pub mod manifest;
pub mod network;
pub mod openclaw;
pub mod policy;
pub mod pool;
pub mod quota;
pub mod requirement;
pub mod role;
pub mod routes;
pub mod served;
pub mod service;
pub mod state;

pub use egress::{Destination, Egress, EgressRule, HostName};
pub use id::{InstanceId, InstanceRef, InvalidId, PoolId, TenantId, UserName};
pub use network::{MacAddr, NetId, TenantSubnet};
pub use policy::{RestartPolicy, RuntimePolicy};
pub use pool::{DesiredCounts, PoolSpec, Profile, Resources, SecretScope, SnapshotCompression};
pub use quota::Quotas;
pub use requirement::Requirement;
pub use role::Role;
pub use routes::{InstanceSelector, Route, RoutingTable};
pub use served::{Endpoints, ServiceUrl, TelegramId, User};
pub use state::{InstanceState, Operation};
