//! Merges the layers of the settings, and attributes each bad value to its layer.
use super::{
    Config, Loaded, Problem, Problems, check,
    path::Path,
    read,
    read::{Fault, Reading},
    source::Source,
};
use crate::files;
use figment::{
    Figment,
    providers::{Env, Serialized},
};
use serde_json::{Map, Value};
use std::{
    collections::BTreeMap,
    path::{Path as FilePath, PathBuf},
};

const PREFIX: &str = "CONVOKE_";
/// Largest file of settings or of an agent.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The remedy for a file or folder that every user can write to.
pub(super) const NOT_FOR_ALL: &str =
    "run chmod o-w on it: its writers decide what the daemon runs and trusts";

/// The sources of settings besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The settings file. Defaults to `config/convoke.toml`, else `convoke.toml`, if it exists.
    pub file: Option<PathBuf>,
    /// The flags given on the command line: name like `--listen`, dotted key, value.
    pub flags: Vec<(&'static str, &'static str, String)>,
    /// Used instead of the process's environment (for tests).
    pub environment: Option<Vec<(String, String)>>,
}

/// Loads and checks the settings.
///
/// # Errors
/// Every problem of every layer.
pub fn load(options: &Options) -> Result<Loaded, Problems> {
    let file = find(options.file.as_deref());
    let (source, mut problems) = match &file {
        Some(file) => read_file(file)?,
        None => Source::parse("", ""),
    };
    let layers = Layers { source, variables: variables(options), flags: options.flags.clone() };
    let reading = layers.read();
    let mut faults = reading.faults.clone();
    for (key, message, remedy) in reading.value.iter().flat_map(check) {
        let path = reading.original(&Path::parse(&key));
        // One fault for each key: a value with a wrong type is not checked further.
        if !faults.iter().any(|fault| fault.path == path) {
            faults.push(Fault { path, message, remedy: Some(remedy) });
        }
    }
    let config = reading.value;
    // The tree of a file with syntax errors is incomplete, so its further problems would be misleading.
    let complete = problems.is_empty();
    let found = faults.into_iter().map(|fault| layers.problem(fault));
    problems.extend(found.filter(|problem| complete || problem.file != layers.source.file));
    problems.sort();
    match config {
        Some(config) if problems.is_empty() => Ok(Loaded { config, file }),
        _ => Err(Problems(problems)),
    }
}

/// Returns section and key of every setting whose section `text` (a settings file) contains.
#[must_use]
pub fn keys(text: &str) -> Vec<(String, &'static str)> {
    let (source, _) = Source::parse("", text);
    let structs = read::known_keys::<Config>(&source.tree);
    let is_section = |path: &Path| structs.iter().any(|(section, _)| section == path);
    let sections = structs.iter().filter(|(path, _)| !path.0.is_empty());
    let keys = sections.flat_map(|(path, keys)| keys.iter().map(move |key| (path, *key)));
    let plain = keys.filter(|(path, key)| !is_section(&path.key(key)));
    plain.map(|(path, key)| (path.to_string(), key)).collect()
}

/// The settings file: the named one, whether it exists or not, else the default one. `None` if neither is there.
#[must_use]
pub fn file(options: &Options) -> Option<PathBuf> {
    find(options.file.as_deref())
}

fn find(asked: Option<&FilePath>) -> Option<PathBuf> {
    let usual = ["config/convoke.toml", "convoke.toml"].map(PathBuf::from);
    asked.map(PathBuf::from).or_else(|| usual.into_iter().find(|file| file.is_file()))
}

pub(super) fn read_file(file: &FilePath) -> Result<(Source, Vec<Problem>), Problems> {
    let name = file.display().to_string();
    let text = files::read_named(file, FILE_BYTES_MAX).and_then(|bytes| {
        String::from_utf8(bytes)
            .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e.utf8_error()))
    });
    let text = text.map_err(|e| {
        let remedy = match e.kind() {
            std::io::ErrorKind::FileTooLarge => "write what the daemon needs and no more",
            std::io::ErrorKind::InvalidInput => "name a plain file",
            std::io::ErrorKind::NotFound => "name a file that exists",
            std::io::ErrorKind::PermissionDenied if e.raw_os_error().is_none() => NOT_FOR_ALL,
            std::io::ErrorKind::PermissionDenied => "give the daemon's user the right to read it",
            _ => "see that it is a text file in UTF-8",
        };
        Problems(vec![Problem::of_file(&name, format!("cannot be read: {e}"), Some(remedy))])
    })?;
    Ok(Source::parse(&name, &text))
}

