//! `convoke migrate`: applies missing migrations without starting the daemon.
use super::{Outcome, output, settings::Settings};
use crate::{
    db::{self, Database},
    scope::Scope,
};
use std::time::Duration;

pub(super) async fn run(settings: &Settings) -> Outcome {
    let config = settings.load()?.config;
    let scope = Scope::default();
    let database = Database::open(&config.database, &scope).await?;
    let outcome = db::migrate(&database).await;
    database.stop().await?;
    let _ = scope.drain(Duration::from_secs(5)).await;
    let done = outcome?;
    if settings.json {
        output::json(&done);
        return Ok(());
    }
    for name in &done.applied {
        output::line(format!("applied {name}"));
    }
    output::line(format!("schema convoke is at version {}", done.version));
    Ok(())
}
