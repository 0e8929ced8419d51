//! The file of a command line, and why it cannot be run: checked before the first task, and reported with the same
//! text if the system refuses it.
use crate::agent::Env;
use rustix::io::Errno;
use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// Bytes of a file that are read to recognize its format.
const HEAD_BYTES: u64 = 512;
/// The first bytes of a Linux program.
const ELF: &[u8] = b"\x7fELF";

/// The file of the first word of `argv`: a path is relative to `folder`, a name is looked up on `PATH`.
///
/// # Errors
/// The file and why it cannot be run, one line.
pub(crate) fn program(name: &str, folder: Option<&Path>, env: &Env) -> Result<PathBuf, String> {
    let path = locate(name, folder, env)?;
    match unfit(&path) {
        Some(reason) => Err(format!("{} {reason}", path.display())),
        None => Ok(path),
    }
}

fn locate(name: &str, folder: Option<&Path>, env: &Env) -> Result<PathBuf, String> {
    if name.contains('/') {
        let path = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        // The process may have another working folder, so the path must be absolute.
        let path = std::path::absolute(&path).unwrap_or(path);
        return match runnable(&path) {
            Some(true) => Ok(path),
            Some(false) => Err(format!("{} is not executable", path.display())),
            None => Err(format!("there is no command {}", path.display())),
        };
    }
    let path = env.get("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".to_owned());
    let mut candidates = std::env::split_paths(&path).map(|folder| folder.join(name));
    let found = candidates.find(|candidate| runnable(candidate) == Some(true) && candidate.is_absolute());
    found.ok_or_else(|| format!("there is no command {name} on PATH"))
}

fn runnable(path: &Path) -> Option<bool> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = path.metadata().ok()?;
    metadata.is_file().then(|| metadata.permissions().mode() & 0o111 != 0)
}

/// Why the system would certainly refuse this file. `None` if it may accept it: an unreadable file, or a format that
/// the kernel may know.
fn unfit(path: &Path) -> Option<String> {
    let mut head = Vec::new();
    File::open(path).ok()?.take(HEAD_BYTES).read_to_end(&mut head).ok()?;
    if head.starts_with(ELF) {
        return None;
    }
    let Some(line) = head.strip_prefix(b"#!") else {
        let is_text = std::str::from_utf8(&head).is_ok_and(|text| !text.contains('\0'));
        return is_text.then(|| "has no #! line: begin it with one, like #!/bin/sh".to_owned());
    };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).into_owned();
    if line.ends_with('\r') {
        return Some("has a #! line that ends in a carriage return: save it with Unix line ends".to_owned());
    }
    let interpreter = line.trim_start_matches([' ', '\t']).split([' ', '\t']).next().unwrap_or_default();
    // A relative interpreter depends on the working folder of the process.
    if !interpreter.starts_with('/') && !interpreter.is_empty() {
        return None;
    }
    match runnable(Path::new(interpreter)) {
        Some(true) => None,
        Some(false) => Some(format!("needs the interpreter {interpreter}, which is not executable")),
        None if interpreter.is_empty() => Some("has a #! line that names no interpreter".to_owned()),
        None => Some(format!("needs the interpreter {interpreter}, which does not exist")),
    }
}

