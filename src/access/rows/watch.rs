//! Looks whether policies, privileges or roles changed, so that it takes effect within seconds.
//!
//! A change to a table's policies also makes the log describe the table anew, which takes effect at once
//! (see [`super::Table`]); privileges, roles and functions only show here.
use super::{Inner, judge::CATALOG_WITHIN, memory::Watched, session::Session};
use crate::scope::{OnExit, Scope};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};

/// How often it looks, while anything is known.
const EVERY: Duration = Duration::from_secs(1);

pub(super) fn start(scope: &Scope, inner: &Arc<Inner>) {
    let inner = Arc::downgrade(inner);
    scope.spawn("row security watch", OnExit::Log, |stop| async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch(inner.clone()) => {}
        }
        if let Some(inner) = inner.upgrade() {
            inner.sessions.close();
        }
        Ok(())
    });
}

async fn watch(inner: Weak<Inner>) {
    let mut last: Option<(Watched, String)> = None;
    loop {
        tokio::time::sleep(EVERY).await;
        let Some(inner) = inner.upgrade() else { return };
        let Some(watched) = inner.catalog.watched() else { continue };
        let lent = inner.sessions.lend().await;
        let found = tokio::time::timeout(CATALOG_WITHIN, fingerprint(&lent.session, &watched)).await;
        let Ok(Ok(found)) = found else {
            // Lost, or at odds with the catalog: what is known may be old.
            inner.catalog.forget();
            continue;
        };
        lent.give_back();
        let now = Some((watched, found));
        // What was never looked at may have changed since it was read.
        if last != now {
            inner.catalog.forget();
            last = now;
        }
    }
}

async fn fingerprint(session: &Session, watched: &Watched) -> Result<String, tokio_postgres::Error> {
    let Watched { tables, functions, roles } = watched;
    session.client.batch_execute("begin read only; set local search_path = pg_catalog").await?;
    let sql = include_str!("sql/fingerprint.sql");
    session.client.query_one(sql, &[tables, functions, roles]).await?.try_get(0)
}
