//! Port 53: what guests ask of the host. Who asks is known by whose channel it came in on, never by what it says:
//! only a gateway may ask, and only about its own tenant. Everything else is an `Error`, and audited.

use std::sync::Arc;
use std::time::Instant;

use mvm_model::{InstanceId, InstanceSelector, InstanceState, PoolId, Role, TenantId};
use mvm_protocol::control::{Generation, HostReply, HostRequest};
use mvm_protocol::frame::{self, FrameError};
use mvm_protocol::{HOST_STREAMS, MAX_GATEWAY_STREAMS, MAX_STREAMS, Port, Stream, mux};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::agent::Agent;
use crate::denials::Denials;
use crate::machine::{Asker, Lease, Machine, Stay, View};
use crate::session::OnStream;
use crate::store::{Audit, Intent, Place};
use crate::users;

/// Serves every stream that one machine opens.
pub fn serve_all(agent: Arc<Agent>, id: InstanceId, place: Place) -> OnStream {
    // Enough for a gateway; the role decides how many of them a machine may use.
    let gateway = Arc::new(Semaphore::new(MAX_GATEWAY_STREAMS - HOST_STREAMS));
    let other = Arc::new(Semaphore::new(MAX_STREAMS - HOST_STREAMS));
    let denials = Arc::new(Denials::default());
    Arc::new(move |stream| {
        let (agent, denials) = (Arc::clone(&agent), Arc::clone(&denials));
        let asker = Guest { agent, id, place: place.clone(), denials };
        let (gateway, other) = (Arc::clone(&gateway), Arc::clone(&other));
        tokio::spawn(async move {
            let role = asker.role().await;
            let limit = if role == Some(Role::Gateway) { gateway } else { other };
            match limit.try_acquire() {
                Ok(_permit) => asker.serve(role, stream).await,
                Err(_) => refuse(stream, "too many streams at once: try again in a moment").await,
            }
        });
    })
}

async fn refuse(mut stream: Stream, message: &str) {
    // A guest that does not read its refusal has gone, or does not care.
    let _ = frame::write(&mut stream, &HostReply::Error { message: message.to_owned() }).await;
    let _ = stream.shutdown().await;
}

/// The machine that asks.
struct Guest {
    agent: Arc<Agent>,
    id: InstanceId,
    place: Place,
    denials: Arc<Denials>,
}

impl Guest {
    async fn role(&self) -> Option<Role> {
        let pool = self.agent.pool(&self.place.tenant, &self.place.pool).await;
        pool.ok().map(|pool| pool.spec.role)
    }

    fn address(&self) -> String {
        format!("{}/{}/{}", self.place.tenant, self.place.pool, self.id)
    }

    /// Answers requests until the stream ends. A Hold is its stream's last request: the lease lives as long as it.
    async fn serve(&self, role: Option<Role>, mut stream: Stream) {
        if !matches!(mux::read_port(&mut stream).await, Ok(Some(Port::Host))) {
            return;
        }
        loop {
            let request = match frame::read::<HostRequest, _>(&mut stream).await {
                Ok(Some(request)) => request,
                Err(FrameError::Message(error)) => {
                    let reply = HostReply::Error { message: format!("not a request of port 53: {error}") };
                    if frame::write(&mut stream, &reply).await.is_err() {
                        return;
                    }
                    continue;
                }
                // The end, or a bad frame, which is the end of its stream.
                Ok(None) | Err(_) => return,
            };
            let (reply, held) = self.answer(role, request).await;
            if frame::write(&mut stream, &reply).await.is_err() {
                return;
            }
            if let Some((machine, lease)) = held {
                keep_while_open(stream, &machine, lease).await;
                return;
            }
        }
    }

