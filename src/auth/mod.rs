//! Tokens: verification, the rights of their bearers, and creation.
//!
//! Owns the signing secret (the configured one, or one generated once in `data_dir/jwt.secret` with mode
//! 0600), the key sets of other issuers (inline, in a file or behind a URL), and the opaque keys that stand
//! for roles. Verifies HS256 to HS512, RS256 to RS512, ES256, ES384 and Ed25519; the libraries in use support
//! neither ES512 nor Ed448. Reads no clock (the time is an argument), never logs a token or a key, and tells
//! a client no more than the texts of `docs/spec/realtime-protocol.md` §1.3 and §3.4.
mod api_keys;
mod claims;
mod dashboard_role;
mod issuer_roles;
mod keys;
mod keyset;
mod login;
mod mint;
mod principal;
mod refusal;
mod source;
mod strict_json;
mod verify;

/// The token in the value of a header `Authorization`. `None` for another scheme than `Bearer`.
#[must_use]
pub fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token)
}

pub use api_keys::{ApiKey, OPAQUE_PREFIX};
pub use claims::Claims;
pub use dashboard_role::DashboardRole;
pub use issuer_roles::IssuerRoles;
pub use keys::{Config, Error, Keys, SECRET_FILE};
pub use login::Login;
pub use mint::{MintRequest, mint};
pub use principal::{Denied, Principal, Role};
pub use refusal::TokenError;
