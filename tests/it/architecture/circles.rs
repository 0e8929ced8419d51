//! Import circles inside the modules: files that cannot be read without each other.
//!
//! **Nodes** are the files of one module of the crate. **Edges** are imports: `use` items and paths in the code that
//! begin with `crate`, `super`, `self` or an imported name. A path that ends at a re-export, also by `*`, counts for the
//! file that defines the item. Comments and tests are not read.
//!
//! **An import from a file into its own child files is no edge.** The parent declares its children, re-exports their
//! items and owns the state that they share, so parent and child always name each other: `session.rs` and
//! `session/room.rs`, or `mod.rs` and any file beside it. Seen from elsewhere they are one unit. An import of a child
//! from its parent is an edge, so that a circle through the parent and a stranger is found.
//!
//! A circle of two files is allowed: two halves of one type. Three or more have no first file to read.
use super::{MAY_NAME, files, group_parts, root};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// Most files of a circle.
const CIRCLE_MAX: usize = 2;

struct File {
    /// The module path below the crate: `["gateway", "session", "room"]`.
    path: Vec<String>,
    code: String,
    /// What its `use` items import, by the name in this file.
    imports: BTreeMap<String, Vec<String>>,
    /// The modules of which it imports every item.
    globs: Vec<Vec<String>>,
}

#[test]
fn no_import_circle_has_more_than_two_files() {
    let mut found = Vec::new();
    for (module, _) in MAY_NAME {
        let read =
            |file: &std::path::PathBuf| File::new(module_path(file), &fs::read_to_string(file).unwrap());
        let files: Vec<File> = files(module).iter().map(read).collect();
        found.extend(circles(&files));
    }
    assert!(found.is_empty(), "import circles:\n{}", found.join("\n"));
}

/// `src/a/b.rs` and `src/a/b/mod.rs` are `a::b`.
fn module_path(file: &Path) -> Vec<String> {
    let relative = file.strip_prefix(root().join("src")).unwrap().with_extension("");
    let mut path: Vec<String> = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    path.pop_if(|last| last == "mod");
    path
}

/// Each circle of more than [`CIRCLE_MAX`] files, in one line with its edges.
fn circles(files: &[File]) -> Vec<String> {
    let edges: Vec<BTreeSet<usize>> = files.iter().map(|file| edges(file, files)).collect();
    let reach: Vec<BTreeSet<usize>> = (0..files.len()).map(|at| reachable(at, &edges)).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for at in 0..files.len() {
        let circle: Vec<usize> =
            reach[at].iter().copied().filter(|other| reach[*other].contains(&at)).collect();
        if circle.len() <= CIRCLE_MAX || !seen.insert(circle.clone()) {
            continue;
        }
        let name = |at: usize| files[at].path.join("::");
        let lines = circle.iter().map(|from| {
            let to = edges[*from].iter().filter(|to| circle.contains(to)).map(|to| name(*to));
            format!("{} -> {}", name(*from), to.collect::<Vec<_>>().join(" "))
        });
        found.push(format!("{} files: {}", circle.len(), lines.collect::<Vec<_>>().join("; ")));
    }
    found
}

fn reachable(from: usize, edges: &[BTreeSet<usize>]) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut next = vec![from];
    while let Some(at) = next.pop() {
        next.extend(edges[at].iter().filter(|to| found.insert(**to)));
    }
    found
}

fn edges(file: &File, files: &[File]) -> BTreeSet<usize> {
    let targets = file.imports.values().chain(&file.globs).cloned().chain(file.paths());
    let targets = targets.filter_map(|path| resolve(&path, files, 0));
    targets.filter(|to| !files[*to].path.starts_with(&file.path)).collect()
}

/// The file that defines the item at an absolute path, through re-exports.
fn resolve(path: &[String], files: &[File], depth: usize) -> Option<usize> {
    let find = |path: &[String]| files.iter().position(|file| file.path == path);
    let mut at = find(path.get(..1)?)?;
    for end in 2..=path.len() {
        if let Some(child) = find(&path[..end]) {
            at = child;
        } else if let Some(target) = files[at].imports.get(&path[end - 1]).filter(|_| depth < 8) {
            let target: Vec<_> = target.iter().chain(&path[end..]).cloned().collect();
            return resolve(&target, files, depth + 1).or(Some(at));
        } else {
            // `pub use child::*`: the child that defines the name.
            let globs = files[at].globs.iter().filter_map(|glob| find(glob));
            at = globs.into_iter().find(|child| files[*child].defines(&path[end - 1])).unwrap_or(at);
            break;
        }
    }
    Some(at)
}

