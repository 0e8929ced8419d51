//! What follows a commit: slots go back to the roster, the arbiter is called, notices are published.
use crate::task::{AgentId, Notice, TaskContext, commands::command::reopens};

/// Gives the slots of assignments that ended back to the roster.
pub(in crate::task) fn release_slots(context: &TaskContext, freed: &[AgentId]) {
    context.metrics.ended.inc_by(freed.len() as u64);
    let mut roster = context.roster.lock();
    for agent in freed {
        roster.freed(agent);
    }
}

/// Publishes what a commit did. `freed`: the agents whose slots it gave back.
pub(in crate::task) fn publish(context: &TaskContext, freed: &[AgentId], notices: Vec<Notice>) {
    if notices.iter().any(reopens) {
        context.notify_arbiter();
    } else if !freed.is_empty() {
        context.notify_of_slots();
    }
    context.publish(notices);
}
