//! The page on which a person watches the agents: who works on what, since when, with what result.
//!
//! Not built yet. It will be static files served by `api`, and speak to the daemon as any other
//! client does: over the channels and `/v1`, with a key. It will own no state and no right of its own.
