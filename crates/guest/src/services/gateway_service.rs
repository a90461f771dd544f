//! The service that every gateway has, whatever its image.

use std::fs;
use std::path::Path;

use mvm_model::service::Service;

/// Its name, and its command after the program.
pub const NAME: &str = "gateway";

/// Made by the gateway when it listens.
const READY: &str = "/run/mvm/gateway.ready";

/// The service itself.
pub fn service() -> Service {
    Service {
        name: NAME.to_owned(),
        command: vec!["mvm-guest".to_owned(), NAME.to_owned()],
        user: None,
        environment: Default::default(),
        secret_scopes: Vec::new(),
        env_from_secrets: Vec::new(),
        ready: None,
        adapter: None,
    }
}

/// Removes the sign of an earlier run.
pub fn forget_earlier_run() {
    // Mostly there is none.
    let _ = fs::remove_file(READY);
}

/// Whether it listens on every port of its routes.
///
/// # Errors
/// It does not yet.
pub fn listens() -> Result<(), String> {
    if Path::new(READY).exists() { Ok(()) } else { Err("it does not listen yet".to_owned()) }
}
