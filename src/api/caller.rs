//! Who asks, and what they may do.
//!
//! | token | sees | may |
//! |---|---|---|
//! | none, or `anon` | nothing under `/v1` | nothing there (the key is in web pages) |
//! | with `agent_id` | tasks and agents of its org | request tasks, cancel its own, offer and report as itself |
//! | other roles with `org` | tasks and agents of that org | request tasks, cancel its own |
//! | `service_role` | everything, and it alone the channels | everything |
//!
//! A token without `org` belongs to the org `default`. What a caller may not see answers as if it
//! were not there.
use super::{Deps, problem::Problem};
use crate::{
    auth::Claims,
    id::{AgentId, OrgId, TaskId},
    task::{self, Task},
};
use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, header, request::Parts};

const ANON: &str = "anon";
const ORG_DEFAULT: &str = "default";

/// A genuine token's bearer who is more than anybody.
#[derive(Debug)]
pub(super) struct Caller(Claims);

impl FromRequestParts<Deps> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, deps: &Deps) -> Result<Self, Problem> {
        let token = token(&parts.headers).ok_or_else(|| {
            Problem::unauthorized("send a token: `Authorization: Bearer …` (`convoke token` makes one)")
        })?;
        let claims = deps.keys.verify_fresh(token, deps.clock.now()).await;
        let claims = claims.map_err(|e| Problem::unauthorized(format!("the token is refused: {e}")))?;
        if claims.role == ANON {
            let detail = "an anon key cannot see or request tasks: use an agent, user or service token";
            return Err(Problem::forbidden(detail));
        }
        Ok(Self(claims))
    }
}

/// The bearer token, else the `apikey` header (supabase-js sends both, and the first says who).
fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| {
        let (scheme, token) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
    });
    bearer.or_else(|| headers.get("apikey")?.to_str().ok())
}

impl Caller {
    /// The org of what the caller makes; only the service may name another than its own.
    pub(super) fn org(&self, asked: Option<OrgId>) -> Result<OrgId, Problem> {
        let own = match &self.0.org {
            Some(org) => org.clone(),
            None => super::input::id("an org", ORG_DEFAULT)?,
        };
        match asked {
            Some(org) if self.0.is_service() || org == own => Ok(org),
            Some(org) => Err(Problem::forbidden(format!("the token belongs to org {own}, not {org}"))),
            None => Ok(own),
        }
    }

    /// The org whose tasks and agents are listed; nothing means all.
    pub(super) fn view(&self, asked: Option<OrgId>) -> Result<Option<OrgId>, Problem> {
        if self.0.is_service() { Ok(asked.or_else(|| self.0.org.clone())) } else { self.org(asked).map(Some) }
    }

    /// Refuses everybody but the service.
    pub(super) fn must_be_service(&self, what: &str) -> Result<(), Problem> {
        if self.0.is_service() {
            return Ok(());
        }
        Err(Problem::forbidden(format!("only a service_role key may {what}")))
    }

    /// Whether what belongs to `org` is there for this caller.
    pub(super) fn sees(&self, org: &OrgId) -> bool {
        self.0.is_service() || self.org(None).is_ok_and(|own| own == *org)
    }

    /// The task, if it is there for this caller.
    pub(super) fn visible(&self, id: TaskId, task: Task) -> Result<Task, Problem> {
        if self.sees(&task.org) { Ok(task) } else { Err(task::Error::UnknownTask(id).into()) }
    }

    /// How the caller is named as a requester.
    pub(super) fn name(&self) -> String {
        self.0.name()
    }

    /// Who the caller is among all callers, to count what it does.
    pub(super) fn identity(&self) -> String {
        let org = self.0.org.as_ref().map_or(ORG_DEFAULT, OrgId::as_str);
        format!("{org}/{}", self.0.name())
    }

    /// What its token says.
    pub(super) fn claims(&self) -> Claims {
        self.0.clone()
    }

    /// Whether the caller may decide about this task: it asked for it, or is the service.
    pub(super) fn may_command(&self, what: &str, task: &Task) -> Result<(), Problem> {
        if self.0.is_service() || task.requester == self.name() {
            return Ok(());
        }
        Err(Problem::forbidden(format!("only its requester and the service may {what} a task")))
    }

    /// The agent that the caller speaks as; the service may speak as any, and must say which.
    pub(super) fn agent(&self, asked: Option<AgentId>) -> Result<Option<AgentId>, Problem> {
        match (&self.0.agent_id, asked) {
            (_, asked) if self.0.is_service() => Ok(asked.or_else(|| self.0.agent_id.clone())),
            (Some(own), None) => Ok(Some(own.clone())),
            (Some(own), Some(asked)) if *own == asked => Ok(Some(asked)),
            (Some(own), Some(asked)) => {
                Err(Problem::forbidden(format!("the token is {own}'s and cannot speak as {asked}")))
            }
            (None, _) => Err(Problem::forbidden("the token is no agent's: it has no claim agent_id")),
        }
    }
}
