//! People: which worker is whose, who they are to Telegram, and what machines are told of them.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use mvm_model::{InstanceId, TelegramId, TenantId, TenantSubnet, User, UserName};
use mvm_protocol::api::{ApiError, ErrorCode, UserLink};
use mvm_protocol::openclaw::{AssignedWorker, GatewayConfig, OneTimeLink, OpenClaw, Served, WorkerConfig};
use rusqlite::Transaction;
use sha2::{Digest, Sha256};

use crate::agent::{Agent, AgentError};
use crate::deploy;
use crate::store::{self, Audit, InstanceRow, Place, StoreError, TenantRow, UserRow, now_secs};

/// How long a one-time link is valid, in seconds.
const LINK_LASTS: u64 = 24 * 60 * 60;

/// A link's code, which only whoever is to open it may know, and what is kept of it.
pub fn new_link() -> std::io::Result<(String, OneTimeLink)> {
    let code = URL_SAFE_NO_PAD.encode(crate::seal::random::<24>()?);
    let link = OneTimeLink { code_sha256: sha256(&code), expires_at: now_secs() + LINK_LASTS };
    Ok((code, link))
}

fn sha256(code: &str) -> String {
    hex::encode(Sha256::digest(code))
}

/// Who has opened their link is that user, also for who does not say who they are.
pub fn keep_claims(present: &[UserRow], wanted: &mut [User]) {
    for user in wanted.iter_mut().filter(|user| user.telegram.is_none()) {
        let row = present.iter().find(|row| row.user.name == user.name);
        user.telegram = row.and_then(|row| row.user.telegram);
    }
}

/// Of those who are wanted, the first with the id of another, and of whom: those who are there and not wanted stay who they are.
pub fn same_id<'a>(present: &'a [UserRow], wanted: &'a [User]) -> Option<(usize, &'a UserName)> {
    let stay = || {
        let stays = |row: &&UserRow| !wanted.iter().any(|user| user.name == row.user.name);
        present.iter().filter(stays).map(|row| &row.user)
    };
    wanted.iter().enumerate().find_map(|(index, user)| {
        let telegram = user.telegram?;
        let mut others = wanted[..index].iter().chain(stay());
        others.find(|other| other.telegram == Some(telegram)).map(|other| (index, &other.name))
    })
}

/// The rows of everyone who is wanted: those there are stay who they are and keep their worker, others take free ones in
/// their order. Rows that would stay as they are, are left out.
pub fn assign(
    tenant: &TenantId,
    present: &[UserRow],
    wanted: &[User],
    workers: &[InstanceId],
) -> Vec<UserRow> {
    let taken: Vec<InstanceId> = present.iter().filter_map(|row| row.instance).collect();
    let mut free = workers.iter().filter(|id| !taken.contains(id)).copied();
    let mut changed = Vec::new();
    for user in wanted {
        let old = present.iter().find(|row| row.user.name == user.name);
        let mut row = old.cloned().unwrap_or_else(|| UserRow {
            tenant: tenant.clone(),
            user: user.clone(),
            instance: None,
            link: None,
            created_at: now_secs(),
        });
        row.user = user.clone();
        if row.user.telegram.is_some() {
            row.link = None;
        }
        row.instance = row.instance.or_else(|| free.next());
        if old != Some(&row) {
            changed.push(row);
        }
    }
    changed
}

/// What a deployment wants of a tenant's users. What that makes of those who are there is decided in its commit: while images
/// are built people open their links.
#[derive(Debug)]
pub struct Wanted {
    users: Vec<User>,
    workers: Vec<InstanceId>,
    /// One for each, of whom the new ones need theirs.
    links: Vec<(String, OneTimeLink)>,
}

impl Wanted {
    /// These people, and the machines that may be theirs.
    ///
    /// # Errors
    /// Of the random number generator.
    pub fn new(users: Vec<User>, workers: Vec<InstanceId>) -> std::io::Result<Self> {
        let links = users.iter().map(|_| new_link()).collect::<Result<_, _>>()?;
        Ok(Self { users, workers, links })
    }

    /// Makes of those who are there by now what is wanted.
    ///
    /// # Errors
    /// Who was found out meanwhile to have the id that another is to have.
    pub fn decide(mut self, tenant: &TenantId, present: &[UserRow]) -> Result<Decided, UserName> {
        keep_claims(present, &mut self.users);
        if let Some((_, other)) = same_id(present, &self.users) {
            return Err(other.clone());
        }
        let mut rows = assign(tenant, present, &self.users, &self.workers);
        let mut links = Vec::new();
        let is_new = |row: &UserRow| !present.iter().any(|other| other.user.name == row.user.name);
        for row in rows.iter_mut().filter(|row| row.user.telegram.is_none() && is_new(row)) {
            let Some((code, link)) = self.links.pop() else { break };
            let user = row.user.name.clone();
            links.push(UserLink { user, bot: None, code, expires_at: link.expires_at });
            row.link = Some(link);
        }
        Ok(Decided { rows, links })
    }
}

