//! The rights of dashboards to the tables of the negotiation: grants to the roles of tokens, and the publication.
//! Row security, which limits each token to its org, is in the migrations.
use crate::db::Database;
use anyhow::Context;

/// Grants the roles of tokens the rows of their org, and adds the tables to `publication`, if there is one, so that
/// dashboards can subscribe to their changes. The role `anon` is granted them only if observers are `open`.
///
/// # Errors
/// If the tables cannot be published. A grant that fails is logged only: the daemon works without dashboards.
pub(super) async fn apply(database: &Database, publication: Option<&str>, open: bool) -> anyhow::Result<()> {
    let client = database.client().await?;
    if let Err(error) = client.execute("select convoke.admit_observers($1)", &[&open]).await {
        let code = error.code().map(tokio_postgres::error::SqlState::code);
        tracing::warn!(sqlstate = code, "failed to grant dashboards the tables of the negotiation");
    }
    if let Some(publication) = publication {
        client
            .execute("select convoke.observe($1)", &[&publication])
            .await
            .with_context(|| format!("cannot add convoke.tasks to publication {publication}"))?;
    }
    Ok(())
}
