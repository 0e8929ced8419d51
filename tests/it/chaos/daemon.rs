//! The machine under test: `convoke up` with a private PostgreSQL of its own, killed and started again.
use super::agents::Service;
use convoke::{
    auth::{Keys, MintRequest, Role, mint},
    clock::Clock,
    config::Config,
    db::Database,
    scope::Scope,
};
use parking_lot::Mutex;
use rand::{RngExt, rngs::StdRng};
use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::Instant,
};
use tokio_postgres::Row;

const SECRET: &str = "a secret of the chaos tests, long enough for HS256";
const START_WITHIN: Duration = Duration::from_secs(180);

/// The table whose rows request tasks.
const SCHEMA: &str = "create table public.orders (id bigint primary key)";
const PUBLISHED: &str =
    "select 1 from pg_publication_tables where pubname = 'convoke' and tablename = 'orders'";
const WAKE: &str = r#"
[[wake]]
table = "public.orders"
events = ["INSERT"]
request = { kind = "chaos", requires = ["hosted"], input = { order = "{{ new.id }}" }, policy = { lease = "5s", attempts_max = 100, rounds_max = 1000, backoff = "200ms" } }
"#;

pub struct Machine {
    pub url: String,
    folder: tempfile::TempDir,
    daemon: tokio::sync::Mutex<Option<Child>>,
    database: tokio::sync::Mutex<Option<Database>>,
    scope: Scope,
    keys: Keys,
    faults: Mutex<BTreeMap<&'static str, u64>>,
}

