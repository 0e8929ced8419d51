//! The private PostgreSQL (being built).
use super::{Config, Error, Target};
use crate::scope::Scope;
use std::time::Duration;

/// How long a running server is given to stop before it is stopped the hard way.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Private {
    target: Target,
}

impl Private {
    pub(super) async fn open(_config: &Config, _scope: &Scope) -> Result<Self, Error> {
        Err(Error::Unfit("the private PostgreSQL is not built yet: give database.url".into()))
    }

    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    pub(super) fn tcp_target(&self) -> Result<Target, Error> {
        Ok(self.target.clone())
    }

    pub(super) async fn stop(&self) -> Result<(), Error> {
        Ok(())
    }
}
