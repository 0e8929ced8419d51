//! A daemon that finds its port taken leaves nothing behind.
use super::config;
use crate::support::empty_database;
use convoke::{app::Daemon, config::Config};
use std::{net::TcpListener, path::Path};

async fn refused(config: Config) -> String {
    let refused = Daemon::builder(config).definitions(Vec::new()).build().await;
    format!("{:#}", refused.err().expect("it starts"))
}

/// Everything under a folder, with when it was changed.
fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = std::fs::symlink_metadata(&path).unwrap();
        found.push(format!(
            "{} {:?} {:?}",
            path.display(),
            metadata.modified().unwrap(),
            metadata.permissions()
        ));
        if metadata.is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_second_daemon_on_a_taken_port_makes_no_file_and_no_table() {
    let (db, folder) = (empty_database().await, tempfile::tempdir().unwrap());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let before = files(folder.path());

    // On a database that is there, and on a private PostgreSQL.
    let data = folder.path().join("data");
    let mut outside = config(&db, &data);
    outside.server.listen = address;
    let mut private = outside.clone();
    private.database.url = None;
    for config in [outside, private] {
        let refused = refused(config).await;
        assert!(refused.starts_with(&format!("cannot listen on {address}")), "{refused}");
        assert_eq!(files(folder.path()), before);
    }
    let made = "select count(*) from pg_namespace where nspname in ('convoke', 'realtime', 'auth')";
    let made: i64 = db.client().await.query_one(made, &[]).await.unwrap().get(0);
    assert_eq!(made, 0, "schemas");
}

/// The same as a process, with every folder at its default.
#[test]
fn convoke_up_on_a_taken_port_leaves_an_empty_folder_empty() {
    let folder = tempfile::tempdir().unwrap();
    crate::support::open_to_all(folder.path());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let before = files(folder.path());
    for command in [&["up", "--listen", &address][..], &["up", "--json", "--listen", &address]] {
        let output = crate::cli::convoke(folder.path(), command);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains("give another --listen"), "{told}");
        assert_eq!(files(folder.path()), before);
    }
}
