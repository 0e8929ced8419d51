//! `convoke up`: runs the daemon and prints how to reach it.
use super::{
    Outcome, daemon, dashboard, output,
    serve::{INSTALL_CLIENT, Signals, absent, again, anon_key, build, javascript, psql, until_signal},
    settings::Settings,
};
use crate::{
    app::{
        Daemon, Parts,
        doctor::{misfits, missing_tables, unwatchable},
    },
    auth::Login,
    clock::Clock,
    config::{Config, Fingerprint, Loaded, load_agents},
    db::private::password_file,
    id::ORG_DEFAULT,
    telemetry,
};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Write};
use tokio_util::sync::CancellationToken;

pub(super) async fn run(settings: &Settings) -> Outcome {
    let loaded = settings.load()?;
    let config = loaded.config.clone();
    // Before the files are read: a change during the reading is found by the next look.
    let read = Fingerprint::of(&config.agents.dir, loaded.file.as_deref());
    let definitions = load_agents(&config.agents.dir)?;
    telemetry::init(&config.telemetry)?;
    let absent = absent(&definitions);
    let org = definitions.first().map_or_else(|| ORG_DEFAULT.to_owned(), |agent| agent.org.to_string());
    let agents = definitions.len() - absent.len();
    let (mut signals, stop) = (Signals::install()?, CancellationToken::new());
    // Only these are checked below; the daemon has its own.
    let waking: Vec<_> = definitions.iter().filter(|agent| !agent.wake.is_empty()).cloned().collect();
    let builder = Daemon::builder(config.clone())
        .definitions_of_files(definitions, read)
        .settings_of(settings.options());
    let Some(daemon) = build(builder, &mut signals, &stop).await? else { return Ok(()) };
    let parts = daemon.parts();
    let mut notes: Vec<_> =
        absent.iter().map(|(id, why)| format!("agent {id} is unavailable: {why}")).collect();
    notes.extend(waiting(missing_tables(&parts.database, &waking).await?));
    notes.extend(unwatchable(&parts.database, &waking).await?.iter().map(ToString::to_string));
    let misfits = misfits(&config, &parts.database, &waking).await?;
    notes.extend(misfits.iter().map(ToString::to_string));
    drop(waking);
    let key = anon_key(parts)?;
    let url = daemon::http_url(parts.addr);
    let page = if config.dashboard.enabled {
        let login = Login::new(dashboard::user(), org.parse()?, dashboard::OWN_ROLE, Clock::System.now());
        Some(dashboard::link(&config.dashboard, &parts.keys, &url, &login)?)
    } else {
        None
    };
    let text = if settings.json {
        let absent = absent.iter().map(|(id, why)| json!({ "agent_id": id, "reason": why }));
        let text = json!({
            "url": url,
            "websocket": socket_url(&url),
            "database": database(parts, &config),
            "data_dir": config.database.data_dir,
            "agents": agents,
            "absent": absent.collect::<Vec<_>>(),
            "anon_key": key,
            "dashboard": page,
        });
        text.to_string()
    } else {
        format!(
            "{}\n\nConnect from JavaScript, in a page or Node.js 22 or later ({INSTALL_CLIENT}):\n\n{}\n\n{}Ctrl-C stops.",
            banner(settings, &loaded, parts, agents, &notes),
            javascript(&url, &org, &key),
            page.map_or_else(String::new, |link| {
                format!(
                    "Dashboard (the link works once, within 10 minutes; a new one: {} dashboard):\n\n  {link}\n\n",
                    again(settings)
                )
            })
        )
    };
    until_signal(daemon, &config, signals, stop.clone(), stop, || output::line(text)).await
}

/// The database's URL without its password, and the file with the password of a private PostgreSQL.
fn database(parts: &Parts, config: &Config) -> Value {
    let private = parts.database.is_private();
    let file = private.then(|| password_file(&config.database.data_dir));
    json!({ "url": parts.database.url_redacted(), "private": private, "password_file": file })
}

/// One line for each missing table, however many wakes name it.
fn waiting<T>(missing: Vec<(String, T, String)>) -> impl Iterator<Item = String> {
    let mut tables: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for (id, _, table) in missing {
        tables.entry(table).or_insert((id, 0)).1 += 1;
    }
    tables.into_iter().map(|(table, (first, wakes))| {
        let others = if wakes > 1 { format!(" and {} others", wakes - 1) } else { String::new() };
        let wake = if wakes > 1 { "wake" } else { "wakes" };
        format!("{first}{others} {wake} on {table}, which does not exist yet")
    })
}

fn socket_url(url: &str) -> String {
    // Clients append `/websocket` themselves; the URL as it is opens a websocket too.
    format!("{}/realtime/v1", url.replacen("http", "ws", 1))
}

fn banner(settings: &Settings, loaded: &Loaded, parts: &Parts, agents: usize, notes: &[String]) -> String {
    let config = &loaded.config;
    let url = daemon::http_url(parts.addr);
    let file = loaded.file.as_ref().map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
    let kind = if parts.database.is_private() { "private" } else { "existing" };
    let mut text = format!("convoke {} is up\n", env!("CARGO_PKG_VERSION"));
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(text, "  {name:<10} {value}");
    };
    row("http", &url);
    row("websocket", &socket_url(&url));
    row("database", &format!("{} ({kind})", parts.database.url_redacted()));
    if parts.database.is_private() {
        row("", &psql(&parts.database, &config.database.data_dir));
    }
    row("data", &config.database.data_dir.display().to_string());
    row("settings", &file);
    let folder = &config.agents.dir;
    let absent = if folder.is_dir() { "" } else { ", which does not exist" };
    row("agents", &format!("{agents} from {}{absent}", folder.display()));
    for note in notes {
        row("", note);
    }
    row("keys", &format!("{} token --help", again(settings)));
    text.trim_end().to_owned()
}
