//! `convoke up`: the daemon.
use super::{
    Outcome, daemon,
    doctor::{misfits, missing_tables},
    screen,
    serve::{absent, again, anon_key, build, javascript, until_signal},
    settings::Settings,
};
use crate::{
    app::{Daemon, Parts},
    config::{Loaded, load_agents},
    telemetry,
};
use serde_json::json;
use std::{collections::BTreeMap, fmt::Write};
use tokio_util::sync::CancellationToken;

pub(super) async fn run(settings: &Settings) -> Outcome {
    let loaded = settings.load()?;
    let config = loaded.config.clone();
    let definitions = load_agents(&config.agents.dir)?;
    telemetry::init(&config.telemetry)?;
    let absent = absent(&definitions);
    let org = definitions.first().map_or_else(|| "default".to_owned(), |agent| agent.org.to_string());
    let agents = definitions.len() - absent.len();
    let daemon = build(Daemon::builder(config.clone()).definitions(definitions.clone())).await?;
    let parts = daemon.parts();
    let mut notes: Vec<_> = absent.iter().map(|(id, why)| format!("{id} is not here: {why}")).collect();
    notes.extend(waiting(missing_tables(&parts.database, &definitions).await?));
    let misfits = misfits(&config, &parts.database, &definitions).await?;
    notes.extend(misfits.iter().map(ToString::to_string));
    let key = anon_key(parts)?;
    let url = daemon::http_url(parts.addr);
    let told = if settings.json {
        let absent = absent.iter().map(|(id, why)| json!({ "agent_id": id, "reason": why }));
        let told = json!({
            "url": url,
            "websocket": socket_url(&url),
            "database": { "url": parts.database.url(), "private": parts.database.is_private() },
            "data_dir": config.database.data_dir,
            "agents": agents,
            "absent": absent.collect::<Vec<_>>(),
            "anon_key": key,
        });
        told.to_string()
    } else {
        format!(
            "{}\n\nConnect from JavaScript, in a page or Node.js 22 (npm install @supabase/supabase-js):\n\n{}\n\nCtrl-C stops.",
            banner(settings, &loaded, parts, agents, &notes),
            javascript(&url, &org, &key)
        )
    };
    let stop = CancellationToken::new();
    until_signal(daemon, &config, stop.clone(), stop, || screen::line(told)).await
}

/// A line for each table that is not there yet, however many agents wait for it.
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
    format!("{}/realtime/v1/websocket", url.replacen("http", "ws", 1))
}

fn banner(settings: &Settings, loaded: &Loaded, parts: &Parts, agents: usize, notes: &[String]) -> String {
    let config = &loaded.config;
    let url = daemon::http_url(parts.addr);
    let file = loaded.file.as_ref().map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
    let kind = if parts.database.is_private() { "private" } else { "outside" };
    let mut text = format!("convoke {} is up\n", env!("CARGO_PKG_VERSION"));
    let mut row = |name: &str, told: &str| {
        let _ = writeln!(text, "  {name:<10} {told}");
    };
    row("http", &url);
    row("websocket", &socket_url(&url));
    row("database", &format!("{} ({kind})", parts.database.url_redacted()));
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
