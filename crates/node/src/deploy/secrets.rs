//! A tenant's secrets: what changes about them, and their sealing.

use mvm_model::TenantId;
use mvm_model::manifest::Deployment;
use mvm_protocol::api::{ApiError, SecretValue};
use mvm_protocol::control::MAX_UPDATE;

use super::{at_key, failed, invalid};
use crate::agent::Agent;
use crate::seal::Key;
use crate::store::{self, SealedRow, TenantRow};

/// What a machine's config.json may take.
const CONFIG_ROOM: usize = 4096;

/// The secrets there are, and those that are wanted.
#[derive(Debug)]
pub(super) struct Secrets {
    there: Vec<SecretValue>,
    wanted: Option<Vec<SecretValue>>,
    is_new: bool,
}

/// What is written of them.
pub(super) struct Sealed {
    /// The tenant's data key, if it is new.
    pub(super) wrapped: Option<Vec<u8>>,
    pub(super) rows: Vec<SealedRow>,
}

impl Secrets {
    /// Those that are wanted, beside those there are.
    pub(super) async fn look(
        agent: &Agent,
        tenant: &TenantId,
        wanted: Option<Vec<SecretValue>>,
    ) -> Result<Self, ApiError> {
        let id = tenant.clone();
        let (rows, wrapped) = agent
            .store
            .read(move |tx| Ok((store::secrets(tx, &id)?, store::tenant_key(tx, &id)?)))
            .await
            .map_err(failed)?;
        let Some(wrapped) = wrapped else { return Ok(Self { there: Vec::new(), wanted, is_new: true }) };
        let key = agent.node_key.unwrap_key(tenant, &wrapped).map_err(failed)?;
        let open = |SealedRow { scope, key: name, sealed }| {
            let value = key.open(&format!("{scope}/{name}"), &sealed).map_err(failed)?;
            Ok(SecretValue { scope, key: name, value })
        };
        let there = rows.into_iter().map(open).collect::<Result<_, ApiError>>()?;
        Ok(Self { there, wanted, is_new: false })
    }

    /// Those that machines will be given.
    fn given(&self) -> &[SecretValue] {
        self.wanted.as_ref().unwrap_or(&self.there)
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
                    "pool {}'s machines would be given {bytes} bytes of secrets; with their config it may be {MAX_UPDATE} \
                     together: name fewer in secret_scopes",
                    pool.id
                );
                return Err(invalid(format!("pools[{index}].secret_scopes"), message));
            }
        }
        Ok(())
    }

    /// What changes, in words and by name.
    pub(super) fn changes(&self) -> Vec<String> {
        let Some(wanted) = &self.wanted else { return Vec::new() };
        let name = |secret: &SecretValue| format!("{}/{}", secret.scope, secret.key);
        let find = |all: &[SecretValue], secret: &SecretValue| {
            all.iter().find(|other| name(other) == name(secret)).map(|found| found.value == secret.value)
        };
        let those = |all: &[SecretValue], others: &[SecretValue], is: Option<bool>| -> Vec<String> {
            all.iter().filter(|secret| find(others, secret) == is).map(name).collect()
        };
        [
            ("added", those(wanted, &self.there, None)),
            ("changed", those(wanted, &self.there, Some(false))),
            ("removed", those(&self.there, wanted, None)),
        ]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(how, names)| format!("secrets {how}: {}", names.join(", ")))
        .collect()
    }

    /// What is to be written, if anything: a new tenant gets its key.
    pub(super) async fn seal(&self, agent: &Agent, tenant: &TenantRow) -> Result<Option<Sealed>, ApiError> {
        if !self.is_new && self.changes().is_empty() {
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
            let SecretValue { scope, key: name, value } = secret;
            let sealed = key.seal(&format!("{scope}/{name}"), value.expose()).map_err(failed)?;
            Ok(SealedRow { scope: scope.clone(), key: name.clone(), sealed })
        };
        let rows = self.given().iter().map(seal).collect::<Result<_, ApiError>>()?;
        Ok(Some(Sealed { wrapped, rows }))
    }
}

#[cfg(test)]
mod tests {
    use mvm_protocol::SecretBytes;

    use super::*;

    fn secrets(all: &[(&str, &str)]) -> Vec<SecretValue> {
        let secret = |(key, value): &(&str, &str)| SecretValue {
            scope: "default".to_owned(),
            key: (*key).to_owned(),
            value: SecretBytes::new(value.as_bytes().to_vec()),
        };
        all.iter().map(secret).collect()
    }

    #[test]
    fn what_changes_is_said_by_name_and_never_by_value() {
        let there = secrets(&[("KEPT", "1"), ("CHANGED", "old"), ("GONE", "x")]);
        let wanted = secrets(&[("NEW", "y"), ("CHANGED", "new"), ("KEPT", "1")]);
        let told = Secrets { there: there.clone(), wanted: Some(wanted), is_new: false }.changes();
        let expected = [
            "secrets added: default/NEW",
            "secrets changed: default/CHANGED",
            "secrets removed: default/GONE",
        ];
        assert_eq!(told, expected);
        let stay = Secrets { there: there.clone(), wanted: None, is_new: false };
        assert_eq!((stay.changes(), stay.given().len()), (vec![], 3));
        let all = Secrets { there, wanted: Some(Vec::new()), is_new: false };
        assert_eq!(all.changes(), ["secrets removed: default/KEPT, default/CHANGED, default/GONE"]);
    }
}