/// What is written of a tenant's users, and the links of new ones of whom nobody knows who they are.
#[derive(Debug)]
pub struct Decided {
    rows: Vec<UserRow>,
    /// Told once.
    pub links: Vec<UserLink>,
}

impl Decided {
    /// Writes them down.
    pub fn save(&self, tx: &Transaction<'_>) -> store::Sql<()> {
        // Two may exchange their ids.
        for row in &self.rows {
            UserRow { user: User { telegram: None, ..row.user.clone() }, ..row.clone() }.save(tx)?;
        }
        self.rows.iter().try_for_each(|row| row.save(tx))
    }
}

/// What comes of someone who opened a link.
#[derive(Debug, PartialEq)]
enum Claim {
    /// They are this user already: it was asked for again, as the first answer was lost.
    Known(UserName),
    /// The link is good, and this user's.
    Good(UserRow),
    Refused,
}

fn judge(users: &[UserRow], telegram: TelegramId, code_sha256: &str, now: u64) -> Claim {
    if let Some(row) = users.iter().find(|row| row.user.telegram == Some(telegram)) {
        return Claim::Known(row.user.name.clone());
    }
    let is_theirs = |row: &&UserRow| {
        row.link.as_ref().is_some_and(|link| link.code_sha256 == code_sha256 && link.expires_at > now)
    };
    users.iter().find(is_theirs).cloned().map_or(Claim::Refused, Claim::Good)
}

/// Makes whoever opened a link the user whose it is. Every code is good once.
///
/// # Errors
/// In words that may be told to anyone.
pub async fn claim(
    agent: &Arc<Agent>,
    tenant: &TenantId,
    code: &str,
    telegram: i64,
) -> Result<UserName, String> {
    let wrong = || "there is no such link, or it is not valid any more: ask for another one".to_owned();
    let telegram = TelegramId::new(telegram).ok_or_else(|| "that is not a person's id".to_owned())?;
    let (hash, now) = (sha256(code), now_secs());
    // Most of what is asked is refused, which needs no turn of the one who writes.
    let (id, looked_for) = (tenant.clone(), hash.clone());
    let users = agent.store.read(move |tx| store::users(tx, Some(&id))).await;
    match judge(&users.map_err(|error| error.to_string())?, telegram, &looked_for, now) {
        Claim::Known(name) => return Ok(name),
        Claim::Refused => return Err(wrong()),
        Claim::Good(_) => {}
    }
    let id = tenant.clone();
    let claimed = agent.store.write(move |tx| {
        let mut row = match judge(&store::users(tx, Some(&id))?, telegram, &hash, now) {
            Claim::Known(name) => return Ok(Some(name)),
            Claim::Refused => return Ok(None),
            Claim::Good(row) => row,
        };
        row.user.telegram = Some(telegram);
        row.link = None;
        row.save(tx)?;
        Audit::new(address(&row), "UserClaimed", format!("telegram {telegram}")).append(tx, &id)?;
        Ok(Some(row.user.name))
    });
    let name = claimed.await.map_err(|error| error.to_string())?.ok_or_else(wrong)?;
    tell(agent, tenant).await;
    Ok(name)
}

/// Has machines that run take what changed about their users, behind whoever changed it.
async fn tell(agent: &Arc<Agent>, tenant: &TenantId) {
    let Ok(row) = agent.tenant(tenant).await else { return };
    let agent = Arc::clone(agent);
    tokio::spawn(async move {
        for behind in deploy::refresh(&agent, &row).await {
            tracing::warn!(%behind, "it does not know of a user yet");
        }
    });
}

/// Another one-time link for a user who has none that is open; the one before it is not valid any more.
///
/// # Errors
/// There is no such user, or Telegram knows them already.
pub async fn link(agent: &Arc<Agent>, tenant: &TenantId, name: &UserName) -> Result<UserLink, ApiError> {
    let (code, link) = new_link().map_err(failed)?;
    let (id, wanted, expires_at) = (tenant.clone(), name.clone(), link.expires_at);
    let saved = agent.store.write(move |tx| {
        let Some(mut row) = store::user(tx, &id, &wanted)? else { return Ok(Err(None)) };
        if let Some(telegram) = row.user.telegram {
            return Ok(Err(Some(telegram)));
        }
        row.link = Some(link);
        row.save(tx)?;
        Audit::new(address(&row), "UserLinkMade", "valid for 24 h").append(tx, &id)?;
        Ok(Ok(store::bot(tx, &id)?))
    });
    match saved.await.map_err(failed)? {
        Ok(bot) => {
            tell(agent, tenant).await;
            Ok(UserLink { user: name.clone(), bot, code, expires_at })
        }
        Err(None) => Err(AgentError::NoUser(tenant.clone(), name.clone()).into()),
        Err(Some(telegram)) => Err(ApiError::new(
            ErrorCode::Refused,
            format!("user {tenant}/{name} is known already: they are {telegram} to Telegram"),
        )),
    }
}

