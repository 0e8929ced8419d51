//! Types of row security: tables, images of rows, viewers, verdicts.
use crate::auth::Claims;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// A table as the WAL described it at the time of a change.
///
/// Policies and privileges are cached by the address of its [`Arc`]: keep one for as long as the description
/// is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTable {
    /// Oid in `pg_class`.
    pub oid: u32,
    /// Schema, like `public`.
    pub schema: String,
    /// Name without the schema.
    pub name: String,
    /// The columns in the order of the images' cells.
    pub columns: Vec<PolicyColumn>,
}

/// A column of a [`PolicyTable`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyColumn {
    /// Name.
    pub name: String,
    /// Oid of the type in `pg_type`.
    pub type_oid: u32,
}

/// One column's value in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// SQL `NULL`.
    Null,
    /// The image lacks the value: it is unchanged and stored out of line (TOAST), or outside the replica
    /// identity.
    Unknown,
    /// The value in the text form of Postgres, UTF-8.
    Text(Bytes),
}

/// The cells of a row in the order of its table's columns.
pub type Image = Vec<Cell>;

/// The operation on a row, with the images that the WAL carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Images {
    /// A new row.
    Insert {
        /// The row.
        new: Image,
    },
    /// Another version of a row.
    Update {
        /// The new version of the row, completed from the old one where possible.
        new: Image,
        /// The old version, as far as the WAL carries it; `None` if it carries no part of it.
        old: Option<Image>,
    },
    /// The end of a row.
    Delete {
        /// The deleted row, as far as the WAL carries it: often only the key.
        old: Option<Image>,
    },
}

/// A change to check against row security.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// The table; the same [`Arc`] for every change with the same description.
    pub table: Arc<PolicyTable>,
    /// The operation and its images.
    pub images: Images,
}

/// A role with its claims. Subscribers with equal role and claims are one viewer.
#[derive(Clone, Debug)]
pub struct Viewer {
    pub(super) role: String,
    /// The role in the token, which may be missing in `auth.roles`.
    named_role: String,
    pub(super) sub: String,
    pub(super) claims: String,
    /// First 128 bits of a SHA-256 of role and claims: the key of cached outcomes. A collision would leak
    /// rows, so a fast hash is not enough.
    pub(super) fingerprint: u128,
}

impl PartialEq for Viewer {
    fn eq(&self, other: &Self) -> bool {
        self.fingerprint == other.fingerprint
    }
}
impl Eq for Viewer {}
impl Hash for Viewer {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.fingerprint.hash(state);
    }
}

impl Viewer {
    /// The viewer with these claims. Policies see all of them as `request.jwt.claims`.
    #[must_use]
    pub fn of(claims: &Claims) -> Self {
        let role = claims.role.clone();
        let named = claims.raw.get("role").and_then(serde_json::Value::as_str);
        let named_role = named.unwrap_or(&role).to_owned();
        let raw = serde_json::Value::Object(claims.raw.clone()).to_string();
        // The zero byte separates the two parts: a role cannot contain it.
        let digest = Sha256::new().chain_update(&role).chain_update([0]).chain_update(&raw).finalize();
        let fingerprint = digest.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte));
        Self { role, named_role, sub: claims.sub.clone().unwrap_or_default(), claims: raw, fingerprint }
    }

    /// The role in the token, for error messages.
    #[must_use]
    pub fn named_role(&self) -> &str {
        &self.named_role
    }

    /// The database role of the checks.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }
}

/// Whether row security of a table limits a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// Row security is disabled for the table; every row is visible.
    Off,
    /// Row security does not apply to this role (owner, superuser or `bypassrls`); every row is visible.
    Exempt,
    /// Policies decide for each row.
    On,
}

/// The rights of a role on a table, independent of the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// For each column of the [`PolicyTable`], whether the role may select it. False for columns that the
    /// table no longer has, and for all columns if the role may not use the schema.
    pub selectable: Vec<bool>,
    /// Positions of the primary key's columns in the [`PolicyTable`]; `None` if there is no primary key or
    /// the images lack a column of it.
    pub primary_key: Option<Vec<usize>>,
    /// Whether policies limit the rows.
    pub security: Security,
}

impl Rights {
    /// Whether the role may select every column of the primary key; false without a primary key.
    #[must_use]
    pub fn selects_key(&self) -> bool {
        let may = |at: &usize| self.selectable.get(*at).copied().unwrap_or_default();
        self.primary_key.as_ref().is_some_and(|key| key.iter().all(may))
    }
}

/// How much of the old row may be shown with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldRow {
    /// All columns that the WAL carries.
    Whole,
    /// The primary key's columns.
    Key,
}

/// Whether a viewer sees a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The change is shown, with this much of its old row.
    Shown(OldRow),
    /// The change is not for this viewer.
    Hidden,
    /// The check failed. The change is not shown, and the viewer's subscribers are notified.
    Failed(Failure),
}

/// Why a check failed. The text is for clients and has no text of the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// The role of the token does not exist in the database.
    #[error("the token's role does not exist in the database")]
    UnknownRole,
    /// The daemon may not act as the role.
    #[error("row security cannot be checked for the token's role")]
    RoleRefused,
    /// A policy raised an error.
    #[error("a row security policy of the table failed")]
    Policy,
    /// A policy ran into its timeout and is in backoff.
    #[error("a row security policy of the table took too long")]
    Slow,
    /// The change lacks a column that a policy reads, or has it with another type.
    #[error("a row security policy of the table needs a column that the change does not carry")]
    Column,
}
