//! Why a token is refused, and the texts that clients know (`reference/realtime-protocol.md` §1.3, §3.4, §3.8).

/// Why a token is refused. `Display` is the text without a code, as system messages have it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of base64url, or no JSON inside.
    #[error("The token provided is not a valid JWT")]
    Malformed,
    /// No usable algorithm, or an asymmetric one without a key id.
    #[error("Failed to generate JWT signer, check your JWT secret or JWKS configuration")]
    NoSigner,
    /// The key id is not known.
    #[error(
        "Failed to generate JWT signer for key ID (kid) \"{0}\", check your JWT secret or JWKS configuration"
    )]
    UnknownKey(String),
    /// Signed with another key, or changed.
    #[error("Failed to validate JWT signature")]
    BadSignature,
    /// `exp` is not in the future.
    #[error("Token has expired {seconds_ago} seconds ago")]
    Expired {
        /// How long it is over.
        seconds_ago: i64,
    },
    /// `role` or `exp` is missing.
    #[error("Fields `role` and `exp` are required in JWT")]
    MissingFields,
    /// A claim has the wrong type.
    #[error("Claim {0} is invalid")]
    BadClaim(&'static str),
    /// A claim has another value than the settings want.
    #[error("Claim {0} is not the expected one")]
    OtherClaim(String),
}

impl TokenError {
    /// The `error` text of a refused handshake.
    #[must_use]
    pub fn handshake_text(&self) -> String {
        match self {
            Self::Expired { .. } => "Token has expired".to_owned(),
            Self::BadClaim(_) | Self::OtherClaim(_) => "Error connecting to Realtime".to_owned(),
            known => known.to_string(),
        }
    }

    /// The `reason` text of a refused join, with its code.
    #[must_use]
    pub fn join_text(&self) -> String {
        let code = match self {
            Self::Malformed => "MalformedJWT",
            Self::NoSigner | Self::UnknownKey(_) => "JwtSignerError",
            Self::BadSignature => "JwtSignatureError",
            Self::Expired { .. } | Self::MissingFields => "InvalidJWTToken",
            Self::BadClaim(_) | Self::OtherClaim(_) => return "Unknown Error on Channel".to_owned(),
        };
        format!("{code}: {self}")
    }
}
