//! The checks of `convoke doctor` and of `GET /v1/doctor`: the database's set-up, the tables and filters of wakes, and the
//! invariants of `docs/spec/negotiation.md` §7 on the rows. Changes nothing.
use super::{CLIENTS_PUBLICATION, PUBLICATION};
use crate::{
    access::{self, rows},
    agent::{Definition, Env, Metrics, WakeIndex, unfit_readers},
    config::{Config, Problem, load_agents, locate},
    db::{self, Database, Reader},
    task::{INVARIANTS, PinnedTool, Replayed, pinned_tools, replay},
    wal,
};
use serde::Serialize;
use std::time::Duration;
use tokio_postgres::error::SqlState;

/// Violations of one invariant that are counted at most.
const VIOLATIONS_MAX: u32 = 1000;

/// The result of one check.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What was checked, like `wal_level`.
    pub name: String,
    /// Whether it is as the daemon needs it.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// What corrects it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Returns the tables of agents' wakes that the database does not have: agent, number of the wake, table.
pub(crate) async fn missing_tables(
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
pub(crate) async fn unwatchable(
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
    // The others have nothing in the index, and there may be very many.
    let waking = definitions.iter().filter(|definition| !definition.wake.is_empty());
    let compiled = waking.map(compile).collect::<Result<Vec<_>, _>>()?;
    Ok(WakeIndex::new(&compiled, &Metrics::default()))
}

/// Returns where wakes do not match existing tables: unknown columns, and values of another type than their column.
pub(crate) async fn misfits(
    config: &Config,
    database: &Database,
    definitions: &[Definition],
) -> anyhow::Result<Vec<Problem>> {
    let mut found = wake_index(definitions)?.check(database).await?;
    found.retain(|(_, problem)| !problem.key.ends_with(".table"));
    Ok(locate(&config.agents.dir, &found)?)
}

/// Checks the database. With `replays`, rebuilds the rows from the event log as well. The invariants read whole tables,
/// however large they are, each for at most `within`.
///
/// # Errors
/// If the database does not answer, or an agent's file cannot be read.
pub async fn inspect(
    config: &Config,
    database: &Database,
    replays: bool,
    within: Option<Duration>,
) -> anyhow::Result<Vec<Finding>> {
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
    // The connection goes back to the pool at once: the checks below need one of their own.
    let row = {
        let client = database.client().await?;
        client.query_one(include_str!("sql/replication.sql"), &[&config.wal.slot]).await?
    };
    let publications: Vec<String> = row.try_get("publications")?;
    if !row.try_get::<_, bool>("migrated")? {
        let found = "schema convoke does not exist yet: `convoke up` or `convoke migrate` creates it".into();
        findings.push(Finding { name: "schema".into(), ok: true, found, remedy: None });
        return Ok(findings);
    }
    findings.extend(changed_tools(database).await?);
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
    for (invariant, query) in INVARIANTS {
        findings.push(check_invariant(database, invariant, query, within).await?);
    }
    if replays {
        findings.push(replayed(database).await?);
    }
    Ok(findings)
}

/// Counts the violations of one invariant in a transaction of its own, so that no snapshot is held for long.
async fn check_invariant(
    database: &Database,
    invariant: &str,
    query: &str,
    within: Option<Duration>,
) -> anyhow::Result<Finding> {
    let (name, description) = invariant.split_once(": ").unwrap_or((invariant, ""));
    let millis = within.map_or(0, |within| within.as_millis());
    let mut client = database.client().await?;
    let tx = client.transaction().await?;
    // For this transaction only: the connection goes back to the pool.
    let setup = format!("set local enable_seqscan = on; set local statement_timeout = {millis}");
    tx.batch_execute(&setup).await?;
    let counted = format!("select count(*) from ({query} limit {VIOLATIONS_MAX}) as broken");
    let broken: i64 = match tx.query_one(&counted, &[]).await {
        Ok(row) => row.try_get(0)?,
        Err(error) if error.code() == Some(&SqlState::QUERY_CANCELED) => {
            let found =
                format!("not checked, because the tables are too large for {within:?}: {description}");
            let remedy = Some("run `convoke doctor`, which has no such limit".to_owned());
            return Ok(Finding { name: name.into(), ok: true, found, remedy });
        }
        Err(error) => return Err(error.into()),
    };
    let found = match broken {
        0 => description.to_owned(),
        _ => format!("violated {broken} times: {description}"),
    };
    let remedy = (broken > 0)
        .then(|| "this is a bug: report it with `select * from convoke.events` of the task".into());
    Ok(Finding { name: name.into(), ok: broken == 0, found, remedy })
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

/// The tools of MCP servers that are not offered because they have changed.
async fn changed_tools(database: &Database) -> anyhow::Result<Vec<Finding>> {
    let changed = pinned_tools(database, None).await?.into_iter().filter(|tool| tool.seen.is_some());
    let finding = |tool: PinnedTool| {
        let (agent, server) = (tool.agent, tool.server);
        let found =
            format!("tool {:?} of MCP server {server} is not offered to {agent}: it has changed", tool.tool);
        let remedy =
            "read `convoke mcp pins`, then accept it with `convoke mcp pin`, or remove it from allow";
        Finding { name: "mcp_tools".into(), ok: false, found, remedy: Some(remedy.to_owned()) }
    };
    Ok(changed.map(finding).collect())
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
async fn replayed(database: &Database) -> anyhow::Result<Finding> {
    let Replayed { tasks, events, without_beginning, unreadable, differences } = replay(database).await?;
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

fn slot(config: &Config, row: &tokio_postgres::Row) -> anyhow::Result<Finding> {
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
