//! Counters, and the port they are read on.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::Context;
use super::outgoing::{Body, full};
use crate::lock;

/// How long a reader may take.
const READER: Duration = Duration::from_secs(10);

/// Counts since the gateway began. What was spent is kept elsewhere, as it outlives it.
#[derive(Debug, Default)]
pub(super) struct Metrics(Mutex<Counts>);

#[derive(Debug, Default, Clone)]
struct Counts {
    people: BTreeMap<String, Person>,
    strangers: u64,
    refused: u64,
    keys_refused: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Default, Clone)]
struct Person {
    delivered: u64,
    failed: u64,
    parked: i64,
    waiting: i64,
    over_limit: u64,
    /// By method and status.
    calls: BTreeMap<(&'static str, u16), u64>,
}

impl Metrics {
    fn person(&self, user: &str, count: impl FnOnce(&mut Person)) {
        let mut counts = lock(&self.0);
        match counts.people.get_mut(user) {
            Some(person) => count(person),
            None => count(counts.people.entry(user.to_owned()).or_default()),
        }
    }

    /// A worker took an update.
    pub(super) fn delivered(&self, user: &str) {
        self.person(user, |person| person.delivered += 1);
    }

    /// A worker did not take an update.
    pub(super) fn failed(&self, user: &str) {
        self.person(user, |person| person.failed += 1);
    }

    /// Updates that are kept here for somebody, more or fewer than before.
    pub(super) fn parked(&self, user: &str, more: i64) {
        self.person(user, |person| person.parked += more);
    }

    /// Updates that wait for their worker, more or fewer than before.
    pub(super) fn waiting(&self, user: &str, more: i64) {
        self.person(user, |person| person.waiting += more);
    }

    /// A call of a worker, by the name of its method as the gateway knows it.
    pub(super) fn called(&self, user: &str, method: &'static str, status: u16) {
        self.person(user, |person| *person.calls.entry((method, status)).or_default() += 1);
    }

    /// A call that was refused as the month's limit is reached.
    pub(super) fn over_limit(&self, user: &str) {
        self.person(user, |person| person.over_limit += 1);
    }

    /// A call that a service refused for the gateway's key.
    pub(super) fn key_refused(&self, key: &'static str) {
        *lock(&self.0).keys_refused.entry(key).or_default() += 1;
    }

    /// An update that goes to nobody; `told`: its sender was told so.
    pub(super) fn stranger(&self, told: bool) {
        let mut counts = lock(&self.0);
        counts.strangers += 1;
        counts.refused += u64::from(told);
    }
}

/// Serves them until what is returned is dropped.
///
/// # Errors
/// The port is taken.
pub(super) async fn serve(context: Arc<Context>) -> io::Result<AbortOnDropHandle<()>> {
    let listener = TcpListener::bind(context.config.metrics).await?;
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        // One reader at a time will do.
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(async |request| Ok::<_, Infallible>(answer(&context, &request)));
            let serving =
                http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
            let _ = timeout(READER, serving).await;
        }
    })))
}

fn answer(context: &Context, request: &Request<Incoming>) -> Response<Body> {
    if request.uri().path() != "/metrics" {
        let mut response = Response::new(full("see /metrics\n"));
        *response.status_mut() = StatusCode::NOT_FOUND;
        return response;
    }
    let mut response = Response::new(full(text(context)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(context: &Context) -> String {
    let counts = lock(&context.metrics.0).clone();
    let mut page = Page::default();
    page.head("mvm_openclaw_updates_delivered_total", "counter", "Updates that a worker took.");
    page.people(&counts, |person| person.delivered);
    page.head("mvm_openclaw_deliveries_failed_total", "counter", "Tries to deliver that came to nothing.");
    page.people(&counts, |person| person.failed);
    page.head("mvm_openclaw_deliveries_waiting", "gauge", "Updates that their worker has yet to take.");
    page.people(&counts, |person| person.waiting);
    page.head("mvm_openclaw_updates_parked", "gauge", "Those of them that are kept on the data disk.");
    page.people(&counts, |person| person.parked);
    page.head("mvm_openclaw_updates_of_strangers_total", "counter", "Updates that go to nobody.");
    page.line(&[], counts.strangers);
    page.head("mvm_openclaw_refusals_sent_total", "counter", "Strangers who were told so.");
    page.line(&[], counts.refused);
    page.head("mvm_openclaw_api_calls_total", "counter", "Calls of workers, by method and status.");
    for (user, person) in &counts.people {
        for ((method, status), count) in &person.calls {
            page.line(&[("user", user), ("method", method), ("status", &status.to_string())], count);
        }
    }
    page.head(
        "mvm_openclaw_over_limit_total",
        "counter",
        "Model calls refused as the month's limit is reached.",
    );
    page.people(&counts, |person| person.over_limit);
    page.head("mvm_openclaw_keys_refused_total", "counter", "Calls refused for a key of the gateway's.");
    for (key, count) in &counts.keys_refused {
        page.line(&[("key", key)], count);
    }
    spent(context, &mut page);
    page.text
}

fn spent(context: &Context, page: &mut Page) {
    let month = context.spending.this_month();
    page.head("mvm_openclaw_model_requests", "gauge", "Model calls that were answered, this month (UTC).");
    for (user, usage) in &month {
        page.line(&[("user", user)], usage.requests);
    }
    page.head("mvm_openclaw_model_tokens", "gauge", "Tokens, this month (UTC).");
    for (user, usage) in &month {
        for (kind, count) in usage.tokens.by_kind() {
            page.line(&[("user", user), ("kind", kind)], count);
        }
    }
    page.head("mvm_openclaw_model_cost_dollars", "gauge", "What they cost, by estimate, this month (UTC).");
    for (user, usage) in &month {
        page.line(&[("user", user)], format_args!("{:.6}", usage.cost_nanodollars as f64 / 1e9));
    }
}

#[derive(Debug, Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn head(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        // Writing to a string does not fail.
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn people<T: std::fmt::Display>(&mut self, counts: &Counts, of: impl Fn(&Person) -> T) {
        for (user, person) in &counts.people {
            self.line(&[("user", user)], of(person));
        }
    }

    fn line(&mut self, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let quoted = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> =
            labels.iter().map(|(key, text)| format!("{key}=\"{}\"", quoted(text))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }
}
