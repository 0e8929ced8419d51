//! A process group that does not outlive its owner.
use rustix::process::{Pid, Signal, kill_process_group};
use std::{
    future::Future,
    io,
    process::ExitStatus,
    sync::atomic::{AtomicI32, Ordering},
    time::Duration,
};
use tokio::{process::Child, time::timeout};

/// Time limit for output after the leader has ended, from a descendant that left the group.
const AFTER_EXIT: Duration = Duration::from_secs(1);

/// Kills its process group when dropped: the child, and all of its descendants that stayed in the group.
#[derive(Debug)]
pub(in crate::agent) struct Group(AtomicI32);

impl Group {
    /// The group that the child `id` leads.
    pub(in crate::agent) fn of(id: Option<u32>) -> Self {
        Self(AtomicI32::new(id.and_then(|id| i32::try_from(id).ok()).unwrap_or(0)))
    }

    /// Waits until the leader and its `streams` have ended, and kills what is left of the group when the leader has.
    /// The second value is `None` if a descendant that left the group keeps a stream open.
    pub(in crate::agent) async fn wait<T>(
        &self,
        leader: &mut Child,
        streams: impl Future<Output = T>,
    ) -> (io::Result<ExitStatus>, Option<T>) {
        tokio::pin!(streams);
        let (status, seen) = tokio::select! {
            status = leader.wait() => (status, None),
            seen = &mut streams => (leader.wait().await, Some(seen)),
        };
        // Descendants that are left would keep the pipes open.
        self.end();
        let seen = match seen {
            Some(seen) => Some(seen),
            None => timeout(AFTER_EXIT, streams).await.ok(),
        };
        (status, seen)
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
