//! A server of one test's own, which it may stop and kill.
use super::{PATIENCE, open_to_all};
use convoke::db::private;
use std::{path::PathBuf, process::Command, time::Duration};

/// It ends with the value, and what is on it goes.
#[derive(Debug)]
pub struct Own {
    server: Option<private::Server>,
    options: private::Options,
    /// Connects as the server's superuser, to its empty database.
    pub url: String,
    _folder: tempfile::TempDir,
}

impl Own {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// A server with these settings of PostgreSQL.
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

    /// Postgres' immediate stop: nobody is waited for, nothing is flushed.
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

    /// Kills all of it: what it had not flushed is gone.
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

    /// Starts it again after one of these.
    pub async fn again(&mut self) {
        let server = private::Server::open(&self.options).await.unwrap();
        assert_eq!(server.tcp_target().url(), self.url, "at the same address");
        self.server = Some(server);
    }

    fn pid_file(&self) -> PathBuf {
        self.options.data_dir.join("postgres/postmaster.pid")
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let Some(server) = self.server.take() else { return };
        // It is told to stop, and must not write any more when its folder goes.
        drop(server);
        for _ in 0..1000 {
            if !self.pid_file().exists() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
