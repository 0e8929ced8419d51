//! A process group that does not outlive its owner.
use rustix::process::{Pid, Signal, kill_process_group};
use std::sync::atomic::{AtomicI32, Ordering};

/// Kills its process group when dropped: the child, and all of its descendants that stayed in the group.
#[derive(Debug)]
pub(in crate::agent) struct Group(AtomicI32);

impl Group {
    /// The group that the child `id` leads.
    pub(in crate::agent) fn of(id: Option<u32>) -> Self {
        Self(AtomicI32::new(id.and_then(|id| i32::try_from(id).ok()).unwrap_or(0)))
    }

    /// Sends SIGTERM to the group.
    pub(in crate::agent) fn ask_to_end(&self) {
        signal(self.0.load(Ordering::Relaxed), Signal::TERM);
    }

    /// Sends SIGKILL to the group.
    pub(in crate::agent) fn kill(&self) {
        signal(self.0.load(Ordering::Relaxed), Signal::KILL);
    }

    /// Kills the rest of the group after its leader was waited for, and signals nothing from then on: the id of an
    /// empty group may be reused by other processes.
    pub(in crate::agent) fn end(&self) {
        signal(self.0.swap(0, Ordering::Relaxed), Signal::KILL);
    }
}

fn signal(group: i32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group) {
        // Fails if no process is left, which is the goal.
        let _ = kill_process_group(group, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}
