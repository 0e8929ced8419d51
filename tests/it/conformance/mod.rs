//! The statements of the checklist in `docs/spec/realtime-protocol.md` §10, tested over raw websockets.
//! Each test's doc line names the statements it covers.
mod broadcast;
mod changes;
mod connect;
mod edge;
mod framing;
mod hostile;
mod http;
mod join;
mod limits;
mod memory;
mod presence;
mod private;
mod raw_requests;
mod table;
mod token;

use crate::realtime::quick;
use convoke::gateway::{Config, limits as over_time};
use std::time::Duration;

/// Convoke's rate limits, with a burst of one second, so that tests reach them soon.
fn slow(limits: over_time::Config) -> Config {
    Config { limits: over_time::Config { burst: Duration::from_secs(1), ..limits }, ..quick() }
}

/// Supabase Realtime's rate limits.
fn supabase(supabase: over_time::Supabase) -> Config {
    let mode = over_time::Mode::Supabase;
    Config { limits: over_time::Config { mode, supabase, ..over_time::Config::default() }, ..quick() }
}
