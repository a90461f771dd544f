//! The gateway of an OpenClaw tenant: takes its people's messages from Telegram, and is for their workers the Bot API and
//! the model API, so that no worker has a key of those.
//!
//! | file | does |
//! |---|---|
//! | `settings` | who is served, with which keys: read at start and at SIGHUP |
//! | `outgoing` | HTTP and HTTPS to the services outside |
//! | `telegram` | updates from Telegram to workers |
//! | `worker_port` | the port for workers: who asks, and what for |
//! | `pace` | how many calls a worker may make |
//! | `bot_api` | the Bot API, as far as a worker may use it |
//! | `model` | the model API, what it costs, and its limit |
//! | `metrics` | counters, and the port they are read on |
//! | `durable` | files that survive |

mod bot_api;
mod durable;
mod metrics;
mod model;
mod outgoing;
mod pace;
mod settings;
mod telegram;
mod worker_port;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::listen::Shared;
use super::{GatewayError, note};
use bot_api::FilesSeen;
use metrics::Metrics;
use model::{Calls, Spending};
use outgoing::Outgoing;
use pace::Pacing;
use settings::Settings;
use telegram::{Claims, Typing};

/// Where a gateway finds what it needs for OpenClaw, and how fast it goes about it.
#[derive(Debug, Clone)]
pub struct OpenClawConfig {
    /// The machine's `config.json`, in which the block is.
    pub machine_config: PathBuf,
    /// The folder of secrets, `<scope>/<KEY>` below it.
    pub secrets: PathBuf,
    /// What is kept: offsets, updates that wait, what was spent.
    pub data: PathBuf,
    /// The port for workers.
    pub worker_port: u16,
    /// Where the metrics are read.
    pub metrics: SocketAddrV4,
    /// A file of PEM certificates that are believed beside the well-known ones.
    pub more_roots: Option<PathBuf>,
    /// How long things take.
    pub pace: Pace,
}

impl Default for OpenClawConfig {
    fn default() -> OpenClawConfig {
        OpenClawConfig {
            machine_config: "/etc/mvm-config/config.json".into(),
            secrets: "/run/secrets".into(),
            data: "/data/gateway".into(),
            worker_port: mvm_protocol::openclaw::WORKER_PORT,
            metrics: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9464),
            more_roots: None,
            pace: Pace::default(),
        }
    }
}

/// How long things take with Telegram.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// Pause before something that failed is tried again; each further one is twice as long.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// Pause where only a person can mend it: a wrong token, a second poller.
    pub slow_pause: Duration,
    /// For so long the gateway waits in a worker's place, where Telegram is not to be reached or says it is too much.
    pub patience: Duration,
    /// How long a worker's tokens are taken after `openclaw_token` was replaced: it gets to know the new ones, and has turns in
    /// hand.
    pub former_tokens: Duration,
    /// How long an update waits with Telegram, which forgets it after a day, before it is kept here.
    pub park_after: Duration,
    /// How long a person waits before they see that something happens.
    pub typing_after: Duration,
    /// How often they are shown it.
    pub typing_every: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            first_pause: Duration::from_millis(250),
            longest_pause: Duration::from_secs(30),
            slow_pause: Duration::from_secs(60),
            patience: Duration::from_secs(30),
            former_tokens: Duration::from_secs(900),
            park_after: Duration::from_secs(3600),
            typing_after: Duration::from_secs(1),
            typing_every: Duration::from_secs(5),
        }
    }
}

/// What all parts share.
#[derive(Debug)]
struct Context {
    gateway: Arc<Shared>,
    config: OpenClawConfig,
    host_socket: PathBuf,
    settings: watch::Sender<Arc<Settings>>,
    outgoing: Outgoing,
    metrics: Metrics,
    claims: Claims,
    typing: Typing,
    files: FilesSeen,
    bot_api_pacing: Pacing,
    model_pacing: Pacing,
    model_calls: Calls,
    spending: Spending,
    closing: CancellationToken,
}

impl Context {
    /// As they are now; who began with them keeps them.
    fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// A service does not take a key of these settings, [`settings::BOT_TOKEN`] or [`settings::MODEL_KEY`]. No worker can
    /// mend that, and none is to take it for its own token.
    fn key_refused(&self, settings: &Settings, key: &'static str) {
        self.metrics.key_refused(key);
        if settings.refuse(key) {
            note(&format!("{key} is refused: it is not valid (any more); give the tenant another one"));
        }
    }
}

