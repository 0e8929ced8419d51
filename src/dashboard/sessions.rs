//! The tables of codes that were used and of sessions. The tables hold hashes, so reading them gives no session.
use crate::{
    auth::{DashboardRole, Login},
    db::{self, Database},
    id::OrgId,
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sha2::{Digest, Sha256};
use std::time::Duration;
use tokio_postgres::Row;
use uuid::Uuid;

/// Bytes of a session's secret, and its characters in base64url.
const SECRET_BYTES: usize = 32;
const SECRET_CHARS: usize = 43;

/// A person who is signed in.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) subject: String,
    pub(super) org: OrgId,
    pub(super) role: DashboardRole,
    pub(super) expires_at: DateTime<Utc>,
}

impl Session {
    fn from_row(row: &Row) -> Result<Option<Self>, db::Error> {
        let (subject, org, role, expires_at): (String, String, String, DateTime<Utc>) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        // A row that was edited by hand and names no org or role is no session.
        let named = org.parse().ok().zip(role.parse().ok());
        Ok(named.map(|(org, role)| Self { subject, org, role, expires_at }))
    }
}

/// A session as people see it.
#[derive(Debug, Serialize)]
pub(super) struct SessionLine {
    id: Uuid,
    user: String,
    role: String,
    /// When it was made, last used for a token, and when it ends.
    created_at: DateTime<Utc>,
    seen_at: DateTime<Utc>,
    expires_at: DateTime<Utc>,
    /// What the browser calls itself; null for a session of an earlier version.
    browser: Option<String>,
    /// Whether it is the session that asks.
    is_own: bool,
}

impl SessionLine {
    fn from_row(row: &Row) -> Result<Self, db::Error> {
        Ok(Self {
            id: row.try_get(0)?,
            user: row.try_get(1)?,
            role: row.try_get(2)?,
            created_at: row.try_get(3)?,
            seen_at: row.try_get(4)?,
            expires_at: row.try_get(5)?,
            browser: row.try_get(6)?,
            is_own: row.try_get(7)?,
        })
    }
}

/// Sessions in the database.
#[derive(Debug)]
pub(super) struct Sessions {
    pub(super) database: Database,
    pub(super) idle: Duration,
    pub(super) max: Duration,
}

impl Sessions {
    /// Burns the code and makes a session. Returns its secret; `None` if the code was used before. Ends the session of
    /// `earlier`.
    pub(super) async fn sign_in(
        &self,
        login: &Login,
        earlier: Option<&str>,
        browser: Option<&str>,
    ) -> Result<Option<(String, Session)>, db::Error> {
        let secret = URL_SAFE_NO_PAD.encode(rand::random::<[u8; SECRET_BYTES]>());
        let client = self.database.client().await?;
        let statement = client.prepare_cached(include_str!("sql/sign_in.sql")).await?;
        let row = client
            .query_opt(
                &statement,
                &[
                    &login.id,
                    &login.expires_at,
                    &hash(&secret),
                    &login.subject,
                    &login.org.as_str(),
                    &earlier.map(hash),
                    &millis(self.idle),
                    &millis(self.max),
                    &login.role.as_str(),
                    &browser,
                ],
            )
            .await?;
        let session = row.as_ref().map(Session::from_row).transpose()?.flatten();
        Ok(session.map(|session| (secret, session)))
    }

    /// Returns the session of a cookie and marks it as used. `None` if there is none, or if it has ended.
    pub(super) async fn find(&self, secret: &str) -> Result<Option<Session>, db::Error> {
        let client = self.database.client().await?;
        let statement = client.prepare_cached(include_str!("sql/session.sql")).await?;
        let row = client.query_opt(&statement, &[&hash(secret), &millis(self.idle)]).await?;
        Ok(row.as_ref().map(Session::from_row).transpose()?.flatten())
    }

    /// The sessions of the person of `own` in its org, for an admin those of everybody there: at most 200, the last used
    /// first. `secret` is of `own`.
    pub(super) async fn list(&self, own: &Session, secret: &str) -> Result<Vec<SessionLine>, db::Error> {
        let client = self.database.client().await?;
        let statement = client.prepare_cached(include_str!("sql/sessions.sql")).await?;
        let (org, all) = (own.org.as_str(), own.role == DashboardRole::Admin);
        let rows =
            client.query(&statement, &[&org, &own.subject, &all, &hash(secret), &millis(self.idle)]).await?;
        rows.iter().map(SessionLine::from_row).collect()
    }

    /// Ends a session that [`list`](Self::list) shows to `own`. Returns whether there was one.
    pub(super) async fn revoke(&self, own: &Session, id: Uuid) -> Result<bool, db::Error> {
        let client = self.database.client().await?;
        let statement = client.prepare_cached(include_str!("sql/revoke.sql")).await?;
        let (org, all) = (own.org.as_str(), own.role == DashboardRole::Admin);
        Ok(client.execute(&statement, &[&org, &own.subject, &all, &id]).await? > 0)
    }

    /// Ends the session of a cookie, with `everywhere` all sessions of this person in this org.
    pub(super) async fn sign_out(&self, secret: &str, everywhere: bool) -> Result<(), db::Error> {
        let client = self.database.client().await?;
        let statement = client.prepare_cached(include_str!("sql/sign_out.sql")).await?;
        client.execute(&statement, &[&hash(secret), &everywhere]).await?;
        Ok(())
    }
}

/// Whether a text has the form of a session's secret.
pub(super) fn is_secret(text: &str) -> bool {
    text.len() == SECRET_CHARS && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

fn hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_text_with_the_form_of_a_secret_is_looked_up() {
        let secret = URL_SAFE_NO_PAD.encode([0xfb; SECRET_BYTES]);
        assert!(is_secret(&secret), "{secret}");
        for text in
            ["", "AAAA", &secret[1..], &format!("{secret}A"), &secret.replace('-', "+"), &"é".repeat(43)]
        {
            assert!(!is_secret(text), "{text}");
        }
    }
}
