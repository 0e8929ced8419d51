//! Limits on unauthenticated clients: connections and time.
//!
//! Owns the caps on connections (total and per address), the stream under each connection, which ends when its client
//! does not read, and request bodies, which fail when they are slow or too many. The server in `app` wraps every
//! route in them.
mod body;
mod caps;
mod stream;

pub use body::{Bodies, BodyCharge, BodyError, BodyLimits, TimedBody, body_error};
pub use caps::{Caps, ConnectionSlot, Full};
pub use stream::Stream;
