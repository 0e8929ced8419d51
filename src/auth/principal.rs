//! The identity and the rights of a token's bearer: org, role, acting as an agent, commanding a task and
//! seeing an org, with the texts of refusals.
//!
//! The only place for these rules. Pure. HTTP, websocket, presence and messages between agents all ask here,
//! so that they agree.
//!
//! | token | sees | may |
//! |---|---|---|
//! | a role that is not in `auth.roles` | like `anon` | like `anon`, and nothing in private rooms |
//! | `anon` | no task and no agent | nothing with tasks (the key is part of web pages) |
//! | with `dash: viewer` | tasks and agents of its org | read only |
//! | with `dash: operator` | tasks and agents of its org | request tasks, command every task of its org |
//! | with `dash: admin` | like `operator`, and the daemon's channels | like `operator` |
//! | with `agent_id` | tasks and agents of its org | request tasks, command its own, offer and report as itself |
//! | other roles | tasks and agents of their org | request tasks, command their own |
//! | `service_role` | every org | everything, and act as any agent |
//!
//! A token without the claim `org` belongs to the org `default`. Another value of `dash` counts as `viewer`.
use super::{Claims, DashboardRole};
use crate::id::{AgentId, OrgId, Requester};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt::Write, sync::Arc};

/// The roles that the daemon treats specially; a token may name another role of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Anonymous: the key that is part of a web page.
    Anon,
    /// A user (`sub`) or an agent (`agent_id`).
    Authenticated,
    /// The operator's own service, with every right. Never give it to a browser.
    ServiceRole,
}

impl Role {
    /// The value of the claim `role`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Anon => "anon",
            Self::Authenticated => "authenticated",
            Self::ServiceRole => "service_role",
        }
    }

    /// Whether a claim `role` has this value.
    #[must_use]
    pub fn is(self, claim: &str) -> bool {
        self.as_str() == claim
    }
}

/// A refusal: one line for the client, code `forbidden`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Denied(pub(super) String);

/// The bearer of a verified token. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Principal(Arc<Claims>);

impl Claims {
    /// The role of the claim `dash`; `None` without the claim.
    pub(super) fn dashboard_role(&self) -> Option<DashboardRole> {
        let claim = self.raw.get("dash")?;
        // A value that this version does not know gives the least rights, and not those of a user.
        Some(claim.as_str().and_then(|role| role.parse().ok()).unwrap_or_default())
    }

    /// Whether the bearer may act as an agent: not with an anon key, and not as a viewer of the dashboard, who only reads.
    #[must_use]
    pub fn may_act(&self) -> bool {
        self.is_service() || (self.may_negotiate() && self.dashboard_role() != Some(DashboardRole::Viewer))
    }
}

impl Principal {
    /// The bearer with these claims.
    #[must_use]
    pub fn of(claims: Arc<Claims>) -> Self {
        Self(claims)
    }

    /// The claims of the token.
    #[must_use]
    pub fn claims(&self) -> &Arc<Claims> {
        &self.0
    }

