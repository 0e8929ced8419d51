//! The life of the private PostgreSQL.
use crate::support::PATIENCE;
use convoke::{
    db::{Config, Database, Error},
    scope::Scope,
};
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A folder for a `data_dir` that every user can enter. Dropping it stops a server that runs in it.
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path that does not exist yet.
    pub fn data_dir(&self) -> PathBuf {
        self.0.path().join("data")
    }

    pub fn config(&self) -> Config {
        Config { data_dir: self.data_dir(), ..Config::default() }
    }

    /// The process id in `postmaster.pid`.
    pub fn server_pid(&self) -> Option<i32> {
        let text = fs::read_to_string(self.data_dir().join("postgres/postmaster.pid")).ok()?;
        text.lines().next()?.parse().ok()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(pid) = self.server_pid().filter(|pid| *pid > 0) {
            kill("-INT", pid);
        }
    }
}

pub fn kill(signal: &str, pid: i32) {
    Command::new("kill")
        .args([signal, &pid.to_string()])
        .stderr(std::process::Stdio::null())
        .status()
        .unwrap();
}

/// User and group of a server that root starts; `None` if the test does not run as root.
pub fn server_user() -> Option<(u32, u32)> {
    let accounts = fs::read_to_string("/etc/passwd").unwrap();
    let root = fs::metadata("/proc/self").unwrap().uid() == 0;
    let find = |name: &str| accounts.lines().find(|l| l.split(':').next() == Some(name)).map(str::to_owned);
    let line = root.then(|| find("postgres").or_else(|| find("nobody"))).flatten()?;
    let mut fields = line.split(':').skip(2).map(|n| n.parse().unwrap());
    Some((fields.next()?, fields.next()?))
}

pub async fn one(db: &Database, sql: &str) -> String {
    db.client().await.unwrap().query_one(sql, &[]).await.unwrap().get(0)
}

/// Waits until `holds`, for at most [`PATIENCE`].
pub async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let wait = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "not in time: {what}");
}

#[tokio::test]
async fn private_server_is_created_stopped_and_started_again() {
    let folder = Folder::new();
    // Remains of a kill during the creation.
    fs::create_dir_all(folder.data_dir().join("postgres.new-00c0ffee/base")).unwrap();
    let scope = Scope::default();
    let db = Database::open(&folder.config(), &scope).await.unwrap();
    assert!(db.is_private());
    assert!(!folder.data_dir().join("postgres.new-00c0ffee").exists());
    for (setting, value) in [
        ("wal_level", "logical"),
        ("data_checksums", "on"),
        ("fsync", "on"),
        ("listen_addresses", "127.0.0.1"),
        ("wal_sender_timeout", "15s"),
        ("server_encoding", "UTF8"),
        ("password_encryption", "scram-sha-256"),
    ] {
        assert_eq!(one(&db, &format!("show {setting}")).await, value, "{setting}");
    }
    assert_eq!(one(&db, "select current_database()::text").await, "convoke");
    let findings = convoke::db::inspect(&db).await.unwrap();
    assert_eq!(findings.into_iter().find(|finding| !finding.ok), None);

    // Other programs can connect with its URL. The password is required and hidden.
    let url = db.url();
    let password = fs::read_to_string(folder.data_dir().join("postgres.password")).unwrap();
    assert!(url.contains(&password) && !db.url_redacted().contains(&password) && password.len() == 48);
    let secret = fs::metadata(folder.data_dir().join("postgres.password")).unwrap();
    assert_eq!(secret.permissions().mode() & 0o777, 0o600);
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await.unwrap();
    scope.spawn("client", convoke::scope::OnExit::Log, |_| async move { Ok(connection.await?) });
    client.batch_execute("create table kept (n int)").await.unwrap();
    drop(client);
    assert!(tokio_postgres::connect(&url.replace(&password, "no"), tokio_postgres::NoTls).await.is_err());
    let socket = url.replace("127.0.0.1", "").replace('?', &format!("?host={}&", db.target().address()));
    assert!(tokio_postgres::connect(&socket.replace(&password, "no"), tokio_postgres::NoTls).await.is_err());

    // A second daemon is refused while the first runs; the error has its process id.
    let error = Database::open(&folder.config(), &scope).await.unwrap_err();
    assert!(matches!(&error, Error::DataDirInUse { pid, .. } if *pid == std::process::id()), "{error:?}");

    let pid = folder.server_pid().unwrap();
    db.stop().await.unwrap();
    assert_eq!(folder.server_pid(), None);
    assert!(!Path::new(&format!("/proc/{pid}")).exists() || !cfg!(target_os = "linux"));
    scope.drain(PATIENCE).await.unwrap();

    let scope = Scope::default();
    let db = Database::open(&folder.config(), &scope).await.unwrap();
    assert_eq!(db.url(), url, "the port is kept");
    assert_eq!(one(&db, "select to_regclass('kept')::text").await, "kept");
    db.stop().await.unwrap();
    db.stop().await.unwrap();
}

