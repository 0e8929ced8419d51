//! Questions of filters that only Postgres can answer, asked together and remembered for a while.
//!
//! A question that fails is one that nobody passes.
use super::catalog::Catalog;
use crate::filter::{self, Answers, Probe, Truth};
use deadpool_postgres::Object;
use parking_lot::Mutex;
use std::{sync::Arc, time::Duration};

/// Rounds of questions after which everything is forgotten, so that what is remembered does not grow for ever.
const ROUNDS_MAX: u32 = 1000;
/// How long one question may take.
const WITHIN: Duration = Duration::from_secs(1);
/// Pause while the database is away.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Oracle {
    catalog: Arc<Catalog>,
    kept: Mutex<(Answers, u32)>,
}

/// What is known when rows are looked at, and what is not.
pub(super) struct Asking(Answers);

impl Oracle {
    pub(super) fn new(catalog: Arc<Catalog>) -> Self {
        Self { catalog, kept: Mutex::default() }
    }

    /// What is known already; to be [given back](Self::asked).
    pub(super) fn asking(&self) -> Asking {
        Asking(std::mem::take(&mut self.kept.lock().0))
    }

    /// Fetches what was asked in vain. Whether there was something: then it is to be asked again. Waits while the
    /// database is away.
    pub(super) async fn asked(&self, asking: Asking) -> bool {
        let Asking(mut answers) = asking;
        let lacked = answers.lack();
        while answers.lack() {
            let fetched =
                self.catalog.ask(async |client: &mut Object| Ok(answers.fetch(client, WITHIN).await?));
            if let Err(error) = fetched.await {
                tracing::debug!(%error, "filters wait for the database");
                tokio::time::sleep(PAUSE).await;
            }
        }
        let mut kept = self.kept.lock();
        kept.1 += u32::from(lacked);
        // Not while they are asked for: the next look needs what was fetched for it.
        if kept.1 > ROUNDS_MAX && !lacked {
            *kept = (Answers::default(), 0);
        } else {
            kept.0 = answers;
        }
        lacked
    }
}

impl filter::Oracle for Asking {
    fn ask(&mut self, probe: &Arc<Probe>, value: &str) -> Truth {
        self.0.ask(probe, value)
    }
}