fn address(row: &UserRow) -> String {
    format!("{}/{}", row.tenant, row.user.name)
}

fn failed(error: impl ToString) -> ApiError {
    ApiError::new(ErrorCode::Failed, error)
}

/// What a gateway is told of the users of its tenant: all of them, where there are any.
///
/// # Errors
/// The store's.
pub async fn told_to_gateway(agent: &Agent, tenant: &TenantRow) -> Result<Option<OpenClaw>, StoreError> {
    let id = tenant.id.clone();
    let (users, instances) = agent
        .store
        .read(move |tx| {
            let users = store::users(tx, Some(&id))?;
            let instances =
                if users.is_empty() { Vec::new() } else { store::instances(tx, Some(&id), None)? };
            Ok((users, instances))
        })
        .await?;
    let place = |worker| instances.iter().find(|instance| instance.id == worker).map(|found| &found.place);
    let of_user = |row: &UserRow| served(tenant.subnet, row, row.instance.and_then(place));
    let served = users.iter().map(of_user).collect();
    let endpoints = tenant.endpoints.clone();
    Ok((!users.is_empty()).then_some(OpenClaw::Gateway(GatewayConfig { endpoints, users: served })))
}

/// What a worker of OpenClaw is told of the one user whose it is, if it is anyone's.
///
/// # Errors
/// The store's.
pub async fn told_to_worker(
    agent: &Agent,
    tenant: &TenantRow,
    worker: InstanceId,
) -> Result<Option<OpenClaw>, StoreError> {
    let id = tenant.id.clone();
    let (own, pools, instances) = agent
        .store
        .read(move |tx| {
            let own = store::users(tx, Some(&id))?.into_iter().find(|row| row.instance == Some(worker));
            if own.is_none() {
                return Ok((own, Vec::new(), Vec::new()));
            }
            Ok((own, store::pools(tx, Some(&id))?, store::instances(tx, Some(&id), None)?))
        })
        .await?;
    let is_gateway = |row: &&InstanceRow| {
        pools.iter().any(|pool| pool.spec.id == row.place.pool && pool.spec.role.is_gateway())
    };
    let first = instances.iter().filter(is_gateway).min_by_key(|row| row.place.offset);
    let gateway_ip = first.and_then(|row| tenant.subnet.machine_ip(row.place.offset));
    Ok(own.zip(gateway_ip).map(|(row, gateway_ip)| {
        let telegram = row.user.telegram.map(TelegramId::get);
        OpenClaw::Worker(WorkerConfig { user: row.user.name.into(), gateway_ip, telegram })
    }))
}

