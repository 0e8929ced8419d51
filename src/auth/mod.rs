//! Tokens: what is in them, whether they are genuine, and making them.
//!
//! Owns the signing secret: the configured one, or one generated once in
//! `data_dir/jwt.secret` with mode 0600. Verifies HS256, HS384 and HS512 with it;
//! a token signed otherwise is refused by key id, where a JWKS will be asked.
//! Reads no clock (the time is an argument), never logs a token, and says no more
//! to a client than the texts of `reference/realtime-protocol.md` §1.3 and §3.4.
mod keys;
mod mint;
mod refusal;
mod verify;

pub use keys::{Config, Error, Keys, SECRET_FILE};
pub use mint::{MintRequest, Role, mint};
pub use refusal::TokenError;
pub use verify::Claims;
