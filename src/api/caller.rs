//! The bearer of an HTTP request's token. [`Principal`] decides about rights. What the bearer may not see is
//! reported as missing.
use super::{Deps, problem::Problem};
use crate::{
    auth::{self, Denied, Principal},
    id::TaskId,
    task::{self, Task},
};
use axum::extract::FromRequestParts;
use axum::http::{HeaderMap, Method, header, request::Parts};
use std::{ops::Deref, sync::Arc};

/// The bearer of a verified token, except anon keys.
#[derive(Debug)]
pub(super) struct Caller(Principal);

impl Deref for Caller {
    type Target = Principal;
    fn deref(&self) -> &Principal {
        &self.0
    }
}

impl FromRequestParts<Deps> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, deps: &Deps) -> Result<Self, Problem> {
        let token = token(&parts.headers).ok_or_else(|| {
            Problem::unauthorized("send a token: `Authorization: Bearer …` (`convoke token` makes one)")
        })?;
        let claims = deps.keys.verify_fresh(token, deps.clock.now()).await;
        let claims = claims.map_err(|e| Problem::unauthorized(format!("the token is refused: {e}")))?;
        let principal = Principal::of(Arc::new(claims));
        principal.may_negotiate()?;
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            principal.may_change()?;
        }
        Ok(Self(principal))
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::forbidden(denied.to_string())
    }
}

/// Returns the bearer token, else the header `apikey`. supabase-js sends both, and only the first identifies
/// the user.
fn token(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    bearer.and_then(auth::bearer).map(str::trim).or_else(|| headers.get("apikey")?.to_str().ok())
}

impl Caller {
    /// Returns the task if the caller may see it, else `unknown_task`.
    pub(super) fn visible(&self, id: TaskId, task: Task) -> Result<Task, Problem> {
        if self.sees(&task.org) { Ok(task) } else { Err(task::Error::UnknownTask(id).into()) }
    }

    /// Key of the caller for counting.
    pub(super) fn identity(&self) -> String {
        format!("{}/{}", self.org(), self.requester())
    }
}
