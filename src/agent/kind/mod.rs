//! The kinds of agents that are hosted here, each an implementation of [`Agent`].
pub(crate) mod command;
mod group;
pub(crate) mod hook;
pub(crate) mod http;
pub(crate) mod llm;

pub(crate) use command::program;

use super::{Agent, Definition, Env, Kind, Registry};
use crate::{clock::Clock, llm::Models};
use std::sync::Arc;

/// What the kinds need from the daemon. Clones are cheap.
#[derive(Clone, Default)]
pub struct Parts {
    /// Where names of variables in files are looked up.
    pub env: Env,
    /// The models, and the HTTP clients.
    pub models: Models,
    /// The wall clock, for signatures.
    pub clock: Clock,
}

/// What does the work of `definition`; nothing for `remote`, whose work is done elsewhere.
///
/// # Errors
/// One line: code that is not registered, a variable that is missing, a schema that is none.
pub fn runner(
    definition: &Arc<Definition>,
    parts: &Parts,
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
