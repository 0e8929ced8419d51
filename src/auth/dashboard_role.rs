//! The role of a person at the dashboard, which is also the claim `dash` of a token.
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// What a person may do in an org. Each role has the rights of those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DashboardRole {
    /// Reads.
    #[default]
    Viewer,
    /// Requests tasks, and commands every task and agent of the org.
    Operator,
    /// Also reads what belongs to the daemon and not to an org: its channels and settings.
    Admin,
}

impl DashboardRole {
    pub(super) const ALL: [Self; 3] = [Self::Viewer, Self::Operator, Self::Admin];

    /// The value of the claim `dash`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl FromStr for DashboardRole {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|role| role.as_str() == text);
        known.ok_or_else(|| format!("{text:?} is no role: use viewer, operator or admin"))
    }
}
