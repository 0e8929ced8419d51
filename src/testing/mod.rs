//! A test kit for programs with agents: a model that follows a script, a clock that a test moves, and points at which a
//! daemon dies.
//!
//! - [`ModelServer`] is an endpoint of chat completions on loopback. It gives the answers of a [`Script`], also slow,
//!   broken and streamed ones, records each request before it answers, and says at the end what nobody asked for. The
//!   daemon talks to it over HTTP like to any other endpoint, so that decoder, limits and retries are tested too.
//! - [`Clock::manual`] is a wall clock that stands still until a test advances it; a daemon gets it with
//!   [`Builder::clock`](crate::app::Builder::clock). Deadlines of tasks are not its: the database decides them.
//!   Durations follow the clock of tokio, which a test can pause.
//! - [`kill_at`] makes a daemon that is a process of its own die with `SIGKILL` at a [`FaultPoint`].
//!
//! A whole daemon with an agent whose model follows a script, in one process:
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use convoke::{app::Daemon, config::Config, testing::{ModelServer, Reply}};
//! use serde_json::json;
//! use tokio_util::sync::CancellationToken;
//!
//! let model = ModelServer::start([
//!     Reply::limited(std::time::Duration::from_secs(1)),
//!     Reply::call("close_ticket", json!({ "id": 7 })),
//!     Reply::finish(json!("closed")),
//! ])
//! .await?;
//! let mut agent: convoke::agent::Definition = toml::from_str(&std::fs::read_to_string("agents/clerk.toml")?)?;
//! agent.run.base_url = Some(model.base_url());
//! let daemon = Daemon::builder(Config::default()).definitions(vec![agent]).build().await?;
//! let tasks = daemon.parts().tasks.clone();
//! let stop = CancellationToken::new();
//! let running = tokio::task::spawn(daemon.run(stop.clone()));
//!
//! let request = serde_json::from_value(json!({ "kind": "tickets.close", "requires": ["tickets"] }))?;
//! let task = tasks.request(&"default".parse()?, "test", request).await?.task;
//! let task = tasks.wait(task.id, std::time::Duration::from_secs(30)).await?;
//! assert_eq!(task.result, Some(json!("closed")));
//! model.assert_complete();
//! stop.cancel();
//! running.await??;
//! # Ok(())
//! # }
//! ```
mod model_server;
mod reply;
mod script;

pub use crate::{clock::Clock, fault::Point as FaultPoint};
pub use model_server::{ModelRequest, ModelServer};
pub use reply::{Reply, StreamEnd};
pub use script::Script;

use std::process::Command;

/// Makes the daemon that this command starts die with `SIGKILL` when it passes `point` for the `pass`-th time, from 1.
/// Only a daemon with debug assertions has fault points; a release build ignores this.
pub fn kill_at(command: &mut Command, point: FaultPoint, pass: u32) {
    command.env(crate::fault::VARIABLE, format!("{}:{pass}", point.name()));
}
