//! What lets a job act as its agent while it lasts: where the daemon is, and a token of its own.
use crate::id::{AgentId, OrgId};
use std::{fmt, sync::Arc, time::Duration};

/// Where the daemon answers, and a token that speaks as the job's agent.
#[derive(Clone)]
pub struct Pass {
    /// The address of the daemon, without a slash at the end.
    pub url: String,
    /// The bearer token; good for a little longer than the job.
    pub token: String,
}

impl fmt::Debug for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pass").field("url", &self.url).finish_non_exhaustive()
    }
}

type Issue = dyn Fn(&AgentId, &OrgId, Duration) -> Option<Pass> + Send + Sync;

/// Issues passes, each for an agent of an org and a time. Nobody gets one by default.
#[derive(Clone, Default)]
pub struct Passes(Option<Arc<Issue>>);

impl Passes {
    /// Passes made like this.
    #[must_use]
    pub fn new(issue: impl Fn(&AgentId, &OrgId, Duration) -> Option<Pass> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(issue)))
    }

    pub(super) fn issue(&self, agent: &AgentId, org: &OrgId, within: Duration) -> Option<Pass> {
        self.0.as_ref().and_then(|issue| issue(agent, org, within))
    }
}
