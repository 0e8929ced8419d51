//! The settings, read again while the daemon runs.
//!
//! The filter of the process log changes at once. Every other part was built from its settings at the start, so a change
//! of another key is named until the daemon is restarted or the key has its value again.
use crate::{
    config::{self, Config, Options},
    telemetry,
};
use parking_lot::RwLock;
use serde::Serialize;
use serde_json::Value;
use std::sync::Arc;

/// The setting that changes without a restart.
const LOG: &str = "telemetry.log";

/// What a reading of the settings found, as dotted keys.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SettingsChange {
    /// Keys whose new value is in use.
    pub applied: Vec<String>,
    /// Keys whose new value is not in use before a restart.
    pub needs_restart: Vec<String>,
}

/// The settings of a daemon, and where they came from.
pub(super) struct Settings {
    options: Options,
    /// As they are in use.
    running: Config,
    /// The same for people.
    shown: Arc<RwLock<Value>>,
    /// The keys of the last line of the log.
    told: Vec<String>,
}

impl Settings {
    pub(super) fn new(options: Options, running: Config, shown: Arc<RwLock<Value>>) -> Self {
        Self { options, running, shown, told: Vec::new() }
    }

    /// Where they are read from.
    pub(super) fn options(&self) -> &Options {
        &self.options
    }

    /// Uses what can be used at once. Returns what is different.
    pub(super) fn apply(&mut self, read: Config) -> SettingsChange {
        let mut change = SettingsChange::default();
        for key in config::changed_keys(&self.running, &read) {
            // A program may have a log of its own.
            if key == LOG && telemetry::set_filter(&read.telemetry.log) {
                self.running.telemetry.log.clone_from(&read.telemetry.log);
                tracing::info!(log = read.telemetry.log, "setting telemetry.log is in use");
                change.applied.push(key);
            } else {
                change.needs_restart.push(key);
            }
        }
        if !change.applied.is_empty() {
            *self.shown.write() = config::shown(&self.running);
        }
        if change.needs_restart != self.told {
            if !change.needs_restart.is_empty() {
                let keys = change.needs_restart.join(", ");
                tracing::warn!(keys, "changed settings are not in use before a restart");
            }
            self.told.clone_from(&change.needs_restart);
        }
        change
    }
}
