//! The page and its session.
use super::{
    Config, Context, Inner, PATH,
    sessions::{Session, is_secret},
};
use crate::{
    auth::{self, DashboardRole, Login},
    db,
    id::{OrgId, client_address},
    problem::{Problem, RateLimit},
};
use axum::{
    Json,
    body::Bytes,
    extract::{ConnectInfo, Path, Query, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header},
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};

/// Answers with JSON that no cache stores.
type Answer = Result<Response, Problem>;

const NO_STORE: [(header::HeaderName, &str); 1] = [(header::CACHE_CONTROL, "no-store")];
/// Most characters of a browser's name that are kept.
const BROWSER_CHARS_MAX: usize = 200;
const NO_SESSION: &str = "you are not signed in: `convoke dashboard` prints a link that signs you in";

/// The cookie of a session.
pub(super) struct Cookie {
    name: String,
    attributes: &'static str,
}

impl Cookie {
    /// `mark` belongs to the daemon's secret: cookies ignore ports, so two daemons on one machine need two names.
    pub(super) fn new(mark: &str, config: &Config) -> Self {
        let (prefix, attributes) = match config.is_https() {
            true => ("__Host-", "HttpOnly; SameSite=Strict; Path=/; Secure"),
            false => ("", "HttpOnly; SameSite=Strict; Path=/dashboard"),
        };
        Self { name: format!("{prefix}convoke_{mark}"), attributes }
    }

    /// The session's secret. `None` if the request has no such cookie, or one that cannot be a secret: no session is
    /// looked up for it.
    fn read<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let mut pairs =
            cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.split_once('='));
        let value = pairs.find_map(|(name, value)| (name.trim() == self.name).then_some(value.trim()));
        value.filter(|value| is_secret(value))
    }

    fn set(&self, secret: &str, age: std::time::Duration) -> Result<HeaderValue, Problem> {
        let Self { name, attributes } = self;
        let text = format!("{name}={secret}; {attributes}; Max-Age={}", age.as_secs());
        HeaderValue::try_from(text).map_err(|_| Problem::internal("the cookie cannot be written"))
    }
}

