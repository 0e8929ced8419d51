//! What dashboards may see of the negotiation: row security is in the tables, and here are the roles and the log.
use crate::db::Database;
use anyhow::Context;

/// Lets the roles of tokens read the rows of their org, and, where the settings say so, makes the tables
/// watchable in `publication`.
pub(super) async fn admit(database: &Database, publication: Option<&str>) -> anyhow::Result<()> {
    let client = database.client().await?;
    if let Err(error) = client.execute("select convoke.admit_observers()", &[]).await {
        let code = error.code().map(tokio_postgres::error::SqlState::code);
        tracing::warn!(sqlstate = code, "observers cannot be let in to the tables of the negotiation");
    }
    if let Some(publication) = publication {
        client
            .execute("select convoke.observe($1)", &[&publication])
            .await
            .with_context(|| format!("cannot add convoke.tasks to publication {publication}"))?;
    }
    Ok(())
}
