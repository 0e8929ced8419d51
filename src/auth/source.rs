//! Key sets that change: a file or a URL that is read periodically.
//!
//! Read every ten minutes, and on demand for an unknown key id, at most once in ten seconds. Concurrent
//! callers share one attempt. A failed attempt keeps the last keys; the first of several failures is logged.
use super::keyset::KeySet;
use crate::{
    scope::{OnExit, Scope},
    telemetry::without_login,
};
use parking_lot::RwLock;
use std::{fmt, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

/// Interval of periodic reads.
const INTERVAL: Duration = Duration::from_secs(600);
/// Least time between two attempts. Anyone can send an unknown key id, so this also limits requests to the
/// issuer.
const ATTEMPT_INTERVAL: Duration = Duration::from_secs(10);
/// Timeout of one attempt.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of a document.
pub(super) const BYTES_MAX: u64 = 256 << 10;

/// The location of a key set.
#[derive(Clone)]
pub(super) enum KeyLocation {
    File(PathBuf),
    Url(String),
}

/// Without the login of a URL.
impl fmt::Display for KeyLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Url(url) => f.write_str(&without_login(url)),
        }
    }
}

/// A key set with its location. Clones share it.
#[derive(Clone)]
pub(super) struct Source(Arc<Inner>);

struct Inner {
    location: KeyLocation,
    keys: RwLock<Arc<KeySet>>,
    /// Locked for the whole of an attempt, so that concurrent callers wait for it and then find it recent.
    attempt: Mutex<Attempt>,
}

#[derive(Default)]
struct Attempt {
    last: Option<Instant>,
    failing: bool,
}

impl Source {
    pub(super) fn new(location: KeyLocation, keys: KeySet) -> Self {
        Self(Arc::new(Inner { location, keys: RwLock::new(Arc::new(keys)), attempt: Mutex::default() }))
    }

    /// The current keys.
    pub(super) fn keys(&self) -> Arc<KeySet> {
        self.0.keys.read().clone()
    }

    /// Reads the keys now and then periodically, until the scope stops.
    pub(super) fn keep_fresh(&self, scope: &Scope) {
        let source = self.clone();
        scope.spawn("key set", OnExit::Log, |stop| async move {
            loop {
                source.refresh().await;
                if timeout(INTERVAL, stop.cancelled()).await.is_ok() {
                    return Ok(());
                }
            }
        });
    }

    /// Reads the keys, unless the last attempt began less than ten seconds ago.
    pub(super) async fn refresh(&self) {
        let mut attempt = self.0.attempt.lock().await;
        if attempt.last.is_some_and(|last| last.elapsed() < ATTEMPT_INTERVAL) {
            return;
        }
        // Set before the read, so that a failed or canceled attempt counts, too.
        attempt.last = Some(Instant::now());
        let read = timeout(TIMEOUT, self.read())
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {TIMEOUT:?}")));
        match read.and_then(|json| KeySet::parse(&json)) {
            Ok(keys) => {
                if attempt.failing {
                    tracing::info!(keys = keys.len(), "key set readable again");
                }
                attempt.failing = false;
                for reason in keys.refused() {
                    tracing::warn!(location = %self.0.location, reason, "key of the key set ignored");
                }
                *self.0.keys.write() = Arc::new(keys);
            }
            Err(error) => {
                if !attempt.failing {
                    let kept = self.keys().len();
                    tracing::warn!(location = %self.0.location, error, kept, "key set not readable, last keys stay in use");
                }
                attempt.failing = true;
            }
        }
    }

    async fn read(&self) -> Result<Vec<u8>, String> {
        let url = match &self.0.location {
            KeyLocation::File(path) => {
                let path = path.clone();
                let read = tokio::task::spawn_blocking(move || crate::files::read_named(&path, BYTES_MAX));
                return read.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string());
            }
            KeyLocation::Url(url) => url,
        };
        let client =
            reqwest::Client::builder().timeout(TIMEOUT).build().map_err(|e| e.without_url().to_string())?;
        let asked = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let mut response = asked.map_err(|e| e.without_url().to_string())?;
        let mut json = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|e| e.without_url().to_string())? {
            json.extend_from_slice(&part);
            if json.len() as u64 > BYTES_MAX {
                return Err(format!("it has more than {BYTES_MAX} bytes"));
            }
        }
        Ok(json)
    }
}
