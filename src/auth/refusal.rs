//! Reasons why a token is refused, with their texts for clients: those of Supabase Realtime where it has one
//! (`docs/spec/realtime-protocol.md` §1.3, §3.4, §3.8).

/// Why a token is refused. `Display` is the text without a code, as in `system` messages.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of base64url, or no JSON object in them, or one with a duplicate member.
    #[error("The token provided is not a valid JWT")]
    Malformed,
    /// No usable algorithm, or an asymmetric one without a key id.
    #[error("Failed to generate JWT signer, check your JWT secret or JWKS configuration")]
    NoSigner,
    /// No key has this id.
    #[error(
        "Failed to generate JWT signer for key ID (kid) \"{0}\", check your JWT secret or JWKS configuration"
    )]
    UnknownKey(String),
    /// The signature does not match.
    #[error("Failed to validate JWT signature")]
    BadSignature,
    /// `exp` is not in the future.
    #[error("Token has expired {seconds_ago} seconds ago")]
    Expired {
        /// Seconds since `exp`.
        seconds_ago: i64,
    },
    /// `nbf` is in the future.
    #[error("Token is not valid for another {seconds} seconds")]
    NotYetValid {
        /// Seconds until `nbf`.
        seconds: i64,
    },
    /// The header has `crit`: it demands an extension, and none is supported.
    #[error("Header crit demands extensions of JWT that are not supported")]
    Critical,
    /// A claim about the bearer's identity or org is present and invalid.
    #[error("Claim {claim} is invalid: use {expected}, or leave it out")]
    BadIdentity {
        /// Name of the claim.
        claim: &'static str,
        /// The valid values.
        expected: &'static str,
    },
    /// `role` or `exp` is missing.
    #[error("Fields `role` and `exp` are required in JWT")]
    MissingFields,
    /// A claim has the wrong type.
    #[error("Claim {0} is invalid")]
    BadClaim(&'static str),
    /// A claim differs from the value in `auth.claims`.
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
            Self::Expired { .. }
            | Self::NotYetValid { .. }
            | Self::Critical
            | Self::BadIdentity { .. }
            | Self::MissingFields => "InvalidJWTToken",
            Self::BadClaim(_) | Self::OtherClaim(_) => return "Unknown Error on Channel".to_owned(),
        };
        format!("{code}: {self}")
    }
}
