//! Loads the agents' files of a folder: each `*.toml` is one agent.
use super::{Problem, Problems, layers::read_file, path::Path, read, source::Source};
use crate::{
    agent::{self, Definition},
    id::AgentId,
};
use std::{
    collections::HashMap,
    ffi::OsStr,
    path::{Path as FilePath, PathBuf},
};

/// Every agent of `folder`, by file name; a folder that is not there has none.
///
/// # Errors
/// Every problem of every file at once: syntax, unknown keys, types, what [`agent::check`] says, and
/// ids that two files have.
pub fn load_agents(folder: &FilePath) -> Result<Vec<Definition>, Problems> {
    let mut definitions = Vec::new();
    let mut problems = Vec::new();
    let mut owners: HashMap<AgentId, String> = HashMap::new();
    for file in files(folder)? {
        let (source, syntax) = match read_file(&file) {
            Ok(read) => read,
            Err(Problems(told)) => {
                problems.extend(told);
                continue;
            }
        };
        if !syntax.is_empty() {
            problems.extend(syntax);
            continue;
        }
        let (definition, told) = definition(&source, folder);
        problems.extend(told);
        let Some(definition) = definition else { continue };
        match owners.get(&definition.id) {
            Some(other) => problems.push(Problem {
                line: source.line(&Path::parse("id")),
                file: source.file,
                key: "id".into(),
                message: format!("{} is already the id of the agent in {other}", definition.id),
                remedy: Some("give every agent its own id".into()),
            }),
            None => {
                owners.insert(definition.id.clone(), source.file);
                definitions.push(definition);
            }
        }
    }
    problems.sort();
    if problems.is_empty() { Ok(definitions) } else { Err(Problems(problems)) }
}

/// The same problems with the file and line of each: what the database told of agents that were loaded from `folder`.
///
/// # Errors
/// When the folder or a file of it cannot be read any more.
pub fn locate(folder: &FilePath, found: &[(AgentId, agent::Problem)]) -> Result<Vec<Problem>, Problems> {
    let mut problems = Vec::new();
    for file in files(folder)? {
        let (source, _) = read_file(&file)?;
        let Some(definition) = definition(&source, folder).0 else { continue };
        for (_, told) in found.iter().filter(|(id, _)| *id == definition.id) {
            let (key, message, remedy) = (told.key.clone(), told.message.clone(), told.remedy.clone());
            let line = source.line(&Path::parse(&key));
            problems.push(Problem { file: source.file.clone(), line, key, message, remedy });
        }
    }
    problems.sort();
    Ok(problems)
}

/// What a file says, as far as it can be read, and all that is wrong with it.
fn definition(source: &Source, folder: &FilePath) -> (Option<Definition>, Vec<Problem>) {
    let mut reading = read::read::<Definition>(&source.tree);
    let tell = |path: &Path, message: String, remedy| {
        let (file, key) = (source.file.clone(), path.to_string());
        Problem { file, line: source.line(path), key, message, remedy }
    };
    let faults = std::mem::take(&mut reading.faults);
    let bad: Vec<_> = faults.iter().map(|fault| fault.path.clone()).collect();
    let mut problems: Vec<_> = faults.into_iter().map(|f| tell(&f.path, f.message, f.remedy)).collect();
    let mut definition = reading.value.take();
    if let Some(definition) = &mut definition {
        definition.folder = Some(folder.to_path_buf());
        for found in agent::check(definition) {
            let path = reading.original(&Path::parse(&found.key));
            // A key that was taken out because it is wrong is not also missing.
            if !bad.contains(&path) {
                problems.push(tell(&path, found.message, found.remedy));
            }
        }
    }
    (definition, problems)
}

fn files(folder: &FilePath) -> Result<Vec<PathBuf>, Problems> {
    let told = |e: std::io::Error| {
        let remedy = Some("agents.dir must be a folder that the daemon may read");
        Problems(vec![Problem::of_file(folder.display().to_string(), format!("cannot be read: {e}"), remedy)])
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(told(e)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(told)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.extension() == Some(OsStr::new("toml")) && !hidden {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
