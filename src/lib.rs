//! Convoke: the daemon that coordinates AI agents. `ARCHITECTURE.md` is the map of its code.
//!
//! The library has four parts. Everything else is hidden from the documentation: it is public for this
//! project's own binary, tests and examples, and may change in any release.
//!
//! | part | for |
//! |---|---|
//! | [`client`] | programs that use the channels, against Convoke or Supabase Realtime (feature `client`) |
//! | [`app`] | programs that run the daemon in their own process (feature `daemon`) |
//! | [`agent`] | agents in Rust: a [`Definition`](agent::Definition) and the trait [`Agent`](agent::Agent) |
//! | [`testing`] | tests of such programs: a scripted model, a clock, fault points (feature `testing`) |
//!
//! [`config`], [`id`] and [`task`] hold the types that these name.
//!
//! A client subscribes to a channel, receives its broadcasts and sends one:
//!
//! ```no_run
//! # async fn example() -> Result<(), convoke::client::Error> {
//! use convoke::client::Client;
//! use serde_json::json;
//!
//! let client = Client::builder("http://127.0.0.1:4000", "the key of `convoke token`")?.start();
//! let room = client.channel("room").receive_own().build();
//! let mut pings = room.broadcasts("ping");
//! room.subscribe().await?;
//! room.broadcast("ping", json!({ "n": 1 })).await?;
//! println!("received {:?}", pings.next().await);
//! client.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! A program implements an agent and runs the daemon with it until a token is canceled:
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use convoke::{
//!     agent::{Agent, Definition, Finished, Job, Kind},
//!     app::Daemon,
//!     config::Config,
//!     task::Failure,
//! };
//! use serde_json::json;
//! use std::sync::Arc;
//! use tokio_util::sync::CancellationToken;
//!
//! struct Echo;
//!
//! #[async_trait::async_trait]
//! impl Agent for Echo {
//!     async fn run(&self, job: Job) -> Result<Finished, Failure> {
//!         Ok(json!({ "echo": job.input() }).into())
//!     }
//! }
//!
//! let definition = Definition::new("echo".parse()?, "default".parse()?, Kind::Rust).capable(["echo"]);
//! let daemon = Daemon::builder(Config::default()).agent(definition, Arc::new(Echo)).build().await?;
//! daemon.run(CancellationToken::new()).await?;
//! # Ok(())
//! # }
//! ```
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod access;
#[cfg(feature = "daemon")]
pub mod agent;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod api;
#[cfg(feature = "daemon")]
pub mod app;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod auth;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod changes;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "client")]
pub mod client;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod clock;
#[cfg(feature = "daemon")]
pub mod config;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod dashboard;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod db;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod fault;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod files;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod filter;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod gateway;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod hub;
pub mod id;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod journal;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod json;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod llm;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod presence;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod problem;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod remote;
#[doc(hidden)]
pub mod scope;
#[cfg(feature = "daemon")]
pub mod task;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod telemetry;
#[cfg(feature = "testing")]
pub mod testing;
#[cfg(feature = "daemon")]
#[doc(hidden)]
pub mod wal;
#[doc(hidden)]
pub mod wire;
