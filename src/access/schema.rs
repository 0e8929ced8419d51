//! Schema `realtime`: makes what is lacking, and says what cannot be made.
//!
//! The work is done by `convoke.prepare_realtime` of the migrations, because roles
//! and schemas need rights that not every daemon has: what it may not make it says,
//! with the statement that mends it, and the daemon goes on without private channels
//! for those roles. What is there already is left as it is.
use crate::db::{Database, Error};

/// One thing that private channels need of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at, like `role anon`.
    pub what: String,
    /// Whether it is as it should be.
    pub ok: bool,
    /// What was found.
    pub found: String,
    /// The statement that mends it.
    pub remedy: Option<String>,
}

/// Makes what is lacking where this role may, and tells how it is then.
///
/// # Errors
/// Those of connecting, and [`Error::Query`].
pub async fn prepare(database: &Database) -> Result<Vec<Finding>, Error> {
    findings(database, true).await
}

/// Tells how it is and changes nothing.
///
/// # Errors
/// As of [`prepare`].
pub async fn inspect(database: &Database) -> Result<Vec<Finding>, Error> {
    findings(database, false).await
}

async fn findings(database: &Database, mend: bool) -> Result<Vec<Finding>, Error> {
    let client = database.client().await?;
    let sql = "select what, ok, seen, remedy from convoke.prepare_realtime($1)";
    let rows = client.query(sql, &[&mend]).await?;
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
