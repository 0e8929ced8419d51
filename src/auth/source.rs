//! Key sets that change: a file or a URL that is read again.
//!
//! Read every ten minutes, and at once for a key id that is not known, but at most every ten
//! seconds, however many ask, all of whom wait for the same attempt. What fails keeps the
//! keys of before and is logged when it begins.
use super::keyset::KeySet;
use crate::scope::{OnExit, Scope};
use parking_lot::RwLock;
use std::{path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

/// How often a set is read without being asked for.
const EVERY: Duration = Duration::from_secs(600);
/// Shortest time between two attempts.
const PAUSE: Duration = Duration::from_secs(10);
/// How long an attempt may take.
const WITHIN: Duration = Duration::from_secs(3);
/// Largest document.
const BYTES_MAX: usize = 256 << 10;

/// Where keys come from.
#[derive(Clone, Debug)]
pub(super) enum Place {
    File(PathBuf),
    Url(String),
}

/// Keys that are read again. Clones share them.
#[derive(Clone)]
pub(super) struct Source(Arc<Inner>);

struct Inner {
    place: Place,
    keys: RwLock<Arc<KeySet>>,
    attempt: Mutex<Attempt>,
}

#[derive(Default)]
struct Attempt {
    last: Option<Instant>,
    failing: bool,
}

impl Source {
    pub(super) fn new(place: Place, keys: KeySet) -> Self {
        Self(Arc::new(Inner { place, keys: RwLock::new(Arc::new(keys)), attempt: Mutex::default() }))
    }

    /// The keys as they are now.
    pub(super) fn keys(&self) -> Arc<KeySet> {
        self.0.keys.read().clone()
    }

    /// Reads them at once and then every ten minutes.
    pub(super) fn keep_fresh(&self, scope: &Scope) {
        let source = self.clone();
        scope.spawn("key set", OnExit::Log, |stop| async move {
            loop {
                source.refresh().await;
                if timeout(EVERY, stop.cancelled()).await.is_ok() {
                    return Ok(());
                }
            }
        });
    }

    /// Reads them again, unless that was tried a short while ago.
    pub(super) async fn refresh(&self) {
        let mut attempt = self.0.attempt.lock().await;
        if attempt.last.is_some_and(|last| last.elapsed() < PAUSE) {
            return;
        }
        attempt.last = Some(Instant::now());
        let read = timeout(WITHIN, self.read())
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {WITHIN:?}")));
        match read.and_then(|json| KeySet::parse(&json)) {
            Ok(keys) => {
                if attempt.failing {
                    tracing::info!(keys = keys.len(), "the key set is read again");
                }
                attempt.failing = false;
                *self.0.keys.write() = Arc::new(keys);
            }
            Err(error) => {
                if !attempt.failing {
                    let kept = self.keys().len();
                    tracing::warn!(place = ?self.0.place, error, kept, "the key set cannot be read: the old keys stay");
                }
                attempt.failing = true;
            }
        }
    }

    async fn read(&self) -> Result<Vec<u8>, String> {
        let url = match &self.0.place {
            Place::File(path) => return tokio::fs::read(path).await.map_err(|e| e.to_string()),
            Place::Url(url) => url,
        };
        let client =
            reqwest::Client::builder().timeout(WITHIN).build().map_err(|e| e.without_url().to_string())?;
        let asked = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let mut response = asked.map_err(|e| e.without_url().to_string())?;
        let mut json = Vec::new();
        while let Some(part) = response.chunk().await.map_err(|e| e.without_url().to_string())? {
            json.extend_from_slice(&part);
            if json.len() > BYTES_MAX {
                return Err(format!("it has more than {BYTES_MAX} bytes"));
            }
        }
        Ok(json)
    }
}
