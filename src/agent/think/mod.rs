//! The durable loop of an agent that thinks (`docs/spec/thinking-agents.md`).
//!
//! A run is one line of thought on one task: the model is asked, the tools that it calls are run, and it is asked
//! again, until there is a result. Every step is a row. The pure machine says from the rows what comes next, and the
//! session performs it, reads the rows again and goes on; the rows decide alone. So a daemon that is killed anywhere
//! loses at most the step that was under way, and the next question has the same bytes.
mod approve;
mod calls;
mod catalog;
mod compact;
mod context;
mod costs;
mod doubt;
mod finish;
mod guards;
mod limits;
mod machine;
mod memory;
mod messages;
mod parts;
mod perform;
mod servers;
mod session;
#[cfg(test)]
pub(crate) mod testing;
mod thinker;
mod turn;

pub(crate) use machine::{ASK, BUILT_IN, FINISH, GIVE_UP};
pub use messages::ToolsBy;
#[cfg(test)]
pub(crate) use messages::messages;
pub(crate) use session::Session;
pub(crate) use thinker::Thinker;
