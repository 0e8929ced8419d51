//! Verification of tokens (`docs/spec/realtime-protocol.md` §7.1, §7.2).
use super::{Claims, Keys, OPAQUE_PREFIX, TokenError, keyset, strict_json};
use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use chrono::{DateTime, Utc};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// Most bytes of `sub` and `iss` (OpenID Connect allows a `sub` of 255).
const NAME_BYTES_MAX: usize = 255;
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Claims {
    /// Claims for tests, without `exp` and signature.
    #[cfg(test)]
    pub(crate) fn for_tests(mut claims: Value) -> Self {
        claims["exp"] = 1.into();
        let Value::Object(raw) = claims else { panic!("no object") };
        read(raw, DateTime::UNIX_EPOCH).unwrap()
    }
}

impl Keys {
    /// Verifies a token and returns its claims. Whitespace in the token is ignored.
    ///
    /// # Errors
    /// [`TokenError`], the first that applies in this order: shape, key, signature, expiry, required fields.
    pub fn verify(&self, token: &str, now: DateTime<Utc>) -> Result<Claims, TokenError> {
        let token = normalize(token);
        if token.starts_with(OPAQUE_PREFIX) {
            return self.inner().opaque.claims(&token).ok_or(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        // `rsplit_once` and `split_once` leave further dots here: more than three parts are not a JWS.
        if claims.contains('.') {
            return Err(TokenError::Malformed);
        }
        let (header, claims) = (object(header)?, object(claims)?);
        // RFC 7515 §4.1.11: a token with an unknown critical extension must be refused, and none is supported
        // here.
        if header.contains_key("crit") {
            return Err(TokenError::Critical);
        }
        let genuine = self.check(&header, message, signature)?;
        if !genuine {
            return Err(TokenError::BadSignature);
        }
        let mut claims = read(claims, now)?;
        // A signature does not prove a role: another issuer may sign any name, so only configured roles
        // count.
        if !self.inner().roles.contains(&claims.role) {
            claims.role.clear();
        }
        self.inner().issuer_roles.apply(&mut claims);
        let wanted = self.inner().claims.iter();
        let mut other = wanted.filter(|(name, value)| claims.raw.get(*name).is_some_and(|own| own != *value));
        match other.next() {
            Some((name, _)) => Err(TokenError::OtherClaim(name.clone())),
            None => Ok(claims),
        }
    }

    /// Like [`Keys::verify`], but reads the key sets first if the key id is unknown and the last read is not
    /// recent. Cancel safe.
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

    /// Checks the signature with the key that the header names.
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
        // Without a matching `kid`, HMAC falls back to the shared secret. Other algorithms have no such key.
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => Ok(genuine(&inner.decoding)),
            _ => Err(kid.map_or(TokenError::NoSigner, |kid| TokenError::UnknownKey(kid.to_owned()))),
        }
    }
}

/// Decodes URL encoding and removes whitespace, which copying a key from a page may add.
fn normalize(token: &str) -> Cow<'_, str> {
    if !token.contains(|c: char| c.is_whitespace() || c == '%' || c == '+') {
        return Cow::Borrowed(token);
    }
    let mut rest = token;
    let mut out = String::with_capacity(token.len());
    while let Some(c) = rest.chars().next() {
        let code = rest.get(..3).and_then(|code| code.strip_prefix('%'));
        let byte = code.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(u8::is_ascii);
        let (c, size) = byte.map_or((c, c.len_utf8()), |byte| (char::from(byte), 3));
        // A plus stands for a blank in a query string, and no token contains one.
        if !c.is_whitespace() && c != '+' {
            out.push(c);
        }
        rest = rest.get(size..).unwrap_or_default();
    }
    Cow::Owned(out)
}

fn object(part: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = BASE64.decode(part).map_err(|_| TokenError::Malformed)?;
    strict_json::object(&bytes).ok_or(TokenError::Malformed)
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
    let nbf = raw.get("nbf").map(|nbf| seconds(nbf).ok_or(TokenError::BadClaim("nbf"))).transpose()?;
    let claims = Claims { role: String::new(), org: None, agent_id: None, exp, sub: None, raw };
    claims.check_expiry(now)?;
    if let Some(nbf) = nbf.filter(|nbf| *nbf > now.timestamp()) {
        return Err(TokenError::NotYetValid { seconds: nbf.saturating_sub(now.timestamp()) });
    }
    with_identity(claims)
}

/// Reads the claims about the bearer's identity. An invalid one is refused: reading it as missing would give
/// the bearer another identity, such as a member of the default org.
fn with_identity(claims: Claims) -> Result<Claims, TokenError> {
    const ID: &str = "1 to 63 of a-z, 0-9, - and _, beginning with a letter or digit";
    const NAME: &str = "a text of 1 to 255 bytes without control characters";
    let text = |claim, expected| match claims.raw.get(claim) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err(TokenError::BadIdentity { claim, expected }),
    };
    let name = |claim| match text(claim, NAME)? {
        Some(name) if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(char::is_control) => {
            Err(TokenError::BadIdentity { claim, expected: NAME })
        }
        name => Ok(name),
    };
    let bad = |claim| move |_| TokenError::BadIdentity { claim, expected: ID };
    let role = text("role", "the name of a role")?.ok_or(TokenError::MissingFields)?.to_owned();
    let org = text("org", ID)?.map(str::parse).transpose().map_err(bad("org"))?;
    let agent_id = text("agent_id", ID)?.map(str::parse).transpose().map_err(bad("agent_id"))?;
    let sub = name("sub")?.map(str::to_owned);
    name("iss")?;
    Ok(Claims { role, org, agent_id, sub, ..claims })
}

