//! The claims of a verified token.
use super::{Role, TokenError};
use crate::id::{AgentId, OrgId};
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};

/// The claims of a verified token.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// `role`: one of `auth.roles`; empty if the token names another one, which has no rights.
    pub role: String,
    /// `org`; `None` if the token lacks the claim.
    pub org: Option<OrgId>,
    /// `agent_id`: the bearer may act as this agent. `None` if the token lacks the claim.
    pub agent_id: Option<AgentId>,
    /// Expiry.
    pub exp: DateTime<Utc>,
    /// `sub`; `None` if the token lacks the claim.
    pub sub: Option<String>,
    /// Every claim as in the token.
    pub raw: Map<String, Value>,
}

impl Claims {
    /// Claims of a role without an org, an agent or a subject, for tests.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn of_role(role: &str) -> Self {
        Self {
            role: role.to_owned(),
            org: None,
            agent_id: None,
            exp: DateTime::UNIX_EPOCH,
            sub: None,
            raw: Map::new(),
        }
    }

    /// Claims of a role in an org, of an agent if one is given, for tests.
    #[cfg(test)]
    pub(crate) fn in_org(role: &str, org: &str, agent: Option<&str>) -> Self {
        let agent_id = agent.and_then(|agent| agent.parse().ok());
        Self { org: org.parse().ok(), agent_id, ..Self::of_role(role) }
    }

    /// Whether the role is `service_role`.
    #[must_use]
    pub fn is_service(&self) -> bool {
        Role::ServiceRole.is(&self.role)
    }

    /// Whether the bearer may access tasks and agents: false for `anon` and for a role that is not in
    /// `auth.roles`.
    #[must_use]
    pub fn may_negotiate(&self) -> bool {
        !self.role.is_empty() && !Role::Anon.is(&self.role)
    }

    /// `iss`: the issuer of the token.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.raw.get("iss").and_then(Value::as_str)
    }

    /// Checks that the token has not expired at `now`. There is no leeway.
    ///
    /// # Errors
    /// [`TokenError::Expired`].
    pub fn check_expiry(&self, now: DateTime<Utc>) -> Result<(), TokenError> {
        let seconds_ago = now.timestamp() - self.exp.timestamp();
        if seconds_ago >= 0 { Err(TokenError::Expired { seconds_ago }) } else { Ok(()) }
    }
}
