//! Public keys by key id: the part of a JSON Web Key Set (RFC 7517) that verifies tokens.
use super::TokenError;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{PUBLIC_KEY_LENGTH, VerifyingKey};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::HashMap, fmt};

/// The algorithms that a key can verify. A key is never used for another family (algorithm confusion).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Hmac,
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Family {
    fn checks(self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => self == Self::Hmac,
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => self == Self::Rsa,
            Algorithm::ES256 => self == Self::P256,
            Algorithm::ES384 => self == Self::P384,
            Algorithm::EdDSA => self == Self::Ed25519,
            _ => false,
        }
    }
}

/// Keys by key id. Keys of unsupported types are ignored.
#[derive(Clone, Default)]
pub(super) struct KeySet {
    keys: HashMap<String, Vec<(Family, Option<String>, DecodingKey)>>,
    /// The keys that are too weak, one line each.
    refused: Vec<String>,
}

/// Least bytes of a secret: the strength of HS256 is that of its secret.
pub(super) const SECRET_BYTES_MIN: usize = 32;
/// Least bytes of an HMAC secret and of an RSA modulus; weaker keys can be broken.
const HMAC_BYTES_MIN: usize = SECRET_BYTES_MIN;
const RSA_BYTES_MIN: usize = 256;

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.keys()).finish()
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// Parses `{"keys":[…]}`.
    ///
    /// # Errors
    /// The problem, without content of the document.
    pub(super) fn parse(json: &[u8]) -> Result<Self, String> {
        let Ok(Document { keys }) = serde_json::from_slice(json) else {
            return Err("it is not a JSON Web Key Set: {\"keys\":[…]}".to_owned());
        };
        let mut set = Self::default();
        for key in keys {
            let Ok(jwk) = serde_json::from_value::<Jwk>(key.clone()) else { continue };
            let family = match &jwk.algorithm {
                AlgorithmParameters::OctetKey(_) => Family::Hmac,
                AlgorithmParameters::RSA(_) => Family::Rsa,
                AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => Family::P256,
                AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P384 => Family::P384,
                AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                    Family::Ed25519
                }
                _ => continue,
            };
            if let Some(reason) = weakness(&jwk.algorithm) {
                let kid = jwk.common.key_id.as_deref().unwrap_or_default();
                set.refused.push(format!("key {kid:?} {reason}"));
                continue;
            }
            // Keys for encryption, without an id, or of an unsupported form are ignored.
            let for_signing = jwk.common.public_key_use != Some(PublicKeyUse::Encryption)
                && jwk.common.key_operations.as_ref().is_none_or(|all| {
                    all.contains(&KeyOperations::Verify) || all.contains(&KeyOperations::Sign)
                });
            if let (Some(kid), Ok(decoding), true) =
                (jwk.common.key_id.clone(), DecodingKey::from_jwk(&jwk), for_signing)
            {
                let alg = key.get("alg").and_then(Value::as_str).map(str::to_owned);
                set.keys.entry(kid).or_default().push((family, alg, decoding));
            }
        }
        Ok(set)
    }

    /// Number of key ids.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The keys that are too weak, one line each.
    pub(super) fn refused(&self) -> &[String] {
        &self.refused
    }

    /// # Errors
    /// The first key that is too weak.
    pub(super) fn check(&self) -> Result<(), String> {
        self.refused.first().map_or(Ok(()), |reason| Err(reason.clone()))
    }

    /// Returns the key with this id for an algorithm. `alg` is the algorithm's name in the header.
    pub(super) fn find(&self, kid: &str, algorithm: Algorithm, alg: &str) -> Option<&DecodingKey> {
        let named = |own: &Option<String>| {
            let is_ed = |name: &str| name == "EdDSA" || name == "Ed25519";
            own.as_deref().is_none_or(|own| own == alg || (is_ed(own) && is_ed(alg)))
        };
        let keys = self.keys.get(kid)?;
        keys.iter().find(|(family, own, _)| family.checks(algorithm) && named(own)).map(|(_, _, key)| key)
    }
}

/// Returns why anyone could make tokens that the key verifies; `None` if it is strong enough.
fn weakness(key: &AlgorithmParameters) -> Option<String> {
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).unwrap_or_default();
    let (what, bytes, min) = match key {
        // HMAC pads a short key with zeros, so trailing zeros add no strength.
        AlgorithmParameters::OctetKey(key) => {
            ("its secret", without_zeros(decode(&key.value).into_iter().rev()), HMAC_BYTES_MIN)
        }
        // Leading zeros do not change a number.
        AlgorithmParameters::RSA(key) => {
            let exponent: Vec<u8> = decode(&key.e).into_iter().skip_while(|byte| *byte == 0).collect();
            // With the exponent 1 every message is its own signature, and an even exponent has no inverse.
            if exponent.len() < 2 && exponent.first().is_none_or(|byte| *byte < 3 || byte % 2 == 0) {
                return Some("is too weak: its exponent is less than 3 or even".into());
            }
            ("its modulus", without_zeros(decode(&key.n).into_iter()), RSA_BYTES_MIN)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            return weakness_of_point(&decode(&key.x));
        }
        _ => return None,
    };
    (bytes < min).then(|| format!("is too weak: {what} has {bytes} bytes, and at least {min} are needed"))
}

/// Returns why an Ed25519 public key must not be used. A point of small order verifies signatures that nobody made.
fn weakness_of_point(x: &[u8]) -> Option<String> {
    let Ok(x) = <&[u8; PUBLIC_KEY_LENGTH]>::try_from(x) else {
        return Some(format!("is too weak: x has {} bytes, and {PUBLIC_KEY_LENGTH} are needed", x.len()));
    };
    match VerifyingKey::from_bytes(x) {
        Ok(key) if !key.is_weak() => None,
        Ok(_) => Some("is too weak: x is a point of small order".into()),
        Err(_) => Some("is too weak: x is no point of the curve".into()),
    }
}

fn without_zeros(bytes: impl Iterator<Item = u8>) -> usize {
    bytes.skip_while(|byte| *byte == 0).count()
}

/// Parses the `alg` of a header.
pub(super) fn algorithm(alg: &str, kid: Option<&str>) -> Result<Algorithm, TokenError> {
    Ok(match alg {
        "HS256" => Algorithm::HS256,
        "HS384" => Algorithm::HS384,
        "HS512" => Algorithm::HS512,
        "RS256" => Algorithm::RS256,
        "RS384" => Algorithm::RS384,
        "RS512" => Algorithm::RS512,
        "ES256" => Algorithm::ES256,
        "ES384" => Algorithm::ES384,
        "EdDSA" | "Ed25519" => Algorithm::EdDSA,
        // Valid algorithms that no supported key type can verify.
        "ES512" | "Ed448" => {
            return Err(kid.map_or(TokenError::NoSigner, |kid| TokenError::UnknownKey(kid.to_owned())));
        }
        _ => return Err(TokenError::NoSigner),
    })
}
