//! Public keys by their ids: a JSON Web Key Set (RFC 7517), as far as tokens are checked with it.
use super::TokenError;
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::HashMap, fmt};

/// What a key can check.
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

/// Keys by id. Keys of kinds that are not known are passed over.
#[derive(Clone, Default)]
pub(super) struct KeySet(HashMap<String, Vec<(Family, Option<String>, DecodingKey)>>);

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.keys()).finish()
    }
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads `{"keys":[…]}`.
    ///
    /// # Errors
    /// What is wrong with it, without any of it.
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
            let for_signing = jwk.common.public_key_use != Some(PublicKeyUse::Encryption);
            if let (Some(kid), Ok(decoding), true) =
                (jwk.common.key_id.clone(), DecodingKey::from_jwk(&jwk), for_signing)
            {
                let alg = key.get("alg").and_then(Value::as_str).map(str::to_owned);
                set.0.entry(kid).or_default().push((family, alg, decoding));
            }
        }
        Ok(set)
    }

    /// How many key ids it has.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// The key of this id for this algorithm, whose name in the header is `alg`.
    pub(super) fn find(&self, kid: &str, algorithm: Algorithm, alg: &str) -> Option<&DecodingKey> {
        let named = |own: &Option<String>| {
            let is_ed = |name: &str| name == "EdDSA" || name == "Ed25519";
            own.as_deref().is_none_or(|own| own == alg || (is_ed(own) && is_ed(alg)))
        };
        let keys = self.0.get(kid)?;
        keys.iter().find(|(family, own, _)| family.checks(algorithm) && named(own)).map(|(_, _, key)| key)
    }
}

/// The algorithm that a header names.
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
        // Known to others, and no key of ours can check them.
        "ES512" | "Ed448" => {
            return Err(kid.map_or(TokenError::NoSigner, |kid| TokenError::UnknownKey(kid.to_owned())));
        }
        _ => return Err(TokenError::NoSigner),
    })
}
