//! `convoke doctor`: what the database has and lacks, whether the daemon answers, and whether the
//! rows obey the invariants of `reference/negotiation.md` §7. Changes nothing.
use super::{Outcome, daemon, failure::Failure, screen, settings::Settings};
use crate::{
    access::rows,
    agent::{Definition, Metrics, WakeIndex},
    app::CLIENTS_PUBLICATION,
    config::{Config, Problem, load_agents, locate},
    db::{self, Database, private::password_file},
    scope::Scope,
    task::{INVARIANTS, Replayed, replay},
};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// Places where one invariant is broken that are counted.
const BROKEN_MAX: u32 = 1000;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

pub(super) async fn run(settings: &Settings, replays: bool) -> Outcome {
    let config = settings.load()?.config;
    let scope = Scope::default();
    let (database, running) = open(&config, &scope).await?;
    let looked = look(&config, &database, replays).await;
    let url = database.url_redacted();
    let password = config.database.url.is_none().then(|| password_file(&config.database.data_dir));
    if !running {
        database.stop().await?;
    }
    let _ = scope.drain(Duration::from_secs(5)).await;
    let mut findings = looked?;
    findings.push(answer(settings, &config, running).await);
    let ok = findings.iter().all(|finding| finding.ok);
    if settings.json {
        let database = json!({
            "url": url, "private": password.is_some(), "data_dir": config.database.data_dir,
            "password_file": password,
        });
        screen::json(&json!({ "ok": ok, "database": database, "findings": findings }));
    } else {
        screen::line(format!("database {url}"));
        if let Some(file) = password {
            screen::line(format!("password in {}", file.display()));
        }
        for Finding { name, ok, found, remedy } in &findings {
            screen::line(format!("{} {name:<24} {found}", if *ok { "ok  " } else { "MEND" }));
            if let Some(remedy) = remedy {
                screen::line(format!("     → {remedy}"));
            }
        }
    }
    if ok { Ok(()) } else { Err(Failure::not_well()) }
}

/// The database, and whether a daemon holds its data folder. A private one that does not run is
/// started for the look, and stopped after it.
async fn open(config: &Config, scope: &Scope) -> Result<(Database, bool), Failure> {
    match Database::open(&config.database, scope).await {
        Ok(database) => Ok((database, false)),
        Err(db::Error::DataDirInUse { .. }) => Ok((Database::attach(&config.database).await?, true)),
        Err(e) => Err(e.into()),
    }
}

/// Tables that agents' wakes name and the database does not have: agent, number of the wake, table.
pub(super) async fn missing_tables(
    database: &Database,
    definitions: &[Definition],
) -> anyhow::Result<Vec<(String, usize, String)>> {
    let mut wakes = Vec::new();
    for agent in definitions {
        for (at, wake) in agent.wake.iter().enumerate() {
            let (schema, table) = wake.table_name();
            wakes.push((agent.id.to_string(), at, schema, table));
        }
    }
    let (schemas, tables): (Vec<_>, Vec<_>) =
        wakes.iter().map(|(_, _, schema, table)| (*schema, *table)).unzip();
    let client = database.client().await?;
    let rows = client.query(include_str!("sql/missing_tables.sql"), &[&schemas, &tables]).await?;
    let missing: Vec<i64> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let named = wakes.into_iter().zip(1_i64..).filter(|(_, at)| missing.contains(at));
    Ok(named.map(|((agent, at, schema, table), _)| (agent, at, format!("{schema}.{table}"))).collect())
}

/// Where wakes do not fit tables that are there: unknown columns, values that are none of their columns' types.
pub(super) async fn misfits(
    config: &Config,
    database: &Database,
    definitions: &[Definition],
) -> anyhow::Result<Vec<Problem>> {
    let mut found = WakeIndex::new(definitions, &Metrics::default()).check(database).await?;
    found.retain(|(_, problem)| !problem.key.ends_with(".table"));
    Ok(locate(&config.agents.dir, &found)?)
}

