//! Loads the agents' files of a folder; each `*.toml` defines one agent.
use super::{
    Problem, Problems,
    layers::{NOT_FOR_ALL, read_file},
    path::Path,
    read,
    source::Source,
};
use crate::{
    agent::{self, Definition},
    files,
    id::AgentId,
};
use std::{
    collections::HashMap,
    ffi::OsStr,
    path::{Path as FilePath, PathBuf},
};

/// Loads every agent of `folder`, in the order of file names. A missing folder has no agents.
///
/// # Errors
/// Every problem of every file: syntax, unknown keys, types, problems of [`agent::check`], and ids that two
/// files share.
pub fn load_agents(folder: &FilePath) -> Result<Vec<Definition>, Problems> {
    load_agents_with(folder, |_| None)
}

/// Like [`load_agents`], with an additional `check` of each agent that can be read.
///
/// # Errors
/// Errors of [`load_agents`], and problems of `check`.
pub fn load_agents_with(
    folder: &FilePath,
    check: impl Fn(&Definition) -> Option<agent::Problem>,
) -> Result<Vec<Definition>, Problems> {
    let files = files_of(folder)?;
    // A definition is large: a list that grows would be copied, and leave holes in the heap.
    let mut definitions = Vec::with_capacity(files.len());
    let mut problems = Vec::new();
    let mut owners: HashMap<AgentId, String> = HashMap::new();
    for file in files {
        let (source, syntax) = match read_file(&file) {
            Ok(read) => read,
            Err(Problems(found)) => {
                problems.extend(found);
                continue;
            }
        };
        if !syntax.is_empty() {
            problems.extend(syntax);
            continue;
        }
        let (definition, found) = definition(&source, folder, &check);
        problems.extend(found);
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

/// Adds file and line to problems that the database reported about agents loaded from `folder`.
///
/// # Errors
/// If the folder or one of its files is no longer readable.
pub fn locate(folder: &FilePath, found: &[(AgentId, agent::Problem)]) -> Result<Vec<Problem>, Problems> {
    let mut problems = Vec::new();
    for file in files_of(folder)? {
        let (source, _) = read_file(&file)?;
        let Some(definition) = definition(&source, folder, &|_| None).0 else { continue };
        for (_, problem) in found.iter().filter(|(id, _)| *id == definition.id) {
            let (key, message, remedy) =
                (problem.key.clone(), problem.message.clone(), problem.remedy.clone());
            let line = source.line(&Path::parse(&key));
            problems.push(Problem { file: source.file.clone(), line, key, message, remedy });
        }
    }
    problems.sort();
    Ok(problems)
}

/// Returns the agent of a file, as far as it is readable, and every problem of the file.
fn definition(
    source: &Source,
    folder: &FilePath,
    check: &impl Fn(&Definition) -> Option<agent::Problem>,
) -> (Option<Definition>, Vec<Problem>) {
    let mut reading = read::read::<Definition>(&source.tree);
    let problem = |path: &Path, message: String, remedy| {
        let (file, key) = (source.file.clone(), path.to_string());
        Problem { file, line: source.line(path), key, message, remedy }
    };
    let faults = std::mem::take(&mut reading.faults);
    let bad: Vec<_> = faults.iter().map(|fault| fault.path.clone()).collect();
    let mut problems: Vec<_> = faults.into_iter().map(|f| problem(&f.path, f.message, f.remedy)).collect();
    let mut definition = reading.value.take();
    if let Some(definition) = &mut definition {
        definition.folder = Some(folder.to_path_buf());
        for found in agent::check(definition).into_iter().chain(check(definition)) {
            let path = reading.original(&Path::parse(&found.key));
            // A bad value was removed from the tree, so further checks may report it as missing.
            if !bad.contains(&path) {
                problems.push(problem(&path, found.message, found.remedy));
            }
        }
    }
    (definition, problems)
}

/// Whether a file of the folder defines an agent by its name: `*.toml`, and not hidden.
pub(super) fn is_agent_file(path: &FilePath) -> bool {
    let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    path.extension() == Some(OsStr::new("toml")) && !hidden
}

fn files_of(folder: &FilePath) -> Result<Vec<PathBuf>, Problems> {
    let unreadable = |e: std::io::Error| {
        let is_refused = e.kind() == std::io::ErrorKind::PermissionDenied && e.raw_os_error().is_none();
        let readable = "agents.dir must be a folder that the daemon may read";
        let remedy = Some(if is_refused { NOT_FOR_ALL } else { readable });
        Problems(vec![Problem::of_file(folder.display().to_string(), format!("cannot be read: {e}"), remedy)])
    };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(unreadable(e)),
    };
    files::check_named_folder(folder).map_err(unreadable)?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        if is_agent_file(&path) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
