//! Opaque keys (`sb_publishable_…`, `sb_secret_…`): each stands for a role.
//!
//! Only SHA-256 hashes are kept in memory. A key is compared with every hash in constant time.
use super::{Claims, Error};
use chrono::DateTime;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fmt;

/// Prefix of every opaque key; no JWT has it.
pub const OPAQUE_PREFIX: &str = "sb_";
/// Least bytes of a key.
const KEY_BYTES_MIN: usize = 20;
/// Expiry of an opaque key as a claim: the last second of the year 9999.
const NEVER: i64 = 253_402_300_799;

/// An opaque key and its role.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The key, with the prefix `sb_`.
    pub key: Option<SecretString>,
    /// Its SHA-256 in hexadecimal, as an alternative to `key`.
    pub sha256: Option<String>,
    /// The role: `anon`, `service_role` or another one in `auth.roles`.
    pub role: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("role", &self.role).finish_non_exhaustive()
    }
}

/// The hashes of all opaque keys, with their roles.
#[derive(Clone, Debug, Default)]
pub(super) struct Opaque(Vec<([u8; 32], String)>);

impl Opaque {
    /// # Errors
    /// [`Error::ApiKey`] with the index and the reason, without the key.
    pub(super) fn new(keys: &[ApiKey], roles: &[String]) -> Result<Self, Error> {
        let hashed = keys.iter().enumerate().map(|(at, key)| {
            let wrong = |reason: &str| Error::ApiKey { at, reason: reason.to_owned() };
            if !roles.contains(&key.role) {
                return Err(wrong(
                    "names a role that is not in auth.roles: use anon, service_role or another one of them",
                ));
            }
            let hash = match (&key.key, &key.sha256) {
                (Some(key), None) => {
                    let key = key.expose_secret();
                    if !key.starts_with(OPAQUE_PREFIX) || key.len() < KEY_BYTES_MIN {
                        return Err(wrong("must begin with sb_ and have at least 20 bytes"));
                    }
                    Sha256::digest(key).into()
                }
                (None, Some(hex)) => {
                    hash(hex).ok_or_else(|| wrong("has a sha256 that is not 64 hexadecimal digits"))?
                }
                _ => return Err(wrong("needs either key or sha256")),
            };
            Ok((hash, key.role.clone()))
        });
        Ok(Self(hashed.collect::<Result<_, _>>()?))
    }

    /// Returns the claims for an opaque key; `None` if no key matches.
    pub(super) fn claims(&self, key: &str) -> Option<Claims> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let mut found = None;
        // Every byte of every hash, so that the time does not depend on the key.
        for (known, role) in &self.0 {
            let differs = known.iter().zip(&hash).fold(0, |differs, (a, b)| differs | (a ^ b));
            if differs == 0 {
                found = Some(role);
            }
        }
        let role = found?.clone();
        let raw = json!({ "role": role, "exp": NEVER }).as_object().cloned().unwrap_or_default();
        let exp = DateTime::from_timestamp(NEVER, 0)?;
        Some(Claims { role, org: None, agent_id: None, exp, sub: None, raw })
    }
}

fn hash(hex: &str) -> Option<[u8; 32]> {
    let digits = hex.as_bytes();
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    (digits.len() == 64 && digits.iter().all(u8::is_ascii_hexdigit)).then_some(hash)
}
