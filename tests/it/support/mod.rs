//! Shared by all integration tests: one real PostgreSQL server, and a migrated database for each test.
//!
//! `let db = support::database().await;` is all that a test needs. The first test that needs the server
//! starts it. All test processes share it, and it keeps running for the next run, detached from its starter.
#![allow(dead_code, unused_imports, reason = "not every test module uses every helper")]
mod database;
mod dedicated_server;
mod hostile;
mod proxy;
mod server;

pub use database::{
    TestDb, database, database_in, database_on_its_own_server, empty_database, hostile_database,
};
pub use dedicated_server::DedicatedServer;
pub use hostile::is_wanted as is_hostile;
pub use proxy::Proxy;
pub use server::{open_to_all, postgres};

/// Timeout for awaited events, long enough for the slowest machine: a test that waits this long has failed.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// Installs the provider of cryptography that TLS connections and daemons need.
pub fn crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// The value of variable `name`, else `default`. For runs that are longer than the suite's, or repeat one.
pub fn from_environment<T: std::str::FromStr>(name: &str, default: T) -> T {
    let Ok(text) = std::env::var(name) else { return default };
    text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text:?}"))
}

/// The path of an example, as cargo has built it beside the daemon.
pub fn example(name: &str) -> std::path::PathBuf {
    // The test's executable is in `deps`, beside `examples`.
    let test = std::env::current_exe().unwrap();
    let path = test.ancestors().nth(2).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is not there: cargo build --examples", path.display());
    path
}
