//! Evaluates probes in Postgres: many in one round trip; a probe that fails does not affect the others.
use super::{Bound, Filter, Kind, Operator, Oracle, Probe, Truth, kind::Class};
use crate::db;
use deadpool_postgres::Client;
use sha2::{Digest as _, Sha256};
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;

/// Probes in one statement.
const PROBES_MAX: usize = 500;
/// Bytes of the values in one statement.
const VALUE_BYTES_MAX: usize = 4 << 20;
/// Most probes that are open at once. Further ones are collected again after a fetch.
const OPEN_MAX: usize = 50_000;
/// The digest of a shorter value is computed again: that is as fast as finding it.
const REMEMBERED_BYTES_MIN: usize = 256;

/// Postgres returned an error for a probe: an invalid pattern, a value that is not of the type, a timeout.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct ProbeError {
    /// The five-character code, like `22P02`.
    pub sqlstate: String,
    /// The database's message. Those of [`Answers::verify`] contain no values but the filter's own. Those about a
    /// row may contain the row's, so they must not be logged or sent to a client.
    pub message: String,
}

type ProbeResult = Result<Truth, ProbeError>;

/// The truncated SHA-256 of a row's value: collisions cannot be constructed.
type Digest = u128;

/// A probe and the value of a row; `None` evaluates the probe with NULL, to check that it is valid.
type ProbeCall = (Arc<Probe>, Option<Arc<str>>);

/// The answers of Postgres so far. An [`Oracle`] that collects unanswered probes, to fetch them all at once.
#[derive(Debug, Default)]
pub struct Answers {
    known: HashMap<Arc<Probe>, HashMap<Digest, ProbeResult>>,
    open: HashMap<Arc<Probe>, HashSet<Digest>>,
    /// The values of open probes, each once.
    values: HashMap<Digest, Arc<str>>,
    /// The address, length and digest of the last value: consecutive probes are often about the same value.
    last: Option<(usize, usize, Digest)>,
    /// The number of open probes and values.
    open_count: usize,
    /// Calls of [`Oracle::ask`] without an answer.
    misses: u64,
    /// Nothing more is fetched: what has no answer counts as refused.
    is_over: bool,
}

impl Oracle for Answers {
    /// [`Truth::Unknown`] for what has to be fetched, and permanently for what Postgres refused to answer.
    fn ask(&mut self, probe: &Arc<Probe>, value: &str) -> Truth {
        let digest = self.digest(value);
        match self.known.get(probe).and_then(|values| values.get(&digest)) {
            Some(Ok(truth)) => *truth,
            Some(Err(_)) => Truth::Unknown,
            None if self.is_over => Truth::Unknown,
            None => {
                self.misses += 1;
                if self.open_count < OPEN_MAX {
                    self.values.entry(digest).or_insert_with(|| value.into());
                    let is_new = self.open.entry(probe.clone()).or_default().insert(digest);
                    self.open_count += usize::from(is_new);
                }
                Truth::Unknown
            }
        }
    }
}

