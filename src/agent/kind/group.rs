//! A process group that does not outlive its owner.
use rustix::process::{Pid, Signal, kill_process_group};
use std::sync::atomic::{AtomicI32, Ordering};

/// Kills its process group when dropped: the child, and whatever it started that stayed in the group.
#[derive(Debug)]
pub(super) struct Group(AtomicI32);

impl Group {
    /// The group that the child `id` leads.
    pub(super) fn of(id: Option<u32>) -> Self {
        Self(AtomicI32::new(id.and_then(|id| i32::try_from(id).ok()).unwrap_or(0)))
    }

    /// Asks every process of the group to end.
    pub(super) fn ask_to_end(&self) {
        signal(self.0.load(Ordering::Relaxed), Signal::TERM);
    }

    /// Ends every process of the group.
    pub(super) fn kill(&self) {
        signal(self.0.load(Ordering::Relaxed), Signal::KILL);
    }

    /// Ends what is left of the group after its leader was waited for. Nothing is signalled from then on:
    /// once the group is empty, its number may become that of a stranger.
    pub(super) fn end(&self) {
        signal(self.0.swap(0, Ordering::Relaxed), Signal::KILL);
    }
}

fn signal(group: i32, signal: Signal) {
    if let Some(group) = Pid::from_raw(group) {
        // It fails when no process is left, which is what is wanted.
        let _ = kill_process_group(group, signal);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}
