//! `convoke demo`: agents compete for the tickets of a support desk.
//!
//! Runs the daemon in this process on a private PostgreSQL of its own, starts the HTTP agent's service, inserts the
//! tickets with plain SQL and shows the result of each. Removes the tickets of an earlier run, even of one that was
//! killed.
mod classifier;
mod support_desk;
mod view;

use super::{
    Outcome, daemon, dashboard,
    exit::Failure,
    output,
    serve::{
        INSTALL_CLIENT, READY_WITHIN, Signals, absent, again, anon_key, build, javascript, psql, shell_word,
        until_signal,
    },
    settings::Settings,
};
use crate::{
    app::{Daemon, Parts},
    auth::Login,
    clock::Clock,
    config::{Config, load_agents},
    dashboard as page,
    scope::{OnExit, Scope},
    telemetry,
};
use anyhow::Context;
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use support_desk::Desk;
use tokio_util::sync::CancellationToken;
use view::View;

const DATA_DIR: &str = ".convoke-demo";
/// The demo gives up when no ticket has changed for this time.
const STUCK_AFTER: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(super) struct Args {
    /// Exit when every ticket is done; fail if one is not
    #[arg(long)]
    once: bool,
    /// Folder of the example
    #[arg(long, default_value = "examples/triage", value_name = "DIR")]
    dir: PathBuf,
}

pub(super) async fn run(settings: &Settings, args: &Args) -> Outcome {
    let mut settings = settings.clone();
    settings.data_dir.get_or_insert_with(|| DATA_DIR.into());
    settings.log.get_or_insert_with(|| "warn".into());
    let config = prepare(&settings, &args.dir)?;
    let read = |name: &str| {
        let file = args.dir.join(name);
        std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))
    };
    let (schema, tickets) = (read("schema.sql")?, read("tickets.sql")?);
    let mut definitions = load_agents(&config.agents.dir)?;
    telemetry::init(&config.telemetry)?;
    let absent = absent(&definitions);
    definitions.retain(|agent| absent.iter().all(|(id, _)| *id != agent.id.as_str()));
    let scope = Scope::default();
    let service = classifier::start(&scope).await?;
    classifier::point_to(&mut definitions, service);

    // A signal cancels `stop`, which ends the show; the show then cancels `end`, which stops the daemon. The show has a
    // connection to the database, so the daemon must outlive it.
    let (mut signals, stop, end) = (Signals::install()?, CancellationToken::new(), CancellationToken::new());
    eprintln!("starting PostgreSQL and the daemon …");
    support_desk::create_tables(&config.database, &schema).await?;
    let builder = Daemon::builder(config.clone()).definitions(definitions);
    let Some(daemon) = build(builder, &mut signals, &stop).await? else { return Ok(()) };
    let parts = daemon.parts().clone();
    let once = args.once;
    let undone = Arc::new(parking_lot::Mutex::new(None));
    let (outcome_cell, stopping, ended) = (Arc::clone(&undone), stop.clone(), end.clone());
    let (data_dir, agents) = (config.database.data_dir.clone(), config.agents.dir.clone());
    let page = config.dashboard.clone();
    let show = Show { settings: settings.clone(), parts, absent, tickets, once, data_dir, agents, page };
    scope.spawn("demo", OnExit::Log, |_| async move {
        let outcome = show.run(&stopping).await;
        *outcome_cell.lock() = Some(outcome);
        ended.cancel();
        Ok(())
    });
    until_signal(daemon, &config, signals, stop, end, || {}).await?;
    let _ = scope.drain(Duration::from_secs(2)).await;
    let outcome = undone.lock().take();
    match outcome {
        Some(Ok(0)) | None => Ok(()),
        Some(Ok(_)) if !once => Ok(()),
        Some(Ok(undone)) => Err(anyhow::anyhow!("{undone} tickets are not done").into()),
        Some(Err(e)) => Err(e.into()),
    }
}

/// The settings of the demo: a data folder of its own, its own agents and a free port. Only `--database-url` selects
/// another database, never the file or the environment, because the demo truncates its table of tickets.
fn prepare(settings: &Settings, dir: &Path) -> Result<Config, Failure> {
    if !dir.join("schema.sql").is_file() {
        let message =
            format!("no example in {}: run the demo in the repository, or give --dir", dir.display());
        return Err(Failure::Usage(message));
    }
    let mut config = settings.load()?.config;
    if settings.database_url.is_none() {
        config.database.url = None;
    }
    if settings.agents.is_none() {
        config.agents.dir = dir.join("agents");
    }
    let listen = config.server.listen;
    if settings.listen.is_none() && TcpListener::bind(listen).is_err() {
        eprintln!("{listen} is in use: using a free port instead");
        config.server.listen.set_port(0);
    }
    Ok(config)
}

