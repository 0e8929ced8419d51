//! What every integration test shares: one real PostgreSQL for the whole run, and
//! a migrated database of one's own for each test.
//!
//! `let db = support::database().await;` is all that a test needs. The server is
//! made by the first test that asks, is shared by all processes, and is left
//! running for the next run, detached from everything that started it.
#![allow(dead_code, unused_imports, reason = "not every test module uses everything")]
mod database;
mod own;
mod proxy;
mod server;

pub use database::{TestDb, database, database_on_its_own_server, empty_database};
pub use own::Own;
pub use proxy::Proxy;
pub use server::{open_to_all, postgres};

/// No awaited event takes longer, however slow the machine is: a test that waits this long has failed.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Every test that makes a TLS connection, or starts a daemon, needs a provider of cryptography.
pub fn crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What `name` says in the environment, for runs that are longer than the suite's or repeat one.
pub fn from_environment<T: std::str::FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}"))
}

/// An example, as cargo has built it beside the daemon.
pub fn example(name: &str) -> std::path::PathBuf {
    let path = std::path::Path::new(env!("CARGO_BIN_EXE_convoke")).with_file_name("examples").join(name);
    assert!(path.exists(), "{} is not there: cargo build --examples", path.display());
    path
}
