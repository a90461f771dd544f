//! A tenant's secrets: what changes about them, and their sealing.

use mvm_model::manifest::Deployment;
use mvm_model::{TenantId, openclaw};
use mvm_protocol::SecretBytes;
use mvm_protocol::api::{ApiError, SecretValue};
use mvm_protocol::control::MAX_UPDATE;

use super::{at_key, failed, invalid};
use crate::agent::Agent;
use crate::seal::{Key, random};
use crate::store::{self, SealedRow, TenantRow};

/// What a machine's config.json may take.
const CONFIG_ROOM: usize = 4096;

/// The secrets there are, and those that are wanted.
#[derive(Debug)]
pub(super) struct Secrets {
    there: Vec<There>,
    wanted: Option<Vec<SecretValue>>,
    is_new: bool,
}

/// One that is there.
#[derive(Debug, Clone)]
struct There {
    secret: SecretValue,
    set_at: Option<u64>,
}

/// What is written of them.
pub(super) struct Sealed {
    /// The tenant's data key, if it is new.
    pub(super) wrapped: Option<Vec<u8>>,
    pub(super) rows: Vec<SealedRow>,
}

impl Secrets {
    /// Those that are wanted, beside those there are. Where OpenClaw runs there is a token of it among them.
    pub(super) async fn look(
        agent: &Agent,
        deployment: &Deployment,
        wanted: Option<Vec<SecretValue>>,
    ) -> Result<Self, ApiError> {
        let mut secrets = Self::read(agent, &deployment.tenant).await?;
        secrets.want(wanted);
        if deployment.runs_openclaw() {
            secrets.have_token()?;
        }
        Ok(secrets)
    }

    async fn read(agent: &Agent, tenant: &TenantId) -> Result<Self, ApiError> {
        let id = tenant.clone();
        let (rows, wrapped) = agent
            .store
            .read(move |tx| Ok((store::secrets(tx, &id)?, store::tenant_key(tx, &id)?)))
            .await
            .map_err(failed)?;
        let Some(wrapped) = wrapped else {
            return Ok(Self { there: Vec::new(), wanted: None, is_new: true });
        };
        let key = agent.node_key.unwrap_key(tenant, &wrapped).map_err(failed)?;
        let open = |SealedRow { scope, key: name, sealed, set_at, file, account }| {
            let value = key.open(&format!("{scope}/{name}"), &sealed).map_err(failed)?;
            Ok(There { secret: SecretValue { scope, key: name, value, file, account }, set_at })
        };
        let there = rows.into_iter().map(open).collect::<Result<_, ApiError>>()?;
        Ok(Self { there, wanted: None, is_new: false })
    }

    /// These, and no others. As whom a service knows whoever has a value stays known for as long as the value does.
    fn want(&mut self, mut wanted: Option<Vec<SecretValue>>) {
        for secret in wanted.iter_mut().flatten().filter(|secret| secret.account.is_none()) {
            let same = self.before(secret).filter(|there| there.has_value_of(secret));
            secret.account = same.and_then(|there| there.secret.account.clone());
        }
        self.wanted = wanted;
    }

    /// These are to have other values; all others stay.
    pub(super) fn overlay(&mut self, secrets: Vec<SecretValue>) {
        let mut all: Vec<SecretValue> = self.given().into_iter().cloned().collect();
        for secret in secrets {
            match all.iter_mut().find(|other| name(other) == name(&secret)) {
                Some(other) => *other = secret,
                None => all.push(secret),
            }
        }
        self.want(Some(all));
    }

    /// One that was not given is the one there is, or random.
    fn have_token(&mut self) -> Result<(), ApiError> {
        let is_token = |secret: &SecretValue| {
            (secret.scope.as_str(), secret.key.as_str()) == (openclaw::SCOPE, openclaw::TOKEN_KEY)
        };
        if self.given().into_iter().any(is_token) {
            return Ok(());
        }
        let token = match self.there.iter().find(|there| is_token(&there.secret)) {
            Some(there) => there.secret.clone(),
            None => SecretValue {
                scope: openclaw::SCOPE.to_owned(),
                key: openclaw::TOKEN_KEY.to_owned(),
                value: SecretBytes::new(hex::encode(random::<32>().map_err(failed)?).into_bytes()),
                file: None,
                account: None,
            },
        };
        self.overlay(vec![token]);
        Ok(())
    }