/// What the demo does and shows while the daemon runs.
struct Show {
    settings: Settings,
    parts: Parts,
    absent: Vec<(String, String)>,
    tickets: String,
    once: bool,
    data_dir: PathBuf,
    agents: PathBuf,
    page: page::Config,
}

impl Show {
    /// Inserts the tickets and shows each until its end. Returns how many are not done.
    async fn run(self, stop: &CancellationToken) -> anyhow::Result<usize> {
        let desk = Desk::open(&self.parts.database).await?;
        let mut view = View::new(self.settings.json);
        for (id, why) in &self.absent {
            view.note(&format!("agent {id} is unavailable: {why}"));
        }
        // A row that commits before the replication slot exists wakes no agent.
        let ready = tokio::time::timeout(READY_WITHIN, self.parts.health.ready()).await;
        ready
            .with_context(|| format!("not ready within {READY_WITHIN:?}: {}", self.parts.health.missing()))?;
        desk.clear().await?;
        let mut idle = Duration::ZERO;
        let mut waiting = support_desk::arrivals(&self.tickets).into_iter();
        loop {
            let arrived = match waiting.next() {
                Some(insert) => desk.insert(&insert).await.map(|()| true)?,
                None => false,
            };
            let tickets = desk.tickets().await?;
            let moved = view.show(&tickets) || arrived;
            if !arrived && tickets.iter().all(support_desk::Ticket::is_over) {
                break;
            }
            idle = if moved { Duration::ZERO } else { idle };
            if idle >= STUCK_AFTER {
                view.note(&format!("no ticket has changed for {STUCK_AFTER:?}"));
                break;
            }
            let tick = Duration::from_millis(120);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(tick) => idle += tick,
            }
        }
        let tickets = desk.tickets().await?;
        let agents = desk.agents().await?;
        view.finish(&tickets, &agents);
        let undone = tickets.iter().filter(|ticket| !ticket.is_done()).count();
        if !self.once && !stop.is_cancelled() {
            self.print_next_steps(&tickets)?;
            let mut changed = self.parts.tasks.changed();
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = changed.changed() => {
                        view.show(&desk.tickets().await?);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        Ok(undone)
    }

    /// Prints addresses and commands to try next.
    fn print_next_steps(&self, tickets: &[support_desk::Ticket]) -> anyhow::Result<()> {
        if self.settings.json {
            return Ok(());
        }
        let (again, url) = (again(&self.settings), daemon::http_url(self.parts.addr));
        let psql = psql(&self.parts.database, &self.data_dir);
        let agents = shell_word(&self.agents.display().to_string());
        let task = tickets.iter().find_map(|ticket| ticket.task_id.clone()).unwrap_or_default();
        let (page, new_link) = match self.page.enabled {
            true => {
                let login =
                    Login::new(dashboard::user(), "demo".parse()?, dashboard::OWN_ROLE, Clock::System.now());
                let link = dashboard::link(&self.page, &self.parts.keys, &url, &login)?;
                let page = format!("\nDashboard (the link works once, within 10 minutes):\n  {link}\n");
                (page, format!("\n  {again} dashboard --org demo"))
            }
            false => Default::default(),
        };
        output::line(format!(
            "{page}
The daemon keeps running at {url} (Ctrl-C stops it). Explore it from another terminal, in this folder:
  {again} task why {task}
  {again} task list
  {again} agent list
  {again} --agents {agents} doctor{new_link}
  curl {url}/health
  {psql} -c 'select id, urgency, category, triaged_by, subject from tickets order by urgency desc'

Insert a ticket of your own and see it here:
  {psql} -c \"insert into tickets (customer, plan, subject, body) values ('Me', 'team', 'Refund please', 'I was charged twice.')\"

Watch the agents from JavaScript, in a page or Node.js 22 or later ({INSTALL_CLIENT}):
{}",
            javascript(&url, "demo", &anon_key(&self.parts)?)
        ));
        Ok(())
    }
}
