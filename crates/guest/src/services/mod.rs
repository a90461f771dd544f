//! What runs in the machine.

pub mod account;
mod backoff;
pub mod children;
pub mod control_group;
mod gateway_service;
pub mod log;
pub mod output;
mod ready;
pub mod supervisor;
mod unit;
