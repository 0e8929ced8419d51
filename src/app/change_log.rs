//! Row changes for clients, and the state of the change log on `/health`.
use super::health::show_degraded;
use crate::{
    api::Health,
    changes::{self, Appender, Changes, Deps},
    config::Config,
    db::Database,
    scope::Scope,
};
use anyhow::Context;

/// Opens the change log and starts the delivery.
pub(super) async fn start(
    scope: &Scope,
    deps: Deps,
    config: &Config,
    health: &Health,
) -> anyhow::Result<(Changes, Appender)> {
    let dir = config.database.data_dir.join("changes");
    let source = source(&deps.database).await.context("cannot read which database this is")?;
    let started = changes::start(scope, deps, config.changes.clone(), (&dir, &source));
    let (changes, appender) =
        started.with_context(|| format!("cannot keep the change log in {}", dir.display()))?;
    show_degraded(scope, health, "changes", changes.degraded());
    Ok((changes, appender))
}

/// Identifies the database: WAL positions of another one mean nothing.
async fn source(database: &Database) -> anyhow::Result<String> {
    let row = database
        .client()
        .await?
        .query_one(
            "select system_identifier::text, d.oid::text from pg_control_system(), pg_database d \
             where d.datname = current_database()",
            &[],
        )
        .await?;
    Ok(format!("{} {}", row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?))
}