    async fn answer(&self, role: Option<Role>, request: HostRequest) -> (HostReply, Option<Held>) {
        if role != Some(Role::Gateway) {
            return (self.denied("only a gateway may ask on port 53").await, None);
        }
        match request {
            HostRequest::WakeInstance { tenant_id, pool_id, instance_id } => {
                match self.machine(&tenant_id, &pool_id, instance_id).await {
                    Ok(machine) => (wake(&machine).await, None),
                    Err(denied) => (denied, None),
                }
            }
            HostRequest::QueryInstanceStatus { tenant_id, pool_id, instance_id } => {
                match self.machine(&tenant_id, &pool_id, instance_id).await {
                    Ok(machine) => {
                        let status = machine.state().to_string();
                        (HostReply::InstanceStatus { status, guest_ip: machine.ip }, None)
                    }
                    Err(denied) => (denied, None),
                }
            }
            HostRequest::Hold { pool_id, instance_selector, only_if_generation, .. } => {
                self.hold(&pool_id, &instance_selector, only_if_generation).await
            }
            HostRequest::ClaimUser { code, telegram } => {
                let reply = match users::claim(&self.agent, &self.place.tenant, &code, telegram).await {
                    Ok(user) => HostReply::UserClaimed { user: user.into() },
                    Err(message) => HostReply::Error { message },
                };
                (reply, None)
            }
            HostRequest::Keep { .. } => {
                let message = "Keep is said on the stream of a Hold only".to_owned();
                (HostReply::Error { message }, None)
            }
        }
    }

    async fn hold(
        &self,
        pool: &PoolId,
        selector: &InstanceSelector,
        only_if: Option<Generation>,
    ) -> (HostReply, Option<Held>) {
        let error = |message| (HostReply::Error { message }, None);
        let machine = match choose(&self.agent, &self.place.tenant, pool, selector).await {
            Ok(machine) => machine,
            Err(message) => {
                self.audit_if_foreign(|machine| match selector {
                    InstanceSelector::ByInstance(id) => machine.id == *id,
                    InstanceSelector::ByIp(ip) => machine.ip == *ip,
                    _ => false,
                })
                .await;
                return error(message);
            }
        };
        let held = match only_if {
            None => machine.hold().await,
            Some(generation) => machine.hold_again(generation).await,
        };
        match held {
            Ok(lease) => {
                let generation = Some(machine.view().row.generation);
                let reply = HostReply::Held { instance_id: machine.id, guest_ip: machine.ip, generation };
                (reply, Some((machine, lease)))
            }
            Err(refused) => error(refused.to_string()),
        }
    }

    /// The instance that a gateway names, if it is one of its own tenant.
    async fn machine(&self, tenant: &TenantId, pool: &PoolId, id: InstanceId) -> Result<Machine, HostReply> {
        if *tenant != self.place.tenant {
            return Err(self
                .denied(&format!("a gateway of {} asked about {tenant}", self.place.tenant))
                .await);
        }
        match self.agent.machine(id) {
            Some(machine) if machine.place.tenant == *tenant && machine.place.pool == *pool => Ok(machine),
            _ => {
                self.audit_if_foreign(|machine| machine.id == id).await;
                Err(HostReply::Error { message: format!("there is no instance {tenant}/{pool}/{id}") })
            }
        }
    }

    /// Audits a request that named an instance of another tenant. The answer does not say that there is one.
    async fn audit_if_foreign(&self, is_named: impl Fn(&Machine) -> bool) {
        let own = &self.place.tenant;
        if let [machine, ..] = &*self.agent.machines(|m| m.place.tenant != *own && is_named(m)) {
            self.audit(&format!("a gateway of {own} asked about {}", machine.id)).await;
        }
    }

    async fn denied(&self, why: &str) -> HostReply {
        self.audit(why).await;
        HostReply::Error { message: why.to_owned() }
    }

    async fn audit(&self, why: &str) {
        let detail = match self.denials.note(Instant::now()) {
            None => return,
            Some(0) => why.to_owned(),
            Some(skipped) => format!("{why}, after {skipped} more that were not audited"),
        };
        let audit = Audit::new(self.address(), "HostRequestDenied", detail);
        let tenant = self.place.tenant.clone();
        if let Err(error) = self.agent.store.write(move |tx| audit.append(tx, &tenant)).await {
            tracing::error!(%error, "a denied request could not be audited");
        }
    }
}

async fn wake(machine: &Machine) -> HostReply {
    match machine.run(Asker::Message).await {
        Ok(_) => HostReply::WakeResult { success: true, detail: String::new() },
        Err(error) => HostReply::WakeResult { success: false, detail: error.to_string() },
    }
}

/// A machine that is held, and by what.
type Held = (Machine, Lease);

