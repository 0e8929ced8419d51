//! The statements of the checklist in `reference/realtime-protocol.md` §10, by hand over raw websockets.
//! Each test's doc line names the statements it shows.
mod broadcast;
mod changes;
mod connect;
mod framing;
mod hostile;
mod http;
mod join;
mod limits;
mod presence;
mod private;
mod table;
mod token;

use crate::realtime::quick;
use convoke::gateway::{Config, limits as over_time};
use std::time::Duration;

/// Our own limits over time, without a burst that hides them.
fn slow(limits: over_time::Config) -> Config {
    Config { limits: over_time::Config { burst: Duration::from_secs(1), ..limits }, ..quick() }
}

/// The original's limits.
fn supabase(supabase: over_time::Supabase) -> Config {
    let mode = over_time::Mode::Supabase;
    Config { limits: over_time::Config { mode, supabase, ..over_time::Config::default() }, ..quick() }
}
