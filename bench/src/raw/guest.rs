//! The session with a raw machine's guest: the bytes that mvm sends.

use std::os::unix::net::UnixStream;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mvm_model::{InstanceId, NetId};
use mvm_protocol::control::{Clock, GuestReply, GuestRequest, Identity};
use mvm_protocol::mux::{self, Incoming, Side};
use mvm_protocol::record::{self, Record};
use mvm_protocol::{Mux, PROTOCOL_VERSION, Port, SecretBytes, Stream, frame};
use tokio::io::BufReader;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::Result;

/// How long a guest may take to boot or to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A session; its channel closes when it is dropped.
#[derive(Debug)]
pub struct Session {
    runtime: Handle,
    mux: Mux,
    _incoming: Incoming,
    driver: JoinHandle<()>,
}

impl Session {
    /// Begins one over a connected control channel.
    pub fn begin(runtime: &Handle, control: UnixStream) -> Result<Self> {
        control.set_nonblocking(true)?;
        let begun = runtime.block_on(async {
            let mut channel = BufReader::new(tokio::net::UnixStream::from_std(control)?);
            let beginning = mvm_protocol::session::begin(&mut channel);
            timeout(PATIENCE, beginning)
                .await
                .map_err(|_| std::io::Error::other("the guest does not answer"))??;
            let (mux, incoming, driver) = mux::start(channel, Side::Host);
            Ok::<_, std::io::Error>((mux, incoming, tokio::spawn(driver)))
        });
        let (mux, incoming, driver) = begun?;
        Ok(Self { runtime: runtime.clone(), mux, _incoming: incoming, driver })
    }

    /// Asks who is there.
    pub fn hello(&self) -> Result<()> {
        match self.ask(&GuestRequest::Hello { protocol: PROTOCOL_VERSION })? {
            GuestReply::Hello { .. } => Ok(()),
            other => Err(format!("no answer to Hello but {other:?}").into()),
        }
    }

    /// Makes it a machine; returns with its confirmation.
    pub fn personalize(&self, generation: u64) -> Result<()> {
        let mut seed = vec![0; 64];
        rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty())?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos();
        let request = GuestRequest::Personalize {
            generation,
            identity: Some(identity()?),
            clock: Clock { unix_nanos: u64::try_from(now)? },
            seed: SecretBytes::new(seed),
        };
        match self.ask(&request)? {
            GuestReply::Personalized { seed_credited: true, identity_applied: true, .. } => Ok(()),
            other => Err(format!("no confirmation but {other:?}").into()),
        }
    }

    /// Has it get ready to sleep.
    pub fn prepare_sleep(&self) -> Result<()> {
        match self.ask(&GuestRequest::SleepPrep { drain_timeout_secs: 30 })? {
            GuestReply::SleepPrepAck { success: true, .. } => Ok(()),
            other => Err(format!("it cannot sleep: {other:?}").into()),
        }
    }

    /// Runs a shell command in it, to its end.
    pub fn shell(&self, command: &str) -> Result<()> {
        let command = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
        let request =
            GuestRequest::Exec { command, environment: Default::default(), user: None, terminal: None };
        self.runtime.block_on(async {
            let (reply, mut stream) = self.exchange(&request).await?;
            if reply != GuestReply::Started {
                return Err(format!("a program was not started: {reply:?}").into());
            }
            let mut said = Vec::new();
            loop {
                match record::read(&mut stream).await? {
                    Some(Record::Exit(0)) => return Ok(()),
                    Some(Record::Stdout(bytes) | Record::Stderr(bytes)) => said.extend(bytes),
                    Some(Record::Eof) => {}
                    other => {
                        let said = String::from_utf8_lossy(&said).into_owned();
                        return Err(format!("a program in the guest: {other:?}: {said}").into());
                    }
                }
            }
        })
    }

    fn ask(&self, request: &GuestRequest) -> Result<GuestReply> {
        self.runtime.block_on(async { Ok(timeout(PATIENCE, self.exchange(request)).await??.0) })
    }

    async fn exchange(&self, request: &GuestRequest) -> Result<(GuestReply, Stream)> {
        let mut stream = self.mux.open(Port::Guest).await?;
        frame::write(&mut stream, request).await?;
        let reply = frame::read(&mut stream).await?.ok_or("the guest closed the stream")?;
        Ok((reply, stream))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

fn identity() -> Result<Identity> {
    let net_id = NetId::new(0)?;
    let subnet = net_id.default_subnet();
    Ok(Identity {
        instance_id: InstanceId::new(42),
        pool_id: "bench".parse()?,
        tenant_id: "raw".parse()?,
        hostname: "bench-0000002a".to_owned(),
        machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
        mac: net_id.mac(3),
        ip: subnet.machine_ip(3).ok_or("a subnet has machines")?,
        prefix_len: subnet.prefix_len(),
        gateway: subnet.bridge_ip(),
        has_data: false,
    })
}
