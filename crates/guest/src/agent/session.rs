//! One session: its streams, each served by a task that ends with it.

use std::sync::Arc;
use std::time::Duration;

use mvm_protocol::control::GuestReply;
use mvm_protocol::mux::{self, Side};
use mvm_protocol::{Port, Stream, frame};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::channel::SessionChannel;
use super::requests;
use crate::machine::Machine;

/// How long a stream that was refused may take to go away.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves a session until it ends. Dropped, it takes all its streams with it.
pub(super) async fn serve(channel: SessionChannel, machine: Arc<Machine>) {
    let (mux, mut incoming, driver) = mux::start(channel, Side::Guest);
    let mut tasks = JoinSet::new();
    tasks.spawn(driver);
    let _announced = machine.host.announce(mux);
    loop {
        tokio::select! {
            stream = incoming.accept() => match stream {
                Some(stream) => { tasks.spawn(serve_stream(stream, Arc::clone(&machine))); }
                None => return,
            },
            Some(_) = tasks.join_next() => {}
        }
    }
}

async fn serve_stream(mut stream: Stream, machine: Arc<Machine>) {
    let Some(_slot) = machine.streams.take_for_host() else {
        let message = "too many streams are open on this machine: try again later".to_owned();
        refuse(stream, message).await;
        return;
    };
    match mux::read_port(&mut stream).await {
        Ok(Some(Port::Guest)) => requests::serve(stream, &machine).await,
        Ok(_) => refuse(stream, format!("a machine listens on port {} only", Port::Guest.number())).await,
        Err(_) => {}
    }
}

async fn refuse(mut stream: Stream, message: String) {
    if frame::write(&mut stream, &GuestReply::Error { message }).await.is_ok() {
        let _ = tokio::time::timeout(FAREWELL, say_goodbye(&mut stream)).await;
    }
}

/// Closes a stream and waits until the other side did, so that the last bytes are not lost to a reset.
pub(super) async fn say_goodbye(stream: &mut Stream) {
    let mut ignored = [0; 1024];
    if stream.shutdown().await.is_ok() {
        while stream.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
    }
}
