//! `convoke migrate`: brings the database to this program's version, without starting the daemon.
use super::{Outcome, screen, settings::Settings};
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
        screen::json(&done);
        return Ok(());
    }
    for name in &done.applied {
        screen::line(format!("applied {name}"));
    }
    screen::line(format!("schema convoke is at version {}", done.version));
    Ok(())
}
