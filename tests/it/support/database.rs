//! A database for each test, copied from a migrated template.
use super::{Own, postgres};
use convoke::{
    db::{self, Database, Target},
    scope::Scope,
};
use secrecy::SecretString;
use sha2::{Digest, Sha256};
use std::{
    path::Path,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

/// Held while the template is made, and while what dead processes left is removed.
const TEMPLATE_LOCK: i64 = 0x7465_6d70;
const SWEEP_LOCK: i64 = 0x7377_6565;

/// A database of one test's own. It goes with the value, with its slots and connections.
#[derive(Debug)]
pub struct TestDb {
    /// Connects as the server's superuser.
    pub url: String,
    /// The database's name, like `test_4211_0`; unique among all running tests.
    pub name: String,
    /// Its server, when that is not the shared one.
    own: Option<Own>,
}

/// A database with the migrations of this checkout.
pub async fn database() -> TestDb {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let template = TEMPLATE.get_or_init(make_template).await;
    create(&format!("template {template}")).await
}

/// The same on a server of its own, for a test that keeps a transaction open for long: on the shared server that would
/// hold up every replication slot that another test makes meanwhile.
pub async fn database_on_its_own_server() -> TestDb {
    let own = Own::with(&[("fsync", "off"), ("full_page_writes", "off")]).await;
    migrate(&own.url).await;
    let name = "convoke".to_owned();
    TestDb { url: own.url.clone(), name, own: Some(own) }
}

/// A database with nothing in it.
pub async fn empty_database() -> TestDb {
    create("template template0").await
}

impl TestDb {
    /// Settings that use this database, with a `data_dir` that must not be written to.
    pub fn config(&self) -> db::Config {
        db::Config {
            url: Some(SecretString::from(self.url.clone())),
            data_dir: "/nonexistent/convoke".into(),
            ..db::Config::default()
        }
    }

    /// A pool on this database; stop it or drop it before the `TestDb`.
    pub async fn open(&self, scope: &Scope) -> Database {
        Database::open(&self.config(), scope).await.unwrap()
    }

    /// A plain connection, as psql would have.
    pub async fn client(&self) -> Client {
        connect(&self.url).await
    }

    /// A replication slot name that no other test uses: the names are the server's, not the database's.
    pub fn slot(&self) -> String {
        format!("{}_slot", self.name)
    }
}

impl Drop for TestDb {
    fn drop(&mut self) {
        if self.own.is_some() {
            return;
        }
        let name = self.name.clone();
        // A destructor cannot wait on the test's runtime, so a thread with its own does.
        let remove = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let admin = connect(postgres().await).await;
                // A connection of the test that is in the middle of its log-in when the runtime stops would hold this
                // up for a minute; what is left is swept by the next test.
                admin.batch_execute("set statement_timeout = '2s'").await.unwrap();
                remove(&admin, &name).await;
            });
        });
        let _ = remove.join();
    }
}

async fn connect(url: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    #[expect(clippy::disallowed_methods, reason = "it ends with the client")]
    tokio::spawn(connection);
    client
}

async fn create(from: &str) -> TestDb {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let admin = connect(postgres().await).await;
    sweep(&admin).await;
    let name = format!("test_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    remove(&admin, &name).await;
    admin.batch_execute(&format!("create database {name} {from}")).await.unwrap();
    let url = Target::parse(postgres().await).unwrap().with_database(&name).url();
    TestDb { url, name, own: None }
}

/// Makes the template for these migrations, once; those of other checkouts go.
async fn make_template() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        hash.update(file.file_name().unwrap().as_encoded_bytes());
        hash.update(std::fs::read(file).unwrap());
    }
    let hash: String = hash.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("template_{hash}");

    let admin = connect(postgres().await).await;
    admin.execute("select pg_advisory_lock($1)", &[&TEMPLATE_LOCK]).await.unwrap();
    let sql = "select datname from pg_database where datname like 'template\\_%' and datname <> $1";
    for row in admin.query(sql, &[&name]).await.unwrap() {
        // Another checkout with the same target folder may be copying it right now.
        let _ = admin.batch_execute(&format!("drop database {}", row.get::<_, &str>(0))).await;
    }
    let exists = "select from pg_database where datname = $1";
    if admin.query_opt(exists, &[&name]).await.unwrap().is_none() {
        // Under another name until it is whole.
        admin.batch_execute("drop database if exists unfinished with (force)").await.unwrap();
        admin.batch_execute("create database unfinished template template0").await.unwrap();
        let url = Target::parse(postgres().await).unwrap().with_database("unfinished").url();
        migrate(&url).await;
        let others =
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = 'unfinished'";
        admin.execute(others, &[]).await.unwrap();
        admin.batch_execute(&format!("alter database unfinished rename to {name}")).await.unwrap();
    }
    name
}

async fn migrate(url: &str) {
    let config = db::Config { url: Some(SecretString::from(url.to_owned())), ..db::Config::default() };
    let database = Database::open(&config, &Scope::default()).await.unwrap();
    db::migrate(&database).await.unwrap();
    database.stop().await.unwrap();
}

/// Removes the databases of processes that are gone, unless another test is at it.
async fn sweep(admin: &Client) {
    static SWEPT: OnceCell<()> = OnceCell::const_new();
    let sweep = async || {
        let free = admin.query_one("select pg_try_advisory_lock($1)", &[&SWEEP_LOCK]).await.unwrap();
        if !free.get::<_, bool>(0) {
            return;
        }
        let sql = "select datname from pg_database where datname like 'test\\_%'";
        for row in admin.query(sql, &[]).await.unwrap() {
            let name: &str = row.get(0);
            let pid = name.split('_').nth(1).unwrap_or_default();
            if pid.parse::<u32>().is_ok() && !is_running(pid) {
                remove(admin, name).await;
            }
        }
        admin.execute("select pg_advisory_unlock($1)", &[&SWEEP_LOCK]).await.unwrap();
    };
    SWEPT.get_or_init(sweep).await;
}

fn is_running(pid: &str) -> bool {
    let status = std::process::Command::new("ps").args(["-p", pid]).output();
    status.is_ok_and(|output| output.status.success())
}

/// Removes a database with its slots, whoever uses them.
async fn remove(admin: &Client, name: &str) {
    for _ in 0..100 {
        let sql = "select slot_name, active_pid from pg_replication_slots where database = $1";
        let slots = admin.query(sql, &[&name]).await.unwrap();
        if slots.is_empty() {
            break;
        }
        for row in slots {
            if let Some(pid) = row.get::<_, Option<i32>>(1) {
                let _ = admin.execute("select pg_terminate_backend($1, 1000)", &[&pid]).await;
            }
            let _ = admin.execute("select pg_drop_replication_slot($1)", &[&row.get::<_, &str>(0)]).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = admin.batch_execute(&format!("drop database if exists {name} with (force)")).await;
}
