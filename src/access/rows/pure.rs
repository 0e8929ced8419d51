//! Whether the outcome of policies depends on nothing but the row and the claims, so that it may be remembered.
//!
//! Looks at the expressions as Postgres stores them and knows only what it allows: no table, no function but
//! immutable ones of Postgres, `current_setting`, and functions that merely read settings, such as `auth.uid()`.
//! Everything else is asked again for every row.
use std::collections::BTreeSet;
use tokio_postgres::{Client, Error, types::Oid};

/// The kinds of nodes whose value follows from their arguments.
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

/// What an SQL function that merely reads settings may consist of.
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

/// What settings are read through by other functions.
const JWT: &str = "auth.jwt()";

/// Oids that an expression names.
#[derive(Default)]
struct Named {
    functions: BTreeSet<Oid>,
    operators: BTreeSet<Oid>,
    converted_to: BTreeSet<Oid>,
}

/// The functions on whose definitions the outcome of these expressions depends; nothing when it may depend on more.
pub(super) async fn functions<'a>(
    client: &Client,
    trees: impl Iterator<Item = &'a str>,
) -> Result<Option<Vec<Oid>>, Error> {
    let mut named = Named::default();
    for tree in trees {
        if named.read(tree).is_none() {
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
        if row.try_get("is_jwt")? && source.as_deref().is_some_and(|s| reads_settings(s) == Some(false)) {
            jwt = Some(oid);
        }
        if !row.try_get::<_, bool>("asked")? {
            continue;
        }
        let pure = if row.try_get("builtin")? {
            row.try_get("immutable")? || name == "current_setting"
        } else {
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
    /// Takes in an expression; nothing when it has a node that is not known to be harmless.
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
                ":funcid" | ":opfuncid" | ":hashfuncid" | ":negfuncid" => match oid()? {
                    0 => {}
                    oid => drop(self.functions.insert(oid)),
                },
                ":opno" => drop(self.operators.insert(oid()?)),
                ":resulttype" => drop(self.converted_to.insert(oid()?)),
                // Tables, functions in `from`, common table expressions.
                ":rtable" | ":cteList" => (next == Some("<>")).then_some(())?,
                _ => {}
            }
        }
        Some(())
    }
}

/// Whether the body of an SQL function asks `auth.jwt()`; nothing when it is no expression of settings alone.
fn reads_settings(source: &str) -> Option<bool> {
    let asks_jwt = source.contains(JWT);
    is_of_settings(&source.replace(JWT, "null")).then_some(asks_jwt)
}

fn is_of_settings(source: &str) -> bool {
    let mut rest = source.trim();
    if !rest.get(..6).is_some_and(|word| word.eq_ignore_ascii_case("select")) {
        return false;
    }
    while let Some(c) = rest.chars().next() {
        let taken = match c {
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
        // Two dashes begin a comment, which may hide anything.
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
    fn a_function_of_settings_alone_is_known_by_its_words() {
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
    fn an_expression_with_a_table_or_an_unknown_node_is_not_pure() {
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
