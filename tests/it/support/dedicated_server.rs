//! A server for one test alone, which may stop and kill it.
use super::{PATIENCE, open_to_all};
use convoke::db::private;
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// A dedicated server. Dropping it stops the server and removes its data.
#[derive(Debug)]
pub struct DedicatedServer {
    server: Option<private::Server>,
    options: private::Options,
    /// Connects to its empty database as the server's superuser.
    pub url: String,
    _folder: tempfile::TempDir,
}

impl DedicatedServer {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts a server with these settings of PostgreSQL.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        open_to_all(folder.path());
        let settings =
            settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = private::Options { data_dir: folder.path().join("data"), bin_dir: None, settings };
        let server = private::Server::open(&options).await.unwrap();
        let url = server.tcp_target().url();
        Self { server: Some(server), options, url, _folder: folder }
    }

    pub async fn stop(&mut self) {
        self.server.take().unwrap().stop().await.unwrap();
    }

    /// Immediate shutdown: it waits for no client and writes no checkpoint.
    pub async fn quit(&mut self) {
        let server = self.server.take().unwrap();
        let pid = server.pid().unwrap().to_string();
        server.leave();
        assert!(Command::new("kill").args(["-QUIT", &pid]).status().unwrap().success());
        let gone = async {
            while self.pid_file().exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, gone).await.expect("the server is gone");
    }

    /// Kills every process of the server: what was not flushed is lost.
    pub fn kill(&mut self) {
        let server = self.server.take().unwrap();
        let pid = server.pid().unwrap();
        server.leave();
        let kill = |pid: &str| Command::new("kill").args(["-9", pid]).status().unwrap();
        let list = Command::new("pgrep").args(["-P", &pid.to_string()]).output().unwrap();
        kill(&pid.to_string());
        for child in String::from_utf8(list.stdout).unwrap().lines() {
            kill(child);
        }
    }

    /// Starts the server again after `stop`, `quit` or `kill`.
    pub async fn again(&mut self) {
        let server = private::Server::open(&self.options).await.unwrap();
        assert_eq!(server.tcp_target().url(), self.url, "at the same address");
        self.server = Some(server);
    }

    /// Copies the server's files, like a backup of a stopped server.
    pub fn copy(&self) {
        let copy = self.copied();
        let _ = std::fs::remove_dir_all(&copy);
        copy_files(&self.files(), &copy);
    }

    /// Replaces the server's files by the copy. The server must be stopped.
    pub fn put_back(&self) {
        std::fs::remove_dir_all(self.files()).unwrap();
        copy_files(&self.copied(), &self.files());
    }

    /// Makes the server start as a standby without a primary, which can be promoted to a new timeline.
    pub fn make_standby(&self) {
        let signal = self.files().join("standby.signal");
        copy_files(&self.files().join("PG_VERSION"), &signal);
    }

    fn files(&self) -> PathBuf {
        self.options.data_dir.join("postgres")
    }

    fn copied(&self) -> PathBuf {
        self.options.data_dir.join("copy")
    }

    fn pid_file(&self) -> PathBuf {
        self.options.data_dir.join("postgres/postmaster.pid")
    }
}

/// Copies owners and modes, too: if the test runs as root, the server runs as another user.
fn copy_files(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

impl Drop for DedicatedServer {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        // Dropping it sends the signal to stop. The folder is removed only when the server writes no more.
        drop(server);
        for _ in 0..1000 {
            if !self.pid_file().exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
