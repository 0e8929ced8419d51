//! One random table with its policies, rights, subscriptions and changes, and the SQL that says the same.
use super::kinds::{KINDS, Kind};
use proptest::{collection::vec, option, prelude::*, sample::Index};
use serde_json::{Value, json};

/// A large value that an update leaves alone is not in the log again.
const LONG: usize = 3000;

#[derive(Debug, Clone)]
pub struct Case {
    columns: Vec<Index>,
    /// Whether row security is on.
    pub secured: bool,
    policies: Vec<(Index, Index, bool)>,
    /// Columns that the roles of users may not read.
    hidden: Vec<Index>,
    pub items: Vec<Item>,
    pub steps: Vec<Step>,
}

/// The new state of a row: values by column, NULL for a missing one; `None` deletes it.
#[derive(Debug, Clone)]
pub struct Step {
    pub id: i32,
    pub row: Option<Vec<Option<Index>>>,
    /// Whether a transaction ends before it.
    pub commits: bool,
}

#[derive(Debug, Clone)]
pub struct Item {
    event: Index,
    tests: Vec<Test>,
    /// An `or=(…)` instead of a list, turned around or not.
    group: Option<bool>,
    select: Option<Vec<Index>>,
}

#[derive(Debug, Clone)]
struct Test {
    column: Index,
    operator: Index,
    negated: bool,
    values: Vec<Option<Index>>,
}

const COLUMNS_MAX: usize = 4;
const EVENTS: &[&str] = &["*", "INSERT", "UPDATE", "DELETE"];
/// Of texts, which all can be asked of.
const OPERATORS: &[&str] =
    &["eq", "neq", "lt", "lte", "gt", "gte", "in", "like", "ilike", "match", "imatch", "isdistinct", "is"];
/// Of the others, seldom a pattern.
const ORDERS: &[&str] = &[
    "eq",
    "neq",
    "lt",
    "lte",
    "gt",
    "gte",
    "in",
    "isdistinct",
    "is",
    "eq",
    "neq",
    "lt",
    "lte",
    "gt",
    "gte",
    "in",
    "ilike",
];
const ODD: &[&str] = &["point", "json", "xml", "int4[]", "text[]"];
const TEXTS: &[&str] = &["text", "varchar", "name", "pg_catalog.bpchar", "bytea"];

/// `{c}` is a column.
const POLICIES: &[&str] = &[
    "true",
    "{c} is not null",
    "{c} is null",
    "id % 2 = 0",
    "auth.jwt() ->> 'sub' = 'ann'",
    "id <= (auth.jwt() ->> 'level')::int",
    "within(id)",
    "exists (select from members m where m.uid = auth.jwt() ->> 'sub' and m.id = {t}.id)",
    "{c}::text like '%a%' or {c}::text is null",
];

pub fn case() -> impl Strategy<Value = Case> {
    let test =
        (any::<Index>(), any::<Index>(), any::<bool>(), vec(option::weighted(0.9, any::<Index>()), 1..4))
            .prop_map(|(column, operator, negated, values)| Test { column, operator, negated, values });
    let select = option::weighted(0.25, vec(any::<Index>(), 1..3));
    let item = (any::<Index>(), vec(test, 0..3), option::weighted(0.25, any::<bool>()), select)
        .prop_map(|(event, tests, group, select)| Item { event, tests, group, select });
    let row = option::weighted(0.75, vec(option::weighted(0.85, any::<Index>()), COLUMNS_MAX));
    let step = (1..5_i32, row, any::<bool>()).prop_map(|(id, row, commits)| Step { id, row, commits });
    let policy = (any::<Index>(), any::<Index>(), proptest::bool::weighted(0.2));
    let hidden = vec(any::<Index>(), 0..2);
    (
        vec(any::<Index>(), 1..=COLUMNS_MAX),
        proptest::bool::weighted(0.7),
        vec(policy, 0..4),
        hidden,
        vec(item, 1..6),
        vec(step, 1..12),
    )
        .prop_map(|(columns, secured, policies, hidden, items, steps)| Case {
            columns,
            secured,
            policies,
            hidden,
            items,
            steps,
        })
}

fn pick<T: Copy>(at: &Index, of: &[T]) -> T {
    of[at.index(of.len())]
}

