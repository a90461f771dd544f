//! Port 52: what the host asks, and the answers.

use std::sync::Arc;
use std::time::Duration;

use mvm_protocol::control::{GuestReply, GuestRequest, Phase};
use mvm_protocol::frame::{self, FrameError};
use mvm_protocol::{PROTOCOL_VERSION, Stream};

use super::{copy, exec, forward, logs, session};
use crate::error::Result;
use crate::machine::Machine;

/// Answers the requests of one stream, one after another.
pub(super) async fn serve(mut stream: Stream, machine: &Arc<Machine>) {
    loop {
        let reply = match frame::read::<GuestRequest, _>(&mut stream).await {
            Ok(Some(GuestRequest::Exec { command, environment, user, terminal })) => {
                match exec::start(machine, exec::Program { command, environment, user, terminal }) {
                    Ok(running) => return started(stream, |stream| running.serve(stream)).await,
                    Err(failure) => error(failure),
                }
            }
            Ok(Some(GuestRequest::Logs { service, follow, since_ms, tail, after })) => {
                let wanted = logs::Wanted { service, follow, since_ms, tail, after };
                match logs::start(machine, wanted) {
                    Ok(logs) => return started(stream, |stream| logs.serve(stream)).await,
                    Err(failure) => error(failure),
                }
            }
            Ok(Some(GuestRequest::Copy { path, direction })) => {
                match blocking(move || Ok(copy::start(&path, direction))).await {
                    Ok(Ok(copy)) => return started(stream, |stream| copy.serve(stream)).await,
                    Ok(Err(refused)) => error(refused),
                    Err(failure) => error(failure),
                }
            }
            Ok(Some(GuestRequest::Forward { port })) => match forward::connect(port, forward::PATIENCE).await
            {
                Ok(server) => return started(stream, |stream| forward::serve(stream, server)).await,
                Err(failure) => error(failure),
            },
            Ok(Some(GuestRequest::Shutdown { grace_secs })) => {
                // The answer goes first: there may be nobody to send it afterwards.
                let _ = frame::write(&mut stream, &GuestReply::ShuttingDown).await;
                machine.shut_down(Duration::from_secs(grace_secs.into()));
                return session::say_goodbye(&mut stream).await;
            }
            Ok(Some(request)) => answer(request, machine).await,
            Ok(None) => return session::say_goodbye(&mut stream).await,
            Err(unknown @ FrameError::Message(_)) => error(unknown),
            Err(_) => return,
        };
        if frame::write(&mut stream, &reply).await.is_err() {
            return;
        }
    }
}

fn error(reason: impl ToString) -> GuestReply {
    GuestReply::Error { message: reason.to_string() }
}

/// Says that records follow, and lets them.
async fn started<F: Future<Output = ()>>(mut stream: Stream, records: impl FnOnce(Stream) -> F) {
    if frame::write(&mut stream, &GuestReply::Started).await.is_ok() {
        records(stream).await;
    }
}

async fn answer(request: GuestRequest, machine: &Arc<Machine>) -> GuestReply {
    try_answer(request, machine).await.unwrap_or_else(error)
}

async fn try_answer(request: GuestRequest, machine: &Arc<Machine>) -> Result<GuestReply> {
    Ok(match request {
        GuestRequest::Hello { .. } => hello(machine),
        GuestRequest::Prewarm => match machine.prewarm().await? {
            Ok(()) => GuestReply::Prewarmed { success: true, detail: String::new() },
            Err(failure) => GuestReply::Prewarmed { success: false, detail: failure.to_string() },
        },
        GuestRequest::Personalize { generation, identity, clock, seed } => {
            let machine = Arc::clone(machine);
            blocking(move || machine.personalize(generation, identity, clock, &seed)).await?
        }
        GuestRequest::Update { config, secrets } => {
            let machine = Arc::clone(machine);
            blocking(move || machine.update(config, secrets)).await?;
            GuestReply::Updated
        }
        GuestRequest::Wake { generation, cancelled } => {
            match machine.wake(generation, cancelled.unwrap_or(false)).await? {
                Ok(()) => GuestReply::WakeAck { success: true, detail: String::new() },
                Err(detail) => GuestReply::WakeAck { success: false, detail },
            }
        }
        GuestRequest::SleepPrep { drain_timeout_secs } => {
            let (machine, drain) = (Arc::clone(machine), Duration::from_secs(drain_timeout_secs.into()));
            // To its end even if the session ends before: whoever is suspended must be known here.
            let prepared = tokio::spawn(async move { machine.prepare_sleep(drain).await }).await;
            prepared.unwrap_or_else(error)
        }
        GuestRequest::AdjustClock { clock } => {
            GuestReply::ClockAdjusted { offset_micros: machine.devices.adjust_clock(clock)? }
        }
        GuestRequest::WorkerStatus => machine.worker_status().await,
        GuestRequest::IntegrationStatus => {
            GuestReply::IntegrationStatusReport { integrations: machine.integrations().await }
        }
        GuestRequest::CheckpointIntegrations { integrations } => machine.checkpoint(&integrations).await,
        GuestRequest::Ping => GuestReply::Pong,
        GuestRequest::Exec { .. }
        | GuestRequest::Logs { .. }
        | GuestRequest::Copy { .. }
        | GuestRequest::Forward { .. }
        | GuestRequest::Shutdown { .. } => {
            error("this request ends its stream's requests and is answered there")
        }
    })
}

/// Does what may block on a thread of its own, to its end even if the session ends before.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|ended| Err(crate::error::Failure::new("serving a request", ended)))
}

fn hello(machine: &Machine) -> GuestReply {
    let (generation, instance_id) = machine.who();
    GuestReply::Hello {
        protocol: PROTOCOL_VERSION,
        guest_version: env!("CARGO_PKG_VERSION").to_owned(),
        phase: if instance_id.is_some() { Phase::Personalized } else { Phase::Booted },
        instance_id,
        generation,
    }
}
