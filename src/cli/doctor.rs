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
    access::{self, rows},
    agent::{Definition, Env, Metrics, WakeIndex, unfit_readers},
    app::{CLIENTS_PUBLICATION, PUBLICATION},
    config::{Config, Problem, load_agents, locate},
    db::{self, Database, Reader, private::password_file},
    scope::Scope,
    task::{INVARIANTS, Replayed, replay},
    wal,
};
use serde::Serialize;
use serde_json::json;
use std::time::Duration;

/// Violations of one invariant that are counted at most.
const VIOLATIONS_MAX: u32 = 1000;

/// The result of one check.
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
    let inspected = inspect(&config, &database, replays).await;
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
async fn open(config: &Config, scope: &Scope) -> Result<(Database, bool), Failure> {
    match Database::open(&config.database, scope).await {
        Ok(database) => Ok((database, false)),
        Err(db::Error::DataDirInUse { .. }) => Ok((Database::attach(&config.database).await?, true)),
        Err(e) => Err(e.into()),
    }
}

/// Returns the tables of agents' wakes that the database does not have: agent, number of the wake, table.
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

/// Returns why tables of agents' wakes exist but cannot be watched, with the statement that corrects it.
pub(super) async fn unwatchable(
    database: &Database,
    definitions: &[Definition],
) -> anyhow::Result<Vec<wal::Error>> {
    let tables = wake_index(definitions)?.tables();
    let problems =
        wal::unpublishable(&**database.client().await?, PUBLICATION, &tables, &[CLIENTS_PUBLICATION]).await?;
    let problems = problems.into_iter().map(|(_, problem)| problem);
    Ok(problems.filter(|problem| !matches!(problem, wal::Error::MissingTable { .. })).collect())
}

fn wake_index(definitions: &[Definition]) -> anyhow::Result<WakeIndex> {
    let compile = |definition: &Definition| {
        let compiled = definition.clone().compile(&Env::process());
        compiled.map_err(|problems| {
            let keys: Vec<_> = problems.iter().map(|it| format!("{}: {}", it.key, it.message)).collect();
            anyhow::anyhow!("agent {}: {}", definition.id, keys.join("; "))
        })
    };
    let compiled = definitions.iter().map(compile).collect::<Result<Vec<_>, _>>()?;
    Ok(WakeIndex::new(&compiled, &Metrics::default()))
}

/// Returns where wakes do not match existing tables: unknown columns, and values of another type than their column.
pub(super) async fn misfits(
    config: &Config,
    database: &Database,
    definitions: &[Definition],
) -> anyhow::Result<Vec<Problem>> {
    let mut found = wake_index(definitions)?.check(database).await?;
    found.retain(|(_, problem)| !problem.key.ends_with(".table"));
    Ok(locate(&config.agents.dir, &found)?)
}

