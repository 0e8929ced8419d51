//! `convoke check`: lists every problem of the settings, the agents' files and this machine. Starts nothing.
use super::{
    Outcome,
    exit::Failure,
    output,
    settings::{Settings, keys},
};
use crate::{
    agent::{self, Definition, Kind},
    auth::SECRET_FILE,
    config::{self, Config, Problem, Problems},
    db::private::check_programs,
};
use serde_json::json;

pub(super) fn run(settings: &Settings) -> Outcome {
    let loaded = config::load(&settings.options());
    let mut problems = Vec::new();
    // Bad settings must not hide bad agents: the folder that would be used is checked even if the settings are wrong.
    let folder = loaded.as_ref().map_or_else(
        |_| settings.agents.clone().map_or_else(|| config::Config::default().agents.dir, Into::into),
        |loaded| loaded.config.agents.dir.clone(),
    );
    let agents = config::load_agents_with(&folder, unregistered);
    for outcome in [loaded.as_ref().err(), agents.as_ref().err()].into_iter().flatten() {
        problems.extend(outcome.0.iter().cloned());
    }
    let machine = loaded.as_ref().map(|loaded| machine(&loaded.config)).unwrap_or_default();
    problems.extend(machine);
    let count = agents.map_or(0, |agents| agents.len());
    if settings.json {
        output::json(&json!({ "ok": problems.is_empty(), "agents": count, "problems": problems }));
    } else if problems.is_empty() {
        let file = loaded.ok().and_then(|loaded| loaded.file);
        let file = file.map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
        output::line(format!("ok: settings from {file}, {count} agents from {}", folder.display()));
    } else {
        output::line(Problems(problems.clone()).to_string());
        let count = problems.len();
        eprintln!("{count} {}", if count == 1 { "problem" } else { "problems" });
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems_reported()) }
}

/// Problems of this machine for which `up` fails before it opens the database.
fn machine(config: &Config) -> Vec<Problem> {
    let mut found = Vec::new();
    if config.database.url.is_none()
        && let Err(e) = check_programs(&config.database)
    {
        found.push(Problem::of_file("database", e.to_string(), None));
    }
    let secret = config.database.data_dir.join(SECRET_FILE);
    if config.auth.jwt_secret.is_none()
        && secret.symlink_metadata().is_ok()
        && let Err(e) = keys(config)
    {
        found.push(Problem::of_file(secret.display().to_string(), format!("{e:#}"), None));
    }
    found
}

/// The problem of an agent with `kind = "rust"`: a program must register its code, and this program registers none.
fn unregistered(agent: &Definition) -> Option<agent::Problem> {
    if agent.run.kind != Kind::Rust {
        return None;
    }
    let name = agent.run.name.clone().unwrap_or_else(|| agent.id.to_string());
    let message = format!("this program has no code that is registered as {name:?}");
    let remedy = "run it with a program of your own (examples/hosted_agent.rs), or choose another kind";
    Some(agent::Problem { key: "run.kind".into(), message, remedy: Some(remedy.into()) })
}
