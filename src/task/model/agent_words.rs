//! Kinds and presence of agents, and their words in the database and on the wire.
use serde::{Deserialize, Serialize};
use std::fmt;

/// How an agent does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentKind {
    /// A model behind an OpenAI-compatible endpoint.
    Llm,
    /// A process for each task.
    Command,
    /// A POST for each task.
    Http,
    /// Code in this process that implements [`crate::agent::Agent`].
    Rust,
    /// A program elsewhere that connects with a token of the agent.
    Remote,
}

impl AgentKind {
    /// The word in definitions, in the database and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Llm => "llm",
            Self::Command => "command",
            Self::Http => "http",
            Self::Rust => "rust",
            Self::Remote => "remote",
        }
    }
}

impl fmt::Display for AgentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether an agent can be awarded tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AgentPresence {
    /// Its host is connected.
    Present,
    /// Its host has ended or is disconnected, or it has not arrived yet.
    Gone,
}

impl AgentPresence {
    /// The word in the database and on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Present => "present",
            Self::Gone => "gone",
        }
    }

    /// The presence with this word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Present, Self::Gone].into_iter().find(|presence| presence.as_str() == word)
    }
}
