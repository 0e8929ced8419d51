//! Making tokens for clients, services and agents.
use super::Keys;
use crate::id::{AgentId, OrgId};
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::time::Duration;

/// What the bearer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Anybody: the key that goes into a web page.
    Anon,
    /// A user or an agent: says who by `sub` or `agent_id`.
    Authenticated,
    /// The operator's own service: may do everything. Never give it to a browser.
    ServiceRole,
}

impl Role {
    /// As in the claim `role`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Authenticated => "authenticated",
            Self::ServiceRole => "service_role",
        }
    }
}

/// What a new token shall say.
#[derive(Clone, Debug)]
pub struct MintRequest {
    /// What the bearer is.
    pub role: Role,
    /// The org it belongs to.
    pub org: Option<OrgId>,
    /// The agent it may act as.
    pub agent_id: Option<AgentId>,
    /// How long it is good.
    pub ttl: Duration,
}

impl MintRequest {
    /// A token of ten years for no org and no agent.
    #[must_use]
    pub fn new(role: Role) -> Self {
        Self { role, org: None, agent_id: None, ttl: Duration::from_secs(10 * 365 * 24 * 3600) }
    }
}

/// A signed HS256 token.
///
/// # Errors
/// [`jsonwebtoken::errors::Error`] when signing fails, which is a bug.
pub fn mint(
    keys: &Keys,
    request: &MintRequest,
    now: DateTime<Utc>,
) -> Result<String, jsonwebtoken::errors::Error> {
    let ttl = TimeDelta::from_std(request.ttl).unwrap_or(TimeDelta::MAX);
    let exp = now.checked_add_signed(ttl).unwrap_or(DateTime::<Utc>::MAX_UTC);
    let mut claims = json!({
        "iss": "convoke",
        "role": request.role.as_str(),
        "iat": now.timestamp(),
        "exp": exp.timestamp(),
    });
    if let Some(claims) = claims.as_object_mut() {
        claims.extend(request.org.as_ref().map(|org| ("org".to_owned(), json!(org))));
        claims.extend(request.agent_id.as_ref().map(|id| ("agent_id".to_owned(), json!(id))));
    }
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &keys.inner().encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_agent_token_says_who_and_until_when() {
        let keys = Keys::from_secret(&"a secret of at least thirty-two bytes".into()).unwrap();
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let request = MintRequest {
            role: Role::Authenticated,
            org: "demo".parse().ok(),
            agent_id: "triage".parse().ok(),
            ttl: Duration::from_secs(60),
        };
        let claims = keys.verify(&mint(&keys, &request, now).unwrap(), now).unwrap();
        assert_eq!((claims.role.as_str(), claims.is_service()), ("authenticated", false));
        assert_eq!((claims.org, claims.agent_id), (request.org.clone(), request.agent_id.clone()));
        assert!(keys.verify(&mint(&keys, &request, now).unwrap(), now + TimeDelta::seconds(60)).is_err());
    }
}
