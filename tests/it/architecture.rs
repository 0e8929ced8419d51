//! Keeps the code to `ARCHITECTURE.md`: which module may name which, no import circles, and the length of files.
mod circles;

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
    ("json", ""),
    ("clock", ""),
    ("scope", ""),
    ("telemetry", ""),
    ("files", ""),
    ("problem", ""),
    ("wire", "id"),
    ("client", "scope wire"),
    ("auth", "id clock files scope telemetry"),
    ("db", "clock files scope telemetry"),
    ("filter", "db"),
    ("llm", "clock json telemetry"),
    ("wal", "id json db clock scope telemetry"),
    ("journal", ""),
    ("hub", "id clock wire journal scope telemetry"),
    ("presence", "id wire clock hub scope telemetry"),
    ("access", "id auth db hub scope telemetry"),
    ("changes", "id clock wire db filter wal journal hub access scope telemetry"),
    ("task", "id clock json db scope telemetry"),
    ("agent", "id clock json filter wal hub presence task llm db scope telemetry"),
    ("remote", "id clock json auth wire hub presence task agent scope telemetry"),
    ("gateway", "id wire clock json auth access hub presence changes remote scope telemetry"),
    ("api", "id wire clock json problem auth hub task agent llm remote gateway telemetry"),
    ("dashboard", "id clock problem auth db"),
    ("config", "id files access api auth dashboard db agent llm wal hub changes gateway telemetry task"),
    (
        "app",
        "files id clock json scope telemetry wire auth db llm wal hub presence access changes task agent remote gateway \
         api dashboard config",
    ),
    (
        "cli",
        "files id clock json scope telemetry client auth db llm access wal task agent api dashboard config app",
    ),
    ("testing", "clock scope"),
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
fn architecture_md_and_the_table_agree() {
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
fn files_have_at_most_600_lines() {
    for (module, _) in MAY_NAME {
        for file in files(module) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines: cut it by responsibility", file.display());
        }
    }
}

#[test]
fn every_module_begins_with_a_description() {
    for (module, _) in MAY_NAME {
        for file in files(module) {
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.starts_with("//! "), "{} does not begin by saying what it is", file.display());
        }
    }
}

/// `path.rs::name` in a page names a test: `path.rs` is the end of the path of its file.
#[test]
fn tests_that_pages_cite_exist() {
    let read = |file: PathBuf| (file.display().to_string(), fs::read_to_string(&file).unwrap());
    let sources: Vec<_> = ["src", "tests/it", "bench/src"]
        .iter()
        .flat_map(|dir| found(root().join(dir), "rs"))
        .map(read)
        .collect();
    let mut wrong = Vec::new();
    for (page, text) in found(root().join("docs"), "md").into_iter().map(read) {
        let cited = text.split('`').filter_map(|word| word.split_once(".rs::"));
        for (path, name) in cited {
            let (path, item) = (format!("/{path}.rs"), format!("fn {name}("));
            if !sources.iter().any(|(file, code)| file.ends_with(&path) && code.contains(&item)) {
                wrong.push(format!("{page}: {path}::{name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "no such test:\n{}", wrong.join("\n"));
}

/// Tests may read rows with `Row::get`, so clippy's list of methods is off for them: the rest of it holds here.
#[test]
fn tests_say_why_they_spawn_and_read_clocks() {
    for file in rust_files(root().join("tests/it")) {
        let text = fs::read_to_string(&file).unwrap();
        let banned = ["tokio::spawn", "unbounded_channel", "SystemTime::now", "Utc::now"];
        let called: Vec<_> = banned.iter().filter(|name| text.contains(&format!("{name}("))).collect();
        let says_why = text.contains("clippy::disallowed_methods, reason");
        assert!(called.is_empty() || says_why, "{} calls {called:?} and gives no reason", file.display());
    }
}

fn files(module: &str) -> Vec<PathBuf> {
    let src = root().join("src");
    let mut found = vec![src.join(format!("{module}.rs"))];
    found.retain(|file| file.exists());
    found.extend(rust_files(src.join(module)));
    found
}

fn rust_files(folder: PathBuf) -> Vec<PathBuf> {
    let mut files = found(folder, "rs");
    // A `tests.rs` is the tests of the module beside it, which may use whatever helps.
    files.retain(|file| file.file_name().is_some_and(|name| name != "tests.rs"));
    files
}

/// The files below a folder with this extension.
fn found(folder: PathBuf, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == extension) {
                found.push(path);
            }
        }
    }
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
            ',' if depth == 1 => {
                parts.push(String::new());
                continue;
            }
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            break;
        }
        parts.last_mut().unwrap().push(c);
    }
    parts
}

#[test]
fn a_grouped_use_is_read_whole() {
    let names =
        named_modules("use crate::{\n    a::{self, B},\n    c,\n};\nfn f() { crate::d::e() }\n// crate::f");
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["a", "c", "d"]);
    assert_eq!(group_parts("a::{b, c::{d}}, e}; f"), ["a::{b, c::{d}}", " e"]);
}
