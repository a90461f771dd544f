//! What runs in the machine.

pub mod account;
mod backoff;
pub mod children;
mod gateway_service;
mod log;
mod output;
mod ready;
pub mod supervisor;
mod unit;
