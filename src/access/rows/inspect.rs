//! A look at what row security needs of the database, for `convoke doctor`.
use crate::db::{Database, Error, Finding};

/// Whether the daemon may act as the roles of tokens, and which published tables with row security keep too
/// little of a deleted row to say who could see it. Changes nothing.
///
/// # Errors
/// Those of connecting, and [`Error::Query`].
pub async fn inspect(database: &Database, publication: &str) -> Result<Vec<Finding>, Error> {
    let client = database.client().await?;
    let row = client.query_one(include_str!("sql/inspect.sql"), &[&publication]).await?;
    let (refused, partial): (Vec<String>, Vec<String>) = (row.try_get("refused")?, row.try_get("partial")?);
    let daemon: String = row.try_get("daemon")?;
    let grants: Vec<String> =
        refused.iter().map(|role| format!("grant \"{}\" to {daemon};", role.replace('"', "\"\""))).collect();
    let identities: Vec<String> =
        partial.iter().map(|table| format!("alter table {table} replica identity full;")).collect();
    Ok(vec![
        Finding {
            name: "roles_of_tokens",
            ok: refused.is_empty(),
            found: match refused.as_slice() {
                [] => "row security can be checked as every role".into(),
                refused => format!("the daemon may not act as {}", refused.join(", ")),
            },
            remedy: (!refused.is_empty()).then(|| grants.join(" ")),
        },
        // Hidden deletes are safe, and may be what is wanted.
        Finding {
            name: "deletes_under_policies",
            ok: true,
            found: match partial.as_slice() {
                [] => "shown to those who could see the row".into(),
                partial => {
                    format!("not shown of {} (to show them: {})", partial.join(", "), identities.join(" "))
                }
            },
            remedy: None,
        },
    ])
}
