//! Opaque keys (`sb_publishable_…`, `sb_secret_…`): each stands for a role.
//!
//! Only their SHA-256 is kept, and all of them are compared in a time that tells nothing.
use super::{Claims, Error};
use chrono::DateTime;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fmt;

/// How every opaque key begins; no token does.
pub const OPAQUE_PREFIX: &str = "sb_";
/// Shortest key that is taken, in bytes.
const KEY_BYTES_MIN: usize = 20;
/// When such a key ends, as a claim: the last second of 9999.
const NEVER: i64 = 253_402_300_799;

/// An opaque key and what it stands for.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// The key itself, beginning with `sb_`.
    pub key: Option<SecretString>,
    /// Its SHA-256 in hexadecimal, instead of the key.
    pub sha256: Option<String>,
    /// The role that it stands for: `anon`, `service_role` or another of the database.
    pub role: String,
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiKey").field("role", &self.role).finish_non_exhaustive()
    }
}

/// All opaque keys, hashed.
#[derive(Clone, Debug, Default)]
pub(super) struct Opaque(Vec<([u8; 32], String)>);

impl Opaque {
    /// # Errors
    /// [`Error::ApiKey`] says which one is wrong and why, without the key.
    pub(super) fn new(keys: &[ApiKey]) -> Result<Self, Error> {
        let hashed = keys.iter().enumerate().map(|(at, key)| {
            let wrong = |reason: &str| Error::ApiKey { at, reason: reason.to_owned() };
            if key.role.is_empty() || key.role.eq_ignore_ascii_case("none") {
                return Err(wrong("names no role: use anon, service_role or another of the database"));
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
                    hash(hex).ok_or_else(|| wrong("has no SHA-256 of 64 hexadecimal digits"))?
                }
                _ => return Err(wrong("needs either key or sha256")),
            };
            Ok((hash, key.role.clone()))
        });
        Ok(Self(hashed.collect::<Result<_, _>>()?))
    }

    /// What an opaque key stands for.
    pub(super) fn claims(&self, key: &str) -> Option<Claims> {
        let hash: [u8; 32] = Sha256::digest(key).into();
        let mut found = None;
        // All of them, every byte of them.
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
