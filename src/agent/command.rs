//! The commands of an actor.
use crate::task::{Assigned, AssignmentKey, Progress};
use tokio::time::Instant;

/// A command in the queue of an actor.
pub(super) enum ActorCommand {
    /// The agent won this award, at this time.
    Assigned { assigned: Assigned, at: Instant },
    /// The agent has another definition, or was retired.
    Redefined,
    /// A job must stop.
    Cancel { key: AssignmentKey, reason: String },
    /// A job started its work.
    Started(AssignmentKey),
    /// A job continues elsewhere, and its new holder reports it.
    Delegated(AssignmentKey),
    /// A job reported progress.
    Progressed(AssignmentKey, Progress),
    /// A job lost its assignment and its slot, and is still stopping.
    Fenced(AssignmentKey),
    /// A job ended.
    Ended(AssignmentKey),
}
