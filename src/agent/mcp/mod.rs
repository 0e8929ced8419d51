//! MCP servers, whose tools the models of agents call (`docs/spec/mcp.md`).
//!
//! Owns one connection for each org and server: started at its first use, shared by all runs, ended when it is idle. A
//! server is a process in a group of its own, or an address. Everything that a server sends is data of a limited size:
//! one that lies, floods, falls silent or dies fails the calls under way and is started again after a pause. No other
//! module knows the library of the protocol.
mod connection;
mod handler;
mod http;
mod limited;
mod offered;
mod process;
mod result;
mod server;

pub(crate) use offered::{offered, pinned_text};

use super::{Env, McpServer};
use crate::{
    id::OrgId,
    llm::Models,
    scope::{OnExit, Scope},
};
use connection::Connection;
use parking_lot::Mutex;
use serde_json::json;
use server::{Ask, Server};
use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// Requests for a connection that wait while it is started.
const ASKS_MAX: usize = 256;
/// How long a request may wait besides the time of a start.
const WAITS_MAX: Duration = Duration::from_secs(10);
/// How long the servers have to end.
const DRAIN_WITHIN: Duration = Duration::from_secs(6);

/// The MCP servers of a daemon. Clones share them. One without a daemon has none.
#[derive(Clone, Default)]
pub(crate) struct Servers(Option<Arc<Pool>>);

struct Pool {
    scope: Scope,
    env: Env,
    models: Models,
    servers: Mutex<HashMap<String, mpsc::Sender<Ask>>>,
}

impl Servers {
    pub(crate) fn new(scope: Scope, env: Env, models: Models) -> Self {
        Self(Some(Arc::new(Pool { scope, env, models, servers: Mutex::default() })))
    }

    /// The connection to a server, which is started if it is not. `folder` is that of the agent's file.
    ///
    /// # Errors
    /// Why there is none, one line.
    pub(crate) async fn connect(
        &self,
        org: &OrgId,
        folder: Option<&Path>,
        server: &McpServer,
    ) -> Result<Arc<Connection>, String> {
        let pool = self.0.as_ref().ok_or("MCP servers are started only in a daemon")?;
        let (reply, answer) = oneshot::channel();
        let asks = pool.actor(org, folder, server);
        let asked = async {
            asks.send(reply).await.ok()?;
            answer.await.ok()
        };
        // The actor keeps to the time of the start; before it may be a pause, or another request.
        match timeout(server.start_timeout + WAITS_MAX, asked).await {
            Ok(Some(answer)) => answer,
            Ok(None) => Err("the daemon is stopping".into()),
            Err(_) => Err("it is busy with its start".into()),
        }
    }

    /// Ends all of them.
    pub(crate) async fn drain(&self) {
        if let Some(pool) = &self.0
            && let Err(stuck) = pool.scope.drain(DRAIN_WITHIN).await
        {
            tracing::warn!(left = stuck.left, "MCP servers did not end in time");
        }
    }
}

impl Pool {
    /// The queue of the actor of a server.
    fn actor(&self, org: &OrgId, folder: Option<&Path>, server: &McpServer) -> mpsc::Sender<Ask> {
        let McpServer { name, command, cwd, env, env_set, url, bearer_env, headers_env, protocol, .. } =
            server;
        let key =
            json!([org, folder, name, command, cwd, env, env_set, url, bearer_env, headers_env, protocol]);
        let mut servers = self.servers.lock();
        let asks = servers.entry(key.to_string()).or_insert_with(|| self.spawn(folder, server));
        // The actor ended although nothing stopped it: it panicked.
        if asks.is_closed() {
            *asks = self.spawn(folder, server);
        }
        asks.clone()
    }

    fn spawn(&self, folder: Option<&Path>, server: &McpServer) -> mpsc::Sender<Ask> {
        let (sender, asks) = mpsc::channel(ASKS_MAX);
        let actor = Server::new(
            server.clone(),
            folder.map(Path::to_owned),
            self.env.clone(),
            self.models.clone(),
            self.scope.clone(),
        );
        self.scope.spawn("mcp server", OnExit::Log, |stop| actor.run(asks, stop));
        sender
    }
}
