//! Schema `realtime`: creates what is missing, and reports what cannot be created.
//!
//! The function `convoke.prepare_realtime` of the migrations does the work, because roles and schemas need
//! rights that not every daemon has. It reports what it may not create, with the statement that an
//! administrator must run. The daemon then runs without private channels for the roles concerned. Existing
//! objects are not changed.
use crate::db::{Database, Error};

/// The state of one object that private channels need in the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The object, like `role anon`.
    pub what: String,
    /// Whether the object is as needed.
    pub ok: bool,
    /// The state that was found.
    pub found: String,
    /// The statement that repairs it; `None` if nothing needs repair.
    pub remedy: Option<String>,
}

/// Creates what is missing where the daemon's role may, and returns the state afterwards.
///
/// # Errors
/// Errors of connecting, and [`Error::Query`].
pub async fn prepare(database: &Database) -> Result<Vec<Finding>, Error> {
    findings(database, true).await
}

/// Returns the state and changes nothing.
///
/// # Errors
/// Like [`prepare`].
pub async fn inspect(database: &Database) -> Result<Vec<Finding>, Error> {
    findings(database, false).await
}

async fn findings(database: &Database, repair: bool) -> Result<Vec<Finding>, Error> {
    let client = database.client().await?;
    let sql = "select what, ok, seen, remedy from convoke.prepare_realtime($1)";
    let rows = client.query(sql, &[&repair]).await?;
    let finding = |row: &tokio_postgres::Row| {
        Ok(Finding {
            what: row.try_get(0)?,
            ok: row.try_get::<_, Option<bool>>(1)?.unwrap_or(false),
            found: row.try_get::<_, Option<String>>(2)?.unwrap_or_default(),
            remedy: row.try_get(3)?,
        })
    };
    rows.iter().map(finding).collect()
}
