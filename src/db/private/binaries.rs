//! Search for the PostgreSQL server programs of this machine.
use crate::db::Error;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
};

/// Folders with one child for each version (prefix of its name), and the folder of the programs below it.
const VERSIONED: [(&str, &str, &str); 5] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];
/// The oldest version that streams transactions in progress.
const MAJOR_MIN: u32 = 14;

/// The server programs of one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    /// The folder with `postgres` and `initdb`.
    pub(super) dir: PathBuf,
    /// The major version, like 15.
    pub(super) major: u32,
}

/// Returns the newest programs, or those of version `needed`; searches only in `dir`, if one is given.
pub(super) fn find(dir: Option<&Path>, needed: Option<(u32, &Path)>) -> Result<Binaries, Error> {
    let folders = dir.map_or_else(usual_folders, |dir| vec![dir.to_owned()]);
    let found: Vec<Binaries> = folders.into_iter().filter_map(probe).collect();
    let usable = found.iter().filter(|b| b.major >= MAJOR_MIN);
    if let Some((cluster, path)) = needed {
        let fitting = found.iter().find(|b| b.major == cluster);
        return match fitting {
            Some(binaries) => Ok(binaries.clone()),
            None if found.is_empty() => Err(missing(dir, &found)),
            None => Err(Error::OtherVersion { path: path.into(), cluster, found: versions(&found) }),
        };
    }
    // `max_by_key` returns the last maximum, so the order is reversed: a distribution's own folder wins over
    // the PATH.
    usable.rev().max_by_key(|b| b.major).cloned().ok_or_else(|| missing(dir, &found))
}

fn missing(dir: Option<&Path>, found: &[Binaries]) -> Error {
    let looked = match dir {
        Some(dir) => format!("in database.bin_dir = {}", dir.display()),
        None if found.is_empty() => "in the usual folders and on the PATH".into(),
        None => format!("of version {MAJOR_MIN} or later; version {} is too old", versions(found)),
    };
    Error::NoBinaries { looked }
}

fn versions(found: &[Binaries]) -> String {
    let majors: BTreeSet<u32> = found.iter().map(|b| b.major).collect();
    majors.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn usual_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for (parent, prefix, below) in VERSIONED {
        let Ok(children) = std::fs::read_dir(parent) else { continue };
        let named = |child: &std::fs::DirEntry| child.file_name().to_string_lossy().starts_with(prefix);
        folders.extend(children.flatten().filter(named).map(|child| child.path().join(below)));
    }
    folders.extend(pg_config());
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders
}

/// A program without the daemon's environment, which may hold secrets.
fn without_environment(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    command
}

fn pg_config() -> Option<PathBuf> {
    let output = without_environment("pg_config").arg("--bindir").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (!text.trim().is_empty()).then(|| PathBuf::from(text.trim()))
}

/// Whether the folder has both programs.
pub(super) fn has_programs(dir: &Path) -> bool {
    ["initdb", "postgres"].iter().all(|name| dir.join(name).is_file())
}

/// Returns the programs in `dir`, if both exist and print a version.
fn probe(dir: PathBuf) -> Option<Binaries> {
    if !has_programs(&dir) {
        return None;
    }
    let output = without_environment(dir.join("postgres")).arg("--version").output().ok()?;
    let major = major_version(&String::from_utf8_lossy(&output.stdout))?;
    Some(Binaries { dir, major })
}

/// Parses `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)` or `… 18beta1`.
fn major_version(text: &str) -> Option<u32> {
    let version = text.split("(PostgreSQL)").nth(1)?.trim_start();
    let digits: String = version.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake(parent: &Path, version: &str) -> PathBuf {
        let dir = parent.join(version);
        std::fs::create_dir_all(&dir).unwrap();
        for program in ["postgres", "initdb"] {
            let path = dir.join(program);
            std::fs::write(&path, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")).unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        dir
    }

    #[test]
    fn major_version_is_parsed() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major_version("mysqld 8"), None);
    }

    #[test]
    fn empty_folder_is_refused_with_install_instructions() {
        let empty = tempfile::tempdir().unwrap();
        let message = find(Some(empty.path()), None).unwrap_err().to_string();
        assert!(message.contains("apt install postgresql"), "{message}");
        assert!(message.contains(&empty.path().display().to_string()), "{message}");
    }

    #[test]
    fn data_of_another_version_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let dir = fake(parent.path(), "16.4");
        let error = find(Some(&dir), Some((15, Path::new("/data")))).unwrap_err();
        assert!(matches!(&error, Error::OtherVersion { cluster: 15, found, .. } if found == "16"), "{error}");
        assert_eq!(find(Some(&dir), Some((16, Path::new("/data")))).unwrap().major, 16);
    }

    #[test]
    fn version_below_the_minimum_is_not_used() {
        let parent = tempfile::tempdir().unwrap();
        let dir = fake(parent.path(), "13.9");
        assert!(matches!(find(Some(&dir), None), Err(Error::NoBinaries { .. })));
    }
}
