//! One evaluation of the policies of `realtime.messages`, in a transaction that is always rolled back.
//!
//! All statements are sent at once, the rollback with them: one round trip, and no open transaction if the
//! caller is dropped before the answer (`docs/spec/realtime-protocol.md` §7.4).
use super::{Asker, Error, Rights, reset::RESET};
use deadpool_postgres::Object;
use futures_util::join;
use serde_json::{Map, Value};
use tokio_postgres::{error::SqlState, types::ToSql};
use uuid::Uuid;

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// The right that is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extension {
    Broadcast,
    Presence,
}

impl Extension {
    fn as_str(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast",
            Self::Presence => "presence",
        }
    }
}

/// What policies see of the bearer, as settings of a transaction.
pub(super) struct Settings<'a> {
    role: &'a str,
    claims: String,
    sub: Option<&'a str>,
    headers: &'a str,
}

impl<'a> Settings<'a> {
    /// # Errors
    /// [`Error::Policy`] for the role `none` or an empty one: `set role none` would switch back to the
    /// daemon's own role.
    pub(super) fn of(asker: &'a Asker) -> Result<Self, Error> {
        let claims = &asker.claims;
        if claims.role.eq_ignore_ascii_case("none") || claims.role.is_empty() {
            return Err(Error::Policy);
        }
        Ok(Self {
            role: &claims.role,
            claims: whole_times(claims.raw.clone(), claims.exp.timestamp()),
            sub: claims.sub.as_deref(),
            headers: &asker.origin.headers,
        })
    }
}

/// The claims as JSON, with `exp` and `iat` as integers.
fn whole_times(mut claims: Map<String, Value>, exp: i64) -> String {
    claims.insert("exp".to_owned(), exp.into());
    if let Some(iat) = claims.get_mut("iat") {
        #[expect(clippy::cast_possible_truncation, reason = "a time beyond the range of i64 saturates")]
        let whole = iat.as_i64().or_else(|| iat.as_f64().map(|iat| iat.round() as i64));
        *iat = whole.map_or(Value::Null, Value::from);
    }
    Value::Object(claims).to_string()
}

/// Returns which of `extensions` may be read: the daemon inserts one row for each, and selects them as the
/// bearer.
pub(super) async fn read(
    client: &Object,
    asker: &Settings<'_>,
    topic: &str,
    extensions: &[Extension],
) -> Result<Rights, tokio_postgres::Error> {
    let insert = client.prepare_cached(include_str!("sql/insert_probes.sql")).await?;
    let act_as = client.prepare_cached(include_str!("sql/act_as.sql")).await?;
    let select = client.prepare_cached(include_str!("sql/visible_probes.sql")).await?;
    let ids: Vec<Uuid> = extensions.iter().map(|_| Uuid::new_v4()).collect();
    let names: Vec<&str> = extensions.iter().map(|extension| extension.as_str()).collect();
    let Settings { role, claims, sub, headers } = asker;
    let probes: Params<'_> = &[&topic, &ids, &names];
    let bearer: Params<'_> = &[role, &topic, claims, sub, headers];
    let probe_ids: Params<'_> = &[&ids];
    // Sent in the order of the arguments: `join!` polls them in this order, and each queues its message
    // on its first poll. So the rollback is queued even if this future is dropped while it waits.
    let (begun, inserted, acting, seen, ended) = join!(
        client.batch_execute("begin"),
        client.execute(&insert, probes),
        client.execute(&act_as, bearer),
        client.query(&select, probe_ids),
        client.batch_execute(RESET),
    );
    begun?;
    inserted?;
    acting?;
    let seen: Vec<Uuid> = seen?.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    ended?;
    let may = |wanted| {
        let mut probes = extensions.iter().zip(&ids);
        probes.any(|(extension, id)| *extension == wanted && seen.contains(id))
    };
    Ok(Rights { broadcast: may(Extension::Broadcast), presence: may(Extension::Presence) })
}

/// Returns what may be written: the bearer inserts one row for each extension. The right to read them is not
/// needed.
pub(super) async fn write(
    client: &Object,
    asker: &Settings<'_>,
    topic: &str,
) -> Result<Rights, tokio_postgres::Error> {
    let act_as = client.prepare_cached(include_str!("sql/act_as.sql")).await?;
    let insert = client.prepare_cached(include_str!("sql/probe_write.sql")).await?;
    let Settings { role, claims, sub, headers } = asker;
    let (broadcast, presence) = (Extension::Broadcast.as_str(), Extension::Presence.as_str());
    let bearer: Params<'_> = &[role, &topic, claims, sub, headers];
    let (broadcast_row, presence_row): (Params<'_>, Params<'_>) =
        (&[&topic, &broadcast], &[&topic, &presence]);
    // Same order as in `read`. The savepoint separates the probes: the failure of the first must not
    // abort the second.
    let (begun, acting, kept, broadcast, back, presence, ended) = join!(
        client.batch_execute("begin"),
        client.execute(&act_as, bearer),
        client.batch_execute("savepoint probe"),
        client.execute(&insert, broadcast_row),
        client.batch_execute("rollback to savepoint probe"),
        client.execute(&insert, presence_row),
        client.batch_execute(RESET),
    );
    begun?;
    acting?;
    kept?;
    let broadcast = allowed(broadcast)?;
    back?;
    let presence = allowed(presence)?;
    ended?;
    Ok(Rights { broadcast, presence })
}

/// A refusal by a policy is an answer; any other failure is an error.
fn allowed(inserted: Result<u64, tokio_postgres::Error>) -> Result<bool, tokio_postgres::Error> {
    match inserted {
        Ok(rows) => Ok(rows > 0),
        Err(e) if e.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn claims_carry_whole_seconds() {
        let claims = json!({"exp": 1000.6, "iat": 3.4, "sub": "me"}).as_object().unwrap().clone();
        assert_eq!(whole_times(claims, 1001), r#"{"exp":1001,"iat":3,"sub":"me"}"#);
    }
}