impl Answers {
    /// Whether there are open probes to fetch.
    #[must_use]
    pub fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// The number of calls of [`Oracle::ask`] without an answer.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.misses
    }

    /// The number of cached answers.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.values().map(HashMap::len).sum()
    }

    /// Whether no answer is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Must be called before other rows are evaluated: the address of a value may have been reused since.
    pub fn forget_last_value(&mut self) {
        self.last = None;
    }

    /// From now on every probe without an answer counts as refused, as if Postgres had returned an error.
    pub fn give_up(&mut self) {
        self.is_over = true;
        self.drop_open();
    }

    /// Drops the open probes.
    pub fn drop_open(&mut self) {
        self.open.clear();
        self.values.clear();
        self.open_count = 0;
    }

    fn digest(&mut self, value: &str) -> Digest {
        let place = (value.as_ptr().addr(), value.len());
        match self.last {
            Some((at, len, digest)) if (at, len) == place && len >= REMEMBERED_BYTES_MIN => digest,
            _ => {
                let digest = Sha256::digest(value);
                let digest = digest.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte));
                self.last = Some((place.0, place.1, digest));
                digest
            }
        }
    }

    /// Fetches the open probes: one statement for each expression and a few hundred values, each with the timeout
    /// `within`. A probe that fails is isolated by bisection, so the others are still answered.
    ///
    /// # Errors
    /// An error if the database is unavailable. Unanswered probes stay open.
    pub async fn fetch(&mut self, client: &mut Client, within: Duration) -> Result<(), db::Error> {
        self.fetch_until(client, within, None).await
    }

    /// As [`Self::fetch`]. Probes not answered by `until` stay open.
    ///
    /// # Errors
    /// An error if the database is unavailable. Unanswered probes stay open.
    pub async fn fetch_until(
        &mut self,
        client: &mut Client,
        within: Duration,
        until: Option<Instant>,
    ) -> Result<(), db::Error> {
        let mut by_expression: HashMap<&str, Vec<(Arc<Probe>, Digest)>> = HashMap::new();
        for (probe, digests) in &self.open {
            let calls = by_expression.entry(&probe.expression).or_default();
            calls.extend(digests.iter().map(|digest| (probe.clone(), *digest)));
        }
        let by_expression: Vec<_> = by_expression.into_values().collect();
        for mut asked in by_expression {
            // Sorted by value: a value that many probes share is sent once.
            asked.sort_unstable_by_key(|(_, digest)| *digest);
            let call =
                |(probe, digest): &(Arc<Probe>, Digest)| (probe.clone(), self.values.get(digest).cloned());
            let calls: Vec<ProbeCall> = asked.iter().map(call).collect();
            let answers = answers(client, &calls, within, until).await?;
            for ((probe, digest), answer) in asked.into_iter().zip(answers) {
                let Some(answer) = answer else { continue };
                if let Some(open) = self.open.get_mut(&probe) {
                    self.open_count -= usize::from(open.remove(&digest));
                    if open.is_empty() {
                        self.open.remove(&probe);
                    }
                }
                self.known.entry(probe).or_default().insert(digest, answer);
            }
        }
        if self.open.is_empty() {
            self.values.clear();
        }
        Ok(())
    }

    /// Normalizes the filter's values by Postgres' output function, for types that are compared by their text. Values of
    /// other types are parsed here or are part of a probe.
    ///
    /// # Errors
    /// The outer if the database is unavailable, the inner for the first value that is not of its column's type.
    pub async fn normalize<'k>(
        client: &Client,
        filter: &Filter,
        kind: impl Fn(&str) -> Option<&'k Kind>,
    ) -> Result<Result<Filter, ProbeError>, db::Error> {
        let mut filter = filter.clone();
        for (column, operator, value) in filter.values_mut() {
            let Some(kind) = kind(column).filter(|kind| kind.class == Class::Alike) else { continue };
            if operator.is_some_and(Operator::is_pattern) {
                continue;
            }
            let statement = client.prepare_cached(&kind.output_sql()).await?;
            match client.query_one(&statement, &[&*value]).await {
                Ok(row) => *value = row.try_get(0)?,
                Err(error) => match error.as_db_error() {
                    Some(db_error) if !db::is_transient(&error) => {
                        let (sqlstate, message) =
                            (db_error.code().code().to_owned(), db_error.message().to_owned());
                        return Ok(Err(ProbeError { sqlstate, message }));
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(Ok(filter))
    }

    /// Checks a filter in Postgres without a row: that the types have the operators, and that the filter's values
    /// are of the types.
    ///
    /// # Errors
    /// The outer if the database is unavailable, the inner for the first probe that is refused.
    pub async fn verify(
        client: &mut Client,
        bound: &Bound,
        within: Duration,
    ) -> Result<Result<(), ProbeError>, db::Error> {
        for (probe, pattern) in bound.probes() {
            // Postgres compiles a pattern only when it matches a text, and not for NULL.
            let call = (probe.clone(), pattern.then(|| Arc::from("")));
            if let Some(Some(Err(refused))) = answers(client, &[call], within, None).await?.pop() {
                return Ok(Err(refused));
            }
        }
        Ok(Ok(()))
    }
}

/// The answers to probes of one expression; `None` for those not answered by `until`.
async fn answers(
    client: &mut Client,
    calls: &[ProbeCall],
    within: Duration,
    until: Option<Instant>,
) -> Result<Vec<Option<ProbeResult>>, db::Error> {
    let mut answers = vec![None; calls.len()];
    let mut parts: VecDeque<(usize, &[ProbeCall])> = parts(calls).into();
    while let Some((from, part)) = parts.pop_front() {
        let left = until.map_or(within, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            break;
        }
        let cells = answers.iter_mut().skip(from).zip(part);
        match evaluate(client, part, within.min(left)).await {
            Ok(truths) => cells.zip(truths).for_each(|((cell, _), truth)| *cell = Some(Ok(truth))),
            Err(error) => {
                let db_error = match error.as_db_error() {
                    Some(db_error)
                        if *db_error.code() == SqlState::QUERY_CANCELED || !db::is_transient(&error) =>
                    {
                        db_error
                    }
                    _ => return Err(error.into()),
                };
                // A statement that was cut short by `until` proves nothing about its only probe: it stays open.
                let had_its_time = left >= within || *db_error.code() != SqlState::QUERY_CANCELED;
                if part.len() > 1 {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([(from, left), (from + left.len(), right)]);
                } else if had_its_time {
                    let (sqlstate, message) =
                        (db_error.code().code().to_owned(), db_error.message().to_owned());
                    cells.for_each(|(cell, _)| {
                        *cell =
                            Some(Err(ProbeError { sqlstate: sqlstate.clone(), message: message.clone() }));
                    });
                }
            }
        }
    }
    Ok(answers)
}

/// Splits probes into statements, by their number and the bytes of their values.
fn parts(calls: &[ProbeCall]) -> Vec<(usize, &[ProbeCall])> {
    let (mut parts, mut from, mut bytes) = (Vec::new(), 0, 0);
    let mut last = None;
    for (at, (_, value)) in calls.iter().enumerate() {
        let value = value.as_ref().map(|value| (Arc::as_ptr(value).addr(), value.len()));
        let size = if value == last { 0 } else { value.map_or(0, |(_, size)| size) };
        if at > from && (at - from >= PROBES_MAX || bytes + size > VALUE_BYTES_MAX) {
            parts.push((from, calls.get(from..at).unwrap_or_default()));
            (from, bytes) = (at, 0);
        }
        (bytes, last) = (bytes + size, value);
    }
    parts.push((from, calls.get(from..).unwrap_or_default()));
    parts
}

async fn evaluate(
    client: &mut Client,
    calls: &[ProbeCall],
    within: Duration,
) -> Result<Vec<Truth>, tokio_postgres::Error> {
    let Some((first, _)) = calls.first() else { return Ok(Vec::new()) };
    let tx = client.build_transaction().read_only(true).start().await?;
    let settings = format!(
        "set local statement_timeout = {}; set local search_path = pg_catalog; set local timezone = 'UTC'; \
         set local datestyle = 'ISO, YMD'",
        within.as_millis().clamp(1, 600_000)
    );
    // Each value and each pattern is sent once, however many probes use it.
    let statement = format!(
        "select {} from unnest($3::int4[], $4::int4[]) with ordinality as i(v, l, n), \
         lateral (select ($1::text[])[i.v] as v, ($2::text[])[i.l] as l) as p order by i.n",
        first.expression
    );
    tx.batch_execute(&settings).await?;
    let statement = tx.prepare_cached(&statement).await?;
    let (mut values, mut literals) = (Numbered::default(), Numbered::default());
    let asked = calls.iter().map(|(probe, value)| {
        (value.as_deref().map(|value| values.number(value)), literals.number(&probe.literal))
    });
    let (value_at, literal_at): (Vec<Option<i32>>, Vec<i32>) = asked.unzip();
    let rows = tx.query(&statement, &[&values.all, &literals.all, &value_at, &literal_at]).await?;
    // Read only, so a rollback is as good as a commit.
    tx.rollback().await?;
    rows.iter().map(|row| Ok(row.try_get::<_, Option<bool>>(0)?.map_or(Truth::Null, Truth::from))).collect()
}

/// Distinct texts with their indices in a Postgres array, from 1.
#[derive(Default)]
struct Numbered<'a> {
    all: Vec<&'a str>,
    numbers: HashMap<&'a str, i32>,
    /// The last text, compared by address: the same long value often comes many times in a row.
    last: Option<(&'a str, i32)>,
}

impl<'a> Numbered<'a> {
    fn number(&mut self, text: &'a str) -> i32 {
        if let Some((last, number)) = self.last
            && std::ptr::eq(last, text)
        {
            return number;
        }
        let number = *self.numbers.entry(text).or_insert_with(|| {
            self.all.push(text);
            i32::try_from(self.all.len()).unwrap_or(i32::MAX)
        });
        self.last = Some((text, number));
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_probes_are_capped_and_end_when_nothing_more_is_fetched() {
        let probe = Arc::new(Probe { expression: "p.v ~ p.l".into(), literal: "x".into() });
        let mut answers = Answers::default();
        for number in 0..OPEN_MAX + 10 {
            assert_eq!(answers.ask(&probe, &number.to_string()), Truth::Unknown);
            assert_eq!(answers.ask(&probe, &number.to_string()), Truth::Unknown);
        }
        assert_eq!((answers.values.len(), answers.open_count), (OPEN_MAX, OPEN_MAX));
        assert_eq!(
            answers.misses(),
            2 * (OPEN_MAX as u64 + 10),
            "those beyond the cap are not answered either"
        );
        answers.give_up();
        assert!(!answers.has_open() && answers.values.is_empty());
        let misses = answers.misses();
        assert_eq!(answers.ask(&probe, "new"), Truth::Unknown);
        assert!(!answers.has_open() && answers.misses() == misses, "it is refused, and not asked again");
    }
}
