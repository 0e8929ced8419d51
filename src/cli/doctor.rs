//! `convoke doctor`: checks the database's set-up, the daemon's answer, and the invariants of
//! `docs/spec/negotiation.md` §7 on the rows. Changes nothing.
use super::{
    Outcome,
    daemon::{self, Daemon},
    exit::Failure,
    output,
    settings::Settings,
};
use crate::{
    app::doctor::{Finding, inspect},
    config::Config,
    db::{self, Database, private::password_file},
    scope::Scope,
};
use serde_json::json;
use std::time::Duration;

pub(super) async fn run(settings: &Settings, replays: bool) -> Outcome {
    let config = settings.load()?.config;
    let scope = Scope::default();
    let (database, running) = open(&config, &scope).await?;
    let inspected = inspect(&config, &database, replays, None).await;
    let url = database.url_redacted();
    let password = config.database.url.is_none().then(|| password_file(&config.database.data_dir));
    if !running {
        database.stop().await?;
    }
    let _ = scope.drain(Duration::from_secs(5)).await;
    let mut findings = inspected?;
    findings.push(answer(settings, &config, running).await);
    let ok = findings.iter().all(|finding| finding.ok);
    if settings.json {
        let database = json!({
            "url": url, "private": password.is_some(), "data_dir": config.database.data_dir,
            "password_file": password,
        });
        output::json(&json!({ "ok": ok, "database": database, "findings": findings }));
    } else {
        output::line(format!("database {url}"));
        if let Some(file) = password {
            output::line(format!("password in {}", file.display()));
        }
        for Finding { name, ok, found, remedy } in &findings {
            output::line(format!("{} {name:<24} {found}", if *ok { "ok  " } else { "FIX " }));
            if let Some(remedy) = remedy {
                output::line(format!("     → {remedy}"));
            }
        }
    }
    if ok { Ok(()) } else { Err(Failure::reported()) }
}

/// Opens the database, and returns whether a daemon holds its data folder. A private PostgreSQL that does not run is
/// started for the checks and stopped after them.
pub(super) async fn open(config: &Config, scope: &Scope) -> Result<(Database, bool), Failure> {
    match Database::open(&config.database, scope).await {
        Ok(database) => Ok((database, false)),
        Err(db::Error::DataDirInUse { .. }) => Ok((Database::attach(&config.database).await?, true)),
        Err(e) => Err(e.into()),
    }
}

/// Checks whether the daemon is ready. A daemon that does not run is not a problem.
async fn answer(settings: &Settings, config: &Config, running: bool) -> Finding {
    let url = daemon::url(settings, config);
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
    let answer = match http {
        Ok(http) => http.get(format!("{url}/health/ready")).send().await.ok(),
        Err(_) => None,
    };
    let (ok, found) = match answer.map(|answer| answer.status()) {
        Some(status) if status.is_success() => match Daemon::find(settings) {
            Ok(daemon) if daemon.knows_key().await => (true, format!("ready at {url}")),
            _ if running => (false, format!("holds its data folder, but another daemon answers at {url}")),
            _ => (true, format!("none; the one at {url} is of another project: it refuses this key")),
        },
        Some(status) => (false, format!("{url} answers {status}")),
        None if running => (false, format!("holds its data folder but does not answer at {url}")),
        None => (true, format!("none at {url}")),
    };
    let remedy = (!ok).then(|| format!("read {url}/health and the daemon's process log"));
    Finding { name: "daemon".into(), ok, found, remedy }
}
