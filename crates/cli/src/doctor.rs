//! `mvm doctor`

use std::collections::BTreeSet;
use std::io::{self, BufRead};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use comfy_table::{Cell, Color};
use mvm_model::Requirement;
use mvm_model::requirement::{INSTALL, Status};
use mvm_node::{Config, doctor};
use mvm_protocol::api::{AgentInfo, DoctorReport};
use rustix::process::geteuid;

use crate::clock;
use crate::confirm::somebody_can_answer;
use crate::connection::Connection;
use crate::failure::Failure;
use crate::output::{Output, table};
use crate::progress::{Extent, Progress};
use crate::serve::absolute;
use crate::view::counted;

/// How long an agent that listens may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What mvm needs of this host, whether it is met, and the commands that mend what is not
///
/// Needs no agent and starts none. Exits with 0 where nothing is missing that mvm does not work without, whatever could be better.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Run the commands that mend what is missing or could be better, each after asking
    #[arg(long)]
    fix: bool,
    /// Do not ask
    #[arg(short, long, requires = "fix")]
    yes: bool,
    /// How to write the result
    #[command(flatten)]
    output: Output,
}

impl Doctor {
    /// Runs the command; its exit code.
    ///
    /// # Errors
    /// Whatever kept it from being done.
    pub async fn run(self, connection: &Connection) -> Result<u8, Failure> {
        let mut report = examine(connection).await?;
        if self.fix && self.mend(&report)? {
            report = examine(connection).await?;
        }
        self.output.show(&report, page)?;
        Ok(u8::from(!report.ready))
    }

    /// Runs what mends; whether anything was run.
    fn mend(&self, report: &DoctorReport) -> Result<bool, Failure> {
        let mends = mends(report);
        if mends.is_empty() {
            return Ok(false);
        }
        if !geteuid().is_root() {
            return Err(Failure::NotDone("only root can mend a host: `sudo mvm doctor --fix`".to_owned()));
        }
        if !self.yes && !somebody_can_answer() {
            let why = "there is no terminal to ask at: add -y to have everything run that mends";
            return Err(Failure::Usage(why.to_owned()));
        }
        let mut any = false;
        for Mend { what, commands } in mends {
            let words: Vec<String> = commands.iter().map(|command| command.join(" ")).collect();
            anstream::eprintln!("{what}: {}", words.join("; "));
            if !self.yes && !is_agreed()? {
                continue;
            }
            any = true;
            // The rest of what mends one thing makes no sense once a part has failed; other things are others.
            if let Err(why) = commands.iter().try_for_each(|command| run(command)) {
                anstream::eprintln!("{what}: {why}");
            }
        }
        Ok(any)
    }
}

/// Everything that is required, the agent too.
async fn examine(connection: &Connection) -> Result<DoctorReport, Failure> {
    let mut progress = Progress::new();
    progress.step("this host", "is examined", Extent { done: 0, total: 0 });
    let agent = Agent::look(connection).await;
    // An agent that answers knows best where its folders are.
    let (data, run) = match &agent {
        Agent::Answers(info) => (info.data_dir.clone().into(), info.run_dir.clone().into()),
        _ => (absolute(&connection.data_dir)?, absolute(&connection.run_dir)?),
    };
    let mut requirements = vec![person(&agent)];
    requirements.extend(
        doctor::examine(&Config {
            data_dir: data,
            run_dir: run,
            socket: connection.socket(),
            resolvers: Vec::new(),
        })
        .await,
    );
    requirements.push(agent.requirement(connection));
    progress.end();
    let ready = !requirements.iter().any(Requirement::is_missing);
    Ok(DoctorReport { ready, requirements })
}

/// How the agent is.
enum Agent {
    Answers(AgentInfo),
    Absent,
    Fails(Failure),
}

impl Agent {
    async fn look(connection: &Connection) -> Self {
        let client = connection.client();
        match client.is_listened_to().await {
            Ok(false) => return Self::Absent,
            Err(failure) => return Self::Fails(failure),
            Ok(true) => {}
        }
        match tokio::time::timeout(PATIENCE, client.get("/v1/agent")).await {
            Ok(Ok(info)) => Self::Answers(info),
            Ok(Err(failure)) => Self::Fails(failure),
            Err(_) => Self::Fails(client.broken(format!("it said nothing for {} s", PATIENCE.as_secs()))),
        }
    }

    fn requirement(&self, connection: &Connection) -> Requirement {
        let (name, mine) = ("agent", env!("CARGO_PKG_VERSION"));
        let socket = connection.socket();
        let socket = socket.display();
        match self {
            Self::Answers(info) if info.version == mine => {
                let up = clock::age(clock::now(), info.started_at);
                Requirement::ok(
                    name,
                    format!("version {mine} runs since {up} (pid {}) at {socket}", info.pid),
                )
            }
            Self::Answers(info) => Requirement::warning(
                name,
                format!("it is version {}, and this command {mine}", info.version),
                "stop it: machines run on, and the next command starts this version",
            )
            .by_command(&["mvm", "agent", "stop"]),
            Self::Absent if connection.is_configured() => Requirement::missing(
                name,
                format!("nobody listens at {socket}"),
                "start it: `mvm agent serve`",
            ),
            Self::Absent => {
                Requirement::ok(name, format!("none runs at {socket}; a command that needs one starts it"))
            }
            Self::Fails(failure @ Failure::Denied { .. }) => Requirement::missing(
                name,
                failure,
                "use sudo, or have root add you to the group: `usermod -aG mvm`",
            ),
            Self::Fails(failure) => {
                Requirement::missing(name, failure, "look into its log; `mvm agent serve` starts another")
            }
        }
    }
}