fn literal(text: &str) -> String {
    // Without escapes, whatever it holds.
    format!("'{}'", text.replace('\'', "''"))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl Case {
    fn kind(&self, column: usize) -> &'static Kind {
        self.columns[column].get(KINDS)
    }

    fn column(&self, of: &Index) -> usize {
        of.index(self.columns.len())
    }

    pub fn is_hidden(&self, column: usize) -> bool {
        self.hidden.iter().any(|it| self.column(it) == column)
    }

    /// Whether the column of that name, which is not the key, is hidden.
    pub fn hides(&self, name: &str) -> bool {
        name.strip_prefix('c').is_some_and(|at| self.is_hidden(at.parse().unwrap()))
    }

    pub fn create(&self, table: &str) -> String {
        let columns: String =
            (0..self.columns.len()).map(|at| format!(", c{at} {}", self.kind(at).declared)).collect();
        let external = (0..self.columns.len()).filter(|at| self.kind(*at).compared == "text");
        let external: String =
            external.map(|at| format!("alter table {table} alter c{at} set storage external;")).collect();
        let readable: String =
            (0..self.columns.len()).filter(|at| !self.is_hidden(*at)).map(|at| format!(", c{at}")).collect();
        let policy = |(at, (policy, column, restrictive)): (usize, &(Index, Index, bool))| {
            let column = format!("c{}", self.column(column));
            let check = pick(policy, POLICIES).replace("{c}", &column).replace("{t}", table);
            let kind = if *restrictive { "restrictive" } else { "permissive" };
            format!("create policy p{at} on {table} as {kind} for select using ({check});")
        };
        let policies: String = self.policies.iter().enumerate().map(policy).collect();
        let secured = if self.secured {
            format!("alter table {table} enable row level security;")
        } else {
            String::new()
        };
        format!(
            "create table {table} (id int primary key{columns}); alter table {table} replica identity full;{external}
             revoke select on {table} from anon, authenticated; grant select (id{readable}) on {table} to anon, authenticated;
             {policies}{secured} alter publication supabase_realtime add table {table};"
        )
    }

    fn value(&self, column: usize, at: &Index) -> String {
        let kind = self.kind(column);
        let mut values: Vec<String> = kind.values.iter().map(|it| (*it).to_owned()).collect();
        if kind.compared == "text" {
            values.push("long".repeat(LONG));
        }
        format!("{}::{}", literal(&values[at.index(values.len())]), kind.declared)
    }

    fn values(&self, row: &[Option<Index>]) -> Vec<String> {
        let value = |(at, value): (usize, &Option<Index>)| {
            value.as_ref().map_or("null".into(), |it| self.value(at, it))
        };
        row.iter().take(self.columns.len()).enumerate().map(value).collect()
    }

    pub fn insert(&self, table: &str, id: i32, row: &[Option<Index>]) -> String {
        format!("insert into {table} values ({id}, {})", self.values(row).join(", "))
    }

    /// Columns that get no value keep theirs.
    pub fn update(&self, table: &str, id: i32, row: &[Option<Index>]) -> String {
        let kept = row.first().is_some_and(Option::is_none);
        let sets = self.values(row).into_iter().enumerate().filter(|(_, value)| !kept || value != "null");
        let sets: Vec<_> =
            sets.map(|(at, value)| format!("c{at} = {value}")).chain(["id = id".to_owned()]).collect();
        format!("update {table} set {} where id = {id}", sets.join(", "))
    }

    /// The row as clients get it.
    pub fn image(&self) -> String {
        let member = |at: usize| {
            let value = match self.kind(at).compared {
                "bytea" => format!("encode(c{at}, 'hex')"),
                "float4" | "float8" | "numeric" => {
                    format!(
                        "case when c{at}::text in ('NaN', 'Infinity', '-Infinity') then null else to_jsonb(c{at}) end"
                    )
                }
                _ => format!("to_jsonb(c{at})"),
            };
            format!(", 'c{at}', {value}")
        };
        let members: String = (0..self.columns.len()).map(member).collect();
        format!("jsonb_build_object('id', id{members})")
    }
}

