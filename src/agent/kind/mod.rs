//! The kinds of hosted agents, each an implementation of [`Agent`].
pub(crate) mod command;
pub(in crate::agent) mod group;
pub(crate) mod hook;
pub(crate) mod http;
mod json_in_text;
pub(crate) mod llm;
pub(in crate::agent) mod program;

pub(crate) use program::program;

use super::{Agent, Definition, Env, Keeper, Kind, Registry, mcp::Servers, tool::ToolLimits};
use crate::{clock::Clock, db::Reader, llm::Models, task::Schemas};
use std::sync::Arc;

/// What the kinds need from the daemon. Cloning is cheap.
#[derive(Clone, Default)]
pub struct RunnerDeps {
    /// The environment of the variables in definitions.
    pub env: Env,
    /// The models, and the HTTP clients.
    pub models: Models,
    /// The wall clock, for signatures.
    pub clock: Clock,
    /// Reads from the daemon's database under other logins, for `sql:read`.
    pub reader: Option<Reader>,
    /// Starts the programs of tools. `None`: they end with this process.
    pub keeper: Option<Keeper>,
    /// Checks results and arguments by their schemas.
    pub schemas: Schemas,
    /// The calls of tools with limits.
    pub(crate) tool_limits: ToolLimits,
    /// The MCP servers.
    pub(crate) servers: Servers,
}

/// The code that runs the jobs of `definition`. `None` for kind `remote`, whose jobs run elsewhere.
///
/// # Errors
/// One line: unregistered code, a missing variable, an invalid schema.
pub fn runner(
    definition: &Arc<Definition>,
    parts: &RunnerDeps,
    registry: &Registry,
) -> Result<Option<Arc<dyn Agent>>, String> {
    Ok(match definition.run.kind {
        Kind::Command => Some(Arc::new(command::Command::new(definition.clone(), parts.env.clone()))),
        Kind::Http => Some(Arc::new(http::Http::new(definition.clone(), parts.clone())?)),
        Kind::Llm => Some(Arc::new(llm::Llm::new(definition.clone(), parts)?)),
        Kind::Rust => {
            let name = definition.run.name.as_deref().unwrap_or(definition.id.as_str());
            Some(registry.get(name).ok_or_else(|| format!("no Rust agent is registered as {name:?}"))?)
        }
        Kind::Remote => None,
    })
}