impl File {
    fn new(path: Vec<String>, text: &str) -> Self {
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
        let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
        let code = lines.collect::<Vec<_>>().join("\n");
        let mut file = Self { path, code, imports: BTreeMap::new(), globs: Vec::new() };
        for tree in use_trees(&file.code) {
            for path in expand(&tree) {
                let (path, name) = match path.split_once(" as ") {
                    Some((path, name)) => (path.to_owned(), name.to_owned()),
                    None => (path.clone(), path.rsplit("::").next().unwrap_or_default().to_owned()),
                };
                if let Some(module) = path.strip_suffix("::*") {
                    file.globs.extend(file.absolute(module));
                } else if let Some(path) = file.absolute(&path) {
                    file.imports.insert(name, path);
                }
            }
        }
        file
    }

    /// Whether it has a public item of this name.
    fn defines(&self, name: &str) -> bool {
        let items = ["struct", "enum", "fn", "const", "type", "trait"];
        self.code.lines().filter(|line| line.trim_start().starts_with("pub")).any(|line| {
            let words: Vec<&str> = line.split(|c: char| !(c.is_alphanumeric() || c == '_')).collect();
            words.windows(2).any(|pair| items.contains(&pair[0]) && pair[1] == name)
        })
    }

    /// A path from the crate; `None` for one of another crate.
    fn absolute(&self, path: &str) -> Option<Vec<String>> {
        let mut parts: Vec<String> = path.split("::").map(str::to_owned).collect();
        let first = parts.remove(0);
        let mut base = match first.as_str() {
            "crate" => return Some(parts),
            "self" => self.path.clone(),
            "super" => self.path.split_last()?.1.to_vec(),
            name => {
                // An imported name, or a child: the parent's `pub use child::Item`.
                let mut base = self.imports.get(name).cloned().unwrap_or_else(|| {
                    let mut child = self.path.clone();
                    child.push(name.to_owned());
                    child
                });
                base.extend(parts);
                return Some(base);
            }
        };
        while parts.first().is_some_and(|part| part == "super") {
            parts.remove(0);
            base.pop();
        }
        base.extend(parts);
        Some(base)
    }

    /// The paths in the code that begin in this crate.
    fn paths(&self) -> Vec<Vec<String>> {
        let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        let words = self.code.split(|c: char| !is_path(c)).map(|word| word.trim_matches(':'));
        let words: BTreeSet<&str> = words.filter(|word| word.contains("::")).collect();
        let starts_here = |word: &&str| {
            let first = word.split("::").next().unwrap_or_default();
            matches!(first, "crate" | "super" | "self") || self.imports.contains_key(first)
        };
        words.into_iter().filter(starts_here).filter_map(|word| self.absolute(word)).collect()
    }
}

/// The text of each `use` item between `use` and `;`.
fn use_trees(code: &str) -> Vec<String> {
    let mut trees = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("use ") {
        let line = rest[..at].rsplit('\n').next().unwrap_or_default().trim();
        rest = &rest[at + "use ".len()..];
        if line.is_empty() || (line.starts_with("pub") && !line.contains(' ')) {
            let end = rest.find(';').unwrap_or(rest.len());
            trees.push(rest[..end].split_whitespace().collect::<Vec<_>>().join(" "));
            rest = &rest[end..];
        }
    }
    trees
}

/// `a::{b, c::{self, D as E}}` is `a::b`, `a::c` and `a::c::D as E`.
fn expand(tree: &str) -> Vec<String> {
    let Some((before, group)) = tree.split_once('{') else {
        let path = tree.trim();
        return vec![path.strip_suffix("::self").unwrap_or(path).to_owned()];
    };
    let parts = group_parts(group).into_iter().filter(|part| !part.trim().is_empty());
    parts.flat_map(|part| expand(&format!("{}{}", before.trim(), part.trim()))).collect()
}

#[test]
fn circle_is_found_through_re_exports_and_paths_but_not_between_parent_and_child() {
    let file = |path: &str, text: &str| File::new(path.split("::").map(str::to_owned).collect(), text);
    let parent = "mod a; mod b; mod c;\npub use a::{A, X as Y};\npub use a::*;\nfn f() { b::g() }";
    let files = |c: &str| {
        vec![
            file("m", parent),
            file("m::a", "use super::{b, m};\npub struct Glob;\nfn f() { b::g() }"),
            file("m::b", "use crate::{\n    m::c::{self, C},\n    other::D,\n};"),
            file("m::c", c),
        ]
    };
    for circle in [
        "use super::A;",
        "use super::Y;",
        "use super::Glob;",
        "use crate::m::{Y};",
        "use crate::{\n    other::{C, D},\n    m::{\n        c::{E, F},\n        A,\n    },\n};",
        "fn f(a: super::a::A) {}",
    ] {
        let found = circles(&files(circle));
        assert_eq!(found.len(), 1, "{circle}");
        assert!(found[0].starts_with("3 files: m::a -> m::b; m::b -> m::c; m::c -> m::a"), "{}", found[0]);
    }
    for none in [
        "// use super::A;",
        "use super::Other;",
        "fn f() {}\n#[cfg(test)]\nmod tests { use super::A; }",
        "use other::A;",
    ] {
        assert_eq!(circles(&files(none)), Vec::<String>::new(), "{none}");
    }
}
