//! Crashes of the daemon and of its private PostgreSQL.
use super::private::{Folder, eventually, kill, one, server_user};
use crate::support::PATIENCE;
use convoke::{
    db::{Config, Database, Error},
    scope::Scope,
};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::TcpListener,
    os::unix::process::{CommandExt, ExitStatusExt},
    process::{Child, Command, Stdio},
};

const FOLDER: &str = "CONVOKE_TEST_DATA_DIR";

/// Not a test: the daemon that the tests below kill. It prints its URL and waits.
#[tokio::test]
#[ignore = "run by the tests that kill it"]
async fn helper_that_holds_a_private_server() {
    let Some(data_dir) = std::env::var_os(FOLDER) else { return };
    let config = Config { data_dir: data_dir.into(), ..Config::default() };
    let scope = Scope::default();
    let db = Database::open(&config, &scope).await.unwrap();
    println!("\nready {}", db.url());
    std::future::pending().await
}

fn helper(folder: &Folder) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "db::private_faults::helper_that_holds_a_private_server",
        "--ignored",
        "--nocapture",
    ]);
    command.env(FOLDER, folder.data_dir());
    command
}

/// Starts another process with a private server; returns it with its URL when it is ready.
pub fn other_daemon(folder: &Folder) -> (Child, String) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "db::private_faults::helper_that_holds_a_private_server",
            "--ignored",
            "--nocapture",
        ])
        .env(FOLDER, folder.data_dir())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.find_map(|line| line.unwrap().strip_prefix("ready ").map(str::to_owned));
    (child, ready.unwrap())
}

/// Whether a server process other than `before` answers.
async fn answers_anew(db: &Database, folder: &Folder, before: i32) -> bool {
    let Ok(client) = db.client().await else { return false };
    client.query_one("select 1", &[]).await.is_ok() && folder.server_pid() != Some(before)
}

#[tokio::test]
async fn server_of_a_killed_daemon_is_adopted() {
    let folder = Folder::new();
    let (mut daemon, url) = other_daemon(&folder);
    let server = folder.server_pid().unwrap();

    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err();
    assert!(matches!(&error, Error::DataDirInUse { pid, .. } if *pid == daemon.id()), "{error:?}");

    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let db = Database::open(&folder.config(), &Scope::default()).await.unwrap();
    assert_eq!(folder.server_pid(), Some(server), "the same process");
    assert_eq!(db.url(), url);
    assert_eq!(one(&db, "select 'alive'").await, "alive");

    // The adopted server is supervised and stopped like a child process.
    kill("-KILL", server);
    eventually("the server is back", async || answers_anew(&db, &folder, server).await).await;
    db.stop().await.unwrap();
    assert_eq!(folder.server_pid(), None);
}

#[tokio::test]
async fn daemon_killed_while_creating_its_server_leaves_nothing_to_repair() {
    let folder = Folder::new();
    for point in ["db.data_made", "db.server_started"] {
        let mut daemon = helper(&folder);
        let status = daemon.env(convoke::fault::VARIABLE, point).stdout(Stdio::null()).status().unwrap();
        assert_eq!(status.signal(), Some(9), "{point}");
    }
    // The second daemon was killed just before its server answered.
    let db = Database::open(&folder.config(), &Scope::default()).await.unwrap();
    assert_eq!(one(&db, "select 'alive'").await, "alive");
    db.stop().await.unwrap();
    let mut left = fs::read_dir(folder.data_dir()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!left.any(|name| name.to_string_lossy().contains("new")));
}

#[tokio::test]
async fn killed_server_is_restarted_and_connections_recover() {
    let folder = Folder::new();
    let scope = Scope::default();
    let db = Database::open(&folder.config(), &scope).await.unwrap();
    db.client()
        .await
        .unwrap()
        .batch_execute("create table t (n int); insert into t values (1)")
        .await
        .unwrap();
    for signal in ["-KILL", "-QUIT"] {
        let server = folder.server_pid().unwrap();
        kill(signal, server);
        eventually("the server is back", async || answers_anew(&db, &folder, server).await).await;
        assert_eq!(one(&db, "select n::text from t").await, "1");
    }
    db.stop().await.unwrap();
    scope.drain(PATIENCE).await.unwrap();
}

#[tokio::test]
async fn stale_pid_file_does_not_prevent_the_next_start() {
    let folder = Folder::new();
    let db = Database::open(&folder.config(), &Scope::default()).await.unwrap();
    let record = folder.data_dir().join("postgres/postmaster.pid");
    let text = fs::read_to_string(&record).unwrap();
    db.stop().await.unwrap();

    // After a crash of the machine, the process id may belong to another program of the server's user.
    let mut sleep = Command::new("sleep");
    sleep.arg("60");
    if let Some((uid, gid)) = server_user() {
        sleep.uid(uid).gid(gid);
    }
    let mut other = sleep.spawn().unwrap();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    for pid in [other.id(), ended.id()] {
        let rest = text.split_once('\n').unwrap().1;
        fs::write(&record, format!("{pid}\n{rest}")).unwrap();
        if let Some((uid, gid)) = server_user() {
            std::os::unix::fs::chown(&record, Some(uid), Some(gid)).unwrap();
        }
        let db = Database::open(&folder.config(), &Scope::default()).await.unwrap();
        assert_eq!(one(&db, "select 'alive'").await, "alive");
        db.stop().await.unwrap();
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn port_taken_by_another_program_is_changed() {
    let folder = Folder::new();
    let db = Database::open(&folder.config(), &Scope::default()).await.unwrap();
    let port = db.target().port;
    db.stop().await.unwrap();
    let taken = TcpListener::bind(("127.0.0.1", port)).unwrap();
    let db = Database::open(&folder.config(), &Scope::default()).await.unwrap();
    assert_ne!(db.target().port, port);
    assert_eq!(one(&db, "select 'alive'").await, "alive");
    db.stop().await.unwrap();
    drop(taken);
}

#[tokio::test]
async fn lost_password_file_and_invalid_setting_are_reported_with_a_remedy() {
    let folder = Folder::new();
    let db = Database::open(&folder.config(), &Scope::default()).await.unwrap();
    db.client().await.unwrap().batch_execute("alter system set ssl = on").await.unwrap();
    db.stop().await.unwrap();
    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err();
    assert!(matches!(&error, Error::Start { tail, .. } if tail.contains("certificate")), "{error:?}");

    let own = folder.data_dir().join("postgres/postgresql.auto.conf");
    fs::write(&own, "").unwrap();
    let password = folder.data_dir().join("postgres.password");
    fs::write(&password, "another").unwrap();
    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err();
    assert!(error.to_string().contains("postgres.password"), "{error}");
    fs::remove_file(&password).unwrap();
    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err();
    assert!(error.to_string().contains("postgres.password is gone"), "{error}");
    assert_eq!(folder.server_pid(), None, "nothing is left running");
}
