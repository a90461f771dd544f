//! The one path up, the same for every launch: hello, personalize, confirmed, update, link up, ready.
//!
//! It fails closed (rule S6): without the guest's word there are no secrets, no link, and the machine is not running.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use mvm_kill_point::{KillPoint, reached};
use mvm_model::Role;
use mvm_protocol::PROTOCOL_VERSION;
use mvm_protocol::SecretBytes;
use mvm_protocol::control::{
    Clock, ConfigFiles, GuestReply, GuestRequest, Identity, MAX_UPDATE, MachineConfig,
};
use tokio::net::UnixStream;

use super::ActError;
use super::task::{Task, failed};
use crate::hostbound;
use crate::session::{Conversation, Session};
use crate::store::now_millis;
use crate::users;

/// How long a kernel may take to boot; emulated and on a busy host.
const BOOT: Duration = Duration::from_secs(90);
/// How long a guest that is up may take for an answer that needs no work.
pub(super) const ANSWER: Duration = Duration::from_secs(20);
/// How long services may take to be ready, beyond what their recipe allows them.
const READY: Duration = Duration::from_secs(180);

/// A guest that has confirmed who it is.
pub(super) struct Confirmed {
    session: Session,
    guest: Conversation,
    /// When it had.
    pub(super) confirmed: Instant,
}

impl Task {
    /// Connects to the machine's control channel, whose VMM holds it open already.
    pub(super) async fn connect(&self) -> Result<UnixStream, ActError> {
        let path = self.agent.hands.control_socket(self.row.id);
        UnixStream::connect(&path).await.map_err(|e| failed(format!("its control channel: {e}")))
    }

    /// Opens a session with a machine that is up.
    pub(super) async fn open_session(&self) -> Result<Session, ActError> {
        let channel = self.connect().await?;
        self.begin_session(channel).await
    }

    async fn begin_session(&self, channel: UnixStream) -> Result<Session, ActError> {
        let path = self.agent.hands.control_socket(self.row.id);
        let on_stream = hostbound::serve_all(self.agent.clone(), self.row.id, self.row.place.clone());
        let opening = Session::open(channel, path, on_stream);
        match tokio::time::timeout(BOOT, opening).await {
            Ok(opened) => {
                opened.map_err(|e| failed(format!("its guest's control session did not begin: {e}")))
            }
            Err(_) => Err(failed(format!("its guest did not answer within {} s", BOOT.as_secs()))),
        }
    }

    /// From a launched VMM to a guest that has said who it is; tests know the moment by `at_confirmed`.
    pub(super) async fn confirm(
        &mut self,
        channel: UnixStream,
        at_confirmed: KillPoint,
    ) -> Result<Confirmed, ActError> {
        let session = self.begin_session(channel).await?;
        let mut guest = session.converse().await.map_err(failed)?;
        self.step("session");
        check_hello(&mut guest).await?;
        self.step("hello");
        self.personalize(&mut guest).await?;
        let confirmed = Instant::now();
        self.step("confirmed");
        reached(at_confirmed);
        Ok(Confirmed { session, guest, confirmed })
    }

    /// From there to a ready machine.
    pub(super) async fn get_ready(&mut self, up: Confirmed) -> Result<(), ActError> {
        let Confirmed { session, mut guest, .. } = up;
        // Both at once: the guest goes from one to the other without waiting for the host.
        guest.say(&self.update_message().await?).await.map_err(failed)?;
        let wake = GuestRequest::Wake { generation: self.row.generation, cancelled: None };
        guest.say(&wake).await.map_err(failed)?;
        hear_updated(&mut guest).await?;
        self.step("updated");
        self.agent.hands.set_link(self.row.id, true).await.map_err(failed)?;
        self.step("link up");
        // Whoever wants to see what its services say need not wait until they are ready.
        self.set_session(Some(session));
        require_ready(guest.hear("Wake", self.ready_limit().await).await.map_err(failed)?)?;
        self.step("ready");
        Ok(())
    }

    /// How long a guest may take to answer Wake: for as long as the recipe of what was launched allows its services to start.
    /// One whose recipe cannot be read any more has its memory all the same, and is given what others have at least.
    pub(super) async fn ready_limit(&self) -> Duration {
        let Some(launched) = &self.row.launched else { return READY };
        match self.agent.hands.services(launched.revision.clone()).await {
            Ok(services) => READY + Duration::from_secs(services.start_seconds().into()),
            Err(error) => {
                tracing::warn!(instance = %self.row.address(), %error, "what its recipe allows is not known");
                READY
            }
        }
    }

    /// Gives a guest that has confirmed who it is its config and secrets.
    pub(super) async fn update(&self, guest: &mut Conversation) -> Result<(), ActError> {
        guest.say(&self.update_message().await?).await.map_err(failed)?;
        hear_updated(guest).await
    }

    /// Says how far an act is, for whoever wants to know what takes how long.
    pub(super) fn step(&self, step: &'static str) {
        tracing::debug!(instance = %self.row.id, step);
    }

