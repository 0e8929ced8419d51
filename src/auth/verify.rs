//! From a token to its claims (`reference/realtime-protocol.md` §7.1, §7.2).
use super::{Keys, OPAQUE_PREFIX, TokenError, keyset};
use crate::id::{AgentId, OrgId};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use std::{borrow::Cow, fmt::Write};

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The role that may do everything.
const SERVICE_ROLE: &str = "service_role";

/// What a genuine token says.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    /// `role`: `anon`, `authenticated`, `service_role` or the operator's own.
    pub role: String,
    /// `org`, when it is a name; agents' tokens carry it.
    pub org: Option<OrgId>,
    /// `agent_id`, when it is a name: the bearer may act as this agent.
    pub agent_id: Option<AgentId>,
    /// When it ends.
    pub exp: DateTime<Utc>,
    /// `sub`, when it is a string.
    pub sub: Option<String>,
    /// Every claim, as it is in the token.
    pub raw: Map<String, Value>,
}

impl Claims {
    /// Whether the bearer is the operator's own service.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.role == SERVICE_ROLE
    }

    /// How the bearer is named where it asks for something: the agent, else `sub`, else, so that two people
    /// with tokens that say neither are not taken for one, the role and a mark of this very token. The service
    /// is one.
    #[must_use]
    pub fn name(&self) -> String {
        let named = self.agent_id.as_ref().map(|agent| agent.as_str().to_owned());
        named.or_else(|| self.sub.clone()).unwrap_or_else(|| {
            if self.is_service() {
                return self.role.clone();
            }
            let claims = serde_json::to_vec(&self.raw).unwrap_or_default();
            let mark = Sha256::digest(claims).iter().take(6).fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            format!("{}#{mark}", self.role)
        })
    }

    /// Whether the token is still good at `now`; there is no leeway.
    ///
    /// # Errors
    /// [`TokenError::Expired`].
    pub fn check_expiry(&self, now: DateTime<Utc>) -> Result<(), TokenError> {
        let seconds_ago = now.timestamp() - self.exp.timestamp();
        if seconds_ago >= 0 { Err(TokenError::Expired { seconds_ago }) } else { Ok(()) }
    }
}

