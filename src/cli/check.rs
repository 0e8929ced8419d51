//! `convoke check`: every problem of settings and agents, before anything starts.
use super::{Outcome, failure::Failure, screen, settings::Settings};
use crate::config::{self, Problems};
use serde_json::json;

pub(super) fn run(settings: &Settings) -> Outcome {
    let loaded = config::load(&settings.options());
    let mut problems = Vec::new();
    // Bad settings do not hide bad agents: those of the folder that would be used are looked at too.
    let folder = loaded.as_ref().map_or_else(
        |_| settings.agents.clone().map_or_else(|| config::Config::default().agents.dir, Into::into),
        |loaded| loaded.config.agents.dir.clone(),
    );
    let agents = config::load_agents(&folder);
    for outcome in [loaded.as_ref().err(), agents.as_ref().err()].into_iter().flatten() {
        problems.extend(outcome.0.iter().cloned());
    }
    let count = agents.map_or(0, |agents| agents.len());
    if settings.json {
        screen::json(&json!({ "ok": problems.is_empty(), "agents": count, "problems": problems }));
    } else if problems.is_empty() {
        let file = loaded.ok().and_then(|loaded| loaded.file);
        let file = file.map_or_else(|| "defaults".to_owned(), |file| file.display().to_string());
        screen::line(format!("ok: settings from {file}, {count} agents from {}", folder.display()));
    } else {
        screen::line(Problems(problems.clone()).to_string());
        eprintln!(
            "{} to mend",
            if problems.len() == 1 { "1 problem".into() } else { format!("{} problems", problems.len()) }
        );
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::problems_told()) }
}