async fn inspect(config: &Config, database: &Database, replays: bool) -> Result<Vec<Finding>, Failure> {
    let definitions = load_agents(&config.agents.dir)?;
    if let Some(schema) = schema(database).await? {
        // What is looked at below may not be there yet.
        let mut findings: Vec<Finding> =
            db::inspect(database).await?.into_iter().map(Finding::from).collect();
        findings.push(schema);
        return Ok(findings);
    }
    let server = db::inspect(database).await?.into_iter();
    let rows = rows::inspect(database, CLIENTS_PUBLICATION).await?;
    let server = server.chain(rows);
    let mut findings: Vec<_> = server.map(Finding::from).collect();
    for (agent, at, table) in missing_tables(database, &definitions).await? {
        let found = format!("wake.{at} of agent {agent} names table {table}, which does not exist");
        let remedy = Some(
            "create the table, or correct the agent's file; the agent wakes as soon as the table exists"
                .to_owned(),
        );
        findings.push(Finding { name: "wakes".into(), ok: false, found, remedy });
    }
    for problem in unwatchable(database, &definitions).await? {
        let remedy = Some("changes of the table wake no agent until this is corrected".to_owned());
        findings.push(Finding { name: "wakes".into(), ok: false, found: problem.to_string(), remedy });
    }
    for problem in misfits(config, database, &definitions).await? {
        let remedy =
            Some("correct the agent's file or the table; the wake matches no change until then".to_owned());
        findings.push(Finding { name: "wakes".into(), ok: false, found: problem.to_string(), remedy });
    }
    findings.extend(readers(database, &definitions).await?);
    let client = database.client().await?;
    let row = client.query_one(include_str!("sql/replication.sql"), &[&config.wal.slot]).await?;
    let publications: Vec<String> = row.try_get("publications")?;
    if !row.try_get::<_, bool>("migrated")? {
        let found = "schema convoke does not exist yet: `convoke up` or `convoke migrate` creates it".into();
        findings.push(Finding { name: "schema".into(), ok: true, found, remedy: None });
        return Ok(findings);
    }
    findings.push(slot(config, &row)?);
    let found = if publications.is_empty() {
        "none yet: `convoke up` creates them".into()
    } else {
        publications.join(", ")
    };
    findings.push(Finding { name: "publications".into(), ok: true, found, remedy: None });
    let channels = access::inspect(database).await?;
    findings.extend(channels.into_iter().map(|f| Finding {
        name: format!("channels_{}", f.what.replace(' ', "_")),
        ok: f.ok,
        found: f.found,
        remedy: f.remedy.filter(|_| !f.ok),
    }));
    // The invariants read whole tables, however large they are.
    client.batch_execute("set enable_seqscan = on; set statement_timeout = 0").await?;
    for (invariant, query) in INVARIANTS {
        let (name, description) = invariant.split_once(": ").unwrap_or((invariant, ""));
        let query = format!("select count(*) from ({query} limit {VIOLATIONS_MAX}) as broken");
        let broken: i64 = client.query_one(&query, &[]).await?.try_get(0)?;
        let found = if broken == 0 {
            description.to_owned()
        } else {
            format!("violated {broken} times: {description}")
        };
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

/// The roles of `sql:read`: unfit ones, and functions that a select can call and that do more than read.
async fn readers(database: &Database, definitions: &[Definition]) -> anyhow::Result<Vec<Finding>> {
    let env = Env::process();
    let unfit = unfit_readers(definitions, &env, &Reader::new(database.target().clone())).await;
    let mut findings = Vec::new();
    for definition in definitions {
        let Some(sql) = &definition.run.sql else { continue };
        if let Some(found) = unfit.get(&definition.id) {
            let found = format!("agent {} is left out: {found}", definition.id);
            let remedy =
                "give the agent a login role that may select what it reads, and nothing more".to_owned();
            findings.push(Finding { name: "sql_read".into(), ok: false, found, remedy: Some(remedy) });
            continue;
        }
        let functions = Reader::reach(database, &sql.role).await?;
        let found =
            format!("role {} may call {} functions that do more than read", sql.role, functions.len());
        let remedy = (!functions.is_empty()).then(|| {
            format!(
                "judge each; grant those that other roles need to them, and `revoke execute on function {} from public`",
                functions.join(", ")
            )
        });
        // Most of them are in every database, so they are no fault.
        findings.push(Finding { name: "sql_read".into(), ok: true, found, remedy });
    }
    Ok(findings)
}

/// Returns the problem of the version of schema convoke; `None` if it is this program's.
async fn schema(database: &Database) -> anyhow::Result<Option<Finding>> {
    let (found, remedy) = match db::unapplied(database).await {
        Ok(lacking) if lacking.is_empty() => return Ok(None),
        Ok(lacking) => (
            format!("schema convoke lacks {}", lacking.join(", ")),
            "run `convoke migrate`, or start the daemon: both apply them".to_owned(),
        ),
        Err(error @ db::Error::OtherSchema(_)) => {
            (error.to_string(), "run the version of convoke that migrated it last".to_owned())
        }
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Finding { name: "schema".into(), ok: false, found, remedy: Some(remedy) }))
}

impl From<db::Finding> for Finding {
    fn from(db::Finding { name, ok, found, remedy }: db::Finding) -> Self {
        Self { name: name.to_owned(), ok, found, remedy }
    }
}

/// I8: rebuilds the rows from the event log and compares them with the tables.
async fn replayed(database: &Database) -> Result<Finding, Failure> {
    let Replayed { tasks, events, without_beginning, unreadable, differences } =
        replay(database).await.map_err(anyhow::Error::new)?;
    let mut found = format!("{tasks} tasks rebuilt from {events} events");
    if without_beginning > 0 {
        found.push_str(&format!("; {without_beginning} skipped, because their first events were removed"));
    }
    if unreadable > 0 {
        found.push_str(&format!("; {unreadable} skipped, because they hold values that cannot be read"));
    }
    let ok = differences.is_empty();
    let remedy = (!ok).then(|| {
        format!("this is a bug: report it with the events of these tasks: {}", differences.join("; "))
    });
    let found = if ok {
        format!("{found}: equal to the rows")
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
        None => format!("{slot} does not exist yet: `convoke up` creates it"),
        Some(_) if lost => format!("{slot} is lost: the server removed WAL that the daemon had not read"),
        Some(active) => {
            let state = if active { "is active" } else { "has no reader" };
            format!("{slot} {state}, {} bytes behind", lag.unwrap_or_default())
        }
    };
    let remedy = if lost {
        Some(
            "start the daemon: it creates a new slot, reports what was missed, and reads the rows again"
                .to_owned(),
        )
    } else {
        behind.then(|| {
            format!("start the daemon, or drop the slot and its WAL with `select pg_drop_replication_slot('{slot}')`")
        })
    };
    Ok(Finding { name: "replication_slot".into(), ok: remedy.is_none(), found, remedy })
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