/// Whether the person may do what there is to do.
fn person(agent: &Agent) -> Requirement {
    let (name, uid) = ("user", geteuid());
    if uid.is_root() {
        return Requirement::ok(name, "root");
    }
    let (found, sudo) = (format!("uid {}, not root", uid.as_raw()), "use sudo");
    match agent {
        Agent::Answers(_) => Requirement::warning(
            name,
            format!("{found}: the agent may be used, and not everything can be looked at"),
            sudo,
        ),
        _ => Requirement::missing(name, format!("{found}: only root can start an agent"), sudo),
    }
}

/// What is run for one thing, or for all packages together.
struct Mend {
    what: String,
    commands: Vec<Vec<String>>,
}

fn mends(report: &DoctorReport) -> Vec<Mend> {
    let mut packages = BTreeSet::new();
    let mut mends = Vec::new();
    for requirement in &report.requirements {
        let (installs, others): (Vec<_>, Vec<_>) = requirement
            .commands
            .iter()
            .cloned()
            .partition(|command| command.starts_with(&INSTALL.map(str::to_owned)));
        packages.extend(installs.into_iter().flat_map(|command| command.into_iter().skip(INSTALL.len())));
        if !others.is_empty() {
            mends.push(Mend { what: requirement.name.clone(), commands: others });
        }
    }
    if !packages.is_empty() {
        let update = ["apt-get", "update", "-q"].map(str::to_owned).to_vec();
        let install = INSTALL.map(str::to_owned).into_iter().chain(packages).collect();
        // What other commands need may come with them.
        mends.insert(0, Mend { what: "packages".to_owned(), commands: vec![update, install] });
    }
    mends
}

fn is_agreed() -> Result<bool, Failure> {
    anstream::eprint!("Run this? [Y/n] ");
    let mut typed = String::new();
    let read = io::stdin().lock().read_line(&mut typed);
    let read = read.map_err(|error| Failure::io("cannot read the answer", error))?;
    // The end of the input is no answer.
    Ok(read > 0 && matches!(typed.trim(), "" | "y" | "Y" | "yes"))
}

fn run(command: &[String]) -> Result<(), String> {
    let [program, arguments @ ..] = command else { return Ok(()) };
    let words = command.join(" ");
    let status = Command::new(program)
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // Results are this command's own.
        .stdout(io::stderr())
        .status()
        .map_err(|error| format!("cannot run `{words}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{words}` ended with {status}")) }
}

fn page(report: &DoctorReport) -> String {
    let rows = report.requirements.iter().map(|requirement| {
        let Requirement { name, status, found, remedy, commands } = requirement;
        let remedy = remedy.iter().map(|remedy| format!("\n→ {remedy}"));
        let commands = commands.iter().map(|command| format!("\n  $ {}", command.join(" ")));
        let text: String = [found.clone()].into_iter().chain(remedy).chain(commands).collect();
        [status_cell(*status), name.into(), text.into()]
    });
    format!("{}\n\n{}", table(["STATUS", "WHAT", "FOUND"], rows, ""), summary(report))
}

fn status_cell(status: Status) -> Cell {
    match status {
        Status::Ok => Cell::new("ok").fg(Color::Green),
        Status::Warning => Cell::new("warning").fg(Color::Yellow),
        Status::Missing => Cell::new("missing").fg(Color::Red),
        Status::Unknown => Cell::new("unknown"),
    }
}

fn summary(report: &DoctorReport) -> String {
    let count = |status| report.requirements.iter().filter(|r| r.status == status).count();
    let (missing, warnings) = (count(Status::Missing), count(Status::Warning));
    let mends = match mends(report).is_empty() {
        true => "",
        false => "; `mvm doctor --fix` runs the commands above, each after asking",
    };
    match (missing, warnings) {
        (0, 0) => "this host has everything".to_owned(),
        (0, _) => format!("this host is ready, with {}{mends}", counted(warnings, "warning")),
        _ => format!("this host is not ready: {missing} missing, {}{mends}", counted(warnings, "warning")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(requirements: Vec<Requirement>) -> DoctorReport {
        DoctorReport { ready: !requirements.iter().any(Requirement::is_missing), requirements }
    }

    #[test]
    fn packages_are_installed_together_and_before_anything_else() {
        let tun = Requirement::missing("tun", "no /dev/net/tun", "load it").by_command(&["modprobe", "tun"]);
        let nft = Requirement::missing("nftables", "no nft", "install it").by_package("nftables");
        let clock = Requirement::warning("clock", "not kept", "keep it").by_package("chrony");
        let report = report(vec![Requirement::ok("user", "root"), tun, nft, clock]);
        let mends = mends(&report);
        let commands: Vec<String> =
            mends.iter().flat_map(|mend| &mend.commands).map(|command| command.join(" ")).collect();
        let expected = [
            "apt-get update -q",
            "apt-get install -y --no-install-recommends chrony nftables",
            "modprobe tun",
        ];
        assert_eq!(commands, expected);
        let text = page(&report);
        let expected = "\
STATUS   WHAT      FOUND
ok       user      root
missing  tun       no /dev/net/tun
                   → load it
                     $ modprobe tun
missing  nftables  no nft
                   → install it
                     $ apt-get install -y --no-install-recommends nftables
warning  clock     not kept
                   → keep it
                     $ apt-get install -y --no-install-recommends chrony

this host is not ready: 2 missing, 1 warning; `mvm doctor --fix` runs the commands above, each after asking";
        assert_eq!(text, expected);
    }
}
