//! `mvm instance logs`

use clap::Args;
use jiff::{SignedDuration, Timestamp};
use mvm_protocol::api::LogsRequest;

use crate::address::InstanceAddress;
use crate::connection::Connection;
use crate::exec::{Detached, receive};
use crate::failure::Failure;
use crate::output;

/// Show what its services wrote
///
/// With the name of the service above each one's, and with -f on over restarts, sleeps and starts until Ctrl-C. Reading
/// does not wake a machine, nor keep it awake: of one that sleeps --console shows what the host has. Of one that does not
/// run and has no memory either, the console is shown.
#[derive(Debug, Args)]
pub struct Logs {
    /// The instance, as alice/workers/i-0000002a, alice/workers/i-00, or alice/workers if it has only one
    instance: InstanceAddress,
    /// Go on with what is written from now on, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// Only what was written since: so long ago, as 10m or 2h30m, or a time, as 2026-11-23T21:16:03Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<u64>,
    /// Only so many last lines, of each service
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only this service's
    #[arg(short, long, value_name = "NAME")]
    service: Option<String>,
    /// What kernel and init wrote to the console, which the host keeps, whatever state the machine is in
    #[arg(long, conflicts_with_all = ["service", "since"])]
    console: bool,
}

/// In milliseconds since 1970.
fn since(text: &str) -> Result<u64, String> {
    let time = match (text.parse::<SignedDuration>(), text.parse::<Timestamp>()) {
        (Ok(ago), _) => Timestamp::now().checked_sub(ago.abs()).map_err(|error| error.to_string())?,
        (_, Ok(time)) => time,
        _ => return Err("write how long ago, as 10m, or a time, as 2026-11-23T21:16:03Z".to_owned()),
    };
    Ok(u64::try_from(time.as_millisecond()).unwrap_or(0))
}

impl Logs {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let Self { instance, follow, since, tail, service, console } = self;
        let request = LogsRequest { service, console, follow, since_ms: since, tail };
        let client = connection.agent().await?;
        let (mut stream, _) = client.upgrade(&format!("{}/logs", instance.path()), &request).await?;
        let (mut out, mut err) = (tokio::io::stdout(), tokio::io::stderr());
        tokio::select! {
            code = receive(&mut stream, &mut out, &mut err) => match code {
                Ok(code) => Ok(code),
                // Whoever stops reading (`… | head`) has enough.
                Err(Detached::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(0),
                Err(Detached::Output(error)) => Err(Failure::io("cannot write to standard output", error)),
                Err(Detached::Stream(why)) => Err(client.broken(why)),
            },
            () = output::nobody_reads() => Ok(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_as_people_write_them() {
        let now = u64::try_from(Timestamp::now().as_millisecond()).unwrap();
        for (text, ago) in [("90s", 90), ("10m", 600), ("2h30m", 9000), ("1d", 86_400)] {
            let Ok(time) = since(text) else {
                assert_eq!(text, "1d");
                continue;
            };
            assert!(time.abs_diff(now - ago * 1000) < 60_000, "{text}");
        }
        assert_eq!(since("2026-11-23T21:16:03Z"), Ok(1_795_468_563_000));
        assert_eq!(since("2026-11-23T22:16:03+01:00"), Ok(1_795_468_563_000));
        assert_eq!(since("1970-01-01T00:00:00Z"), Ok(0));
        for wrong in ["", "yesterday", "10", "2026-13-01T00:00:00Z"] {
            assert!(since(wrong).is_err(), "{wrong}");
        }
    }
}
