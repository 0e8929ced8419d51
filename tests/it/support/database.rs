//! A database for each test, copied from a migrated template.
use super::{DedicatedServer, hostile, postgres};
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

/// Advisory locks: the first is held while a template is created, the second while databases of dead
/// processes are removed.
const TEMPLATE_LOCK: i64 = 0x7465_6d70;
const SWEEP_LOCK: i64 = 0x7377_6565;

/// A database for one test. Dropping it removes the database with its slots and connections.
#[derive(Debug)]
pub struct TestDb {
    /// Connects as the server's superuser.
    pub url: String,
    /// The database's name, like `test_4211_0`; unique among all running tests.
    pub name: String,
    /// The dedicated server; `None` on the shared one.
    own: Option<DedicatedServer>,
    hostile: bool,
}

/// A database with the migrations of this checkout.
pub async fn database() -> TestDb {
    if hostile::is_wanted() {
        return hostile_database().await;
    }
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let template = TEMPLATE.get_or_init(make_template).await;
    create(&format!("template {template}")).await
}

/// Like [`database`], on a dedicated server, for tests with long transactions: on the shared server they
/// would delay every replication slot that another test creates.
pub async fn database_on_its_own_server() -> TestDb {
    let own = DedicatedServer::with(&[("fsync", "off"), ("full_page_writes", "off")]).await;
    migrate(&own.url).await;
    let name = "convoke".to_owned();
    TestDb { url: own.url.clone(), name, own: Some(own), hostile: false }
}

/// A migrated database with unfavorable defaults: see [`hostile`].
pub async fn hostile_database() -> TestDb {
    static TEMPLATE: OnceCell<String> = OnceCell::const_new();
    let template = TEMPLATE.get_or_init(make_hostile_template).await;
    let mut db = create(&format!("template {template} owner {}", hostile::ROLE)).await;
    let admin = connect(postgres().await).await;
    hostile::set_defaults(&admin, &db.name).await;
    (db.url, db.hostile) = (hostile_url(&db.name).await, true);
    db
}

async fn hostile_url(database: &str) -> String {
    let mut target = Target::parse(postgres().await).unwrap().with_database(database);
    (target.user, target.password) = (hostile::ROLE.to_owned(), Some(hostile::PASSWORD.to_owned().into()));
    target.url()
}

/// A migrated database in another encoding than UTF-8.
pub async fn database_in(encoding: &str) -> TestDb {
    let db = create(&format!("template template0 encoding '{encoding}' locale 'C'")).await;
    migrate(&db.url).await;
    db
}

/// A database without migrations.
pub async fn empty_database() -> TestDb {
    create("template template0").await
}

impl TestDb {
    /// Settings for this database, with a `data_dir` that must not be written to.
    pub fn config(&self) -> db::Config {
        db::Config {
            url: Some(SecretString::from(self.url.clone())),
            data_dir: "/nonexistent/convoke".into(),
            ..db::Config::default()
        }
    }

    /// Opens a pool; stop or drop it before the `TestDb`.
    pub async fn open(&self, scope: &Scope) -> Database {
        Database::open(&self.config(), scope).await.unwrap()
    }

    /// A plain connection, like psql's.
    pub async fn client(&self) -> Client {
        self.session(&self.url).await
    }

    /// A plain connection as the server's superuser.
    pub async fn admin(&self) -> Client {
        let url = match &self.own {
            Some(own) => own.url.clone(),
            None => Target::parse(postgres().await).unwrap().with_database(&self.name).url(),
        };
        self.session(&url).await
    }

    async fn session(&self, url: &str) -> Client {
        let client = connect(url).await;
        if self.hostile {
            hostile::calm(&client).await;
        }
        client
    }

    /// The dedicated server.
    pub fn own(&mut self) -> &mut DedicatedServer {
        self.own.as_mut().expect("the database is on the shared server")
    }

    /// A replication slot name that no other test uses; slot names are unique on the server.
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
        // `drop` cannot wait on the test's runtime, so a thread with its own runtime does the work.
        let remove = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let admin = connect(postgres().await).await;
                // A connection that is still logging in when the test's runtime stops would block this for a
                // minute. The next test process sweeps what is left.
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
    TestDb { url, name, own: None, hostile: false }
}

/// Creates the template for these migrations once; removes templates of other checkouts.
async fn make_template() -> String {
    let admin = connect(postgres().await).await;
    let unfinished = async |url: &str| migrate(url).await;
    template(&admin, "template", "", unfinished).await
}

/// Like [`make_template`], for hostile databases: the migrations run with the role and the defaults.
async fn make_hostile_template() -> String {
    let admin = connect(postgres().await).await;
    hostile::make_role(&admin).await;
    let how = format!("owner {} encoding 'LATIN1' locale 'C'", hostile::ROLE);
    let unfinished = async |url: &str| {
        hostile::set_defaults(&admin, "unfinished").await;
        migrate(&hostile_url("unfinished").await).await;
        hostile::poison(&connect(url).await).await;
    };
    template(&admin, "hostile", &how, unfinished).await
}

/// Returns the name of the template of this kind. `fill` gets the URL of the new database and fills it.
async fn template(admin: &Client, kind: &str, how: &str, fill: impl AsyncFn(&str)) -> String {
    // The benchmarks' tests, whose manifest is a folder below, use this file too.
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|folder| folder.join("migrations"));
    let folder = above.into_iter().find(|folder| folder.is_dir()).unwrap();
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        hash.update(file.file_name().unwrap().as_encoded_bytes());
        hash.update(std::fs::read(file).unwrap());
    }
    hash.update(include_bytes!("hostile.rs"));
    let hash: String = hash.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect();
    let name = format!("{kind}_{hash}");

    admin.execute("select pg_advisory_lock($1)", &[&TEMPLATE_LOCK]).await.unwrap();
    let sql = "select datname from pg_database where datname like $2 and datname <> $1";
    for row in admin.query(sql, &[&name, &format!("{kind}\\_%")]).await.unwrap() {
        // Ignored: another checkout with the same target folder may be copying it.
        let _ = admin.batch_execute(&format!("drop database {}", row.get::<_, &str>(0))).await;
    }
    let exists = "select from pg_database where datname = $1";
    if admin.query_opt(exists, &[&name]).await.unwrap().is_none() {
        // Renamed at the end, so that a template with its final name is complete.
        admin.batch_execute("drop database if exists unfinished with (force)").await.unwrap();
        admin.batch_execute(&format!("create database unfinished template template0 {how}")).await.unwrap();
        let url = Target::parse(postgres().await).unwrap().with_database("unfinished").url();
        fill(&url).await;
        let others =
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity where datname = 'unfinished'";
        admin.execute(others, &[]).await.unwrap();
        admin.batch_execute(&format!("alter database unfinished rename to {name}")).await.unwrap();
    }
    admin.execute("select pg_advisory_unlock($1)", &[&TEMPLATE_LOCK]).await.unwrap();
    name
}

async fn migrate(url: &str) {
    let config = db::Config { url: Some(SecretString::from(url.to_owned())), ..db::Config::default() };
    let database = Database::open(&config, &Scope::default()).await.unwrap();
    db::migrate(&database).await.unwrap();
    database.stop().await.unwrap();
}

/// Removes databases of dead processes, unless another process is sweeping.
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

/// Removes a database and its slots, even if they are in use.
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
