//! Settings of the section `[database]`.
use super::{Error, Target, private};
use crate::files;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// Settings of the database.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`. Defaults to a private PostgreSQL.
    #[serde(skip_serializing)]
    pub url: Option<SecretString>,
    /// The daemon's own folder: the private PostgreSQL, generated secrets, spilled transactions.
    pub data_dir: PathBuf,
    /// Folder of the PostgreSQL server programs for the private PostgreSQL. Defaults to the newest found.
    pub bin_dir: Option<PathBuf>,
    /// Most pooled connections. Replication, locks and policies have connections of their own.
    pub pool_size_max: usize,
    /// Timeout of one attempt to connect, including name lookup, TLS and login.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Timeout of one statement on a pooled connection.
    #[serde(with = "humantime_serde")]
    pub statement_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            data_dir: ".convoke".into(),
            bin_dir: None,
            pool_size_max: 8,
            connect_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(30),
        }
    }
}

impl Config {
    /// Returns every problem that can be found without connecting: key in the section, problem, remedy.
    #[must_use]
    pub fn check(&self) -> Vec<(&'static str, String, &'static str)> {
        let mut wrong = Vec::new();
        if let Some(Err(e)) = self.url.as_ref().map(|url| Target::parse(url.expose_secret())) {
            let message = match &e {
                Error::BadUrl(reason) => reason.clone(),
                other => other.to_string(),
            };
            wrong.push(("url", message, "correct it, or leave it out for a private PostgreSQL"));
        }
        if let Err(e) = files::check_own_folder(&self.data_dir) {
            wrong.push(("data_dir", e.to_string(), "the daemon's folder must be its own"));
        }
        if self.url.is_none()
            && let Some(folder) = &self.bin_dir
            && !private::has_programs(folder)
        {
            let message =
                format!("{} has no PostgreSQL server programs (postgres, initdb)", folder.display());
            wrong.push((
                "bin_dir",
                message,
                "name the folder that has them, or leave it out to use the newest",
            ));
        }
        if self.pool_size_max == 0 {
            wrong.push(("pool_size_max", "0 connections are too few".into(), "use 2 or more, like 8"));
        }
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn section_overrides_only_its_own_keys() {
        let config: Config =
            toml::from_str("url = \"postgres://a:b@c/d\"\nconnect_timeout = \"250ms\"").unwrap();
        assert_eq!(config.url.unwrap().expose_secret(), "postgres://a:b@c/d");
        assert_eq!(config.connect_timeout, Duration::from_millis(250));
        assert_eq!(config.pool_size_max, 8);
    }

    #[test]
    fn url_is_neither_printed_nor_serialized() {
        let config = Config { url: Some("postgres://a:hunter2@c/d".into()), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!toml::to_string(&config).unwrap().contains("hunter2"));
    }
}
