//! One question to the policies of `realtime.messages`, in a transaction that is always rolled back.
//!
//! All statements of a question travel at once, the rollback with them, so that it costs one round trip
//! and leaves nothing even when nobody waits for its answer any more
//! (`reference/realtime-protocol.md` §7.4).
use super::{Asker, Error, Rights};
use deadpool_postgres::Object;
use futures_util::join;
use serde_json::{Map, Value};
use tokio_postgres::{error::SqlState, types::ToSql};
use uuid::Uuid;

type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// What a policy is asked about.
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

/// What policies see of who asks, as the settings of a transaction.
pub(super) struct Settings<'a> {
    role: &'a str,
    claims: String,
    sub: Option<&'a str>,
    headers: &'a str,
}

impl<'a> Settings<'a> {
    /// # Errors
    /// [`Error::Policy`] for the word that would make the daemon itself the one who asks.
    pub(super) fn of(asker: &'a Asker) -> Result<Self, Error> {
        let claims = &asker.claims;
        if claims.role.eq_ignore_ascii_case("none") || claims.role.is_empty() {
            return Err(Error::Policy);
        }
        Ok(Self {
            role: &claims.role,
            claims: whole_times(claims.raw.clone(), claims.exp.timestamp()),
            sub: claims.sub.as_deref(),
            headers: &asker.headers,
        })
    }
}

/// The claims as JSON, with times as integers.
fn whole_times(mut claims: Map<String, Value>, exp: i64) -> String {
    claims.insert("exp".to_owned(), exp.into());
    if let Some(iat) = claims.get_mut("iat") {
        #[expect(clippy::cast_possible_truncation, reason = "a time that is too big for it is the biggest")]
        let whole = iat.as_i64().or_else(|| iat.as_f64().map(|iat| iat.round() as i64));
        *iat = whole.map_or(Value::Null, Value::from);
    }
    Value::Object(claims).to_string()
}

/// Which of `extensions` may be read: a row of each is put in by the daemon, and looked for by the asker.
pub(super) async fn read(
    client: &Object,
    asker: &Settings<'_>,
    topic: &str,
    extensions: &[Extension],
) -> Result<Rights, tokio_postgres::Error> {
    let insert = client.prepare_cached(include_str!("sql/probe.sql")).await?;
    let act_as = client.prepare_cached(include_str!("sql/act_as.sql")).await?;
    let select = client.prepare_cached(include_str!("sql/seen.sql")).await?;
    let ids: Vec<Uuid> = extensions.iter().map(|_| Uuid::new_v4()).collect();
    let names: Vec<&str> = extensions.iter().map(|extension| extension.as_str()).collect();
    let Settings { role, claims, sub, headers } = asker;
    let probes: Params<'_> = &[&topic, &ids, &names];
    let who: Params<'_> = &[role, &topic, claims, sub, headers];
    let put_in: Params<'_> = &[&ids];
    let (begun, inserted, acting, seen, ended) = join!(
        client.batch_execute("begin"),
        client.execute(&insert, probes),
        client.execute(&act_as, who),
        client.query(&select, put_in),
        client.batch_execute("rollback"),
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

/// What may be written: a row of each extension is put in by the asker, who need not be able to read it.
pub(super) async fn write(
    client: &Object,
    asker: &Settings<'_>,
    topic: &str,
) -> Result<Rights, tokio_postgres::Error> {
    let act_as = client.prepare_cached(include_str!("sql/act_as.sql")).await?;
    let insert = client.prepare_cached(include_str!("sql/say.sql")).await?;
    let Settings { role, claims, sub, headers } = asker;
    let (broadcast, presence) = (Extension::Broadcast.as_str(), Extension::Presence.as_str());
    let who: Params<'_> = &[role, &topic, claims, sub, headers];
    let (said, seen): (Params<'_>, Params<'_>) = (&[&topic, &broadcast], &[&topic, &presence]);
    let (begun, acting, kept, broadcast, back, presence, ended) = join!(
        client.batch_execute("begin"),
        client.execute(&act_as, who),
        client.batch_execute("savepoint probe"),
        client.execute(&insert, said),
        client.batch_execute("rollback to savepoint probe"),
        client.execute(&insert, seen),
        client.batch_execute("rollback"),
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

fn allowed(said: Result<u64, tokio_postgres::Error>) -> Result<bool, tokio_postgres::Error> {
    match said {
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
    fn policies_see_whole_seconds() {
        let claims = json!({"exp": 1000.6, "iat": 3.4, "sub": "me"}).as_object().unwrap().clone();
        assert_eq!(whole_times(claims, 1001), r#"{"exp":1001,"iat":3,"sub":"me"}"#);
    }
}
