//! All services of the machine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use mvm_model::service::{Service, ServicesFile};
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::account::Account;
use super::children::Children;
use super::gateway_service;
use super::log::RotatingLog;
use super::ready::Check;
use super::unit::Unit;
use crate::error::{Failure, Result};
use crate::lock;

/// Starts and keeps the services.
#[derive(Debug)]
pub struct Supervisor {
    children: Arc<Children>,
    units: Mutex<Vec<(Arc<Unit>, JoinHandle<()>)>>,
    /// Set once: how long services may take to end.
    stop: watch::Sender<Option<Duration>>,
    grown: watch::Sender<()>,
}

impl Supervisor {
    /// Nothing runs yet.
    pub fn new(children: Arc<Children>) -> Self {
        Self {
            children,
            units: Mutex::default(),
            stop: watch::Sender::new(None),
            grown: watch::Sender::new(()),
        }
    }

    /// Starts the services in their order, or, where that was done, those that are down.
    ///
    /// # Errors
    /// A service that cannot be started at all: its user is unknown, or it can have no log.
    pub fn start(&self, services: &ServicesFile, is_gateway: bool) -> Result<()> {
        let mut units = lock(&self.units);
        if !units.is_empty() {
            units.iter().for_each(|(unit, _)| unit.nudge());
            return Ok(());
        }
        for (service, check) in wanted(&services.services, is_gateway) {
            let account = Account::find(&services.users, service.user.as_deref())?;
            let log = RotatingLog::of(&service.name, self.grown.clone())?;
            let (children, stop) = (Arc::clone(&self.children), self.stop.subscribe());
            units.push(Unit::start(service, account, check, log, children, stop));
        }
        Ok(())
    }

    fn units(&self) -> Vec<Arc<Unit>> {
        lock(&self.units).iter().map(|(unit, _)| Arc::clone(unit)).collect()
    }

    /// Waits until every service is ready.
    ///
    /// # Errors
    /// The first one that was not in its time, and why.
    pub async fn ready(&self) -> std::result::Result<(), String> {
        let waits: Vec<_> = self
            .units()
            .into_iter()
            .map(|unit| {
                let children = Arc::clone(&self.children);
                tokio::spawn(async move { unit.ready(&children).await })
            })
            .collect();
        for wait in waits {
            wait.await.map_err(|ended| ended.to_string())??;
        }
        Ok(())
    }

    /// The log of one service, or of all, by name.
    ///
    /// # Errors
    /// There is no such service.
    pub fn logs(&self, service: Option<&str>) -> Result<Vec<(String, Arc<Mutex<RotatingLog>>)>> {
        let mut logs: Vec<_> =
            self.units().iter().map(|unit| (unit.service.name.clone(), unit.log())).collect();
        let Some(wanted) = service else { return Ok(logs) };
        if logs.iter().all(|(name, _)| name != wanted) {
            let names: Vec<_> = logs.iter().map(|(name, _)| name.as_str()).collect();
            let remedy = format!("no such service runs here; these do: {}", names.join(", "));
            return Err(Failure::new(format_args!("reading the log of `{wanted}`"), remedy));
        }
        logs.retain(|(name, _)| name == wanted);
        Ok(logs)
    }

    /// Changes whenever a log grows.
    pub fn grown(&self) -> watch::Receiver<()> {
        self.grown.subscribe()
    }

    /// Tells the gateway that its routes are new.
    pub fn routes_changed(&self) {
        for unit in self.units().iter().filter(|unit| unit.service.name == gateway_service::NAME) {
            unit.signal(Signal::HUP);
        }
    }

    /// Ends every service, and returns when they have ended.
    pub async fn stop(&self, grace: Duration) {
        self.stop.send_replace(Some(grace));
        let units = std::mem::take(&mut *lock(&self.units));
        for (_, task) in units {
            // A task that failed runs no service any more.
            let _ = task.await;
        }
    }
}

/// The services of a machine, each with what makes it ready.
fn wanted(services: &[Service], is_gateway: bool) -> Vec<(Service, Check)> {
    let recipe = services.iter().filter(|service| !(is_gateway && service.name == gateway_service::NAME));
    let recipe = recipe.map(|service| {
        let check = service.ready.clone().map_or(Check::Running, Check::Recipe);
        (service.clone(), check)
    });
    let gateway = is_gateway.then(|| (gateway_service::service(), Check::Gateway));
    recipe.chain(gateway).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_has_its_service_once_whatever_the_image_says() {
        let own = Service {
            command: vec!["mvm-guest".to_owned(), "gateway".to_owned()],
            ..gateway_service::service()
        };
        let other = Service { name: "other".to_owned(), ..gateway_service::service() };
        let names = |services: &[Service], is_gateway| -> Vec<String> {
            wanted(services, is_gateway).into_iter().map(|(service, _)| service.name).collect()
        };
        assert_eq!(names(&[own.clone(), other.clone()], true), ["other", "gateway"]);
        assert_eq!(names(std::slice::from_ref(&other), true), ["other", "gateway"]);
        assert_eq!(names(&[own, other], false), ["gateway", "other"]);
    }
}