/// Returns the environment variables that name a key (those with `__`), by dotted key.
fn variables(options: &Options) -> BTreeMap<String, String> {
    let nested = |key: &str| key.contains("__");
    match &options.environment {
        None => {
            let env = Env::prefixed(PREFIX).filter(move |key| nested(key.as_str())).split("__");
            env.iter().map(|(key, value)| (key.as_str().to_ascii_lowercase(), value)).collect()
        }
        Some(given) => {
            let named = given.iter().filter_map(|(name, value)| Some((name.strip_prefix(PREFIX)?, value)));
            let named = named.filter(|(name, _)| nested(name));
            named.map(|(name, value)| (name.to_ascii_lowercase().replace("__", "."), value.clone())).collect()
        }
    }
}

struct Layers {
    source: Source,
    variables: BTreeMap<String, String>,
    flags: Vec<(&'static str, &'static str, String)>,
}

impl Layers {
    /// Parses the text of a variable or flag as TOML (`8`, `true`). If the setting's type does not accept the
    /// result, the text itself is used (a secret of digits).
    fn read(&self) -> Reading<Config> {
        // Ends: each pass adds at least one key to `as_text`, and only keys that were given.
        let mut as_text: Vec<String> = Vec::new();
        loop {
            let reading = read::read::<Config>(&self.merge(&as_text));
            let typed = |key: &String| self.given(key).is_some() && !as_text.contains(key);
            let again: Vec<_> = reading.faults.iter().map(|f| f.path.to_string()).filter(typed).collect();
            if again.is_empty() {
                return reading;
            }
            as_text.extend(again);
        }
    }

    fn merge(&self, as_text: &[String]) -> Value {
        // Tables are merged key by key; a later layer overrides single keys of an earlier one.
        let mut figment = Figment::new().merge(Serialized::defaults(&self.source.tree));
        let variables = self.variables.iter().map(|(key, text)| (key.as_str(), text));
        let flags = self.flags.iter().map(|(_, key, text)| (*key, text));
        for (key, text) in variables.chain(flags) {
            let typed = text.parse::<figment::value::Value>();
            let value = match typed {
                Ok(value) if !as_text.iter().any(|k| k == key) => serde_json::to_value(value).ok(),
                _ => None,
            };
            figment =
                figment.merge(Serialized::defaults(nest(key, value.unwrap_or_else(|| text.clone().into()))));
        }
        figment.extract().unwrap_or_default()
    }

    /// Returns the name of the variable or flag that set this key. Flags win over variables, and later flags
    /// over earlier ones.
    fn given(&self, key: &str) -> Option<String> {
        let flag = self.flags.iter().rev().find(|(_, k, _)| *k == key).map(|(name, ..)| (*name).to_owned());
        let variable = || format!("{PREFIX}{}", key.to_ascii_uppercase().replace('.', "__"));
        flag.or_else(|| self.variables.contains_key(key).then(variable))
    }

    /// Returns the first variable or flag whose key is below this path.
    fn given_below(&self, path: &Path) -> Option<String> {
        let inside = |key: &str| Path::parse(key).0.starts_with(&path.0);
        let flags = self.flags.iter().map(|(_, key, _)| *key);
        let mut keys = flags.chain(self.variables.keys().map(String::as_str));
        keys.find(|key| inside(key)).and_then(|key| self.given(key))
    }

    fn problem(&self, fault: Fault) -> Problem {
        let Fault { path, message, remedy } = fault;
        let key = path.to_string();
        // A variable may set a key above the faulty one, or one inside a table.
        let above = std::iter::successors(Some(path.clone()), Path::parent);
        let given = above.filter(|at| !at.0.is_empty()).find_map(|at| self.given(&at.to_string()));
        // A section that no file contains can only come from a variable or flag below it.
        let only_below = || path.find(&self.source.tree).is_none().then(|| self.given_below(&path)).flatten();
        match given.or_else(only_below) {
            Some(file) => Problem { file, line: None, key, message, remedy },
            None => {
                let (file, line) = (self.source.file.clone(), self.source.line(&path));
                Problem { file, line, key, message, remedy }
            }
        }
    }
}

/// Wraps the value in one object for each part of the dotted key.
fn nest(key: &str, value: Value) -> Value {
    key.rsplit('.').fold(value, |inner, part| Value::Object(Map::from_iter([(part.to_owned(), inner)])))
}
