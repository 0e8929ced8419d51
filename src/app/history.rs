//! The histories of the configured rooms, and their state on `/health`.
use super::health::show_degraded;
use crate::{
    api::Health,
    clock::Clock,
    config::Config,
    hub::{
        Hub,
        history::{self, Rules},
    },
    scope::Scope,
    telemetry::Registry,
};
use anyhow::Context;

/// Opens the histories, if any topic has one.
pub(super) fn start(
    scope: &Scope,
    hub: &Hub,
    config: &Config,
    clock: &Clock,
    metrics: &Registry,
    health: &Health,
) -> anyhow::Result<()> {
    let rules = Rules::new(config.channels.clone());
    if rules.longest().is_none() {
        return Ok(());
    }
    let dir = config.database.data_dir.join("history");
    let opened = history::start(scope, hub, &dir, rules, &config.history, clock.clone(), metrics);
    let kept = opened.with_context(|| format!("cannot keep the history of channels in {}", dir.display()))?;
    show_degraded(scope, health, "history", kept.degraded());
    Ok(())
}
