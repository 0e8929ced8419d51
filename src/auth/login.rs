//! The sign-in code of the dashboard, and the bearer token of a dashboard session.
//!
//! Both are signed with the daemon's secret. A code has no `role`, so that no other entry point accepts it as a token;
//! a bearer has the claim `dash`, the [`DashboardRole`] of the session.
use super::{Claims, DashboardRole, Denied, Keys, Role, TokenError};
use crate::id::OrgId;
use chrono::{DateTime, TimeDelta, Utc};
use jsonwebtoken::{Algorithm, Header, Validation, errors::Error};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

/// Time in which a code can be used.
const CODE_MINUTES: i64 = 10;
/// Time for which a bearer is valid. A revoked session ends at the latest after it.
const BEARER_MINUTES: i64 = 10;
/// Most bytes of a person's name, like those of the claim `sub`.
const SUBJECT_BYTES_MAX: usize = 255;
/// Value of the claim `use`, which makes a token a code.
const USE: &str = "login";

/// The content of a sign-in code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// Identifies the code, so that it is accepted once.
    pub id: Uuid,
    /// Name of the person.
    pub subject: String,
    /// The org that the person sees.
    pub org: OrgId,
    /// What the person may do there.
    pub role: DashboardRole,
    /// Expiry of the code.
    pub expires_at: DateTime<Utc>,
}

#[derive(Serialize, Deserialize)]
struct LoginClaims {
    #[serde(rename = "use")]
    purpose: String,
    jti: Uuid,
    sub: String,
    org: OrgId,
    #[serde(default)]
    dash: DashboardRole,
    exp: i64,
}

impl Login {
    /// A new code for a person, valid for ten minutes from `now`.
    #[must_use]
    pub fn new(subject: String, org: OrgId, role: DashboardRole, now: DateTime<Utc>) -> Self {
        Self { id: Uuid::new_v4(), subject, org, role, expires_at: now + TimeDelta::minutes(CODE_MINUTES) }
    }

    /// Returns why a name cannot be that of a person: it is empty, longer than 255 bytes, or has control characters.
    ///
    /// # Errors
    /// One line.
    pub fn check_subject(subject: &str) -> Result<(), String> {
        let good = (1..=SUBJECT_BYTES_MAX).contains(&subject.len()) && !subject.contains(char::is_control);
        if good {
            return Ok(());
        }
        Err(format!(
            "{subject:?} is not a name: use 1 to {SUBJECT_BYTES_MAX} bytes without control characters"
        ))
    }
}

impl Keys {
    /// Signs a sign-in code.
    ///
    /// # Errors
    /// [`jsonwebtoken::errors::Error`] if signing fails, which is a bug.
    pub fn sign_login(&self, login: &Login) -> Result<String, Error> {
        let Login { id, subject, org, role, expires_at } = login.clone();
        let exp = expires_at.timestamp();
        let claims = LoginClaims { purpose: USE.into(), jti: id, sub: subject, org, dash: role, exp };
        jsonwebtoken::encode(&Header::default(), &claims, &self.inner().encoding)
    }

    /// Verifies a sign-in code. Does not know whether it was used.
    ///
    /// # Errors
    /// [`TokenError`]: not a code of this daemon, or expired.
    pub fn verify_login(&self, code: &str, now: DateTime<Utc>) -> Result<Login, TokenError> {
        let mut validation = Validation::new(Algorithm::HS256);
        // Expiry is checked below, by the clock that is passed and without leeway.
        validation.validate_exp = false;
        validation.validate_aud = false;
        validation.required_spec_claims.clear();
        let decoded = jsonwebtoken::decode::<LoginClaims>(code, &self.inner().decoding, &validation);
        let claims = decoded.map_err(|_| TokenError::BadSignature)?.claims;
        if claims.purpose != USE || Login::check_subject(&claims.sub).is_err() {
            return Err(TokenError::BadSignature);
        }
        let expires_at = DateTime::from_timestamp(claims.exp, 0).ok_or(TokenError::BadClaim("exp"))?;
        if expires_at <= now {
            return Err(TokenError::Expired { seconds_ago: (now - expires_at).num_seconds() });
        }
        Ok(Login { id: claims.jti, subject: claims.sub, org: claims.org, role: claims.dash, expires_at })
    }

