//! Checks every request to the page before its route, and sets the headers of every answer.
//!
//! A request for a foreign host is refused: a name that an attacker points to this machine would otherwise make the
//! page, and its cookie, part of the attacker's site (DNS rebinding). A request that changes something must come from
//! the page itself (CSRF).
use crate::problem::Problem;
use axum::{
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use std::{net::IpAddr, sync::Arc};

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const HEADERS: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::REFERRER_POLICY, "no-referrer"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()"),
];
/// Browsers that know the public address use only https for a year.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// What a request is compared with.
#[derive(Debug)]
pub(super) struct Guard {
    /// Host and port of `dashboard.public_url`.
    public_host: Option<String>,
    is_https: bool,
}

/// Refuses a request for a foreign host or from another site; sets the headers of the answer.
pub(super) async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let host = guard.host(request.headers()).map(str::to_owned);
    let refused = match &host {
        None => Some(Problem::new(
            StatusCode::MISDIRECTED_REQUEST,
            "bad_host",
            "the dashboard is not served under this host name: use an IP address or localhost, or set \
             dashboard.public_url",
        )),
        Some(host) if is_cross_site(request.method(), request.headers(), host) => {
            Some(Problem::new(StatusCode::FORBIDDEN, "cross_site", "the request came from another site"))
        }
        Some(_) => None,
    };
    let mut response = match refused {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    };
    guard.set_headers(&mut response, host.as_deref());
    response
}

impl Guard {
    pub(super) fn new(public_host: Option<String>, is_https: bool) -> Self {
        Self { public_host, is_https }
    }

    /// The host of the request, if the page is served under it. An address is accepted, whichever it is: browsers send
    /// the name of the page's origin, so a request to an address cannot come from a name that an attacker owns.
    fn host<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        // A second `Host` header is refused: a proxy and this check could read different ones.
        let mut hosts = headers.get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
        let host = host.to_str().ok()?;
        let name = without_port(host);
        let is_address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_ok();
        let is_public = self.public_host.as_ref().is_some_and(|public| host.eq_ignore_ascii_case(public));
        (is_address || name.eq_ignore_ascii_case("localhost") || is_public).then_some(host)
    }

    fn set_headers(&self, response: &mut Response, host: Option<&str>) {
        let headers = response.headers_mut();
        for (name, value) in HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if self.is_https {
            headers.insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
        }
        if let Ok(policy) = HeaderValue::try_from(content_security_policy(host)) {
            headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        }
    }
}

/// Nothing inline, nothing from elsewhere, no frame around the page, and no text that becomes a script. The sockets are
/// named: older WebKit does not take `'self'` for them.
fn content_security_policy(host: Option<&str>) -> String {
    let sockets = host.map(|host| format!(" ws://{host} wss://{host}")).unwrap_or_default();
    format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'{sockets}; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
         trusted-types 'none'"
    )
}

/// Whether a request that may change something was not made by the page. Browsers name the site; older ones name the
/// origin; a program that names neither has no cookie of a person's browser.
fn is_cross_site(method: &Method, headers: &HeaderMap, host: &str) -> bool {
    if matches!(*method, Method::GET | Method::HEAD) {
        return false;
    }
    if let Some(site) = headers.get(SEC_FETCH_SITE) {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return false };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    !origin.is_some_and(|(_, from)| from.eq_ignore_ascii_case(host))
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        // An IPv6 address without brackets and port has further colons.
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.ends_with(':') => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (HeaderName::try_from(*name).unwrap(), HeaderValue::try_from(*value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn names_of_other_machines_are_foreign_hosts() {
        let guard = Guard::new(Some("convoke.example.org".into()), true);
        for own in [
            "localhost",
            "LocalHost:7700",
            "127.0.0.1:7700",
            "[::1]:7700",
            "10.0.0.7",
            "convoke.example.org",
            "Convoke.Example.org",
        ] {
            assert_eq!(guard.host(&headers(&[("host", own)])), Some(own));
        }
        for foreign in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:7700",
            "convoke.example.org:8443",
            "evil-localhost",
            "",
            "127.0.0.1:7700:evil",
        ] {
            assert_eq!(guard.host(&headers(&[("host", foreign)])), None, "{foreign}");
        }
        assert_eq!(guard.host(&HeaderMap::new()), None);
    }

    #[test]
    fn only_the_page_itself_changes_something() {
        let cross = |method: Method, pairs: &[(&str, &str)]| {
            is_cross_site(&method, &headers(pairs), "127.0.0.1:7700")
        };
        for site in ["cross-site", "same-site", "anything"] {
            assert!(cross(Method::POST, &[("sec-fetch-site", site)]), "{site}");
            assert!(!cross(Method::GET, &[("sec-fetch-site", site)]), "{site}");
        }
        assert!(!cross(Method::POST, &[("sec-fetch-site", "same-origin")]));
        for origin in ["http://evil.example", "null", "http://127.0.0.1:7701", "http://127.0.0.1"] {
            assert!(cross(Method::DELETE, &[("origin", origin)]), "{origin}");
        }
        assert!(!cross(Method::DELETE, &[("origin", "http://127.0.0.1:7700")]));
        assert!(!cross(Method::POST, &[]), "a program without cookies");
    }
}