/// Why a command could not be started, one line, and whether a retry may succeed.
pub(in crate::agent) fn spawn_error(program: &Path, cwd: Option<&Path>, error: &io::Error) -> (String, bool) {
    let name = program.display();
    if let Some(cwd) = cwd.filter(|cwd| !cwd.is_dir()) {
        return (format!("{name} cannot be run: its folder {} does not exist", cwd.display()), false);
    }
    let known = error.raw_os_error().map(Errno::from_raw_os_error);
    let (reason, again) = match known {
        Some(Errno::NOEXEC) => match unfit(program) {
            Some(reason) => return (format!("{name} {reason}"), false),
            None => ("it is no program for this kind of machine".to_owned(), false),
        },
        Some(Errno::NOENT) => match unfit(program) {
            Some(reason) => return (format!("{name} {reason}"), false),
            None if program.exists() => ("its interpreter or loader does not exist".to_owned(), false),
            None => ("it does not exist".to_owned(), false),
        },
        Some(Errno::ACCESS | Errno::PERM) => {
            ("the daemon's user may not run it, or its file system forbids programs".to_owned(), false)
        }
        Some(Errno::ISDIR | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
            (format!("its path leads to no program ({})", error.kind()), false)
        }
        Some(Errno::TOOBIG) => {
            ("its arguments and environment are too large for the system".to_owned(), false)
        }
        // The file is being written, or the machine is short of processes, files or memory: temporary.
        Some(Errno::TXTBSY) => ("it is being written to".to_owned(), true),
        Some(Errno::AGAIN) => ("the user has too many processes".to_owned(), true),
        Some(Errno::MFILE | Errno::NFILE) => ("too many files are open".to_owned(), true),
        Some(Errno::NOMEM) => ("the machine has too little memory".to_owned(), true),
        _ => (error.to_string(), true),
    };
    (format!("{name} cannot be run: {reason}"), again)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn file_that_cannot_be_executed_is_refused_before_it_is_run() {
        let folder = tempfile::tempdir().unwrap();
        let check = |content: &[u8]| {
            file(folder.path(), "job", content);
            program("./job", Some(folder.path()), &Env::of([])).map(drop)
        };
        for (content, told) in [
            (&b"echo hello\n"[..], "has no #! line"),
            (b"", "has no #! line"),
            (b"#!/bin/sh\r\necho hello\r\n", "carriage return"),
            (b"#!/usr/bin/no-such-interpreter -x\n", "/usr/bin/no-such-interpreter, which does not exist"),
            (b"#! /etc/passwd\n", "/etc/passwd, which is not executable"),
            (b"#!\n", "names no interpreter"),
        ] {
            let error = check(content).unwrap_err();
            assert!(error.contains(told) && error.contains("/job"), "{error}");
        }
        for content in [
            &b"#!/bin/sh\n"[..],
            b"#! /bin/sh -e\n",
            b"#!/bin/sh",
            b"\x7fELF\x02\x01",
            b"MZ\0\0",
            b"PK\x03\x04\0",
        ] {
            assert_eq!(check(content), Ok(()), "{content:?}");
        }
        std::fs::set_permissions(folder.path().join("job"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = program("./job", Some(folder.path()), &Env::of([])).unwrap_err();
        assert!(error.contains("is not executable"), "{error}");
    }

    #[test]
    fn refusal_of_the_system_is_reported_with_its_reason() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |path: &Path| std::process::Command::new(path).spawn().unwrap_err();
        let text = file(folder.path(), "text", b"echo hello\n");
        let (told, again) = spawn_error(&text, None, &refused(&text));
        assert!(told.contains("has no #! line") && !again, "{told}");
        // A program for a machine that does not exist.
        let foreign = file(
            folder.path(),
            "foreign",
            &[ELF, &[2, 1, 1, 0], &[0; 8], &[2, 0, 0xFE, 0xFE], &[0; 44]].concat(),
        );
        let (told, again) = spawn_error(&foreign, None, &refused(&foreign));
        assert!(told.contains("kind of machine") && !again, "{told}");
        let orphan = file(folder.path(), "orphan", b"#!/no/interpreter\n");
        let (told, again) = spawn_error(&orphan, None, &refused(&orphan));
        assert!(told.contains("/no/interpreter, which does not exist") && !again, "{told}");
        let gone = folder.path().join("gone");
        let (told, again) = spawn_error(&gone, None, &refused(&gone));
        assert!(told.ends_with("it does not exist") && !again, "{told}");
        let (told, again) = spawn_error(Path::new("/bin/sh"), Some(&gone), &refused(&gone));
        assert!(told.contains("its folder") && !again, "{told}");

        let busy = file(folder.path(), "busy", b"#!/bin/sh\n");
        std::fs::write(&busy, std::fs::read("/bin/true").unwrap()).unwrap();
        let writer = std::fs::OpenOptions::new().write(true).open(&busy).unwrap();
        let (told, again) = spawn_error(&busy, None, &refused(&busy));
        assert!(told.contains("being written") && again, "{told}");
        drop(writer);
    }

    #[test]
    fn no_refusal_is_reported_as_uncategorized() {
        for code in 1..134 {
            let error = io::Error::from_raw_os_error(code);
            let (told, _) = spawn_error(Path::new("/bin/sh"), None, &error);
            assert!(told.starts_with("/bin/sh ") && !told.contains("uncategorized"), "{told}");
        }
    }
}