/// Also who has no worker: what they write waits until they have one, and they are no strangers.
fn served(subnet: TenantSubnet, row: &UserRow, place: Option<&Place>) -> Served {
    let worker = row.instance.zip(place).and_then(|(instance_id, place)| {
        let (pool_id, ip) = (place.pool.clone(), subnet.machine_ip(place.offset)?);
        Some(AssignedWorker { pool_id, instance_id, ip })
    });
    Served {
        user: row.user.name.to_string(),
        worker,
        telegram: row.user.telegram.map(TelegramId::get),
        link: row.link.clone(),
        monthly_limit_cents: row.user.monthly_limit_cents,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> User {
        User { name: name.parse().unwrap(), telegram: None, monthly_limit_cents: None }
    }

    fn workers(rows: &[UserRow]) -> Vec<(String, Option<u32>)> {
        rows.iter().map(|row| (row.user.name.to_string(), row.instance.map(InstanceId::get))).collect()
    }

    #[test]
    fn everyone_has_a_worker_and_keeps_it() {
        let tenant: TenantId = "alice".parse().unwrap();
        let ids = [1, 2, 3].map(InstanceId::new);
        let first = assign(&tenant, &[], &[user("ann"), user("bob")], &ids);
        assert_eq!(workers(&first), [("ann".to_owned(), Some(1)), ("bob".to_owned(), Some(2))]);
        assert_eq!(assign(&tenant, &first, &[user("bob"), user("ann")], &ids), []);
        let more = assign(&tenant, &first, &[user("cat"), user("ann"), user("dan")], &ids);
        assert_eq!(workers(&more), [("cat".to_owned(), Some(3)), ("dan".to_owned(), None)]);
        // One whose worker was destroyed takes the next that is free.
        let mut lost = first;
        lost[0].instance = None;
        assert_eq!(workers(&assign(&tenant, &lost, &[user("ann")], &ids)), [("ann".to_owned(), Some(1))]);
    }

    #[test]
    fn a_gateway_is_told_of_who_has_no_worker_at_present() {
        let tenant: TenantId = "alice".parse().unwrap();
        let known = User { telegram: TelegramId::new(777), monthly_limit_cents: Some(100), ..user("ann") };
        let mut row = assign(&tenant, &[], &[known], &[InstanceId::new(1)]).remove(0);
        let subnet = mvm_model::NetId::new(0).unwrap().default_subnet();
        let (pool, machine_id) = ("workers".parse().unwrap(), String::new());
        let place = Place { tenant, pool, offset: 4, uid: 100_000, machine_id };
        let told = served(subnet, &row, Some(&place));
        let worker = told.worker.clone().unwrap();
        assert_eq!((worker.instance_id, worker.ip), (InstanceId::new(1), [10, 240, 0, 4].into()));
        assert_eq!(served(subnet, &row, None), Served { worker: None, ..told.clone() });
        row.instance = None;
        assert_eq!(served(subnet, &row, Some(&place)), Served { worker: None, ..told });
    }

    #[test]
    fn an_id_is_one_persons_also_of_those_who_stay() {
        let tenant: TenantId = "alice".parse().unwrap();
        let known = |name: &str, id: i64| User { telegram: TelegramId::new(id), ..user(name) };
        let present = assign(&tenant, &[], &[known("ann", 1), known("bob", 2)], &[]);
        let taken =
            |wanted: &[User]| same_id(&present, wanted).map(|(index, other)| (index, other.to_string()));
        assert_eq!(taken(&[known("ann", 2), known("bob", 1)]), None, "they may exchange them");
        assert_eq!(taken(&[known("ann", 2)]), Some((0, "bob".to_owned())), "bob stays");
        assert_eq!(taken(&[known("cat", 3), known("dan", 3)]), Some((1, "cat".to_owned())));
        let mut wanted = [user("bob"), known("ann", 2)];
        keep_claims(&present, &mut wanted);
        assert_eq!(taken(&wanted), Some((1, "bob".to_owned())), "who opened their link has it");
    }

    #[test]
    fn who_opens_a_link_while_images_are_built_is_not_made_a_stranger_again() {
        let tenant: TenantId = "alice".parse().unwrap();
        let ids = [1, 2].map(InstanceId::new).to_vec();
        let mut present = assign(&tenant, &[], &[user("ann"), user("bob")], &ids);
        let wanted = |users: Vec<User>| Wanted::new(users, ids.clone()).unwrap();
        (present[1].user.telegram, present[1].link) = (TelegramId::new(777), None);
        let limited = User { monthly_limit_cents: Some(100), ..user("bob") };
        let decided = wanted(vec![user("ann"), limited]).decide(&tenant, &present).unwrap();
        assert_eq!(decided.rows.len(), 1, "only bob changes");
        assert_eq!((decided.rows[0].user.telegram, decided.links.len()), (TelegramId::new(777), 0));
        let taken = User { telegram: TelegramId::new(777), ..user("ann") };
        let refused = wanted(vec![taken, user("bob")]).decide(&tenant, &present).unwrap_err();
        assert_eq!(refused.as_str(), "ann", "both would have one id");
    }

    #[test]
    fn a_link_is_good_until_its_time_and_once() {
        let tenant: TenantId = "alice".parse().unwrap();
        let mut users = assign(&tenant, &[], &[user("ann"), user("bob")], &[]);
        let (code, link) = new_link().unwrap();
        let (hash, until) = (sha256(&code), link.expires_at);
        users[1].link = Some(link);
        let [me, other] = [777, 778].map(|id| TelegramId::new(id).unwrap());
        assert_eq!(judge(&users, me, &hash, until - 1), Claim::Good(users[1].clone()));
        assert_eq!(judge(&users, me, &hash, until), Claim::Refused);
        assert_eq!(judge(&users, me, &sha256("another"), until - 1), Claim::Refused);
        (users[1].user.telegram, users[1].link) = (Some(me), None);
        assert_eq!(judge(&users, other, &hash, until - 1), Claim::Refused);
        assert_eq!(judge(&users, me, &hash, until - 1), Claim::Known("bob".parse().unwrap()), "asked again");
    }

    #[test]
    fn who_is_known_needs_no_link() {
        let tenant: TenantId = "alice".parse().unwrap();
        let mut rows = assign(&tenant, &[], &[user("ann")], &[InstanceId::new(1)]);
        rows[0].link = Some(new_link().unwrap().1);
        let known = User { telegram: TelegramId::new(777), ..user("ann") };
        let changed = assign(&tenant, &rows, &[known], &[InstanceId::new(1)]);
        assert_eq!((changed[0].link.clone(), changed[0].user.telegram), (None, TelegramId::new(777)));
    }
}