impl Keys {
    /// The claims of a genuine token. Blanks inside it are ignored.
    ///
    /// # Errors
    /// [`TokenError`], the first that applies: shape, key, signature, expiry, required fields.
    pub fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Claims, TokenError> {
        let token = tidy(token);
        if token.starts_with(OPAQUE_PREFIX) {
            return self.inner().opaque.claims(&token).ok_or(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        if claims.contains('.') {
            return Err(TokenError::Malformed);
        }
        let (header, claims) = (object(header)?, object(claims)?);
        let genuine = self.check(&header, message, signature)?;
        if !genuine {
            return Err(TokenError::BadSignature);
        }
        let claims = read(claims, now)?;
        let wanted = self.inner().claims.iter();
        let mut other = wanted.filter(|(name, value)| claims.raw.get(*name).is_some_and(|own| own != *value));
        match other.next() {
            Some((name, _)) => Err(TokenError::OtherClaim(name.clone())),
            None => Ok(claims),
        }
    }

    /// As [`Keys::verify`], but a key id that is not known is looked for where keys come from, if that was not
    /// done a few seconds ago. Cancel safe.
    ///
    /// # Errors
    /// [`TokenError`].
    pub async fn verify_fresh(&self, token: &str, now: DateTime<Utc>) -> Result<Claims, TokenError> {
        let outcome = self.verify(token, now);
        if !matches!(outcome, Err(TokenError::UnknownKey(_))) || self.inner().sources.is_empty() {
            return outcome;
        }
        for source in &self.inner().sources {
            source.refresh().await;
        }
        self.verify(token, now)
    }

    /// Whether the signature is that of the key which the header names.
    fn check(&self, header: &Map<String, Value>, message: &str, signature: &str) -> Result<bool, TokenError> {
        let alg = header.get("alg").and_then(Value::as_str).ok_or(TokenError::NoSigner)?;
        let kid = header.get("kid").and_then(Value::as_str);
        let algorithm = keyset::algorithm(alg, kid)?;
        let inner = self.inner();
        let genuine = |key: &DecodingKey| {
            jsonwebtoken::crypto::verify(signature, message.as_bytes(), key, algorithm).unwrap_or(false)
        };
        if let Some(kid) = kid {
            if let Some(key) = inner.fixed.find(kid, algorithm, alg) {
                return Ok(genuine(key));
            }
            for source in &inner.sources {
                let keys = source.keys();
                if let Some(key) = keys.find(kid, algorithm, alg) {
                    return Ok(genuine(key));
                }
            }
        }
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Ok(genuine(&inner.decoding)),
            _ => Err(kid.map_or(TokenError::NoSigner, |kid| TokenError::UnknownKey(kid.to_owned()))),
        }
    }
}

/// Undoes URL encoding and removes blanks, which copying a key from a page leaves in it.
fn tidy(token: &str) -> Cow<'_, str> {
    if !token.contains(|c: char| c.is_whitespace() || c == '%' || c == '+') {
        return Cow::Borrowed(token);
    }
    let mut rest = token;
    let mut out = String::with_capacity(token.len());
    while let Some(c) = rest.chars().next() {
        let code = rest.get(..3).and_then(|code| code.strip_prefix('%'));
        let byte = code.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(u8::is_ascii);
        let (c, size) = byte.map_or((c, c.len_utf8()), |byte| (char::from(byte), 3));
        // A plus is a blank in a query string; no part of a token contains one.
        if !c.is_whitespace() && c != '+' {
            out.push(c);
        }
        rest = rest.get(size..).unwrap_or_default();
    }
    Cow::Owned(out)
}

fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = BASE64.decode(part).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

fn read(raw: Map<String, Value>, now: DateTime<Utc>) -> Result<Claims, TokenError> {
    let exp = match raw.get("exp") {
        None => return Err(TokenError::MissingFields),
        Some(exp) => seconds(exp).ok_or(TokenError::BadClaim("exp"))?,
    };
    let exp = DateTime::from_timestamp(exp, 0).ok_or(TokenError::BadClaim("exp"))?;
    if raw.get("iat").is_some_and(|iat| !iat.is_number()) {
        return Err(TokenError::BadClaim("iat"));
    }
    let text = |key: &str| raw.get(key).and_then(Value::as_str);
    let role = match raw.get("role") {
        Some(Value::String(role)) => role.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    };
    let claims = Claims {
        role,
        org: text("org").and_then(|org| org.parse().ok()),
        agent_id: text("agent_id").and_then(|id| id.parse().ok()),
        exp,
        sub: text("sub").map(str::to_owned),
        raw,
    };
    claims.check_expiry(now)?;
    if claims.raw.contains_key("role") { Ok(claims) } else { Err(TokenError::MissingFields) }
}

