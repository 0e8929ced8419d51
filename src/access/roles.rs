//! Database roles that tokens must never name, whatever the settings are.
use crate::db::{Database, Error};

/// Refuses to start if a role of tokens is a superuser or the daemon's own role: policies do not limit those.
///
/// # Errors
/// Errors of connecting; [`Error::Unfit`] with the name of the role.
pub async fn check_roles(database: &Database, roles: &[String]) -> Result<(), Error> {
    let client = database.client().await?;
    let sql = "select rolname::text from pg_catalog.pg_roles where rolname = any($1)
        and (rolsuper or rolname in (current_user, session_user)) order by 1";
    match client.query_opt(&format!("{sql} limit 1"), &[&roles]).await? {
        None => Ok(()),
        Some(row) => {
            let role: String = row.try_get(0)?;
            Err(Error::Unfit(format!(
                "auth.roles has {role}, which is a superuser or the daemon's own role: take it out"
            )))
        }
    }
}