    /// S5, S6: who it is, what time it is, fresh entropy; fails unless the guest confirms.
    pub(super) async fn personalize(&self, guest: &mut Conversation) -> Result<(), ActError> {
        let generation = self.row.generation;
        let request = GuestRequest::Personalize {
            generation,
            identity: Some(self.identity()),
            clock: Clock { unix_nanos: now_millis() * 1_000_000 },
            seed: SecretBytes::new(crate::seal::random::<64>().map_err(failed)?.to_vec()),
        };
        match guest.ask(&request, "Personalize", ANSWER).await.map_err(failed)? {
            GuestReply::Personalized { generation: taken, seed_credited: true, identity_applied: true }
                if taken == generation =>
            {
                Ok(())
            }
            other => Err(failed(format!("its guest did not confirm who it is: {other:?}"))),
        }
    }

    fn identity(&self) -> Identity {
        let place = &self.row.place;
        let data_mib = self.row.launched.as_ref().map_or(0, |l| l.resources.data_disk_mib);
        Identity {
            instance_id: self.row.id,
            pool_id: place.pool.clone(),
            tenant_id: place.tenant.clone(),
            hostname: format!("{}-{}", place.pool, &self.row.id.to_string()[2..]),
            machine_id: place.machine_id.clone(),
            mac: self.tenant.net_id.mac(place.offset),
            ip: self.ip,
            prefix_len: self.tenant.subnet.prefix_len(),
            gateway: self.tenant.subnet.bridge_ip(),
            has_data: data_mib > 0,
        }
    }

    /// Config and secrets as they are wanted now.
    pub(super) async fn update_message(&self) -> Result<GuestRequest, ActError> {
        let pool = self.pool().await?;
        let secrets = self.agent.secrets_of(&self.tenant.id, &pool, self.row.id).await.map_err(failed)?;
        let config = self.config_files(&pool).await?;
        let bytes: usize = config.values().map(String::len).sum::<usize>()
            + secrets.values().flat_map(BTreeMap::values).map(|value| value.expose().len()).sum::<usize>();
        if bytes > MAX_UPDATE {
            return Err(failed(format!(
                "config and secrets of pool {} are {bytes} bytes together; the limit is {MAX_UPDATE}",
                pool.id
            )));
        }
        Ok(GuestRequest::Update { config: Some(config), secrets: Some(secrets) })
    }

    async fn config_files(&self, pool: &mvm_model::PoolSpec) -> Result<ConfigFiles, ActError> {
        let resources = self.row.launched.as_ref().map_or(pool.resources, |l| l.resources);
        // Only gateways are told of what may be another by now; of a tenant's subnet, which workers are, that is not so.
        let tenant = match pool.role {
            Role::Gateway => Some(self.agent.tenant(&self.tenant.id).await.map_err(failed)?),
            _ => None,
        };
        let openclaw = match (&tenant, pool.role) {
            (Some(tenant), _) => users::told_to_gateway(&self.agent, tenant).await.map_err(failed)?,
            (None, Role::CapabilityOpenclaw) => {
                users::told_to_worker(&self.agent, &self.tenant, self.row.id).await.map_err(failed)?
            }
            (None, _) => None,
        };
        let config = MachineConfig {
            instance_id: self.row.id,
            pool_id: pool.id.clone(),
            tenant_id: self.tenant.id.clone(),
            role: pool.role,
            guest_ip: self.ip,
            vcpus: resources.vcpus,
            mem_mib: resources.mem_mib,
            min_runtime_policy: pool.runtime_policy.clone(),
            integrations: Vec::new(),
            openclaw,
        };
        let mut files = ConfigFiles::new();
        files.insert("config.json".into(), serde_json::to_string_pretty(&config).map_err(failed)?);
        if let Some(tenant) = tenant {
            files.insert("routes.json".into(), serde_json::to_string_pretty(&tenant.routes).map_err(failed)?);
        }
        Ok(files)
    }
}

async fn hear_updated(guest: &mut Conversation) -> Result<(), ActError> {
    match guest.hear("Update", ANSWER).await.map_err(failed)? {
        GuestReply::Updated => Ok(()),
        _ => Err(failed("the guest's answer to Update makes no sense")),
    }
}

/// A machine runs only once its guest says that its services are ready.
pub(super) fn require_ready(answer: GuestReply) -> Result<(), ActError> {
    match answer {
        GuestReply::WakeAck { success: true, .. } => Ok(()),
        GuestReply::WakeAck { detail, .. } => Err(failed(format!("its services are not ready: {detail}"))),
        _ => Err(failed("the guest's answer to Wake makes no sense")),
    }
}

async fn check_hello(guest: &mut Conversation) -> Result<(), ActError> {
    let hello = GuestRequest::Hello { protocol: PROTOCOL_VERSION };
    match guest.ask(&hello, "Hello", ANSWER).await.map_err(failed)? {
        GuestReply::Hello { protocol: PROTOCOL_VERSION, .. } => Ok(()),
        GuestReply::Hello { protocol, guest_version, .. } => Err(failed(format!(
            "its guest (mvm-guest {guest_version}) speaks version {protocol} of the control protocol, this agent version \
             {PROTOCOL_VERSION}: a cold start takes the guest of this version"
        ))),
        _ => Err(failed("the guest's answer to Hello makes no sense")),
    }
}