/// Whole seconds; decimals are rounded.
fn seconds(value: &Value) -> Option<i64> {
    value.as_i64().or_else(|| {
        let rounded = value.as_f64()?.round();
        #[expect(clippy::cast_possible_truncation, reason = "checked to be in range")]
        (rounded.abs() < 1e15).then_some(rounded as i64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{MintRequest, Role, mint};
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use serde_json::json;

    const SECRET: &str = "a secret of at least thirty-two bytes";

    fn keys() -> Keys {
        Keys::from_secret(&SECRET.into()).unwrap()
    }

    fn sign(header: &Value, claims: &Value) -> String {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let message = format!("{}.{}", part(header), part(claims));
        let alg = header["alg"].as_str().and_then(|alg| keyset::algorithm(alg, None).ok());
        let hmac = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        let alg = alg.filter(|alg| hmac.contains(alg)).unwrap_or(Algorithm::HS256);
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &keys().inner().encoding, alg).unwrap();
        format!("{message}.{signature}")
    }

    fn verify(header: &Value, claims: &Value) -> Result<Claims, TokenError> {
        keys().verify(&sign(header, claims), DateTime::from_timestamp(1000, 0).unwrap())
    }

    #[test]
    fn claims_of_every_shared_secret_algorithm_are_read() {
        for alg in ["HS256", "HS384", "HS512"] {
            let claims = json!({"role": "anon", "exp": 1001, "org": "demo", "agent_id": "x", "sub": "me"});
            let claims = verify(&json!({"alg": alg}), &claims).unwrap();
            assert_eq!((claims.role.as_str(), claims.exp.timestamp()), ("anon", 1001));
            assert_eq!(claims.org, "demo".parse().ok());
            assert_eq!(claims.agent_id, "x".parse().ok());
            assert_eq!(claims.sub.as_deref(), Some("me"));
        }
    }

    #[test]
    fn each_wrong_claim_has_its_refusal() {
        let hs = json!({"alg": "HS256"});
        let expired = |n| Err(TokenError::Expired { seconds_ago: n });
        assert_eq!(verify(&hs, &json!({"role": "anon", "exp": 1000})), expired(0));
        assert_eq!(verify(&hs, &json!({"role": "anon", "exp": 990})), expired(10));
        assert_eq!(verify(&hs, &json!({"exp": 1001})), Err(TokenError::MissingFields));
        assert_eq!(verify(&hs, &json!({"role": "anon"})), Err(TokenError::MissingFields));
        assert_eq!(verify(&hs, &json!({"role": "a", "exp": "1001"})), Err(TokenError::BadClaim("exp")));
        assert_eq!(
            verify(&hs, &json!({"role": "a", "exp": 1001, "iat": "x"})),
            Err(TokenError::BadClaim("iat"))
        );
        assert_eq!(verify(&hs, &json!({"role": "a", "exp": 1000.6})).unwrap().exp.timestamp(), 1001);
    }

    #[test]
    fn a_key_that_is_not_ours_is_named() {
        let claims = json!({"role": "anon", "exp": 1001});
        let unknown = Err(TokenError::UnknownKey("k1".into()));
        assert_eq!(verify(&json!({"alg": "RS256", "kid": "k1"}), &claims), unknown);
        for alg in ["ES256", "none", "PS256"] {
            assert_eq!(verify(&json!({"alg": alg}), &claims), Err(TokenError::NoSigner));
        }
        assert_eq!(verify(&json!({}), &claims), Err(TokenError::NoSigner));
    }

    #[test]
    fn garbage_and_other_signatures_are_refused() {
        let now = DateTime::UNIX_EPOCH;
        for bad in ["", "abc", "a.b", "a.b.c", "a.b.c.d", "e30.e30", "\u{e9}.%.%c3", "bnVsbA.bnVsbA.x"] {
            assert_eq!(keys().verify(bad, now), Err(TokenError::Malformed), "{bad}");
        }
        let other = Keys::from_secret(&"another secret of thirty-two bytes!!".into()).unwrap();
        let token = mint(&other, &MintRequest::new(Role::Anon), now).unwrap();
        assert_eq!(keys().verify(&token, now), Err(TokenError::BadSignature));
    }

    #[test]
    fn blanks_and_url_encoding_in_a_token_are_undone() {
        let now = DateTime::UNIX_EPOCH;
        let token = mint(&keys(), &MintRequest::new(Role::Anon), now).unwrap();
        let (head, tail) = token.split_at(20);
        for spelled in [format!(" {head}\n{tail}\t"), format!("{head}%0A{tail}"), token.replace('.', "%2e")] {
            assert!(keys().verify(&spelled, now).is_ok(), "{spelled}");
        }
    }
}