async fn look(config: &Config, database: &Database, replays: bool) -> Result<Vec<Finding>, Failure> {
    let definitions = load_agents(&config.agents.dir)?;
    let server = db::inspect(database).await?.into_iter();
    let rows = rows::inspect(database, CLIENTS_PUBLICATION).await?;
    let server = server.chain(rows);
    let mut findings: Vec<_> = server
        .map(|f| Finding { name: f.name.to_owned(), ok: f.ok, found: f.found, remedy: f.remedy })
        .collect();
    for (agent, at, table) in missing_tables(database, &definitions).await? {
        let found = format!("wake.{at} of agent {agent} names table {table}, which does not exist");
        let remedy = Some(
            "create the table, or correct the agent's file; the agent wakes when it is there".to_owned(),
        );
        findings.push(Finding { name: "wakes".into(), ok: false, found, remedy });
    }
    for problem in misfits(config, database, &definitions).await? {
        let remedy =
            Some("correct the agent's file, or the table; until then the wake is never met".to_owned());
        findings.push(Finding { name: "wakes".into(), ok: false, found: problem.to_string(), remedy });
    }
    let client = database.client().await?;
    let row = client.query_one(include_str!("sql/replication.sql"), &[&config.wal.slot]).await?;
    let publications: Vec<String> = row.try_get("publications")?;
    if !row.try_get::<_, bool>("migrated")? {
        let found = "schema convoke is not there yet: `convoke up` or `convoke migrate` makes it".into();
        findings.push(Finding { name: "schema".into(), ok: true, found, remedy: None });
        return Ok(findings);
    }
    findings.push(slot(config, &row)?);
    let found = if publications.is_empty() {
        "none yet: `convoke up` makes them".into()
    } else {
        publications.join(", ")
    };
    findings.push(Finding { name: "publications".into(), ok: true, found, remedy: None });
    // These read everything, however much that is.
    client.batch_execute("set enable_seqscan = on; set statement_timeout = 0").await?;
    for (invariant, query) in INVARIANTS {
        let (name, told) = invariant.split_once(": ").unwrap_or((invariant, ""));
        let query = format!("select count(*) from ({query} limit {BROKEN_MAX}) as broken");
        let broken: i64 = client.query_one(&query, &[]).await?.try_get(0)?;
        let found = if broken == 0 { told.to_owned() } else { format!("broken {broken} times: {told}") };
        let remedy = (broken > 0)
            .then(|| "this is a bug: report it with `select * from convoke.events` of the task".into());
        findings.push(Finding { name: name.into(), ok: broken == 0, found, remedy });
    }
    drop(client);
    if replays {
        findings.push(replayed(database).await?);
    }
    Ok(findings)
}

/// I8: makes the rows again from the events.
async fn replayed(database: &Database) -> Result<Finding, Failure> {
    let Replayed { tasks, events, without_beginning, differences } =
        replay(database).await.map_err(anyhow::Error::new)?;
    let mut found = format!("{tasks} tasks made again from {events} events");
    if without_beginning > 0 {
        found.push_str(&format!("; of {without_beginning} the first events are gone"));
    }
    let ok = differences.is_empty();
    let remedy = (!ok).then(|| {
        format!("this is a bug: report it with the events of these tasks: {}", differences.join("; "))
    });
    let found = if ok {
        format!("{found}: the same as the rows")
    } else {
        format!("{found}: {} differences", differences.len())
    };
    Ok(Finding { name: "I8".into(), ok, found, remedy })
}

fn slot(config: &Config, row: &tokio_postgres::Row) -> Result<Finding, Failure> {
    let (active, lag): (Option<bool>, Option<i64>) = (row.try_get("active")?, row.try_get("lag_bytes")?);
    let status: Option<String> = row.try_get("wal_status")?;
    let lost = status.as_deref() == Some("lost");
    let behind = lag.is_some_and(|lag| u64::try_from(lag).is_ok_and(|lag| lag > config.wal.lag_max));
    let slot = &config.wal.slot;
    let found = match active {
        None => format!("{slot} is not there yet: `convoke up` makes it"),
        Some(_) if lost => format!("{slot} is lost: the server threw away log that the daemon had not read"),
        Some(active) => {
            let state = if active { "is read" } else { "is not read now" };
            format!("{slot} {state}, {} bytes behind", lag.unwrap_or_default())
        }
    };
    let remedy = if lost {
        Some("start the daemon: it makes a new one, says what was missed, and looks at everything".to_owned())
    } else {
        behind.then(|| {
            format!("start the daemon, or give the log up with `select pg_drop_replication_slot('{slot}')`")
        })
    };
    Ok(Finding { name: "replication_slot".into(), ok: remedy.is_none(), found, remedy })
}

/// Whether the daemon says that it is ready. One that does not run is no fault.
async fn answer(settings: &Settings, config: &Config, running: bool) -> Finding {
    let url = daemon::url(settings, config);
    let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build();
    let answer = match http {
        Ok(http) => http.get(format!("{url}/health/ready")).send().await.ok(),
        Err(_) => None,
    };
    let (ok, found) = match answer.map(|answer| answer.status()) {
        Some(status) if status.is_success() => (true, format!("ready at {url}")),
        Some(status) => (false, format!("{url} answers {status}")),
        None if running => (false, format!("holds its data folder but does not answer at {url}")),
        None => (true, format!("none at {url}")),
    };
    let remedy = (!ok).then(|| format!("look at {url}/health and at its log"));
    Finding { name: "daemon".into(), ok, found, remedy }
}