    /// Returns the sign-in that the verified token of a person of another issuer stands for. The person's name begins with
    /// the issuer, so that it is no name of a link.
    ///
    /// # Errors
    /// [`Denied`]: the issuer is not in `dashboard.roles`, or the token is not of a person with a role there.
    pub fn login_of(&self, claims: Claims) -> Result<Login, Denied> {
        let denied = |text: &str| Denied(text.to_owned());
        let issuer = claims.issuer().filter(|issuer| self.inner().issuer_roles.knows(issuer));
        let issuer =
            issuer.ok_or_else(|| denied("only a token of an issuer in dashboard.roles signs in"))?.to_owned();
        let is_person = claims.may_negotiate() && !claims.is_service() && claims.agent_id.is_none();
        let role = claims.dashboard_role().filter(|_| is_person);
        let role = role.ok_or_else(|| denied("dashboard.roles gives the bearer of this token no role"))?;
        let subject = claims.sub.ok_or_else(|| denied("the token names no person: it has no claim sub"))?;
        let subject = format!("{issuer}#{subject}");
        Login::check_subject(&subject).map_err(Denied)?;
        let (org, expires_at) = (claims.org.unwrap_or_default(), claims.exp);
        Ok(Login { id: Uuid::new_v4(), subject, org, role, expires_at })
    }

    /// Signs the bearer token of a session: rights of `role` in `org`, for ten minutes. Returns it with its
    /// expiry.
    ///
    /// # Errors
    /// [`jsonwebtoken::errors::Error`] if signing fails, which is a bug.
    pub fn sign_bearer(
        &self,
        subject: &str,
        org: &OrgId,
        role: DashboardRole,
        now: DateTime<Utc>,
    ) -> Result<(String, DateTime<Utc>), Error> {
        let expires_at = now + TimeDelta::minutes(BEARER_MINUTES);
        let claims = json!({
            "iss": "convoke",
            "role": Role::Authenticated.as_str(),
            "sub": subject,
            "org": org,
            "dash": role,
            "iat": now.timestamp(),
            "exp": expires_at.timestamp(),
        });
        Ok((jsonwebtoken::encode(&Header::default(), &claims, &self.inner().encoding)?, expires_at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{MintRequest, Principal, mint};

    fn keys() -> Keys {
        Keys::from_secret(&"a secret of at least thirty-two bytes".into()).unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(seconds, 0).unwrap()
    }

    #[test]
    fn code_is_verified_until_its_expiry_and_is_no_token() {
        let login = Login::new("ana".into(), "demo".parse().unwrap(), DashboardRole::Operator, at(1000));
        let code = keys().sign_login(&login).unwrap();
        assert_eq!(keys().verify_login(&code, at(1000)).unwrap(), login);
        assert_eq!(keys().verify_login(&code, at(1600)), Err(TokenError::Expired { seconds_ago: 0 }));
        assert_eq!(keys().verify(&code, at(1000)), Err(TokenError::MissingFields));
    }

    #[test]
    fn tokens_and_codes_of_another_secret_are_no_codes() {
        let other = Keys::from_secret(&"another secret of thirty-two bytes!!".into()).unwrap();
        let login = Login::new("ana".into(), "demo".parse().unwrap(), DashboardRole::Operator, at(1000));
        let token = mint(&keys(), &MintRequest::new(Role::ServiceRole), at(1000)).unwrap();
        let bearer = keys().sign_bearer("ana", &login.org, login.role, at(1000)).unwrap().0;
        let long = Login { subject: "x".repeat(256), ..login.clone() };
        for code in [
            other.sign_login(&login).unwrap(),
            token,
            bearer,
            keys().sign_login(&long).unwrap(),
            "a.b.c".into(),
            String::new(),
        ] {
            assert_eq!(keys().verify_login(&code, at(1000)), Err(TokenError::BadSignature), "{code}");
        }
    }

    #[test]
    fn bearer_of_a_viewer_sees_its_org_and_changes_nothing() {
        let org: OrgId = "demo".parse().unwrap();
        let (token, expires_at) = keys().sign_bearer("ana", &org, DashboardRole::Viewer, at(1000)).unwrap();
        assert_eq!(expires_at, at(1600));
        let bearer = Principal::of(keys().verify(&token, at(1599)).unwrap().into());
        assert!(bearer.sees(&org) && !bearer.sees(&OrgId::default()) && !bearer.is_service());
        assert!(bearer.may_negotiate().is_ok() && bearer.may_change().is_err());
        assert!(keys().verify(&token, at(1600)).is_err());
    }
}
