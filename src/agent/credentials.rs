//! Credentials with which a job acts as its agent over HTTP until it ends.
use crate::id::{AgentId, OrgId};
use std::{fmt, sync::Arc, time::Duration};

/// The address of the daemon, and a token of the job's agent.
#[derive(Clone)]
pub struct JobCredentials {
    /// The address of the daemon, without a slash at the end.
    pub url: String,
    /// The bearer token; good for a little longer than the job.
    pub token: String,
}

impl fmt::Debug for JobCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobCredentials").field("url", &self.url).finish_non_exhaustive()
    }
}

type Issue = dyn Fn(&AgentId, &OrgId, Duration) -> Option<JobCredentials> + Send + Sync;

/// Issues credentials, each for an agent of an org and a time. The default issues none.
#[derive(Clone, Default)]
pub struct CredentialIssuer(Option<Arc<Issue>>);

impl CredentialIssuer {
    /// An issuer that calls `issue`, which returns `None` if it cannot make a token.
    #[must_use]
    pub fn new(
        issue: impl Fn(&AgentId, &OrgId, Duration) -> Option<JobCredentials> + Send + Sync + 'static,
    ) -> Self {
        Self(Some(Arc::new(issue)))
    }

    pub(super) fn issue(&self, agent: &AgentId, org: &OrgId, within: Duration) -> Option<JobCredentials> {
        self.0.as_ref().and_then(|issue| issue(agent, org, within))
    }
}
