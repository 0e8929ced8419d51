//! Tokens: what is in them, whether they are genuine, and making them.
//!
//! Owns the signing secret: the configured one, or one generated once in
//! `data_dir/jwt.secret` with mode 0600; the key sets that other issuers publish, inline,
//! in a file or behind a URL; and the opaque keys that stand for roles. Verifies HS256 to
//! HS512, RS256 to RS512, ES256, ES384 and Ed25519; no library of ours knows ES512 and
//! Ed448. Reads no clock (the time is an argument), never logs a token or a key, and says
//! no more to a client than the texts of `reference/realtime-protocol.md` §1.3 and §3.4.
mod keys;
mod keyset;
mod mint;
mod opaque;
mod refusal;
mod source;
mod verify;

pub use keys::{Config, Error, Keys, SECRET_FILE};
pub use mint::{MintRequest, Role, mint};
pub use opaque::{ApiKey, OPAQUE_PREFIX};
pub use refusal::TokenError;
pub use verify::Claims;
