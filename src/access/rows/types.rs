//! The words of row visibility: tables, images of rows, viewers, verdicts.
use crate::auth::Claims;
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

/// A table as the log described it when a change to it was made.
///
/// Make a new one whenever the log describes the table anew, even in the same words: policies and
/// privileges are read again for each [`Arc`], so that what the log says after a change of policy is
/// judged by the new policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Its oid in `pg_class`.
    pub oid: u32,
    /// Its schema, like `public`.
    pub schema: String,
    /// Its name without the schema.
    pub name: String,
    /// The columns that images carry, by position.
    pub columns: Vec<Column>,
}

/// A column of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type's oid in `pg_type`.
    pub type_oid: u32,
}

/// One column's value in an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// SQL `NULL`.
    Null,
    /// The image does not carry it: an unchanged value stored out of line, or no part of the replica identity.
    Unknown,
    /// The value in Postgres's text form, UTF-8.
    Text(Bytes),
}

/// The cells of a row in the order of its table's columns.
pub type Image = Vec<Cell>;

/// What was done to a row, by the images that the log carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Images {
    /// A new row.
    Insert {
        /// The row.
        new: Image,
    },
    /// Another version of a row.
    Update {
        /// The row as it became, completed from the old one where it can be.
        new: Image,
        /// The whole row as it was; nothing when the log carries at most its key.
        old: Option<Image>,
    },
    /// The end of a row.
    Delete {
        /// The whole row as it was; nothing when the log carries only its key.
        old: Option<Image>,
    },
}

/// A change to be judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowChange {
    /// The table; the same [`Arc`] for all changes that the same description covers.
    pub table: Arc<Table>,
    /// The row.
    pub images: Images,
}

/// Whoever looks with the same role and the same claims: one viewer, however many subscribe.
#[derive(Clone, Debug)]
pub struct Viewer {
    pub(super) role: String,
    pub(super) sub: String,
    pub(super) claims: String,
    /// Of the role and the claims, collisions impossible to find: what is remembered is remembered by it.
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
    /// The bearer of these claims, all of which policies see as `request.jwt.claims`.
    #[must_use]
    pub fn of(claims: &Claims) -> Self {
        let role = claims.role.clone();
        let raw = serde_json::Value::Object(claims.raw.clone()).to_string();
        let digest = Sha256::new().chain_update(&role).chain_update([0]).chain_update(&raw).finalize();
        let fingerprint = digest.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte));
        Self { role, sub: claims.sub.clone().unwrap_or_default(), claims: raw, fingerprint }
    }

    /// The database role that is looked with.
    #[must_use]
    pub fn role(&self) -> &str {
        &self.role
    }
}

/// How far row security of a table limits a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// The table has none; every row is visible.
    Off,
    /// The table has it, but not for this role (owner, superuser or `bypassrls`); every row is visible.
    Exempt,
    /// Policies decide about each row.
    On,
}

/// What a role may see of a table, whatever the row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// For each column of the [`Table`], whether the role may select it. A column that the table no
    /// longer has may not be selected; nor any, if the role may not use the schema.
    pub selectable: Vec<bool>,
    /// The positions of the primary key's columns in the [`Table`]; nothing when it has no primary key
    /// or the images do not carry all of it.
    pub primary_key: Option<Vec<usize>>,
    /// Whether policies decide.
    pub security: Security,
}

impl Rights {
    /// Whether every column of the primary key may be selected; false without one.
    #[must_use]
    pub fn selects_key(&self) -> bool {
        let may = |at: &usize| self.selectable.get(*at).copied().unwrap_or_default();
        self.primary_key.as_ref().is_some_and(|key| key.iter().all(may))
    }
}

/// How much of the old row may be shown with a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldRow {
    /// All that the log carries.
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
    /// Nobody knows, so the change is not shown, and the viewer's subscribers are told so.
    Failed(Failure),
}

/// Why a change could not be judged. The text is for clients: it holds nothing of the database's own words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// The token's role is no role of the database.
    #[error("the token's role does not exist in the database")]
    UnknownRole,
    /// The daemon may not act as the role.
    #[error("row security cannot be checked for the token's role")]
    RoleRefused,
    /// A policy raised an error.
    #[error("a row security policy of the table failed")]
    Policy,
    /// A policy took too long; it is not asked again for a while.
    #[error("a row security policy of the table took too long")]
    Slow,
    /// The change does not carry a column that a policy needs, or carries it with another type.
    #[error("a row security policy of the table needs a column that the change does not carry")]
    Column,
}