/// Converts to whole seconds, rounding decimals.
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
    fn claims_of_every_hmac_algorithm_are_read() {
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
    fn each_invalid_claim_has_its_own_error() {
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
    fn invalid_identity_claim_is_refused() {
        let long = "x".repeat(64);
        let ids = json!([
            "Acme", "acme.com", " default", "default ", "", 42, 1.5, null, true, ["acme"], {"org": "acme"}, long,
            "0190C9A5-1E3B-7000-8000-000000000000", "-x", "_x", "ä", "a\u{0}", "ａcme", "acme\u{200b}",
        ]);
        let names = json!(["", 42, null, ["x"], {"x": 1}, true, "x".repeat(256), "a\nb", "a\u{0}"]);
        for (claim, values) in [("org", &ids), ("agent_id", &ids), ("sub", &names), ("iss", &names)] {
            for value in values.as_array().unwrap() {
                let mut claims = json!({ "role": "authenticated", "exp": 1001 });
                claims[claim] = value.clone();
                let refused = verify(&json!({"alg": "HS256"}), &claims);
                let expected =
                    matches!(&refused, Err(TokenError::BadIdentity { claim: named, .. }) if *named == claim);
                assert!(expected, "{claim} {value}: {refused:?}");
            }
        }
        for role in [json!(1), json!(null), json!(["anon"]), json!({})] {
            let refused = verify(&json!({"alg": "HS256"}), &json!({ "role": role, "exp": 1001 }));
            assert!(matches!(refused, Err(TokenError::BadIdentity { claim: "role", .. })), "{refused:?}");
        }
    }

    #[test]
    fn role_that_is_not_configured_has_no_rights() {
        let hs = json!({"alg": "HS256"});
        for role in
            ["pg_read_all_data", "postgres", "convoke", "Anon", "anon ", "none", "service_role\u{0}", ""]
        {
            let claims = verify(&hs, &json!({"role": role, "exp": 1001, "org": "demo"})).unwrap();
            assert_eq!(claims.role, "", "{role}");
            let bearer = crate::auth::Principal::of(claims.into());
            assert!(bearer.may_negotiate().is_err() && !bearer.sees(&"demo".parse().unwrap()), "{role}");
        }
    }

    #[test]
    fn token_with_nbf_in_the_future_or_crit_header_is_refused() {
        let claims = |nbf: Value| json!({"role": "anon", "exp": 2000, "nbf": nbf});
        let hs = json!({"alg": "HS256"});
        assert_eq!(verify(&hs, &claims(json!(1001))), Err(TokenError::NotYetValid { seconds: 1 }));
        assert!(verify(&hs, &claims(json!(1000))).is_ok());
        for bad in [json!("1000"), json!(null), json!([])] {
            assert_eq!(verify(&hs, &claims(bad)), Err(TokenError::BadClaim("nbf")));
        }
        for crit in [json!(["b64"]), json!([]), json!("exp"), json!(null)] {
            let header = json!({"alg": "HS256", "crit": crit});
            assert_eq!(verify(&header, &claims(json!(0))), Err(TokenError::Critical));
        }
    }

    #[test]
    fn unknown_key_id_is_in_the_error() {
        let claims = json!({"role": "anon", "exp": 1001});
        let unknown = Err(TokenError::UnknownKey("k1".into()));
        assert_eq!(verify(&json!({"alg": "RS256", "kid": "k1"}), &claims), unknown);
        for alg in ["ES256", "none", "PS256"] {
            assert_eq!(verify(&json!({"alg": alg}), &claims), Err(TokenError::NoSigner));
        }
        assert_eq!(verify(&json!({}), &claims), Err(TokenError::NoSigner));
    }

    #[test]
    fn malformed_tokens_and_wrong_signatures_are_refused() {
        let now = DateTime::UNIX_EPOCH;
        for bad in ["", "abc", "a.b", "a.b.c", "a.b.c.d", "e30.e30", "\u{e9}.%.%c3", "bnVsbA.bnVsbA.x"] {
            assert_eq!(keys().verify(bad, now), Err(TokenError::Malformed), "{bad}");
        }
        let other = Keys::from_secret(&"another secret of thirty-two bytes!!".into()).unwrap();
        let token = mint(&other, &MintRequest::new(Role::Anon), now).unwrap();
        assert_eq!(keys().verify(&token, now), Err(TokenError::BadSignature));
    }

    #[test]
    fn whitespace_and_url_encoding_in_a_token_are_removed() {
        let now = DateTime::UNIX_EPOCH;
        let token = mint(&keys(), &MintRequest::new(Role::Anon), now).unwrap();
        let (head, tail) = token.split_at(20);
        for spelled in [format!(" {head}\n{tail}\t"), format!("{head}%0A{tail}"), token.replace('.', "%2e")] {
            assert!(keys().verify(&spelled, now).is_ok(), "{spelled}");
        }
    }
}