impl Machine {
    /// Starts the daemon with agents that it hosts: some behind `service`, one that is a command.
    pub async fn start(service: &Service) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let agents = folder.path().join("agents");
        std::fs::create_dir(&agents).unwrap();
        for n in 0..4 {
            let wake = if n == 0 { WAKE } else { "" };
            let text = format!(
                "id = \"hosted-{n}\"\norg = \"demo\"\ncapabilities = [\"hosted\", \"any\"]\nslots = 16\n\
                 [run]\nkind = \"http\"\nurl = \"{}/work\"\n[limits]\ntimeout = \"3s\"\n{wake}",
                service.url
            );
            std::fs::write(agents.join(format!("hosted-{n}.toml")), text).unwrap();
        }
        let command = "id = \"command\"\norg = \"demo\"\ncapabilities = [\"hosted\", \"any\"]\nslots = 2\n\
            [run]\nkind = \"command\"\nargv = [\"/bin/sh\", \"-c\", \"cat > /dev/null; echo '{\\\"by\\\":\\\"command\\\"}'\"]\n";
        std::fs::write(agents.join("command.toml"), command).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let machine = Self {
            url: format!("http://127.0.0.1:{port}"),
            folder,
            daemon: tokio::sync::Mutex::default(),
            database: tokio::sync::Mutex::default(),
            scope: Scope::default(),
            keys: Keys::from_secret(&SECRET.to_owned().into()).unwrap(),
            faults: Mutex::default(),
        };
        machine.revive().await;
        machine.sql(SCHEMA).await.unwrap();
        // Rows before the slot exists are not in its WAL.
        while machine.ask(PUBLISHED).await.is_empty() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        machine
    }

    pub fn token(&self, agent: Option<&str>) -> String {
        let agent_id = agent.map(|agent| agent.parse().unwrap());
        let role = if agent.is_some() { Role::Authenticated } else { Role::ServiceRole };
        let ttl = Duration::from_secs(24 * 3600);
        let wish =
            MintRequest { org: Some("demo".parse().unwrap()), agent_id, ttl, ..MintRequest::new(role) };
        mint(&self.keys, &wish, Clock::System.now()).unwrap()
    }

    /// Starts the daemon if it does not run, and waits until it is ready.
    pub async fn revive(&self) {
        let mut daemon = self.daemon.lock().await;
        if daemon.is_none() {
            *daemon = Some(self.spawn().await);
        }
        let ready = format!("{}/health/ready", self.url);
        let until = Instant::now() + START_WITHIN;
        while !reqwest::get(&ready).await.is_ok_and(|answer| answer.status().is_success()) {
            assert!(Instant::now() < until, "the daemon is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn spawn(&self) -> Child {
        let binary = std::env::var_os("CONVOKE_CHAOS_DAEMON")
            .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_convoke")), PathBuf::from);
        let mut log = std::fs::File::options();
        let log = log.create(true).append(true).open(self.folder.path().join("daemon.log")).unwrap();
        let mut process = Command::new(binary)
            .args(["up", "--json"])
            .current_dir(self.folder.path())
            .env("CONVOKE_DATABASE__DATA_DIR", self.data_dir())
            .env("CONVOKE_AUTH__JWT_SECRET", SECRET)
            .env("CONVOKE_SERVER__LISTEN", self.url.trim_start_matches("http://"))
            .env("CONVOKE_TELEMETRY__LOG", "error")
            .env_remove("CONVOKE_FAULT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(START_WITHIN, lines.next_line()).await.expect("up is up in time");
        let said = std::fs::read_to_string(self.folder.path().join("daemon.log")).unwrap_or_default();
        let tail: Vec<&str> = said.lines().rev().take(20).collect();
        assert!(line.unwrap().is_some(), "the daemon ended: {tail:#?}");
        process
    }

    fn data_dir(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    pub fn count(&self, fault: &'static str) {
        *self.faults.lock().entry(fault).or_default() += 1;
    }

    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.faults.lock().clone()
    }

    /// SIGKILL, and after a while a new one.
    pub async fn kill_daemon(&self, rng: &mut StdRng) {
        if let Some(mut daemon) = self.daemon.lock().await.take() {
            daemon.kill().await.unwrap();
            self.count("daemon killed");
        }
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..1500))).await;
        self.revive().await;
    }

    /// Tells the server, or one of its processes, to end by this signal; the daemon starts it again.
    pub async fn signal_postgres(&self, signal: &str, whole: bool) {
        let Ok(rows) = self.sql("select pg_backend_pid()").await else { return };
        let backend = rows[0].get::<_, i32>(0).to_string();
        let parent = tokio::process::Command::new("ps").args(["-o", "ppid=", "-p", &backend]).output().await;
        let parent = String::from_utf8(parent.unwrap().stdout).unwrap().trim().to_owned();
        let victim = if whole { &parent } else { &backend };
        let _ = tokio::process::Command::new("kill").args([&format!("-{signal}"), victim]).status().await;
    }

    /// Runs a statement, on a new connection if there is none; fails while the database cannot be reached.
    pub async fn sql(&self, statement: &str) -> Result<Vec<Row>, String> {
        let database = {
            let mut known = self.database.lock().await;
            if known.is_none() {
                let mut config = Config::default().database;
                config.data_dir = self.data_dir();
                *known = Some(Database::attach(&config).await.map_err(|e| e.to_string())?);
            }
            known.clone().unwrap()
        };
        let asked = async {
            let client = database.client().await.map_err(|e| e.to_string())?;
            client.query(statement, &[]).await.map_err(|e| format!("{e:?}"))
        };
        let answer = asked.await;
        if answer.is_err() {
            // Its port may be another one when it comes back.
            self.database.lock().await.take();
        }
        answer
    }

    /// Repeats a statement until it succeeds.
    pub async fn ask(&self, statement: &str) -> Vec<Row> {
        loop {
            match self.sql(statement).await {
                Ok(rows) => return rows,
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Tasks that are not final, and rows whose tasks are not there yet.
    pub async fn open_tasks(&self) -> u64 {
        let open =
            "select (select count(*) from convoke.tasks where state in ('blocked', 'scheduled', 'open',
                'awarded', 'running', 'verifying', 'waiting', 'canceling'))
            + (select count(*) from public.orders) - (select count(*) from convoke.wakes)";
        self.ask(open).await[0].get::<_, i64>(0).cast_unsigned()
    }

    /// Counts the open tasks continuously, for the requesters.
    pub async fn watch(&self, open: &AtomicU64) -> ! {
        loop {
            open.store(self.open_tasks().await, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Waits until there are fewer, as long as tasks end.
    pub async fn until_fewer_are_open_than(&self, few: u64, patience: Duration) {
        let (mut least, mut since) = (u64::MAX, Instant::now());
        loop {
            let open = self.open_tasks().await;
            if open < few {
                return;
            }
            if open < least {
                (least, since) = (open, Instant::now());
            }
            if since.elapsed() > patience {
                let stuck = self
                    .ask("select row(now(), id, state, state_reason, kind, requires, due_at, round, rounds_empty, attempt)::text
                          from convoke.tasks where state not in ('completed', 'failed', 'canceled') limit 5")
                    .await;
                let stuck: Vec<String> = stuck.iter().map(|row| row.get(0)).collect();
                panic!("nothing has ended for {patience:?}, and {open} are open, like {stuck:?}");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    pub async fn database(&self) -> Database {
        self.ask("select 1").await;
        self.database.lock().await.clone().unwrap()
    }

    /// SIGTERM: the daemon stops in order, and its Postgres with it.
    pub async fn stop(&self) {
        self.database.lock().await.take();
        let _ = self.scope.drain(Duration::from_secs(5)).await;
        let Some(mut daemon) = self.daemon.lock().await.take() else { return };
        let pid = daemon.id().unwrap().to_string();
        tokio::process::Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
        let ended = tokio::time::timeout(Duration::from_secs(60), daemon.wait()).await;
        assert!(ended.expect("it stops").unwrap().success());
    }
}
