//! Decides whether the outcome of policies depends on the row and the claims alone, so that it may be cached.
//!
//! Reads the expressions as Postgres stores them (`pg_node_tree`) with an allow list: no table, only
//! immutable functions of Postgres, `current_setting` of settings that the daemon sets for each viewer, and
//! SQL functions that only read such settings, like `auth.uid()`. Everything else is evaluated for every row.
//! Fails closed: an unknown node, word or volatility means "not cacheable" (decision 32).
use std::collections::BTreeSet;
use tokio_postgres::{Client, Error, types::Oid};

/// Nodes whose value follows from their arguments alone.
const NODES: [&str; 28] = [
    "ALTERNATIVESUBPLAN",
    "ARRAY",
    "ARRAYEXPR",
    "BOOLEANTEST",
    "BOOLEXPR",
    "CASE",
    "CASEEXPR",
    "CASETESTEXPR",
    "CASEWHEN",
    "COALESCE",
    "COALESCEEXPR",
    "COERCEVIAIO",
    "COLLATE",
    "COLLATEEXPR",
    "CONST",
    "DISTINCTEXPR",
    "FROMEXPR",
    "FUNCEXPR",
    "NULLIFEXPR",
    "NULLTEST",
    "OPEXPR",
    "QUERY",
    "RELABELTYPE",
    "SCALARARRAYOPEXPR",
    "SUBLINK",
    "TARGETENTRY",
    "VAR",
    "WHEN",
];

/// The words of which an SQL function that only reads settings may consist.
const WORDS: [&str; 17] = [
    "as",
    "bigint",
    "coalesce",
    "current_setting",
    "false",
    "int",
    "integer",
    "json",
    "jsonb",
    "null",
    "nullif",
    "pg_catalog",
    "select",
    "text",
    "true",
    "uuid",
    "varchar",
];

/// Prefix of the settings that the daemon sets for each viewer. Any other setting may change while an outcome
/// is cached.
const OF_VIEWER: &str = "'request.jwt.";

/// The call through which other functions read the claims.
const JWT: &str = "auth.jwt()";

/// Oids of catalog objects that an expression names.
#[derive(Default)]
struct Named {
    functions: BTreeSet<Oid>,
    operators: BTreeSet<Oid>,
    /// Types to which a value is converted through text; their input functions run.
    converted_to: BTreeSet<Oid>,
}

/// Returns the functions on whose definitions the outcome of these expressions (stored tree, SQL text)
/// depends; `None` if it may depend on anything else.
pub(super) async fn functions<'a>(
    client: &Client,
    expressions: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Option<Vec<Oid>>, Error> {
    let mut named = Named::default();
    for (tree, sql) in expressions {
        if named.read(tree).is_none() || !reads_the_viewers_settings(sql) {
            return Ok(None);
        }
    }
    let list = |oids: BTreeSet<Oid>| oids.into_iter().collect::<Vec<_>>();
    let (functions, operators) = (list(named.functions), list(named.operators));
    let converted_to = list(named.converted_to);
    let rows =
        client.query(include_str!("sql/functions.sql"), &[&functions, &operators, &converted_to]).await?;
    let (mut known, mut jwt, mut asks_jwt) = (Vec::new(), None, false);
    for row in rows {
        let name: String = row.try_get("name")?;
        let source: Option<String> = row.try_get("source")?;
        let oid: Oid = row.try_get("oid")?;
        // `Some(false)`: its body reads settings and does not call itself.
        if row.try_get("is_jwt")? && source.as_deref().is_some_and(|s| reads_settings(s) == Some(false)) {
            jwt = Some(oid);
        }
        // The query adds `auth.jwt()` even if no expression names it.
        if !row.try_get::<_, bool>("asked")? {
            continue;
        }
        let pure = if row.try_get("builtin")? {
            row.try_get("immutable")? || name == "current_setting"
        } else {
            // The source is null for functions in other languages, so those are not pure.
            let reads = source.and_then(|source| reads_settings(&source));
            asks_jwt |= reads == Some(true);
            reads.is_some()
        };
        if !pure {
            return Ok(None);
        }
        known.push(oid);
    }
    if asks_jwt {
        let Some(jwt) = jwt else { return Ok(None) };
        known.push(jwt);
    }
    Ok(Some(known))
}