    /// Those that machines will be given.
    fn given(&self) -> Vec<&SecretValue> {
        match &self.wanted {
            Some(wanted) => wanted.iter().collect(),
            None => self.there.iter().map(|there| &there.secret).collect(),
        }
    }

    /// Whether pools get what they name, and not more than fits: refused now, not when a machine is woken.
    pub(super) fn check(&self, deployment: &Deployment) -> Result<(), ApiError> {
        let given = self.given();
        let is_there = |scope: &str, key: &str| given.iter().any(|s| s.scope == scope && s.key == key);
        deployment.check_secret_scopes(is_there).map_err(at_key)?;
        let routes = serde_json::to_vec(&deployment.routes).map_or(0, |text| text.len());
        for (index, pool) in deployment.pools.iter().enumerate() {
            let given = given.iter().filter(|secret| pool.is_given(&secret.scope, &secret.key));
            let bytes: usize = given.map(|secret| secret.value.expose().len()).sum();
            if bytes + routes + CONFIG_ROOM > MAX_UPDATE {
                let message = format!(
                    "pool {}'s machines would be given {bytes} bytes of secrets, and may be given {}: use shorter ones, or name fewer \
                     in secret_scopes",
                    pool.id,
                    MAX_UPDATE.saturating_sub(routes + CONFIG_ROOM)
                );
                return Err(invalid(format!("pools[{index}].secret_scopes"), message));
            }
        }
        Ok(())
    }

    /// The names of those that have another value than before, or had none.
    pub(super) fn changed(&self) -> Vec<String> {
        let is_another =
            |secret: &&SecretValue| self.before(secret).is_none_or(|there| !there.has_value_of(secret));
        self.wanted.iter().flatten().filter(is_another).map(name).collect()
    }

    fn before(&self, secret: &SecretValue) -> Option<&There> {
        self.there.iter().find(|there| name(&there.secret) == name(secret))
    }

    /// What changes, in words and by name.
    pub(super) fn changes(&self) -> Vec<String> {
        let Some(wanted) = &self.wanted else { return Vec::new() };
        let those = |is: Option<bool>| -> Vec<String> {
            let how = |secret: &SecretValue| self.before(secret).map(|there| there.has_value_of(secret));
            wanted.iter().filter(|secret| how(secret) == is).map(name).collect()
        };
        let is_wanted = |there: &&There| wanted.iter().any(|secret| name(secret) == name(&there.secret));
        let gone = self.there.iter().filter(|there| !is_wanted(there)).map(|there| name(&there.secret));
        [("added", those(None)), ("changed", those(Some(false))), ("removed", gone.collect())]
            .into_iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(how, names)| format!("secrets {how}: {}", names.join(", ")))
            .collect()
    }

    /// What is to be written, if anything: a new tenant gets its key.
    pub(super) async fn seal(&self, agent: &Agent, tenant: &TenantRow) -> Result<Option<Sealed>, ApiError> {
        // Where they come from is written, too, and whose they are.
        let is_as_it_was =
            |secret: &SecretValue| self.before(secret).is_some_and(|there| there.secret == *secret);
        if !self.is_new && self.changes().is_empty() && self.wanted.iter().flatten().all(is_as_it_was) {
            return Ok(None);
        }
        let (key, wrapped) = if self.is_new {
            let key = Key::generate().map_err(failed)?;
            let wrapped = agent.node_key.wrap(&tenant.id, &key).map_err(failed)?;
            (key, Some(wrapped))
        } else {
            let id = tenant.id.clone();
            let wrapped = agent.store.read(move |tx| store::tenant_key(tx, &id)).await.map_err(failed)?;
            let wrapped = wrapped.ok_or_else(|| failed(format!("tenant {} has no data key", tenant.id)))?;
            (agent.node_key.unwrap_key(&tenant.id, &wrapped).map_err(failed)?, None)
        };
        let seal = |secret: &SecretValue| {
            let sealed = key.seal(&name(secret), secret.value.expose()).map_err(failed)?;
            let unchanged = self.before(secret).filter(|there| there.has_value_of(secret));
            let set_at = unchanged.map_or(Some(store::now_secs()), |there| there.set_at);
            let SecretValue { scope, key, file, account, .. } = secret.clone();
            Ok(SealedRow { scope, key, sealed, set_at, file, account })
        };
        let rows = self.given().into_iter().map(seal).collect::<Result<_, ApiError>>()?;
        Ok(Some(Sealed { wrapped, rows }))
    }
}

impl There {
    fn has_value_of(&self, secret: &SecretValue) -> bool {
        self.secret.value == secret.value
    }
}

