//! What the tests of row visibility share: a database with roles of its own, images of rows, and a judge.
use crate::support::{self, PATIENCE, TestDb};
use bytes::Bytes;
use convoke::{
    access::rows::{
        Cell, Config, Failure, Image, Images, OldRow, PolicyColumn, PolicyTable, Rights, RowChange, Rows,
        Verdict, Viewer,
    },
    auth::Claims,
    db::Database,
    scope::Scope,
    telemetry::Registry,
};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio_postgres::Client;

/// The roles here are not those of tokens, to whom the migrations grant it.
const AUTH: &str =
    "grant usage on schema auth to public; grant execute on all functions in schema auth to public;";

pub const SHOWN: Verdict = Verdict::Shown(OldRow::Whole);
pub const SHOWN_WITH_KEY: Verdict = Verdict::Shown(OldRow::Key);

pub struct Sight {
    pub sql: Client,
    pub rows: Rows,
    pub registry: Registry,
    scope: Scope,
    database: Database,
    /// Roles are the server's: each test has its own.
    roles: Vec<String>,
    db: TestDb,
}

/// A database in which `schema` was run; `{role}` there is the role that [`Sight::role`] names.
pub async fn sight(schema: &str) -> Sight {
    sight_with(schema, Config { check_timeout: Duration::from_secs(10), ..Config::default() }).await
}

pub async fn sight_with(schema: &str, config: Config) -> Sight {
    let db = support::database().await;
    // The role of the shared server has the name of our schema, which would come first.
    let alter = format!("alter database {} set search_path = public", db.name);
    db.client().await.batch_execute(&alter).await.unwrap();
    let sql = db.client().await;
    let roles = vec![format!("{}_r", db.name), format!("{}_s", db.name)];
    let make = format!("create role {}; create role {} bypassrls;", roles[0], roles[1]);
    // Only a superuser makes a role that bypasses row security; the daemon's role must be able to take on both.
    let me: String = sql.query_one("select quote_ident(current_user)", &[]).await.unwrap().get(0);
    let grant = format!("grant {}, {} to {me}", roles[0], roles[1]);
    db.admin().await.batch_execute(&format!("{make}{grant}")).await.unwrap();
    sql.batch_execute(&format!("{AUTH}{}", schema.replace("{role}", &roles[0]))).await.unwrap();
    let scope = Scope::default();
    let database = db.open(&scope).await;
    let registry = Registry::default();
    let rows = Rows::new(&scope, database.clone(), config, &registry);
    Sight { sql, rows, registry, scope, database, roles, db }
}

impl Sight {
    pub fn role(&self) -> &str {
        &self.roles[0]
    }

    pub fn bypassing(&self) -> &str {
        &self.roles[1]
    }

    pub async fn run(&self, sql: &str) {
        self.sql.batch_execute(&sql.replace("{role}", self.role())).await.unwrap();
    }

    /// Like [`Sight::run`], as the server's superuser.
    pub async fn run_as_admin(&self, sql: &str) {
        self.db.admin().await.batch_execute(&sql.replace("{role}", self.role())).await.unwrap();
    }

    /// A token's bearer with [`Sight::role`].
    pub fn viewer(&self, claims: Value) -> Arc<Viewer> {
        viewer(self.role(), claims)
    }

    /// The table as the log would describe it now.
    pub async fn table(&self, name: &str) -> Arc<PolicyTable> {
        let sql = "select c.oid, a.attname::text, a.atttypid from pg_attribute a join pg_class c on c.oid = a.attrelid \
             where a.attrelid = $1::text::regclass and attnum > 0 and not attisdropped and attgenerated = '' order by attnum";
        let rows = self.sql.query(sql, &[&name]).await.unwrap();
        let column = |row: &tokio_postgres::Row| PolicyColumn { name: row.get(1), type_oid: row.get(2) };
        let (oid, columns) = (rows[0].get(0), rows.iter().map(column).collect());
        Arc::new(PolicyTable { oid, schema: "public".into(), name: name.into(), columns })
    }

    /// The rows of `from` (a table, or values cast to its columns) as images of `table`.
    pub async fn images(&self, table: &PolicyTable, from: &str) -> Vec<Image> {
        let columns: Vec<_> = table.columns.iter().map(|c| format!("\"{}\"::text", c.name)).collect();
        let sql = format!("select {} from {from}", columns.join(", "));
        let cells = |row: &tokio_postgres::Row| {
            let text = |at| row.get::<_, Option<String>>(at);
            (0..row.len())
                .map(|at| text(at).map_or(Cell::Null, |text| Cell::Text(Bytes::from(text))))
                .collect()
        };
        self.sql.query(&sql, &[]).await.unwrap().iter().map(cells).collect()
    }

    /// Every row of `from` as an insert.
    pub async fn inserts(&self, table: &Arc<PolicyTable>, from: &str) -> Vec<RowChange> {
        let images = self.images(table, from).await;
        images
            .into_iter()
            .map(|new| RowChange { table: table.clone(), images: Images::Insert { new } })
            .collect()
    }

    /// What `viewer` sees of these changes.
    pub async fn sees(&self, viewer: &Arc<Viewer>, changes: &[RowChange]) -> Vec<Verdict> {
        let asked: Vec<_> = (0..changes.len()).map(|at| (at, 0)).collect();
        self.rows.judge(changes, std::slice::from_ref(viewer), &asked).await
    }

    /// The names of the columns that the role may select.
    pub async fn columns(&self, table: &Arc<PolicyTable>) -> Vec<String> {
        let rights = self.rights(table).await.unwrap();
        let named = table.columns.iter().zip(&rights.selectable).filter(|(_, may)| **may);
        named.map(|(column, _)| column.name.clone()).collect()
    }

    pub async fn rights(&self, table: &Arc<PolicyTable>) -> Result<Arc<Rights>, Failure> {
        self.rows.rights(table, self.role()).await
    }

    /// The value of a counter, by its name without the prefix.
    pub fn counted(&self, name: &str) -> u64 {
        let text = self.registry.encode().unwrap();
        let name = format!("convoke_{name}_total ");
        text.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
    }

    pub async fn stop(self) {
        drop(self.rows);
        self.scope.drain(PATIENCE).await.unwrap();
        self.database.stop().await.unwrap();
        for role in &self.roles {
            self.sql.batch_execute(&format!("drop owned by {role}; drop role {role}")).await.unwrap();
        }
        drop(self.db);
    }
}

pub fn viewer(role: &str, mut claims: Value) -> Arc<Viewer> {
    claims["role"] = json!(role);
    Arc::new(Viewer::of(&Claims {
        role: role.into(),
        org: None,
        agent_id: None,
        exp: chrono::DateTime::UNIX_EPOCH,
        sub: claims["sub"].as_str().map(Into::into),
        raw: claims.as_object().unwrap().clone(),
    }))
}
