//! Validates the subscriptions of joins. Concurrent joins share identical checks.
//!
//! A join waits for earlier joins. It fails with `Away` only if the database answers no statement, or if the WAL is not
//! read for eight seconds.
use super::{
    Inner, LogAnchor, Prepared, SubscribeError,
    catalog::Tables,
    check::{self, Refusal},
    item::Item,
};
use crate::{access::rows::Viewer, db::Flights};
use deadpool_postgres::Object;
use futures_util::FutureExt;
use serde_json::{Map, Value};
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout};

/// Timeout of a join while the database does not answer. It is shorter than the retry interval of clients (one or two
/// seconds): a client that retries a pending join joins twice, and some close the channel then.
const SILENT_FOR: Duration = Duration::from_millis(1500);
/// Timeout of a join in the queue. The join timeout of clients is 10 s.
const WITHIN: Duration = Duration::from_secs(8);
/// The retry time of a join that is shed; random, so that clients that were shed together do not return together.
const RETRY_AFTER: std::ops::Range<Duration> = Duration::from_secs(2)..Duration::from_secs(5);
/// Pause between two attempts while the database is unavailable.
const PAUSE: Duration = Duration::from_millis(200);

/// Checks by role and item; the item's id is 0 in keys.
pub(super) type Checks = Flights<(String, Item), Result<(Item, Tables), Refusal>>;

pub(super) async fn prepare(
    inner: &Arc<Inner>,
    items: &[Map<String, Value>],
    viewer: &Arc<Viewer>,
    plain: bool,
) -> Result<Prepared, SubscribeError> {
    let items: Result<Vec<Item>, String> = items.iter().map(Item::parse).collect();
    let mut items = items.map_err(SubscribeError::Asked)?;
    // Each test is made for each changed row, while other channels wait: their number is bounded for the channel, too.
    let (tests, max) =
        (items.iter().map(|item| item.filter.tests()).sum::<usize>(), inner.dispatcher.config.items_max);
    if tests > max {
        let text = format!("Too many conditions in the filters of one channel: at most {max}");
        return Err(SubscribeError::Asked(text));
    }
    let began = Instant::now();
    inner.streams(began).await?;
    for item in &mut items {
        checked(inner, viewer, item, began).await?;
    }
    let begun = LogAnchor { number: inner.log.begin(), log: inner.log.clone(), kept: false };
    Ok(Prepared { begun, viewer: viewer.clone(), items: items.into(), plain })
}

/// Validates an item, and normalizes the values of its filter to Postgres's text form.
async fn checked(
    inner: &Arc<Inner>,
    viewer: &Arc<Viewer>,
    item: &mut Item,
    began: Instant,
) -> Result<(), SubscribeError> {
    let key = (viewer.role().to_owned(), Item { id: 0, ..item.clone() });
    loop {
        let (asked, viewer, mut wanted) = (inner.clone(), viewer.clone(), key.1.clone());
        let ask = || {
            async move {
                let dispatcher = &asked.dispatcher;
                let tables =
                    check::check(&dispatcher.catalog, &dispatcher.rows, &viewer, &mut wanted).await?;
                Ok((wanted, tables))
            }
            .boxed()
        };
        let mut landing = std::pin::pin!(inner.checks.ask(key.clone(), ask));
        let landed = loop {
            match timeout(SILENT_FOR, &mut landing).await {
                Ok(landed) => break landed,
                Err(_) => inner.may_wait(began)?,
            }
        };
        match landed.answer {
            Ok((checked, tables)) => {
                inner.refresh(&tables);
                item.filter = checked.filter;
                return Ok(());
            }
            // A check that began before this join may be older than the table that the item names.
            Err(Refusal::Asked(_)) if landed.was_under_way => {}
            Err(Refusal::Asked(text)) => return Err(SubscribeError::Asked(text)),
            Err(Refusal::Away(error)) => {
                tracing::debug!(%error, "a subscription waits for the database");
                sleep(PAUSE).await;
                if began.elapsed() >= SILENT_FOR {
                    inner.may_wait(began)?;
                }
            }
        }
    }
}

impl Inner {
    /// Waits until the WAL is read. It is not read for a moment after a start or a lost connection.
    async fn streams(&self, began: Instant) -> Result<(), SubscribeError> {
        let mut streaming = self.streaming.clone();
        loop {
            match timeout(SILENT_FOR, streaming.wait_for(|streams| *streams)).await {
                Ok(Ok(_)) => return Ok(()),
                // The daemon stops.
                Ok(Err(_)) => return Err(SubscribeError::Away),
                Err(_) => {}
            }
            // A stopped stream does not imply an unavailable database, so a connection is requested.
            let answers = self.dispatcher.catalog.ask(async |_: &mut Object| Ok(())).await;
            if self.dispatcher.catalog.is_away() || began.elapsed() >= WITHIN {
                tracing::debug!(?answers, "a subscription waited in vain for the WAL to be read");
                return Err(SubscribeError::Away);
            }
        }
    }

    /// Whether a join that began at `began` may wait longer.
    fn may_wait(&self, began: Instant) -> Result<(), SubscribeError> {
        if self.dispatcher.catalog.is_away() {
            return Err(SubscribeError::Away);
        }
        match began.elapsed() < WITHIN {
            true => Ok(()),
            false => Err(SubscribeError::Busy { retry_after: rand::random_range(RETRY_AFTER) }),
        }
    }
}