/// Waits for the end of the stream; the lease goes with it, or before where the gateway does not need it. Tells the gateway
/// when the machine is about to leave, and ends the stream when it has.
async fn keep_while_open(stream: Stream, machine: &Machine, lease: Lease) {
    let mut lease = Some(lease);
    let mut run = machine.run_of();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut bytes, mut chunk) = (Vec::new(), [0; 64]);
    loop {
        let told = tokio::select! {
            read = reader.read(&mut chunk) => match read {
                Ok(length @ 1..) => {
                    bytes.extend_from_slice(&chunk[..length]);
                    loop {
                        match frame::take(&mut bytes) {
                            Ok(Some(HostRequest::Keep { running })) => {
                                lease = running.then(|| machine.lease());
                            }
                            // Of a later version.
                            Ok(Some(_)) | Err(FrameError::Message(_)) => {}
                            Ok(None) => break,
                            Err(_) => return,
                        }
                    }
                    continue;
                }
                Ok(0) | Err(_) => return,
            },
            stay = run.changed() => match stay {
                Stay::Stays => continue,
                Stay::Leaving => HostReply::Leaving,
                Stay::Gone => HostReply::Gone,
            },
        };
        if frame::write(&mut writer, &told).await.is_err() || told == HostReply::Gone {
            break;
        }
    }
    drop(lease);
    let _ = writer.shutdown().await;
}

/// The instance of a pool that a message goes to.
///
/// # Errors
/// In words, for whoever sent the message.
pub async fn choose(
    agent: &Agent,
    tenant: &TenantId,
    pool: &PoolId,
    selector: &InstanceSelector,
) -> Result<Machine, String> {
    let spec = agent.pool(tenant, pool).await.map_err(|error| error.to_string())?.spec;
    let of_pool = agent.machines(|m| m.place.tenant == *tenant && m.place.pool == *pool);
    let named = match selector {
        InstanceSelector::Any => {
            return of_pool
                .iter()
                .filter(|machine| machine.wakeable(spec.restart))
                .min_by_key(|machine| rank(&machine.view()))
                .cloned()
                .ok_or_else(|| nobody(tenant, pool, &of_pool));
        }
        InstanceSelector::ByInstance(id) => of_pool.iter().find(|machine| machine.id == *id),
        InstanceSelector::ByIp(ip) => of_pool.iter().find(|machine| machine.ip == *ip),
        InstanceSelector::ByUser(name) => {
            let row = agent.user(tenant, name).await.map_err(|error| error.to_string())?;
            of_pool.iter().find(|machine| Some(machine.id) == row.instance)
        }
        InstanceSelector::LeastConnections => {
            return Err("this instance selector is not supported by this version".to_owned());
        }
    };
    named.cloned().ok_or_else(|| format!("pool {tenant}/{pool} has no such instance"))
}

/// Ties go to the lowest id.
fn rank(view: &View) -> (u8, InstanceId) {
    (preference(view.row.state, view.act), view.row.id)
}

/// Running goes before warm, then comes sleeping. One that is about to leave would come back for the message, or not at all:
/// it is only better than nothing.
fn preference(state: InstanceState, act: Option<Intent>) -> u8 {
    match act {
        Some(Intent::Sleep | Intent::Warm) => 4,
        Some(Intent::Stop | Intent::Restore | Intent::Upgrade | Intent::Destroy) => 6,
        Some(Intent::Start | Intent::Wake | Intent::Resume) | None => match state {
            InstanceState::Running => 0,
            InstanceState::Warm => 1,
            InstanceState::Sleeping => 2,
            InstanceState::Ready => 3,
            _ => 5,
        },
    }
}

fn nobody(tenant: &TenantId, pool: &PoolId, of_pool: &[Machine]) -> String {
    if of_pool.is_empty() {
        return format!("pool {tenant}/{pool} has no instances");
    }
    let states: Vec<String> = of_pool.iter().map(|m| format!("{} is {}", m.id, m.state())).collect();
    format!("no instance of pool {tenant}/{pool} may be started by a message: {}", states.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_goes_to_one_that_stays_where_there_is_one() {
        use InstanceState::{Failed, Ready, Running, Sleeping, Warm};
        let order = [
            (Running, None),
            (Warm, None),
            (Sleeping, None),
            (Ready, None),
            (Running, Some(Intent::Sleep)),
            (Failed, None),
            (Running, Some(Intent::Stop)),
        ];
        assert!(order.is_sorted_by_key(|(state, act)| preference(*state, *act)));
        let leaving = |act| preference(Running, Some(act));
        assert!(leaving(Intent::Warm) > preference(Ready, None));
        assert!(leaving(Intent::Destroy) > preference(Failed, None));
        assert!(leaving(Intent::Restore) > preference(Failed, None));
        assert_eq!(preference(Sleeping, Some(Intent::Wake)), preference(Sleeping, None));
    }
}
