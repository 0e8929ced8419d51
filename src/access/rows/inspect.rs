//! Checks of `convoke doctor` about row security.
use crate::db::{Database, Error, Finding};

/// Checks whether the daemon may act as the roles of tokens, and finds published tables with row security
/// whose replica identity does not cover the columns that policies may need for a delete. Changes nothing.
///
/// # Errors
/// Errors of connecting, and [`Error::Query`].
pub async fn inspect(database: &Database, publication: &str) -> Result<Vec<Finding>, Error> {
    let client = database.client().await?;
    let row = client.query_one(include_str!("sql/inspect.sql"), &[&publication]).await?;
    let (refused, partial): (Vec<String>, Vec<String>) = (row.try_get("refused")?, row.try_get("partial")?);
    let daemon: String = row.try_get("daemon")?;
    let missing: Vec<String> = row.try_get("missing")?;
    let quoted = |role: &String| format!("\"{}\"", role.replace('"', "\"\""));
    let create = missing.iter().map(|role| format!("create role {} nologin noinherit;", quoted(role)));
    let grant = missing.iter().chain(&refused).map(|role| format!("grant {} to {daemon};", quoted(role)));
    let remedy = create.chain(grant).collect::<Vec<_>>().join(" ");
    let identities: Vec<String> =
        partial.iter().map(|table| format!("alter table {table} replica identity full;")).collect();
    Ok(vec![
        Finding {
            name: "roles_of_tokens",
            ok: remedy.is_empty(),
            found: match (refused.as_slice(), missing.as_slice()) {
                ([], []) => "row security can be checked as every role".into(),
                ([], missing) => format!("there is no role {}", missing.join(", ")),
                (refused, []) => format!("the daemon may not act as {}", refused.join(", ")),
                (refused, missing) => {
                    let (refused, missing) = (refused.join(", "), missing.join(", "));
                    format!("the daemon may not act as {refused}, and there is no role {missing}")
                }
            },
            remedy: Some(remedy).filter(|remedy| !remedy.is_empty()),
        },
        // Always ok: a hidden delete is safe, and may be intended.
        Finding {
            name: "deletes_under_policies",
            ok: true,
            found: match partial.as_slice() {
                [] => "shown to those who could see the row".into(),
                partial => {
                    format!(
                        "of {} only where no policy looks at more than the key (to show them all: {})",
                        partial.join(", "),
                        identities.join(" ")
                    )
                }
            },
            remedy: None,
        },
    ])
}