fn name(secret: &SecretValue) -> String {
    format!("{}/{}", secret.scope, secret.key)
}

#[cfg(test)]
mod tests {

    use super::*;

    fn secrets(all: &[(&str, &str)]) -> Vec<SecretValue> {
        let secret = |(key, value): &(&str, &str)| SecretValue {
            scope: "default".to_owned(),
            key: (*key).to_owned(),
            value: SecretBytes::new(value.as_bytes().to_vec()),
            file: None,
            account: None,
        };
        all.iter().map(secret).collect()
    }

    fn there(all: &[(&str, &str)]) -> Secrets {
        let there = secrets(all).into_iter().map(|secret| There { secret, set_at: Some(7) }).collect();
        Secrets { there, wanted: None, is_new: false }
    }

    #[test]
    fn what_changes_is_said_by_name_and_never_by_value() {
        let mut told = there(&[("KEPT", "1"), ("CHANGED", "old"), ("GONE", "x")]);
        assert_eq!((told.changes(), told.changed(), told.given().len()), (vec![], vec![], 3));
        told.wanted = Some(secrets(&[("NEW", "y"), ("CHANGED", "new"), ("KEPT", "1")]));
        let expected = [
            "secrets added: default/NEW",
            "secrets changed: default/CHANGED",
            "secrets removed: default/GONE",
        ];
        assert_eq!(told.changes(), expected);
        assert_eq!(told.changed(), ["default/NEW", "default/CHANGED"]);
        told.wanted = Some(Vec::new());
        assert_eq!(told.changes(), ["secrets removed: default/KEPT, default/CHANGED, default/GONE"]);
    }

    #[test]
    fn what_is_laid_over_leaves_the_others() {
        let mut told = there(&[("KEPT", "1"), ("CHANGED", "old")]);
        told.overlay(secrets(&[("CHANGED", "new"), ("NEW", "y")]));
        assert_eq!(told.changes(), ["secrets added: default/NEW", "secrets changed: default/CHANGED"]);
        assert_eq!(told.wanted, Some(secrets(&[("KEPT", "1"), ("CHANGED", "new"), ("NEW", "y")])));
    }

    #[test]
    fn an_account_is_known_of_the_value_that_was_asked_about_and_of_no_other() {
        let known = |value: &str, account: Option<&str>| {
            let secret = secrets(&[("TOKEN", value)]).remove(0);
            SecretValue { account: account.map(str::to_owned), ..secret }
        };
        let account = |given: SecretValue, all: bool| {
            let there = vec![There { secret: known("1:old", Some("first_bot")), set_at: None }];
            let mut told = Secrets { there, wanted: None, is_new: false };
            if all {
                told.want(Some(vec![given]))
            } else {
                told.overlay(vec![given])
            }
            told.given()[0].account.clone()
        };
        for all in [true, false] {
            assert_eq!(account(known("1:old", None), all).as_deref(), Some("first_bot"), "as it was");
            assert_eq!(account(known("2:new", None), all), None, "nobody asked");
            assert_eq!(account(known("2:new", Some("other_bot")), all).as_deref(), Some("other_bot"));
            assert_eq!(account(known("1:old", Some("renamed_bot")), all).as_deref(), Some("renamed_bot"));
        }
    }

    #[test]
    fn openclaw_has_the_token_it_was_given_or_had_or_a_random_one() {
        let token = |secrets: &Secrets| -> SecretBytes {
            let mut found = secrets.given();
            found.retain(|secret| name(secret) == "openclaw/OPENCLAW_TOKEN_KEY");
            assert_eq!(found.len(), 1);
            found.remove(0).value.clone()
        };
        let [mut first, mut second] = [(); 2].map(|()| there(&[("KEPT", "1")]));
        first.have_token().unwrap();
        second.have_token().unwrap();
        assert_eq!(token(&first).expose().len(), 64);
        assert_ne!(token(&first), token(&second));
        assert_eq!(first.changes(), ["secrets added: openclaw/OPENCLAW_TOKEN_KEY"]);
        // A manifest whose [secrets] does not name it does not take it away.
        let there = first.given().into_iter().cloned().map(|secret| There { secret, set_at: None }).collect();
        let mut again = Secrets { there, wanted: Some(secrets(&[("KEPT", "1")])), is_new: false };
        again.have_token().unwrap();
        assert_eq!((again.changes(), token(&again)), (vec![], token(&first)));
    }
}
