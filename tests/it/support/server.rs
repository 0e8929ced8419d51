//! The shared server: a private PostgreSQL of the daemon under `target/tmp`.
use convoke::db::{Error, private};
use std::{
    fs::{File, OpenOptions},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::sync::OnceCell;
use tokio_postgres::NoTls;

/// The URL of the shared server's database `postgres`, as its superuser.
///
/// `wal_level` is logical, with 100 slots and 500 connections. `fsync` is off, so a test about crashes of the
/// machine needs a dedicated server.
pub async fn postgres() -> &'static str {
    static URL: OnceCell<String> = OnceCell::const_new();
    URL.get_or_init(start).await
}

async fn start() -> String {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let url_file = folder.join("test-postgres.url");
    if let Some(url) = answering(&url_file).await {
        return url;
    }
    let _lock = lock(folder.join("test-postgres.lock")).await;
    // Another process may have started it while this one waited for the lock.
    if let Some(url) = answering(&url_file).await {
        return url;
    }
    let data_dir = folder.join("test-postgres");
    let server = match private::Server::open(&options(&data_dir)).await {
        Ok(server) => server,
        // The data may be damaged by a crash of the machine (fsync is off), or belong to another version.
        Err(Error::Start { .. } | Error::OtherVersion { .. } | Error::Unfit(_)) => {
            let _ = std::fs::remove_dir_all(&data_dir);
            private::Server::open(&options(&data_dir)).await.unwrap()
        }
        Err(e) => panic!("no test server: {:#}", anyhow::Error::new(e)),
    };
    let url = server.tcp_target().with_database("postgres").url();
    server.leave();
    std::fs::write(&url_file, &url).unwrap();
    url
}

fn options(data_dir: &Path) -> private::Options {
    let settings = [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("max_connections", "500"),
        ("max_replication_slots", "100"),
        ("max_wal_senders", "100"),
        ("shared_buffers", "128MB"),
        // Slots left by failed tests must not fill the disk.
        ("max_slot_wal_keep_size", "512MB"),
        ("log_min_error_statement", "error"),
        ("log_error_verbosity", "default"),
    ];
    let settings = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    private::Options { data_dir: data_dir.to_owned(), bin_dir: None, settings }
}

/// The URL of the last run, if its server still answers.
async fn answering(url_file: &PathBuf) -> Option<String> {
    let url = std::fs::read_to_string(url_file).ok()?;
    let connected = tokio_postgres::connect(&url, NoTls);
    drop(tokio::time::timeout(Duration::from_secs(5), connected).await.ok()?.ok()?);
    Some(url)
}

/// Waits for the lock in a thread, because another process may hold it for seconds.
async fn lock(path: PathBuf) -> File {
    let wait = move || {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path).unwrap();
        file.lock().unwrap();
        file
    };
    tokio::task::spawn_blocking(wait).await.unwrap()
}

/// Lets every user enter the folder: if the test runs as root, the server runs as another user.
pub fn open_to_all(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
}