#[tokio::test]
async fn dropped_database_leaves_no_server() {
    let folder = Folder::new();
    let scope = Scope::default();
    let db = Database::open(&folder.config(), &scope).await.unwrap();
    drop(db);
    eventually("the server stops", async || folder.server_pid().is_none()).await;
    scope.drain(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn missing_server_programs_are_reported_with_install_instructions() {
    let folder = Folder::new();
    let config = Config { bin_dir: Some(folder.path().into()), ..folder.config() };
    let error = Database::open(&config, &Scope::default()).await.unwrap_err();
    assert!(matches!(error, Error::NoBinaries { .. }));
    assert!(error.to_string().contains("apt install postgresql"), "{error}");
}

#[tokio::test]
async fn data_of_another_version_is_refused() {
    let folder = Folder::new();
    let cluster = folder.data_dir().join("postgres");
    fs::create_dir_all(&cluster).unwrap();
    fs::write(cluster.join("PG_VERSION"), "9\n").unwrap();
    if let Some((uid, gid)) = server_user() {
        std::os::unix::fs::chown(&cluster, Some(uid), Some(gid)).unwrap();
    }
    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err();
    assert!(matches!(error, Error::OtherVersion { cluster: 9, .. }), "{error:?}");
    fs::write(cluster.join("PG_VERSION"), "rubbish").unwrap();
    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err();
    assert!(error.to_string().contains("PG_VERSION"), "{error}");
}

#[tokio::test]
async fn folder_without_permission_is_reported() {
    let folder = Folder::new();
    // Not even root can create a folder in sysfs.
    let data_dir =
        if server_user().is_some() { "/sys/convoke".into() } else { folder.data_dir().join("deep") };
    if server_user().is_none() {
        fs::create_dir(folder.data_dir()).unwrap();
        fs::set_permissions(folder.data_dir(), fs::Permissions::from_mode(0o500)).unwrap();
    }
    let config = Config { data_dir: data_dir.clone(), ..Config::default() };
    let error = Database::open(&config, &Scope::default()).await.unwrap_err();
    assert!(matches!(&error, Error::NoPermission { path, .. } if *path == data_dir), "{error:?}");

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let config = Config { data_dir: file.join("data"), ..Config::default() };
    let error = Database::open(&config, &Scope::default()).await.unwrap_err();
    assert!(matches!(error, Error::File { .. }), "{error:?}");
}

#[tokio::test]
async fn data_of_another_user_is_refused_with_its_owner() {
    if server_user().is_none() {
        return; // Only root can create files of other users.
    }
    let folder = Folder::new();
    let cluster = folder.data_dir().join("postgres");
    fs::create_dir_all(&cluster).unwrap();
    std::os::unix::fs::chown(&cluster, Some(4242), Some(4242)).unwrap();
    fs::set_permissions(folder.data_dir(), fs::Permissions::from_mode(0o700)).unwrap();
    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err();
    assert!(matches!(error, Error::ForeignOwner { owner: 4242, .. }), "{error:?}");
}

#[tokio::test]
async fn root_keeps_data_elsewhere_if_the_server_cannot_enter_the_folder() {
    if server_user().is_none() {
        return; // Only root runs the server as another user.
    }
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let config = Config { data_dir: folder.path().join("data"), ..Config::default() };
    let db = Database::open(&config, &Scope::default()).await.unwrap();
    let location = fs::read_to_string(config.data_dir.join("postgres.location")).unwrap();
    assert!(location.starts_with("/var/lib/convoke/"), "{location}");
    db.client().await.unwrap().batch_execute("create table kept (n int)").await.unwrap();
    db.stop().await.unwrap();
    let db = Database::open(&config, &Scope::default()).await.unwrap();
    assert_eq!(one(&db, "select to_regclass('kept')::text").await, "kept");
    db.stop().await.unwrap();

    // Deleting the folder starts over, but the data elsewhere may still be needed.
    fs::remove_dir_all(&config.data_dir).unwrap();
    let db = Database::open(&config, &Scope::default()).await.unwrap();
    assert_eq!(one(&db, "select coalesce(to_regclass('kept')::text, 'gone')").await, "gone");
    db.stop().await.unwrap();
    fs::remove_dir_all(&location).unwrap();
    let mut aside = 0;
    for entry in fs::read_dir("/var/lib/convoke").unwrap() {
        let path = entry.unwrap().path();
        if path.display().to_string().starts_with(&format!("{location}.left-")) {
            fs::remove_dir_all(path).unwrap();
            aside += 1;
        }
    }
    assert_eq!(aside, 1);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn statements_whose_cost_clients_decide_run_at_low_priority() {
    let (folder, scope) = (Folder::new(), Scope::default());
    let db = Database::open(&folder.config(), &scope).await.unwrap();
    let within = Duration::from_secs(5);
    let usual = db.beside("usual", 1, within, "").unwrap();
    let low = db.beside_at_low_priority("low", 1, within).unwrap();
    let nice = async |db: &Database| -> i32 {
        let pid = one(db, "select pg_backend_pid()::text").await;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split_whitespace().nth(16).unwrap().parse().unwrap()
    };
    assert!(nice(&low).await > nice(&usual).await);
    drop((usual, low));
    db.stop().await.unwrap();
    scope.drain(PATIENCE).await.unwrap();
}
