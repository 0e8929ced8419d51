//! `convoke demo`: a support desk whose tickets are sorted by agents that compete.
//!
//! Runs the daemon in this process on a private PostgreSQL of its own, starts the
//! HTTP agent's service, loads the tickets with plain SQL and shows what becomes of
//! each. A run before it, even one that was killed, leaves nothing in its way.
mod classifier;
mod desk;
mod view;

use super::{
    Outcome, daemon,
    failure::Failure,
    screen,
    serve::{READY_WITHIN, absent, again, anon_key, build, javascript, until_signal},
    settings::Settings,
};
use crate::{
    app::{Daemon, Parts},
    config::{Config, load_agents},
    scope::{OnExit, Scope},
    telemetry,
};
use anyhow::Context;
use desk::Desk;
use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use view::View;

const DATA_DIR: &str = ".convoke-demo";
/// No ticket moved for so long: something is stuck, and the demo says so instead of waiting on.
const STUCK_AFTER: Duration = Duration::from_secs(60);

#[derive(clap::Args)]
pub(super) struct Args {
    /// End when every ticket is done; fail if one is not
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

    eprintln!("starting PostgreSQL and the daemon …");
    desk::lay_out(&config.database, &schema).await?;
    let daemon = build(Daemon::builder(config.clone()).definitions(definitions)).await?;
    let parts = daemon.parts().clone();
    let once = args.once;
    // First the show ends, then the daemon: the show has a connection to its database.
    let (stop, end) = (CancellationToken::new(), CancellationToken::new());
    let undone = Arc::new(parking_lot::Mutex::new(None));
    let (told, stopping, ended) = (Arc::clone(&undone), stop.clone(), end.clone());
    let show = Show { settings: settings.clone(), parts, absent, tickets, once };
    scope.spawn("demo", OnExit::Log, |_| async move {
        let outcome = show.run(&stopping).await;
        *told.lock() = Some(outcome);
        ended.cancel();
        Ok(())
    });
    until_signal(daemon, &config, stop, end, || {}).await?;
    let _ = scope.drain(Duration::from_secs(2)).await;
    let outcome = undone.lock().take();
    match outcome {
        Some(Ok(0)) | None => Ok(()),
        Some(Ok(_)) if !once => Ok(()),
        Some(Ok(undone)) => Err(anyhow::anyhow!("{undone} tickets were left undone").into()),
        Some(Err(e)) => Err(e.into()),
    }
}

/// The settings of the demo: its own data folder, its own agents, a free port, and never a database
/// that was not named for it (its table of tickets is emptied).
fn prepare(settings: &Settings, dir: &Path) -> Result<Config, Failure> {
    if !dir.join("schema.sql").is_file() {
        let told =
            format!("there is no example in {}: run it in the repository, or give --dir", dir.display());
        return Err(Failure::Usage(told));
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
        eprintln!("{listen} is taken: using a free port instead");
        config.server.listen.set_port(0);
    }
    Ok(config)
}

/// What is shown while the daemon runs.
struct Show {
    settings: Settings,
    parts: Parts,
    absent: Vec<(String, String)>,
    tickets: String,
    once: bool,
}

impl Show {
    /// Shows every ticket to its end; gives how many were left undone.
    async fn run(self, stop: &CancellationToken) -> anyhow::Result<usize> {
        let desk = Desk::open(&self.parts.database).await?;
        let mut view = View::new(self.settings.json);
        for (id, why) in &self.absent {
            view.note(&format!("{id} is not taking part: {why}"));
        }
        // A row that is inserted before the log is read for the first time wakes nobody.
        let ready = tokio::time::timeout(READY_WITHIN, self.parts.health.ready()).await;
        ready.context("the daemon does not get ready: see its /health")?;
        desk.clear().await?;
        let mut quiet = Duration::ZERO;
        let mut waiting = desk::arrivals(&self.tickets).into_iter();
        loop {
            let arrived = match waiting.next() {
                Some(insert) => desk.insert(&insert).await.map(|()| true)?,
                None => false,
            };
            let tickets = desk.look().await?;
            let moved = view.show(&tickets) || arrived;
            if !arrived && tickets.iter().all(desk::Ticket::is_over) {
                break;
            }
            quiet = if moved { Duration::ZERO } else { quiet };
            if quiet >= STUCK_AFTER {
                view.note("nothing moves any more");
                break;
            }
            let tick = Duration::from_millis(120);
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(tick) => quiet += tick,
            }
        }
        let tickets = desk.look().await?;
        let agents = desk.agents().await?;
        view.finish(&tickets, &agents);
        let undone = tickets.iter().filter(|ticket| !ticket.is_done()).count();
        if !self.once && !stop.is_cancelled() {
            self.tell_more(&tickets)?;
            let mut changed = self.parts.tasks.changed();
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    _ = changed.changed() => {
                        view.show(&desk.look().await?);
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
        Ok(undone)
    }

    /// Where everything is, and what to try next.
    fn tell_more(&self, tickets: &[desk::Ticket]) -> anyhow::Result<()> {
        if self.settings.json {
            return Ok(());
        }
        let (again, url) = (again(&self.settings), daemon::http_url(self.parts.addr));
        let database = self.parts.database.url();
        let task = tickets.iter().find_map(|ticket| ticket.task_id.clone()).unwrap_or_default();
        screen::line(format!(
            "
The daemon goes on at {url} (Ctrl-C stops it). Look closer from another terminal, in this folder:
  {again} task why {task}
  {again} task list
  {again} agent list
  {again} doctor
  curl {url}/health
  psql '{database}' -c 'select id, urgency, category, triaged_by, subject from tickets order by urgency desc'

Insert a ticket of your own and watch it here:
  psql '{database}' -c \"insert into tickets (customer, plan, subject, body) values ('Me', 'team', 'Refund please', 'I was charged twice.')\"

Watch the agents from JavaScript, in a page or Node.js 22 (npm install @supabase/supabase-js):
{}",
            javascript(&url, "demo", &anon_key(&self.parts)?)
        ));
        Ok(())
    }
}