impl Item {
    pub fn event(&self) -> &'static str {
        pick(&self.event, EVENTS)
    }

    /// The columns that it names.
    pub fn columns(&self, case: &Case) -> Vec<usize> {
        let selected = self.select.iter().flatten();
        self.tests.iter().map(|test| &test.column).chain(selected).map(|of| case.column(of)).collect()
    }

    /// Whether Postgres has some operator for a type that cannot be compared in general: such filters may be refused.
    pub fn is_odd(&self, case: &Case) -> bool {
        self.tests.iter().any(|test| ODD.contains(&case.kind(case.column(&test.column)).compared))
    }

    /// What it selects, sorted; nothing for everything.
    pub fn selected(&self, case: &Case) -> Vec<String> {
        let mut names: Vec<_> =
            self.select.iter().flatten().map(|of| format!("c{}", case.column(of))).collect();
        names.sort();
        names.dedup();
        names
    }

    pub fn json(&self, case: &Case, table: &str) -> Value {
        let mut item = json!({"event": self.event(), "schema": "public", "table": table});
        if !self.tests.is_empty() {
            item["filter"] = json!(self.filter(case));
        }
        if self.select.is_some() {
            item["select"] = json!(self.selected(case));
        }
        item
    }

    fn filter(&self, case: &Case) -> String {
        let tests =
            |sign: char| self.tests.iter().map(|test| test.text(case, sign)).collect::<Vec<_>>().join(",");
        match self.group {
            None => tests('='),
            Some(negated) => format!("{}or=({})", if negated { "not." } else { "" }, tests('.')),
        }
    }

    /// Whether a row passes, as SQL that is never NULL.
    pub fn sql(&self, case: &Case) -> String {
        let tests: Vec<_> = self.tests.iter().map(|test| test.sql(case, None)).collect();
        let all = match self.group {
            _ if tests.is_empty() => "true".to_owned(),
            None => tests.join(" and "),
            Some(negated) => format!("{}({})", if negated { "not " } else { "" }, tests.join(" or ")),
        };
        format!("coalesce({all}, false)")
    }

    /// A statement that fails where Postgres could not decide it.
    pub fn probe(&self, case: &Case) -> String {
        let of = |test: &Test| {
            let kind = case.kind(case.column(&test.column));
            test.sql(case, Some(&format!("{}::{}", literal(kind.values[0]), kind.declared)))
        };
        let tests: Vec<_> = self.tests.iter().map(of).chain(["true".to_owned()]).collect();
        format!("select {}", tests.join(", "))
    }
}

impl Test {
    fn operator(&self, kind: &Kind) -> &'static str {
        pick(&self.operator, if TEXTS.contains(&kind.compared) { OPERATORS } else { ORDERS })
    }

    /// The texts that it compares with, of one kind of column.
    fn texts(&self, kind: &Kind) -> Vec<Option<String>> {
        let texts: Vec<_> = kind.values.iter().chain(kind.others).collect();
        self.values.iter().map(|at| at.as_ref().map(|at| (*pick(at, &texts)).to_owned())).collect()
    }

    fn first(&self, kind: &Kind) -> String {
        self.texts(kind)[0].clone().unwrap_or_else(|| "null".to_owned())
    }

    fn keyword(&self, kind: &Kind) -> &'static str {
        let words: &[&str] =
            if kind.compared == "bool" { &["null", "true", "false", "unknown"] } else { &["null"] };
        self.values[0].as_ref().map_or("null", |at| pick(at, words))
    }

    fn text(&self, case: &Case, sign: char) -> String {
        let column = case.column(&self.column);
        let kind = case.kind(column);
        let value = match self.operator(kind) {
            "is" => self.keyword(kind).to_owned(),
            "in" => {
                let element = |text: Option<String>| text.map_or("NULL".to_owned(), |text| quoted(&text));
                format!("({})", self.texts(kind).into_iter().map(element).collect::<Vec<_>>().join(","))
            }
            _ => quoted(&self.first(kind)),
        };
        format!("c{column}{sign}{}{}.{value}", if self.negated { "not." } else { "" }, self.operator(kind))
    }

    /// The same as SQL, of the column or of another value.
    fn sql(&self, case: &Case, of: Option<&str>) -> String {
        let column = case.column(&self.column);
        let kind = case.kind(column);
        let name = format!("c{column}");
        let left = of.unwrap_or(&name);
        let right = format!("{}::{}", literal(&self.first(kind)), kind.compared);
        let as_pattern = if kind.compared == "bytea" { "bytea" } else { "text" };
        let pattern = format!("{}::{as_pattern}", literal(&self.first(kind)));
        let test = match self.operator(kind) {
            "eq" => format!("{left} = {right}"),
            "neq" => format!("{left} <> {right}"),
            "lt" => format!("{left} < {right}"),
            "lte" => format!("{left} <= {right}"),
            "gt" => format!("{left} > {right}"),
            "gte" => format!("{left} >= {right}"),
            "like" => format!("{left} like {pattern}"),
            "ilike" => format!("{left} ilike {pattern}"),
            "match" => format!("{left} ~ {pattern}"),
            "imatch" => format!("{left} ~* {pattern}"),
            "isdistinct" => format!("{left} is distinct from {right}"),
            "is" => format!("{left} is {}", self.keyword(kind)),
            "in" => {
                let element = |text: Option<String>| {
                    text.map_or("null".to_owned(), |text| format!("{}::{}", literal(&text), kind.compared))
                };
                let all: Vec<_> = self.texts(kind).into_iter().map(element).collect();
                // An array of arrays is another thing than a list of them.
                let any: Vec<_> = all.iter().map(|value| format!("{left} = {value}")).collect();
                format!("({})", any.join(" or "))
            }
            other => unreachable!("{other}"),
        };
        if self.negated { format!("(not ({test}))") } else { format!("({test})") }
    }
}