impl Named {
    /// Adds the objects of an expression; `None` if it has a node that is not on the allow list.
    fn read(&mut self, tree: &str) -> Option<()> {
        let mut words = tree.split([' ', '(', ')', '}', '\n']).filter(|word| !word.is_empty()).peekable();
        while let Some(word) = words.next() {
            if let Some(kind) = word.strip_prefix('{') {
                NODES.contains(&kind).then_some(())?;
                continue;
            }
            let next = words.peek().copied();
            let oid = || next.and_then(|next| next.parse::<Oid>().ok());
            match word {
                // 0 stands for a function that the planner fills in from the operator; `:opno` covers it.
                ":funcid" | ":opfuncid" | ":hashfuncid" | ":negfuncid" => match oid()? {
                    0 => {}
                    oid => drop(self.functions.insert(oid)),
                },
                ":opno" => drop(self.operators.insert(oid()?)),
                ":resulttype" => drop(self.converted_to.insert(oid()?)),
                // Tables, functions in `from`, and common table expressions: only empty lists (`<>`) are
                // allowed.
                ":rtable" | ":cteList" => (next == Some("<>")).then_some(())?,
                _ => {}
            }
        }
        Some(())
    }
}

/// Returns whether the body of an SQL function calls `auth.jwt()`; `None` if it does more than read settings.
fn reads_settings(source: &str) -> Option<bool> {
    let asks_jwt = source.contains(JWT);
    is_of_settings(&source.replace(JWT, "null")).then_some(asks_jwt)
}

/// Whether every setting that the SQL reads is one that the daemon sets for each viewer.
fn reads_the_viewers_settings(sql: &str) -> bool {
    let sql = sql.to_ascii_lowercase();
    let mut reads = sql.split("current_setting").skip(1);
    reads.all(|rest| rest.trim_start_matches(['(', ' ', '\t', '\r', '\n', '"']).starts_with(OF_VIEWER))
}

/// Whether the SQL is one `select` of words on the allow list, string literals and operators for JSON.
fn is_of_settings(source: &str) -> bool {
    let mut rest = source.trim();
    if !reads_the_viewers_settings(rest) {
        return false;
    }
    if !rest.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select")) {
        return false;
    }
    while let Some(c) = rest.chars().next() {
        let taken = match c {
            // A literal without backslash; a doubled quote ends it here and starts the next one.
            '\'' => match rest.get(1..).and_then(|inside| inside.find(['\'', '\\'])) {
                Some(at) if rest.get(at + 1..).is_some_and(|end| end.starts_with('\'')) => at + 2,
                _ => return false,
            },
            c if c.is_ascii_alphabetic() || c == '_' => {
                let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
                let end = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
                let word = rest.get(..end).unwrap_or_default().to_ascii_lowercase();
                if !WORDS.contains(&word.as_str()) {
                    return false;
                }
                end
            }
            c if c.is_ascii_whitespace() || "(),;:.->".contains(c) => 1,
            _ => return false,
        };
        // `--` starts a comment, which is not analyzed.
        if rest.starts_with("--") {
            return false;
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_function_that_only_reads_settings_is_recognized() {
        for pure in [
            "select coalesce(nullif(current_setting('request.jwt.claim.sub', true), ''), \
             (nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub'))::uuid",
            "\n  SELECT current_setting('request.jwt.claims', true)::jsonb -> 'app' ->> 'org';\n",
        ] {
            assert_eq!(reads_settings(pure), Some(false), "{pure}");
        }
        for other in [
            "select id from users",
            "select now()::text",
            "select current_setting('a') -- from users",
            "select e'\\''",
            "select \"f\"()",
            "select 1",
            "begin; end",
            "select $1",
            "",
        ] {
            assert_eq!(reads_settings(other), None, "{other}");
        }
        assert_eq!(reads_settings("select (auth.jwt() ->> 'sub')::uuid"), Some(true));
        assert_eq!(reads_settings("select public.jwt()"), None);
    }

    #[test]
    fn expression_with_a_table_or_an_unknown_node_is_not_pure() {
        let mut named = Named::default();
        let tree = "{OPEXPR :opno 96 :opfuncid 65 :args ({VAR :varno 1} {COERCEVIAIO :arg {CONST :constvalue 4 [ 1 ]} \
                    :resulttype 23 :coerceformat 1})}";
        assert!(named.read(tree).is_some());
        assert_eq!(named.functions, [65].into());
        assert_eq!(named.operators, [96].into());
        assert_eq!(named.converted_to, [23].into());
        assert!(named.read("{QUERY :cteList <> :rtable <> :jointree <>}").is_some());
        assert!(named.read("{QUERY :rtable ({RANGETBLENTRY :relid 16387})}").is_none());
        assert!(named.read("{SQLVALUEFUNCTION :op 3}").is_none());
        assert!(named.read("{NEXTVALUEEXPR :seqid 3}").is_none());
    }
}
