//! `docs/PROTOCOL.md` has a row for each statement of both checklists, and every test that it names exists.
use std::{collections::BTreeSet, fs, path::Path};

/// The number of statements of each checklist.
const TABLES: [usize; 2] = [156, 118];
/// The heading of the second checklist.
const SECOND: &str = "\n## Row changes\n";

/// The statement rows of the table: number, statement, evidence.
fn rows(page: &str) -> Vec<(usize, &str, &str)> {
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<_>>();
    let page: &'static str = Box::leak(page.to_owned().into_boxed_str());
    let rows = page.lines().filter(|line| line.starts_with('|')).map(cells);
    rows.filter_map(|cells| match cells[..] {
        [number, statement, shown] => Some((number.parse().ok()?, statement, shown)),
        _ => None,
    })
    .collect()
}

/// The names in back quotes that look like tests: words joined by underscores.
fn tests(shown: &str) -> impl Iterator<Item = &str> {
    shown.split('`').skip(1).step_by(2).filter(|name| {
        name.matches('_').count() >= 3
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    })
}

/// Every test function of the crate and of the integration tests.
fn functions(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            functions(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[") {
                    is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                    continue;
                }
                let name = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "));
                if let (Some(name), true) = (name, std::mem::take(&mut is_test)) {
                    found.insert(name.split(['(', '<']).next().unwrap().to_owned());
                }
            }
        }
    }
}

#[test]
fn each_statement_has_its_row_and_each_named_test_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/PROTOCOL.md")).unwrap();
    let (first, second) = page.split_once(SECOND).unwrap();
    let tables = [rows(first), rows(second)];
    for (rows, statements) in tables.iter().zip(TABLES) {
        let numbers: Vec<_> = rows.iter().map(|(number, ..)| *number).collect();
        assert_eq!(numbers, (1..=statements).collect::<Vec<_>>(), "each number once, in order");
    }
    let mut known = BTreeSet::new();
    functions(&root.join("tests/it"), &mut known);
    functions(&root.join("src"), &mut known);
    let mut wrong = Vec::new();
    for (number, statement, shown) in tables.into_iter().flatten() {
        if statement.is_empty() || tests(shown).next().is_none() {
            wrong.push(format!("{number} names no test"));
        }
        for test in tests(shown).filter(|test| !known.contains(*test)) {
            wrong.push(format!("{number} names {test}, which is no test"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
