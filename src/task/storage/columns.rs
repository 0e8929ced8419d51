//! Parallel arrays as parameters: the `unnest($1::…[], …) as i(a, …)` of a statement, filled by the same names.
//!
//! Two arrays of one type that change places would compile, run and corrupt rows. [`columns!`] names every array as
//! the statement does, and the compiler compares the names and their order: a column that is swapped, missing or
//! renamed on one side only does not compile.
use crate::db::Database;
use crate::task::Error;
use crate::task::storage::statement;
use crate::task::storage::transaction::Transaction;
use tokio_postgres::{Row, types::ToSql};

/// One array of a statement.
pub(in crate::task) type Column<'a> = Box<dyn ToSql + Sync + Send + 'a>;

/// A statement with its arrays; made by [`columns!`].
pub(in crate::task) struct ColumnParams<'a> {
    statement: &'static str,
    columns: Vec<Column<'a>>,
}

impl<'a> ColumnParams<'a> {
    pub(in crate::task) fn new(statement: &'static str, columns: Vec<Column<'a>>) -> Self {
        Self { statement, columns }
    }

    /// Runs the statement. `more`: its parameters after the arrays.
    pub(in crate::task) async fn run(
        &self,
        tx: &Transaction<'_>,
        more: &[&(dyn ToSql + Sync)],
    ) -> Result<Vec<Row>, Error> {
        statement::run(tx, self.statement, &self.params(more)).await
    }

    /// Runs the statement in a transaction of its own.
    pub(in crate::task) async fn query(&self, database: &Database) -> Result<Vec<Row>, Error> {
        statement::query(database, self.statement, &self.params(&[])).await
    }

    fn params<'p>(&'p self, more: &[&'p (dyn ToSql + Sync)]) -> Vec<&'p (dyn ToSql + Sync)> {
        let columns = self.columns.iter().map(|column| &**column as &(dyn ToSql + Sync));
        columns.chain(more.iter().copied()).collect()
    }
}

/// The arrays of a statement of `sql/`, one element for each of `$rows`: `columns!("name", rows, |row| { a: Uuid =
/// row.a, … })`. The statement must name them `a, …` in this order.
macro_rules! columns {
    ($statement:literal, $rows:expr, |$row:pat_param| { $($column:ident: $type:ty = $value:expr),+ $(,)? }) => {{
        const _: () = assert!(
            $crate::task::storage::columns::names_match(
                $crate::task::storage::statement::sql!($statement),
                &[$(stringify!($column)),+],
            ),
            concat!("src/task/sql/", $statement, ".sql names other arrays, or in another order"),
        );
        $(let mut $column: Vec<$type> = Vec::new();)+
        for $row in $rows {
            $($column.push($value);)+
        }
        $crate::task::storage::columns::ColumnParams::new(
            $crate::task::storage::statement::sql!($statement),
            vec![$(Box::new($column)),+],
        )
    }};
}
pub(in crate::task) use columns;

/// Whether the first `unnest` of a statement takes `$1`, `$2`, … and calls them like `columns`, in this order.
pub(in crate::task) const fn names_match(statement: &str, columns: &[&str]) -> bool {
    let Some(mut text) = after(statement.as_bytes(), b"unnest(") else { return false };
    let (mut left, mut number) = (columns, 1);
    while let [_, rest @ ..] = left {
        let Some(digits) = strip(skip(text), b"$") else { return false };
        let (found, cast) = leading_number(digits);
        let Some(next) = after(cast, b"[]") else { return false };
        if found != number {
            return false;
        }
        (text, left, number) = (next, rest, number + 1);
    }
    let Some(alias) = strip(text, b")") else { return false };
    let Some(mut text) = after(alias, b"(") else { return false };
    left = columns;
    while let [name, rest @ ..] = left {
        // A `, n` after the last name is the ordinality.
        let Some(next @ [b',' | b')', ..]) = strip(skip(text), name.as_bytes()) else { return false };
        (text, left) = (next, rest);
    }
    true
}

/// What follows the first `word`.
const fn after<'a>(mut text: &'a [u8], word: &[u8]) -> Option<&'a [u8]> {
    loop {
        if let Some(rest) = strip(text, word) {
            return Some(rest);
        }
        let [_, rest @ ..] = text else { return None };
        text = rest;
    }
}

/// What follows `word` at the beginning.
const fn strip<'a>(mut text: &'a [u8], mut word: &[u8]) -> Option<&'a [u8]> {
    while let [expected, more @ ..] = word {
        let [first, rest @ ..] = text else { return None };
        if *first != *expected {
            return None;
        }
        (text, word) = (rest, more);
    }
    Some(text)
}

/// The text without the separators at its beginning.
const fn skip(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\n' | b',', rest @ ..] = text {
        text = rest;
    }
    text
}

const fn leading_number(mut text: &[u8]) -> (u8, &[u8]) {
    let mut number: u8 = 0;
    while let [digit @ b'0'..=b'9', rest @ ..] = text {
        number = number.saturating_mul(10).saturating_add(*digit - b'0');
        text = rest;
    }
    (number, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::storage::statement::sql;

    /// The names in the alias of the first `unnest`, without an ordinality.
    fn names(statement: &'static str) -> Vec<&'static str> {
        let (arrays, alias) = statement.split_once("unnest(").unwrap().1.split_once(')').unwrap();
        let names = alias.split_once('(').unwrap().1.split_once(')').unwrap().0;
        let names = names.split(',').map(str::trim);
        names.take(arrays.matches("[]").count()).collect()
    }

    #[test]
    fn every_swap_of_two_columns_is_detected() {
        for (statement, count) in [
            (sql!("settle"), 17),
            (sql!("request"), 18),
            (sql!("wake"), 16),
            (sql!("offers"), 11),
            (sql!("award"), 10),
        ] {
            let names = names(statement);
            assert_eq!(names.len(), count);
            assert!(names_match(statement, &names), "{names:?}");
            for one in 0..count {
                for other in one + 1..count {
                    let mut swapped = names.clone();
                    swapped.swap(one, other);
                    assert!(!names_match(statement, &swapped), "{swapped:?}");
                }
                let mut fewer = names.clone();
                fewer.remove(one);
                assert!(!names_match(statement, &fewer), "{fewer:?}");
            }
        }
    }

    #[test]
    fn arrays_out_of_order_are_detected() {
        let statement = |arrays| format!("select * from unnest({arrays}) with ordinality\n as i(a, b, n)");
        assert!(names_match(&statement("$1::bigint[], $2::bigint[]"), &["a", "b"]));
        assert!(!names_match(&statement("$2::bigint[], $1::bigint[]"), &["a", "b"]));
        assert!(!names_match(&statement("$1::bigint[], $12::bigint[]"), &["a", "b"]));
        assert!(!names_match(&statement("$1::bigint[], $2::bigint[], $3::text[]"), &["a", "b"]));
        assert!(!names_match("select 1", &["a"]));
    }
}
