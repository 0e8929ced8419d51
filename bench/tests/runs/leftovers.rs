//! Benchmarks leave nothing behind, however they end.
use super::{bench, text};
use crate::support::{PATIENCE, database, open_to_all};
use std::{
    io::Read,
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};
use tokio::time::Instant;

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

/// A run that takes long, with its private PostgreSQL in `folder`, and the server's address.
fn long_run(folder: &Path) -> (Child, String) {
    open_to_all(folder);
    let mut command = bench(folder, &["tasks", "--tasks", "1000000"]);
    let bench = command.stderr(Stdio::piped()).env("TMPDIR", folder).spawn().unwrap();
    let port = folder.join(format!("convoke-bench-{}/postgres.port", bench.id()));
    let started = (0..3000).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        port.exists()
    });
    assert!(started, "no server within a minute");
    let server = format!("127.0.0.1:{}", std::fs::read_to_string(&port).unwrap().trim());
    (bench, server)
}

#[test]
fn interrupted_or_terminated_benchmark_removes_its_private_postgres() {
    for (name, expected) in
        [("-INT", "convoke-bench: interrupted\n"), ("-TERM", "convoke-bench: terminated\n")]
    {
        let folder = tempfile::tempdir().unwrap();
        let (mut bench, server) = long_run(folder.path());
        signal(bench.id(), name);
        assert_eq!(bench.wait().unwrap().code(), Some(1));
        let mut told = String::new();
        bench.stderr.take().unwrap().read_to_string(&mut told).unwrap();
        assert_eq!(told, expected);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        assert!(TcpStream::connect(server).is_err(), "its server is stopped");
    }
}

#[test]
fn next_benchmark_removes_the_private_postgres_of_a_killed_one() {
    let folder = tempfile::tempdir().unwrap();
    let (mut killed, server) = long_run(folder.path());
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(TcpStream::connect(&server).is_ok(), "the server outlives its benchmark");
    let mut command = bench(folder.path(), &["wake", "--commits", "1", "--results", ""]);
    let output = command.env("TMPDIR", folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(TcpStream::connect(server).is_err(), "the killed benchmark's server is stopped");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Slots, tables and positions of benchmarks in a database.
async fn left(client: &tokio_postgres::Client) -> i64 {
    let sql = "select (select count(*) from pg_replication_slots where database = current_database())
        + (select count(*) from pg_tables where tablename like 'bench%')
        + (select count(*) from convoke.wal_position)";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_benchmarks_on_two_databases_of_one_server_leave_no_slot_and_no_table() {
    let (one, two) = (database().await, database().await);
    let run = |url: String| {
        let folder = tempfile::tempdir().unwrap();
        tokio::task::spawn_blocking(move || {
            let mut command = bench(folder.path(), &["wake", "--commits", "20", "--results", ""]);
            command.env("CONVOKE_DATABASE__URL", url).output().unwrap()
        })
    };
    for _ in 0..2 {
        let (first, second) = (run(one.url.clone()), run(two.url.clone()));
        for output in [first.await.unwrap(), second.await.unwrap()] {
            assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        }
        for db in [&one, &two] {
            assert_eq!(left(&db.client().await).await, 0, "slots, tables and positions");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn next_benchmark_on_a_database_removes_the_slot_and_tables_of_a_killed_one() {
    let db = database().await;
    let folder = tempfile::tempdir().unwrap();
    let run = |commits: &str| {
        let mut command = bench(folder.path(), &["wake", "--commits", commits, "--results", ""]);
        command.env("CONVOKE_DATABASE__URL", &db.url).stderr(Stdio::null()).stdout(Stdio::null());
        command
    };
    let mut killed = run("1000000").spawn().unwrap();
    let client = db.client().await;
    let measuring = "select exists (select from bench_rows)";
    let began = Instant::now();
    while !client.query_one(measuring, &[]).await.is_ok_and(|row| row.get(0)) {
        assert!(began.elapsed() < PATIENCE, "no row is committed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(left(&client).await >= 2, "SIGKILL leaves slot and tables");
    let mut next = run("5");
    assert!(tokio::task::spawn_blocking(move || next.status().unwrap().success()).await.unwrap());
    assert_eq!(left(&client).await, 0, "slots, tables and positions");
}
