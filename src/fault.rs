//! Named points at which a test can kill the daemon with SIGKILL.
//!
//! `CONVOKE_FAULT=task.awarded` kills the process when it passes that point for
//! the first time, `task.awarded:3` at the third time. Only builds with debug
//! assertions look; in a release build a point is nothing.
use std::sync::{
    OnceLock,
    atomic::{AtomicU32, Ordering},
};

/// The environment variable that names the point.
pub const VARIABLE: &str = "CONVOKE_FAULT";

/// Dies here, as by `kill -9`, when the environment says so.
#[inline]
pub fn point(name: &str) {
    if cfg!(debug_assertions) {
        pass(name);
    }
}

struct Armed {
    name: String,
    passes_left: AtomicU32,
}

fn pass(name: &str) {
    static ARMED: OnceLock<Option<Armed>> = OnceLock::new();
    let armed = ARMED.get_or_init(|| {
        let text = std::env::var(VARIABLE).ok()?;
        let (name, nth) = text.split_once(':').unwrap_or((&text, "1"));
        let passes_left = AtomicU32::new(nth.parse().ok()?);
        Some(Armed { name: name.to_owned(), passes_left })
    });
    let Some(armed) = armed else { return };
    if armed.name == name && armed.passes_left.fetch_sub(1, Ordering::Relaxed) == 1 {
        // The shell's kill leaves no time for destructors, flushes or handlers, which is the point.
        let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
        std::process::abort();
    }
}
