//! `convoke doctor`: checks the database's set-up, the daemon's answer, and the invariants of
//! `docs/spec/negotiation.md` §7 on the rows. Changes nothing.
#![expect(clippy::indexing_slicing, reason = "indexing a JSON value returns null for a missing member")]
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
use serde_json::{Value, json};
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
    let (daemon, found) = answer(settings, &config, running).await;
    findings.push(found);
    if let Some(daemon) = daemon {
        findings.extend(models(&daemon).await);
    }
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

/// Checks whether the daemon is ready. A daemon that does not run is not a problem. Returns it if it accepts our key.
async fn answer(settings: &Settings, config: &Config, running: bool) -> (Option<Daemon>, Finding) {
    let url = daemon::url(settings, config);
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
    let answer = match http {
        Ok(http) => http.get(format!("{url}/health/ready")).send().await.ok(),
        Err(_) => None,
    };
    let mut ours = None;
    let (ok, found) = match answer.map(|answer| answer.status()) {
        Some(status) if status.is_success() => match Daemon::find(settings) {
            Ok(daemon) if daemon.knows_key().await => {
                ours = Some(daemon);
                (true, format!("ready at {url}"))
            }
            _ if running => (false, format!("holds its data folder, but another daemon answers at {url}")),
            _ => (true, format!("none; the one at {url} is of another project: it refuses this key")),
        },
        Some(status) => (false, format!("{url} answers {status}")),
        None if running => (false, format!("holds its data folder but does not answer at {url}")),
        None => (true, format!("none at {url}")),
    };
    let remedy = (!ok).then(|| format!("read {url}/health and the daemon's process log"));
    (ours, Finding { name: "daemon".into(), ok, found, remedy })
}

/// The accounts of the models that the daemon's agents use, one finding each. Empty if the key may not see them.
async fn models(daemon: &Daemon) -> Vec<Finding> {
    let told = daemon.get("/v1/providers", &[], Duration::ZERO).await.unwrap_or_default();
    told["accounts"].as_array().into_iter().flatten().map(account).collect()
}

/// What an account of models does now. It is a problem if requests to a model are held.
fn account(of: &Value) -> Finding {
    let count = |name: &str| of[name].as_u64().unwrap_or(0);
    let name = of["account"].as_str().unwrap_or("-");
    let (waiting, under_way, places) = (count("waiting"), count("under_way"), count("concurrent"));
    let mut found = format!("{name}: {under_way} of {places} requests under way, {waiting} wait");
    if let Some(seconds) = of["paused_seconds"].as_f64() {
        found.push_str(&format!(", for the end of a pause of {seconds:.0} s after a 429"));
    }
    let held: Vec<&str> =
        of["open_breakers"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let ignored: Vec<&str> =
        of["limit_ignored"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !ignored.is_empty() {
        let models = ignored.join(", ");
        found.push_str(&format!("; {models} gave longer answers than was allowed (try run.limit_member)"));
    }
    let ok = held.is_empty();
    if !ok {
        found.push_str(&format!("; requests to {} are held", held.join(", ")));
    }
    let remedy = "its endpoint failed several times, or refused the key: correct the key, or wait, since one request \
                  in a minute tries whether it works again";
    Finding { name: "models".into(), ok, found, remedy: (!ok).then(|| remedy.to_owned()) }
}
