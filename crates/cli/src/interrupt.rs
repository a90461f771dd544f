//! Signals that end a command.

use tokio::signal::unix::{SignalKind, signal};

use crate::failure::Failure;

/// Waits for a signal that ends the command; its number.
///
/// # Errors
/// Where signals cannot be watched for.
pub async fn signaled() -> Result<u8, Failure> {
    let watch = |kind| signal(kind).map_err(|error| Failure::io("cannot watch for signals", error));
    let (mut interrupt, mut terminate) = (watch(SignalKind::interrupt())?, watch(SignalKind::terminate())?);
    Ok(tokio::select! {
        _ = interrupt.recv() => 2,
        _ = terminate.recv() => 15,
    })
}