    /// Whether the bearer is the operator's own service.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.0.is_service()
    }

    /// The org of the bearer.
    #[must_use]
    pub fn org(&self) -> OrgId {
        self.0.org.clone().unwrap_or_default()
    }

    /// Whether the bearer may see what belongs to `org`.
    #[must_use]
    pub fn sees(&self, org: &OrgId) -> bool {
        self.is_service() || (self.0.may_negotiate() && self.org() == *org)
    }

    /// Returns the org for what the bearer creates. Only the service may name another org than its own.
    ///
    /// # Errors
    /// [`Denied`] for another org.
    pub fn org_for(&self, named: Option<OrgId>) -> Result<OrgId, Denied> {
        let own = self.org();
        match named {
            Some(org) if self.is_service() || org == own => Ok(org),
            Some(org) => Err(Denied(format!("the token belongs to org {own}, not {org}"))),
            None => Ok(own),
        }
    }

    /// Returns the org whose tasks and agents are listed; `None` means every org.
    ///
    /// # Errors
    /// [`Denied`] for another org.
    pub fn view(&self, named: Option<OrgId>) -> Result<Option<OrgId>, Denied> {
        if self.is_service() {
            Ok(named.or_else(|| self.0.org.clone()))
        } else {
            self.org_for(named).map(Some)
        }
    }

    /// Refuses an anon key, and a token whose role is not in `auth.roles`.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_negotiate(&self) -> Result<(), Denied> {
        if self.0.may_negotiate() {
            return Ok(());
        }
        if !self.0.role.is_empty() {
            let text =
                "an anon key cannot see, request or work on tasks: use an agent, user or service token";
            return Err(Denied(text.into()));
        }
        Err(Denied("the token's role is not in auth.roles, so it has no rights here".into()))
    }

    /// Whether the bearer may command every task and agent of `org`.
    #[must_use]
    pub fn operates(&self, org: &OrgId) -> bool {
        let is_operator = self.0.dashboard_role().is_some_and(|role| role >= DashboardRole::Operator);
        self.is_service() || (is_operator && self.sees(org))
    }

    /// Refuses everyone but the service and operators of `org`. `what` completes "may …".
    ///
    /// # Errors
    /// [`Denied`].
    pub fn must_operate(&self, org: &OrgId, what: &str) -> Result<(), Denied> {
        if self.operates(org) {
            return Ok(());
        }
        Err(Denied(format!("only an operator of org {org} and the service may {what}")))
    }

    /// Whether the bearer is a viewer of the dashboard.
    #[must_use]
    pub fn is_viewer(&self) -> bool {
        !self.is_service() && self.0.dashboard_role() == Some(DashboardRole::Viewer)
    }

    /// Refuses a viewer of the dashboard, who only reads.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_change(&self) -> Result<(), Denied> {
        if self.0.dashboard_role() == Some(DashboardRole::Viewer) {
            return Err(Denied(
                "a viewer of the dashboard only reads: `convoke dashboard --role operator` prints a link for more".into(),
            ));
        }
        Ok(())
    }

    /// Refuses everyone but the service and an admin of the dashboard. `what` completes "may …".
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_administer(&self, what: &str) -> Result<(), Denied> {
        let is_admin = self.0.may_negotiate() && self.0.dashboard_role() == Some(DashboardRole::Admin);
        if self.is_service() || is_admin {
            return Ok(());
        }
        Err(Denied(format!("only a service_role key and an admin of the dashboard may {what}")))
    }

    /// Refuses every bearer but the service. `what` completes "only a `service_role` key may …".
    ///
    /// # Errors
    /// [`Denied`].
    pub fn must_be_service(&self, what: &str) -> Result<(), Denied> {
        if self.is_service() {
            return Ok(());
        }
        Err(Denied(format!("only a service_role key may {what}")))
    }

    /// Whether the token is this agent's own. Does not check the agent's org; [`Principal::sees`] does.
    #[must_use]
    pub fn is_agent(&self, agent: &AgentId) -> bool {
        self.0.agent_id.as_ref() == Some(agent)
    }

    /// Returns the agent that the bearer acts as: its own, or for the service the named one. `None` if the
    /// service names no agent.
    ///
    /// # Errors
    /// [`Denied`] for a token without an agent or with another one.
    pub fn speaks_as(&self, named: Option<AgentId>) -> Result<Option<AgentId>, Denied> {
        match (&self.0.agent_id, named) {
            (own, named) if self.is_service() => Ok(named.or_else(|| own.clone())),
            (Some(own), Some(named)) if *own != named => {
                Err(Denied(format!("the token is {own}'s and cannot speak as {named}")))
            }
            (Some(own), _) => Ok(Some(own.clone())),
            (None, _) => Err(Denied("the token belongs to no agent: it has no claim agent_id".into())),
        }
    }

    /// Refuses to act as an agent of another org: the org is part of an agent's identity.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_be(&self, agent: &AgentId, owner: &OrgId) -> Result<(), Denied> {
        if self.is_service() || self.org() == *owner {
            return Ok(());
        }
        Err(Denied(format!("agent {agent} belongs to another org than the token")))
    }

    /// Refuses a message that names another sender than the token's agent.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn check_sender(&self, named: Option<&str>) -> Result<(), Denied> {
        let own = self.0.agent_id.as_ref().map(AgentId::as_str);
        match named {
            Some(named) if !self.is_service() && own != Some(named) => {
                Err(Denied(format!("the token is not {named}'s and cannot speak as it")))
            }
            _ => Ok(()),
        }
    }

    /// Returns the requester for this bearer: the agent of the token, else the service, else the user, else
    /// the token itself, so that bearers of different tokens without an identity stay distinct.
    #[must_use]
    pub fn requester(&self) -> Requester {
        self.identity().unwrap_or_else(|| {
            let claims = serde_json::to_vec(&self.0.raw).unwrap_or_default();
            // Six bytes (48 bits) tell tokens apart; they grant no right that the token does not have.
            let mark = Sha256::digest(claims).iter().take(6).fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            Requester::Token(mark)
        })
    }

    /// Like [`Principal::requester`], but for the service the agent that it names.
    ///
    /// # Errors
    /// [`Denied`] if a bearer other than the service names an agent that is not its own.
    pub fn requester_as(&self, named: Option<AgentId>) -> Result<Requester, Denied> {
        self.check_sender(named.as_ref().map(AgentId::as_str))?;
        Ok(match named {
            Some(id) => Requester::Agent { org: self.org(), id },
            None => self.requester(),
        })
    }

    /// Returns the identity that all tokens of the bearer share; `None` for tokens with neither agent nor
    /// user.
    #[must_use]
    pub fn identity(&self) -> Option<Requester> {
        let claims = &self.0;
        if let Some(id) = &claims.agent_id {
            return Some(Requester::Agent { org: self.org(), id: id.clone() });
        }
        if self.is_service() {
            return Some(Requester::Service);
        }
        let subject = claims.sub.clone()?;
        Some(Requester::User { issuer: claims.issuer().map(str::to_owned), subject })
    }

    /// Whether the bearer may cancel, answer, requeue or otherwise command a task of this org and requester: its own,
    /// any of its org for an operator, any for the service. `what` completes "may … a task".
    ///
    /// # Errors
    /// [`Denied`].
    pub fn may_decide_for(&self, what: &str, org: &OrgId, requester: &Requester) -> Result<(), Denied> {
        if self.operates(org) || *requester == self.requester() {
            return Ok(());
        }
        Err(Denied(format!("only its requester, an operator of its org and the service may {what} a task")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn bearer(claims: Value) -> Principal {
        Principal::of(Claims::for_tests(claims).into())
    }

    #[test]
    fn only_a_missing_org_claim_means_the_default_org() {
        let bare = bearer(json!({ "role": "authenticated" }));
        assert!(bare.sees(&OrgId::default()) && bare.org() == OrgId::default());
        let own: OrgId = "demo".parse().unwrap();
        let other = bearer(json!({ "role": "authenticated", "org": "demo" }));
        assert!(other.sees(&own) && !other.sees(&OrgId::default()));
        assert!(!bearer(json!({ "role": "anon", "org": "demo" })).sees(&own));
        assert!(bearer(json!({ "role": "service_role" })).sees(&own));
    }

    #[test]
    fn requesters_never_command_tasks_of_other_requesters() {
        let all = [
            json!({ "role": "authenticated", "sub": "x" }),
            json!({ "role": "authenticated", "sub": "x", "iss": "a" }),
            json!({ "role": "authenticated", "sub": "service" }),
            json!({ "role": "authenticated", "sub": "service_role" }),
            json!({ "role": "authenticated", "agent_id": "x" }),
            json!({ "role": "authenticated", "agent_id": "x", "org": "demo" }),
            json!({ "role": "authenticated" }),
            json!({ "role": "authenticated", "jti": "2" }),
        ];
        let org = OrgId::default();
        for (at, one) in all.iter().enumerate() {
            for (other_at, other) in all.iter().enumerate() {
                let asked = bearer(other.clone()).requester();
                let may = bearer(one.clone()).may_decide_for("cancel", &org, &asked).is_ok();
                assert_eq!(may, at == other_at, "{one} commands a task of {other}");
            }
            assert!(bearer(one.clone()).may_decide_for("cancel", &org, &Requester::Service).is_err());
            assert!(bearer(one.clone()).may_decide_for("cancel", &org, &"sql:x".into()).is_err());
        }
        let service = bearer(json!({ "role": "service_role" }));
        assert!(service.may_decide_for("cancel", &org, &"x".into()).is_ok());
    }

    #[test]
    fn operators_command_every_task_of_their_org_and_viewers_none() {
        let (own, other): (OrgId, OrgId) = ("demo".parse().unwrap(), "elsewhere".parse().unwrap());
        let who = |dash: Value, role: &str| {
            bearer(json!({ "role": role, "sub": "ana", "org": "demo", "dash": dash }))
        };
        for (dash, changes, administers) in [
            (json!("viewer"), false, false),
            (json!("operator"), true, false),
            (json!("admin"), true, true),
            (json!("root"), false, false),
            (json!(null), false, false),
            (json!(["admin"]), false, false),
        ] {
            let one = who(dash.clone(), "authenticated");
            assert_eq!(one.may_change().is_ok(), changes, "{dash}");
            assert_eq!(one.may_decide_for("cancel", &own, &"sql:x".into()).is_ok(), changes, "{dash}");
            assert!(one.may_decide_for("cancel", &other, &"sql:x".into()).is_err() && !one.operates(&other));
            assert_eq!(one.may_administer("see it").is_ok(), administers, "{dash}");
            // The claim adds no right to a role that has none.
            for role in ["anon", ""] {
                let none = who(dash.clone(), role);
                assert!(!none.operates(&own) && none.may_administer("see it").is_err(), "{dash} {role}");
            }
        }
    }

    #[test]
    fn agent_acts_as_itself_and_service_as_any_named_agent() {
        let x: AgentId = "x".parse().unwrap();
        let y: AgentId = "y".parse().unwrap();
        let agent = bearer(json!({ "role": "authenticated", "agent_id": "x" }));
        assert_eq!(agent.speaks_as(None), Ok(Some(x.clone())));
        assert_eq!(agent.speaks_as(Some(x.clone())), Ok(Some(x.clone())));
        assert!(agent.speaks_as(Some(y.clone())).is_err() && agent.requester_as(Some(y.clone())).is_err());
        assert!(bearer(json!({ "role": "authenticated", "sub": "x" })).speaks_as(Some(x)).is_err());
        let service = bearer(json!({ "role": "service_role", "org": "demo" }));
        assert_eq!(service.speaks_as(None), Ok(None));
        assert_eq!(service.speaks_as(Some(y.clone())), Ok(Some(y.clone())));
        let as_y = service.requester_as(Some(y)).unwrap();
        assert_eq!(as_y.to_string(), "agent:demo/y");
    }
}