/// All of it at work, with the settings it was last given.
#[derive(Debug)]
pub(super) struct OpenClaw {
    context: Arc<Context>,
    worker_port: AbortOnDropHandle<()>,
    metrics_port: Option<AbortOnDropHandle<()>>,
    polling: AbortOnDropHandle<()>,
    saving: AbortOnDropHandle<()>,
}

/// Begins, goes on or ends as `config.json` and the secrets say now. What cannot be understood is noted, and leaves
/// everything as it was; a bot's token that is none stops what goes over Telegram only.
///
/// # Errors
/// The port for workers is taken.
pub(super) async fn adopt(
    running: Option<OpenClaw>,
    gateway: &Arc<Shared>,
    config: &OpenClawConfig,
    listen: Ipv4Addr,
    host_socket: &std::path::Path,
) -> Result<Option<OpenClaw>, (Option<OpenClaw>, GatewayError)> {
    let settings = match Settings::load(config).await {
        Ok(settings) => settings,
        Err(error) => {
            note(&format!("OpenClaw: {error}"));
            return Ok(running);
        }
    };
    match (running, settings) {
        (Some(running), Some(mut settings)) => {
            settings.follow(&running.context.settings(), config.pace.former_tokens);
            let settings = Arc::new(settings);
            // Those whom they know stay known in between.
            running.context.settings.send_replace(Arc::clone(&settings));
            running.context.claims.settle(&settings).await;
            Ok(Some(running))
        }
        (None, Some(settings)) => {
            let started = OpenClaw::start(gateway, config, listen, host_socket, settings).await;
            started.map(Some).map_err(|error| (None, error))
        }
        (Some(mut running), None) => {
            running.stop().await;
            running.finish().await;
            Ok(None)
        }
        (None, None) => Ok(None),
    }
}

impl OpenClaw {
    async fn start(
        gateway: &Arc<Shared>,
        config: &OpenClawConfig,
        listen: Ipv4Addr,
        host_socket: &std::path::Path,
        settings: Settings,
    ) -> Result<OpenClaw, GatewayError> {
        let listener = worker_port::listen(SocketAddrV4::new(listen, config.worker_port))?;
        let outgoing = Outgoing::new(config.more_roots.as_deref())?;
        durable::tidy(&config.data).await;
        let spending = Spending::open(config.data.join("usage.json")).await;
        let claims = Claims::open(config.data.join("claims.json")).await;
        claims.settle(&settings).await;
        let context = Arc::new(Context {
            gateway: Arc::clone(gateway),
            config: config.clone(),
            host_socket: host_socket.to_owned(),
            settings: watch::Sender::new(Arc::new(settings)),
            outgoing,
            metrics: Metrics::default(),
            claims,
            typing: Typing::default(),
            files: FilesSeen::default(),
            bot_api_pacing: Pacing::default(),
            model_pacing: Pacing::default(),
            model_calls: Calls::default(),
            spending,
            closing: CancellationToken::new(),
        });
        let worker_port = worker_port::serve(Arc::clone(&context), listener);
        let metrics_port = match metrics::serve(Arc::clone(&context)).await {
            Ok(serving) => Some(serving),
            Err(error) => {
                note(&format!("no metrics on {}: {error}", config.metrics));
                None
            }
        };
        let polling = AbortOnDropHandle::new(tokio::spawn(telegram::run(Arc::clone(&context))));
        let saver = Arc::clone(&context);
        let saving = AbortOnDropHandle::new(tokio::spawn(async move { saver.spending.keep_saved().await }));
        Ok(OpenClaw { context, worker_port, metrics_port, polling, saving })
    }

    /// Takes nothing new, and returns when nothing is in hand with Telegram.
    pub(super) async fn stop(&mut self) {
        self.context.closing.cancel();
        self.context.typing.hide_all();
        let ports = self.metrics_port.iter_mut().chain([&mut self.worker_port]);
        for port in ports {
            port.abort();
            // It ended either way.
            let _ = port.await;
        }
        // With its deliveries, which have some seconds for their end.
        let _ = (&mut self.polling).await;
    }

    /// Writes down what was spent, when workers have nothing in hand any more.
    pub(super) async fn finish(self) {
        self.saving.abort();
        // It ended either way.
        let _ = self.saving.await;
        self.context.spending.save().await;
    }
}