/// A file of the page. A path without a dot is a screen of the page, which the page itself chooses.
pub(super) async fn page(State(context): State<Context>, uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().strip_prefix(PATH).unwrap_or_default().trim_start_matches('/');
    let is_file = path.rsplit('/').next().is_some_and(|name| name.contains('.'));
    // A missing file is 404: the page instead of a script would be executed as one.
    let path = if is_file { path } else { "index.html" };
    match context.0.assets.answer(path, &headers) {
        Some(response) => response,
        None => Problem::new(StatusCode::NOT_FOUND, "not_found", format!("there is no {}", uri.path()))
            .into_response(),
    }
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> Problem {
    let detail = format!("{} does not take {method}", uri.path());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    code: String,
}

/// Signs in with a code, which works once, or with the bearer token of a person of another issuer (`dashboard.roles`):
/// 201 with the session and its cookie.
pub(super) async fn sign_in(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let inner = &*context.0;
    admit(&inner.sign_ins, peer, "sign-ins")?;
    check_json(&headers)?;
    let login = match bearer(&headers) {
        Some(token) => login_of_token(inner, token).await?,
        None => login_of_code(inner, &body)?,
    };
    let (earlier, browser) = (inner.cookie.read(&headers), browser(&headers));
    let made = inner.sessions.sign_in(&login, earlier, browser.as_deref()).await.map_err(unreadable)?;
    let (secret, session) = made.ok_or_else(|| {
        Problem::unauthorized("the link was used before: `convoke dashboard` prints a new one")
    })?;
    tracing::info!(subject = session.subject, org = %session.org, role = session.role.as_str(), "signed in to the dashboard");
    let mut response = (StatusCode::CREATED, NO_STORE, Json(shown(inner, &session))).into_response();
    let cookie = inner.cookie.set(&secret, inner.sessions.max)?;
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

fn login_of_code(inner: &Inner, body: &[u8]) -> Result<Login, Problem> {
    let bad = |_| Problem::bad_request("the body is not {\"code\": …}");
    let SignIn { code } = serde_json::from_slice(body).map_err(bad)?;
    inner.keys.verify_login(&code, inner.clock.now()).map_err(|_| {
        Problem::unauthorized(
            "the link has expired or is not of this daemon: `convoke dashboard` prints a new one",
        )
    })
}

async fn login_of_token(inner: &Inner, token: &str) -> Result<Login, Problem> {
    let claims = inner.keys.verify_fresh(token, inner.clock.now()).await;
    let claims = claims.map_err(|e| Problem::unauthorized(format!("the token is refused: {e}")))?;
    inner.keys.login_of(claims).map_err(|denied| Problem::forbidden(denied.to_string()))
}

/// The token of `Authorization: Bearer …`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    auth::bearer(headers.get(header::AUTHORIZATION)?.to_str().ok()?).map(str::trim)
}

/// The session of the cookie.
pub(super) async fn who(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Answer {
    let session = session(&context, peer, &headers).await?;
    Ok((NO_STORE, Json(shown(&context.0, &session))).into_response())
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFor {
    org: Option<OrgId>,
}

/// A bearer of ten minutes for `/v1` and the channels, and an anon key for the socket's URL. An admin may name another
/// org, in which the bearer is a viewer: a wall shows several orgs in turn.
pub(super) async fn token(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer {
    let inner = &*context.0;
    admit(&inner.tokens, peer, "requests for a token")?;
    check_json(&headers)?;
    let bad = |_| Problem::bad_request("the body is not {} or {\"org\": …}");
    let named: TokenFor =
        if body.is_empty() { TokenFor::default() } else { serde_json::from_slice(&body).map_err(bad)? };
    let session = session(&context, peer, &headers).await?;
    let (org, role) = match named.org {
        Some(other) if other != session.org => {
            if session.role != DashboardRole::Admin {
                let detail =
                    format!("the session is for org {}: only an admin reads another one", session.org);
                return Err(Problem::forbidden(detail));
            }
            (other, DashboardRole::Viewer)
        }
        _ => (session.org, session.role),
    };
    let signed = inner.keys.sign_bearer(&session.subject, &org, role, inner.clock.now());
    let (token, expires_at) = signed.map_err(|_| Problem::internal("the token cannot be signed"))?;
    let body = json!({ "token": token, "expires_at": expires_at, "anon_key": inner.anon_key });
    Ok((NO_STORE, Json(body)).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SignOut {
    #[serde(default)]
    everywhere: bool,
}

/// Ends the session, with `?everywhere=true` all sessions of this person in this org. 204, also without a session.
pub(super) async fn sign_out(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Query(SignOut { everywhere }): Query<SignOut>,
    headers: HeaderMap,
) -> Answer {
    let inner = &*context.0;
    if let Some(secret) = secret(&context, peer, &headers)? {
        inner.sessions.sign_out(secret, everywhere).await.map_err(unreadable)?;
    }
    let mut response = (StatusCode::NO_CONTENT, NO_STORE).into_response();
    let cookie = inner.cookie.set("", std::time::Duration::ZERO)?;
    response.headers_mut().insert(header::SET_COOKIE, cookie);
    Ok(response)
}

/// `{sessions: [{id, user, role, created_at, seen_at, expires_at, browser, is_own}]}`: the sessions of this person in
/// this org; for an admin those of everybody in it.
pub(super) async fn all(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
) -> Answer {
    let (own, secret) = session_with_secret(&context, peer, &headers).await?;
    let sessions = context.0.sessions.list(&own, secret).await.map_err(unreadable)?;
    Ok((NO_STORE, Json(json!({ "sessions": sessions }))).into_response())
}

/// Ends a session that `GET …/all` shows: 204, or 404.
pub(super) async fn revoke(
    State(context): State<Context>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer {
    let own = session(&context, peer, &headers).await?;
    let unknown = || Problem::new(StatusCode::NOT_FOUND, "unknown_session", "there is no such session");
    let id = id.parse().map_err(|_| unknown())?;
    if !context.0.sessions.revoke(&own, id).await.map_err(unreadable)? {
        return Err(unknown());
    }
    tracing::info!(session = %id, by = own.subject, org = %own.org, "session of the dashboard ended");
    Ok((StatusCode::NO_CONTENT, NO_STORE).into_response())
}

/// What the browser calls itself, without what is beyond the limit.
fn browser(headers: &HeaderMap) -> Option<String> {
    let name = headers.get(header::USER_AGENT)?.to_str().ok()?;
    Some(name.chars().take(BROWSER_CHARS_MAX).collect())
}

async fn session(context: &Context, peer: SocketAddr, headers: &HeaderMap) -> Result<Session, Problem> {
    session_with_secret(context, peer, headers).await.map(|(session, _)| session)
}

async fn session_with_secret<'a>(
    context: &Context,
    peer: SocketAddr,
    headers: &'a HeaderMap,
) -> Result<(Session, &'a str), Problem> {
    let secret = secret(context, peer, headers)?.ok_or_else(|| Problem::unauthorized(NO_SESSION))?;
    let found = context.0.sessions.find(secret).await.map_err(unreadable)?;
    Ok((found.ok_or_else(|| Problem::unauthorized(NO_SESSION))?, secret))
}

/// The secret of the request's cookie, which the caller may look up in the database. Anybody can send a cookie, so the
/// lookups of an address are limited.
fn secret<'a>(
    context: &Context,
    peer: SocketAddr,
    headers: &'a HeaderMap,
) -> Result<Option<&'a str>, Problem> {
    let inner = &*context.0;
    let Some(secret) = inner.cookie.read(headers) else { return Ok(None) };
    admit(&inner.lookups, peer, "requests of the dashboard")?;
    Ok(Some(secret))
}

fn shown(inner: &Inner, session: &Session) -> Value {
    let Session { subject, org, role, expires_at } = session;
    let sees_data = inner.viewers_see_data || *role != DashboardRole::Viewer;
    json!({ "user": subject, "org": org, "role": role, "expires_at": expires_at, "sees_data": sees_data })
}

fn unreadable(error: db::Error) -> Problem {
    tracing::warn!(%error, "session of the dashboard cannot be read");
    Problem::unavailable("the database does not answer: try again")
}

/// Counts a request of this client.
fn admit(limit: &RateLimit<IpAddr>, peer: SocketAddr, what: &str) -> Result<(), Problem> {
    limit.admit(client_address(peer.ip())).map_err(|wait| Problem::rate_limited(what, wait))
}

/// Refuses a body that a form of another page could send without asking first.
fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let detail = "send the body as application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail))
}
