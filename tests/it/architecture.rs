//! Holds the house to `ARCHITECTURE.md`: who may name whom, and how long a file may get.
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// Each module, and the modules of this crate that it may name. From the bottom up: a module may
/// only name what stands above it here.
const MAY_NAME: &[(&str, &str)] = &[
    ("fault", ""),
    ("id", ""),
    ("clock", ""),
    ("scope", ""),
    ("telemetry", ""),
    ("wire", "id"),
    ("client", "scope wire"),
    ("auth", "id clock scope telemetry"),
    ("db", "clock scope telemetry"),
    ("filter", "db"),
    ("bus", "id scope telemetry"),
    ("llm", "clock telemetry"),
    ("wal", "id db clock scope telemetry"),
    ("journal", ""),
    ("hub", "id clock wire bus journal scope telemetry"),
    ("presence", "id wire clock hub bus scope telemetry"),
    ("access", "id auth db hub scope telemetry"),
    ("changes", "id clock wire db filter wal journal hub access scope telemetry"),
    ("task", "id clock db scope telemetry"),
    ("agent", "id clock filter wal hub presence task llm db scope telemetry"),
    ("gateway", "id wire clock auth access hub presence changes scope telemetry"),
    ("dashboard", ""),
    ("api", "id wire clock auth hub task agent gateway dashboard telemetry"),
    ("config", "id access api auth db agent wal hub changes gateway telemetry task"),
    (
        "app",
        "id clock scope telemetry wire auth db bus llm wal hub presence access changes task agent gateway \
         dashboard api config",
    ),
    ("cli", "id clock scope telemetry client auth db access wal task agent api config app"),
];

/// Tests may kill the daemon anywhere.
const EVERYWHERE: &str = "fault";
const LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn modules_name_only_what_they_may() {
    let mut wrong = Vec::new();
    for (module, may) in MAY_NAME {
        let may: BTreeSet<_> = may.split_whitespace().collect();
        for file in files(module) {
            let text = fs::read_to_string(&file).unwrap();
            for named in named_modules(&text) {
                if named != *module && named != EVERYWHERE && !may.contains(named.as_str()) {
                    let file = file.strip_prefix(root()).unwrap().display();
                    wrong.push(format!("{file}: {module} may not name {named}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_arrow_points_down() {
    for (at, (module, may)) in MAY_NAME.iter().enumerate() {
        for below in may.split_whitespace() {
            let place = MAY_NAME.iter().position(|(name, _)| *name == below).unwrap_or(usize::MAX);
            assert!(place < at, "{module} names {below}, which does not stand below it");
        }
    }
}

#[test]
fn the_table_and_the_crate_have_the_same_modules() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let public = lib.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    let public: BTreeSet<_> = public.collect();
    let table: BTreeSet<_> = MAY_NAME.iter().map(|(module, _)| *module).collect();
    assert_eq!(public, table);
}

#[test]
fn the_map_says_what_the_table_says() {
    let map = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (module, may) in MAY_NAME {
        let start = format!("| `{module}` |");
        let row = map.lines().find(|line| line.starts_with(&start));
        let row = row.unwrap_or_else(|| panic!("ARCHITECTURE.md has no row for {module}"));
        let told = row.trim_end_matches('|').rsplit('|').next().unwrap().trim();
        let told: BTreeSet<_> = told.split_whitespace().filter(|word| *word != "nothing").collect();
        assert_eq!(told, may.split_whitespace().collect(), "{module}");
    }
}

#[test]
fn no_file_is_two_things() {
    for (module, _) in MAY_NAME {
        for file in files(module) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines: cut it by responsibility", file.display());
        }
    }
}

#[test]
fn every_module_says_what_it_is() {
    for (module, _) in MAY_NAME {
        for file in files(module) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.starts_with("//! "), "{} does not begin by saying what it is", file.display());
        }
    }
}

fn files(module: &str) -> Vec<PathBuf> {
    let src = root().join("src");
    let mut found = vec![src.join(format!("{module}.rs"))];
    let mut folders = vec![src.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs") {
                found.push(path);
            }
        }
    }
    // A `tests.rs` is the tests of the module beside it, which may use whatever helps.
    found.retain(|file| file.exists() && file.file_name().is_some_and(|name| name != "tests.rs"));
    found
}

/// The first names after `crate::`, also of each part of `crate::{a, b::c}`; not in comments, and not
/// in a file's own tests, which may use whatever helps.
fn named_modules(text: &str) -> BTreeSet<String> {
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let code: Vec<_> = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n");
    let word = |text: &str| -> String {
        text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut names = BTreeSet::new();
    for (at, start) in code.match_indices("crate::") {
        let rest = &code[at + start.len()..];
        match rest.strip_prefix('{') {
            None => drop(names.insert(word(rest))),
            Some(group) => names.extend(group_parts(group).iter().map(|part| word(part))),
        }
    }
    names.retain(|name| name.starts_with(|c: char| c.is_lowercase()));
    names
}

/// The parts of `a, b::{c, d}, e}` up to its closing brace.
fn group_parts(group: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 1;
    for c in group.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => parts.push(String::new()),
            _ => parts.last_mut().unwrap().push(c),
        }
        if depth == 0 {
            break;
        }
    }
    parts
}

#[test]
fn a_grouped_use_is_read_whole() {
    let names =
        named_modules("use crate::{\n    a::{self, B},\n    c,\n};\nfn f() { crate::d::e() }\n// crate::f");
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "c", "d"]);
}
