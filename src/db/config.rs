//! The settings of the database, as they stand in the section `[database]`.
use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};

/// Which database the daemon uses, and how.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `postgres://user:password@host:5432/database?sslmode=verify-full`; none runs a private PostgreSQL.
    #[serde(skip_serializing)]
    pub url: Option<SecretString>,
    /// The daemon's own folder: the private PostgreSQL, generated secrets, spilled transactions.
    pub data_dir: PathBuf,
    /// The folder of the PostgreSQL server binaries for the private PostgreSQL; none looks for the newest.
    pub bin_dir: Option<PathBuf>,
    /// How many pooled connections there are at most; replication and locks have their own.
    pub pool_size_max: usize,
    /// How long one attempt to connect may take, name lookup, TLS and password included.
    #[serde(with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long one statement on a pooled connection may take.
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

#[cfg(test)]
mod tests {
    use super::*;
    use secrecy::ExposeSecret;

    #[test]
    fn a_section_overrides_only_what_it_names() {
        let config: Config =
            toml::from_str("url = \"postgres://a:b@c/d\"\nconnect_timeout = \"250ms\"").unwrap();
        assert_eq!(config.url.unwrap().expose_secret(), "postgres://a:b@c/d");
        assert_eq!(config.connect_timeout, Duration::from_millis(250));
        assert_eq!(config.pool_size_max, 8);
    }

    #[test]
    fn the_url_is_neither_printed_nor_serialized() {
        let config = Config { url: Some("postgres://a:hunter2@c/d".into()), ..Config::default() };
        assert!(!format!("{config:?}").contains("hunter2"));
        assert!(!toml::to_string(&config).unwrap().contains("hunter2"));
    }
}
