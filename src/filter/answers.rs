//! Asking Postgres what it alone can say: many questions in one round trip, and one that fails kept from the others.
use super::{Bound, Filter, Kind, Operator, Oracle, Probe, Truth, kind::Class};
use crate::db;
use deadpool_postgres::Client;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};
use tokio_postgres::error::SqlState;

/// Questions of one statement.
const TOGETHER_MAX: usize = 500;

/// Postgres takes the question for an error: a bad pattern, a value that is none of the type, too slow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (SQLSTATE {sqlstate})")]
pub struct Refused {
    /// Five characters, like `22P02`.
    pub sqlstate: String,
    /// The database's own words. Those of [`Answers::verify`] hold no values but the filter's own; those about a
    /// row may hold the row's, and are for no log and no client.
    pub message: String,
}

type Asked = Result<Truth, Refused>;

/// A probe, and the value of a row; NULL where only the probe itself is tried.
type Question = (Arc<Probe>, Option<String>);

/// What Postgres has said so far. An [`Oracle`] that remembers what it could not answer, to fetch it all at once.
#[derive(Debug, Default)]
pub struct Answers {
    known: HashMap<Arc<Probe>, HashMap<String, Asked>>,
    open: HashSet<(Arc<Probe>, String)>,
}

impl Oracle for Answers {
    /// [`Truth::Unknown`] for what has to be fetched, and for good for what Postgres refuses to answer.
    fn ask(&mut self, probe: &Arc<Probe>, value: &str) -> Truth {
        match self.known.get(probe).and_then(|values| values.get(value)) {
            Some(Ok(truth)) => *truth,
            Some(Err(_)) => Truth::Unknown,
            None => {
                self.open.insert((probe.clone(), value.to_owned()));
                Truth::Unknown
            }
        }
    }
}

impl Answers {
    /// Whether something was asked that has to be fetched before it is asked again.
    #[must_use]
    pub fn lack(&self) -> bool {
        !self.open.is_empty()
    }

    /// Asks Postgres what is open: a statement for each expression and five hundred values. One of them may take
    /// `within`; a question that fails is found and does not take the others with it.
    ///
    /// # Errors
    /// When the database is away; what was not answered is open still.
    pub async fn fetch(&mut self, client: &mut Client, within: Duration) -> Result<(), db::Error> {
        let mut by_expression: HashMap<String, Vec<Question>> = HashMap::new();
        for (probe, value) in &self.open {
            let questions = by_expression.entry(probe.expression.clone()).or_default();
            questions.push((probe.clone(), Some(value.clone())));
        }
        for questions in by_expression.into_values() {
            let answers = answers(client, &questions, within).await?;
            for ((probe, value), answer) in questions.into_iter().zip(answers) {
                let Some(value) = value else { continue };
                self.open.remove(&(probe.clone(), value.clone()));
                self.known.entry(probe).or_default().insert(value, answer);
            }
        }
        Ok(())
    }

    /// The filter with its values as Postgres writes them, where the type is compared by how it is written: the others
    /// are read here, or are part of a question.
    ///
    /// # Errors
    /// The outer when the database is away, the inner the first value that is none of its column's type.
    pub async fn written<'k>(
        client: &Client,
        filter: &Filter,
        kind: impl Fn(&str) -> Option<&'k Kind>,
    ) -> Result<Result<Filter, Refused>, db::Error> {
        let mut filter = filter.clone();
        for (column, operator, value) in filter.values_mut() {
            let Some(kind) = kind(column).filter(|kind| kind.class == Class::Alike) else { continue };
            if operator.is_some_and(Operator::is_pattern) {
                continue;
            }
            let statement = client.prepare_cached(&kind.written()).await?;
            match client.query_one(&statement, &[&*value]).await {
                Ok(row) => *value = row.try_get(0)?,
                Err(error) => match error.as_db_error() {
                    Some(said) if !db::is_transient(&error) => {
                        let (sqlstate, message) = (said.code().code().to_owned(), said.message().to_owned());
                        return Ok(Err(Refused { sqlstate, message }));
                    }
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(Ok(filter))
    }

    /// Whether Postgres takes the questions of a filter at all, without a row: that the types have the operators,
    /// and that the filter's values are values of them.
    ///
    /// # Errors
    /// The outer when the database is away, the inner the first question that is refused.
    pub async fn verify(
        client: &mut Client,
        bound: &Bound,
        within: Duration,
    ) -> Result<Result<(), Refused>, db::Error> {
        for (probe, pattern) in bound.probes() {
            // A pattern is read only for a text.
            let question = (probe.clone(), pattern.then(String::new));
            if let Some(Err(refused)) = answers(client, &[question], within).await?.pop() {
                return Ok(Err(refused));
            }
        }
        Ok(Ok(()))
    }
}

/// Answers to questions of one expression.
async fn answers(
    client: &mut Client,
    questions: &[Question],
    within: Duration,
) -> Result<Vec<Asked>, db::Error> {
    let refused = Refused { sqlstate: String::new(), message: String::new() };
    let mut answers = vec![Err(refused); questions.len()];
    let mut parts: VecDeque<(usize, &[Question])> =
        questions.chunks(TOGETHER_MAX).enumerate().map(|(at, part)| (at * TOGETHER_MAX, part)).collect();
    while let Some((from, part)) = parts.pop_front() {
        let cells = answers.iter_mut().skip(from).zip(part);
        match ask(client, part, within).await {
            Ok(told) => cells.zip(told).for_each(|((cell, _), truth)| *cell = Ok(truth)),
            Err(error) => {
                let final_word = match error.as_db_error() {
                    Some(said) if *said.code() == SqlState::QUERY_CANCELED || !db::is_transient(&error) => {
                        said
                    }
                    _ => return Err(error.into()),
                };
                if part.len() > 1 {
                    let (left, right) = part.split_at(part.len() / 2);
                    parts.extend([(from, left), (from + left.len(), right)]);
                } else {
                    let (sqlstate, message) =
                        (final_word.code().code().to_owned(), final_word.message().to_owned());
                    cells.for_each(|(cell, _)| {
                        *cell = Err(Refused { sqlstate: sqlstate.clone(), message: message.clone() });
                    });
                }
            }
        }
    }
    Ok(answers)
}

async fn ask(
    client: &mut Client,
    questions: &[Question],
    within: Duration,
) -> Result<Vec<Truth>, tokio_postgres::Error> {
    let Some((first, _)) = questions.first() else { return Ok(Vec::new()) };
    let tx = client.build_transaction().read_only(true).start().await?;
    let settings = format!(
        "set local statement_timeout = {}; set local search_path = pg_catalog; set local timezone = 'UTC'; \
         set local datestyle = 'ISO, YMD'",
        within.as_millis().clamp(1, 600_000)
    );
    let statement = format!(
        "select {} from unnest($1::text[], $2::text[]) with ordinality as p(v, l, n) order by p.n",
        first.expression
    );
    tx.batch_execute(&settings).await?;
    let statement = tx.prepare_cached(&statement).await?;
    let values: Vec<Option<&str>> = questions.iter().map(|(_, value)| value.as_deref()).collect();
    let literals: Vec<&str> = questions.iter().map(|(probe, _)| probe.literal.as_str()).collect();
    let rows = tx.query(&statement, &[&values, &literals]).await?;
    tx.rollback().await?;
    rows.iter().map(|row| Ok(row.try_get::<_, Option<bool>>(0)?.map_or(Truth::Null, Truth::from))).collect()
}
