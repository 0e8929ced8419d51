//! Creation of tokens for clients, services and agents.
use super::{DashboardRole, Keys, Role};
use crate::id::{AgentId, OrgId};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use std::time::Duration;

/// The content of a new token.
#[derive(Clone, Debug)]
pub struct MintRequest {
    /// Role of the bearer.
    pub role: Role,
    /// Org of the bearer; `None` leaves the claim out.
    pub org: Option<OrgId>,
    /// Agent that the bearer may act as; `None` leaves the claim out.
    pub agent_id: Option<AgentId>,
    /// Name of the user, the claim `sub`; `None` leaves the claim out.
    pub subject: Option<String>,
    /// Rights of an operator, the claim `dash`; `None` leaves the claim out.
    pub dashboard: Option<DashboardRole>,
    /// Time until expiry.
    pub ttl: Duration,
}

impl MintRequest {
    /// A token that is valid for ten years, without org, agent and user.
    #[must_use]
    pub fn new(role: Role) -> Self {
        let ttl = Duration::from_secs(10 * 365 * 24 * 3600);
        Self { role, org: None, agent_id: None, subject: None, dashboard: None, ttl }
    }
}

/// Creates a signed HS256 token.
///
/// # Errors
/// [`jsonwebtoken::errors::Error`] if signing fails, which is a bug.
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
        claims.extend(request.subject.as_ref().map(|name| ("sub".to_owned(), json!(name))));
        claims.extend(request.dashboard.map(|role| ("dash".to_owned(), json!(role))));
    }
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &keys.inner().encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minted_token_has_role_org_agent_name_and_expiry() {
        let keys = Keys::from_secret(&"a secret of at least thirty-two bytes".into()).unwrap();
        let now = DateTime::from_timestamp(1_000_000, 0).unwrap();
        let request = MintRequest {
            org: "demo".parse().ok(),
            agent_id: "triage".parse().ok(),
            subject: Some("ana".into()),
            ttl: Duration::from_secs(60),
            ..MintRequest::new(Role::Authenticated)
        };
        let claims = keys.verify(&mint(&keys, &request, now).unwrap(), now).unwrap();
        assert_eq!((claims.role.as_str(), claims.is_service()), ("authenticated", false));
        assert_eq!((claims.org, claims.agent_id), (request.org.clone(), request.agent_id.clone()));
        assert_eq!(claims.sub.as_deref(), Some("ana"));
        assert!(keys.verify(&mint(&keys, &request, now).unwrap(), now + TimeDelta::seconds(60)).is_err());
    }
}
