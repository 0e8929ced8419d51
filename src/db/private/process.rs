//! Processes that need not be children of this one: a server that another daemon left running.
//!
//! A process id in a file proves nothing: the process may have ended, and the id may belong to another
//! program now. So a process is signaled only through a [`ProcessHandle`], which is bound to one process, and counts
//! as our server only if the operating system confirms it: see [`server`].
use rustix::process::{Pid, Signal};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The content of the server's `postmaster.pid`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    /// The process that wrote the file; it may have ended.
    pub(super) pid: i32,
    /// The port of the server.
    pub(super) port: u16,
    /// The folder of the server's socket.
    pub(super) sockets: PathBuf,
}

impl PidFile {
    /// Lines: pid, data folder, start time, port, socket folder, address, shared memory, status.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let pid = lines.next()?.trim().parse().ok().filter(|pid| *pid > 0)?;
        let port = lines.nth(2)?.trim().parse().ok()?;
        Some(Self { pid, port, sockets: PathBuf::from(lines.next()?) })
    }
}

/// A handle of one process. A later process with the same id is neither signaled nor mistaken for it.
#[derive(Debug)]
pub(super) struct ProcessHandle {
    pid: i32,
    /// Start time in clock ticks since boot; `None` without `/proc`.
    started: Option<u64>,
    #[cfg(target_os = "linux")]
    descriptor: Option<std::os::fd::OwnedFd>,
}

impl ProcessHandle {
    /// Returns a handle of the process with this id; `None` if there is none.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let raw = (pid > 0).then(|| Pid::from_raw(pid)).flatten()?;
        // The descriptor first, then the checks: the process that is checked is then the one that is
        // signaled.
        #[cfg(target_os = "linux")]
        let descriptor = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).ok();
        let handle = Self {
            pid: raw.as_raw_nonzero().get(),
            started: started(pid),
            #[cfg(target_os = "linux")]
            descriptor,
        };
        handle.is_alive().then_some(handle)
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the process runs. A zombie does not.
    pub(super) fn is_alive(&self) -> bool {
        is_alive(self.pid, self.started)
    }

    /// Sends a signal; a process that has ended is no error.
    pub(super) fn signal(&self, signal: Signal) {
        #[cfg(target_os = "linux")]
        if let Some(descriptor) = &self.descriptor {
            let _ = rustix::process::pidfd_send_signal(descriptor, signal);
            return;
        }
        if let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.is_alive()) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }
}

/// Whether a process with this id runs, and has this start time if one is given.
fn is_alive(pid: i32, expected: Option<u64>) -> bool {
    if let Some(stat) = stat(pid) {
        let ended = matches!(stat.first().map(String::as_str), Some("Z" | "X"));
        return !ended && (expected.is_none() || started(pid) == expected);
    }
    let Some(pid) = Pid::from_raw(pid) else { return false };
    // With a /proc, a process without an entry has ended. Elsewhere, "not permitted" proves that it exists.
    let found = rustix::process::test_kill_process(pid);
    !has_proc() && !matches!(found, Err(rustix::io::Errno::SRCH))
}

/// Returns the fields of `/proc/<pid>/stat` from the state on. The name before them, in parentheses, may
/// contain anything.
fn stat(pid: i32) -> Option<Vec<String>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// Returns the clock ticks from boot to the start of the process: field 22 of 52.
fn started(pid: i32) -> Option<u64> {
    stat(pid)?.get(19)?.parse().ok()
}

fn has_proc() -> bool {
    Path::new("/proc/self/stat").exists()
}

/// Returns process `pid` if it is a PostgreSQL server of user `uid` on the data folder `data`: its user,
/// executable, working folder and arguments must agree. Arguments alone prove nothing, because any program
/// can have the folder among its own.
pub(super) fn server(pid: i32, data: &Path, uid: u32) -> Option<ProcessHandle> {
    let handle = ProcessHandle::of(pid)?;
    let proven = if has_proc() { proven_by_proc(pid, data, uid) } else { proven_by_ps(pid, data, uid) };
    (proven == Some(true) && handle.is_alive()).then_some(handle)
}

fn proven_by_proc(pid: i32, data: &Path, uid: u32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    // An upgrade replaces the executable of a running server.
    let executable = executable.to_str()?.trim_end_matches(" (deleted)").rsplit('/').next()?.to_owned();
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let arguments: Vec<_> = line.split(|byte| *byte == 0).collect();
    let named = arguments
        .windows(2)
        .any(|pair| matches!(pair, [b"-D", folder] if *folder == data.as_os_str().as_encoded_bytes()));
    // The server changes into its folder before it writes the file. Its children do so, too, but with other
    // arguments.
    let folder = fs::read_link(format!("/proc/{pid}/cwd")).ok()?;
    let inside = fs::canonicalize(data).is_ok_and(|data| data == folder);
    let users = users.split_whitespace().all(|user| user.parse() == Ok(uid));
    Some(users && executable == "postgres" && named && inside)
}

fn proven_by_ps(pid: i32, data: &Path, uid: u32) -> Option<bool> {
    let output = Command::new("ps").args(["-o", "uid=,command=", "-p", &pid.to_string()]).output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (user, command) = line.split_once(char::is_whitespace)?;
    let (program, arguments) = command.trim_start().split_once(' ')?;
    let named = arguments.contains(&format!("-D {}", data.display()));
    Some(user.parse() == Ok(uid) && program.ends_with("/postgres") && named)
}

/// Finds the server of user `uid` on the data folder without its `postmaster.pid`.
pub(super) fn find_server(data: &Path, uid: u32) -> Option<ProcessHandle> {
    let pids: Vec<i32> = if has_proc() {
        let entries = fs::read_dir("/proc").ok()?.flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    } else {
        let output = Command::new("ps").args(["-axo", "pid="]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    };
    pids.into_iter().find_map(|pid| server(pid, data, uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pid_file_is_parsed_and_a_partial_one_is_refused() {
        let text = "4211\n/data/postgres\n1790000000\n5433\n/data/run\n127.0.0.1\n  1234   5\nready   \n";
        let read = PidFile::parse(text).unwrap();
        assert_eq!(read, PidFile { pid: 4211, port: 5433, sockets: "/data/run".into() });
        assert_eq!(PidFile::parse("4211\n/data/postgres\n"), None);
        assert_eq!(PidFile::parse("-4211\n/data\n1\n5433\n/run\n"), None);
        assert_eq!(PidFile::parse(""), None);
    }

    #[test]
    fn ended_process_is_not_alive_before_and_after_it_was_waited_for() {
        let mut child = Command::new("true").spawn().unwrap();
        let handle = ProcessHandle::of(i32::try_from(child.id()).unwrap());
        while handle.as_ref().is_some_and(ProcessHandle::is_alive) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(handle.is_none_or(|handle| !handle.is_alive()));
        assert!(ProcessHandle::of(i32::try_from(std::process::id()).unwrap()).unwrap().is_alive());
        for none in [0, -1, i32::MAX] {
            assert!(ProcessHandle::of(none).is_none(), "{none}");
        }
    }

    #[test]
    fn process_with_the_number_of_another_is_not_taken_for_it() {
        let me = i32::try_from(std::process::id()).unwrap();
        let mut handle = ProcessHandle::of(me).unwrap();
        if let Some(started) = handle.started {
            handle.started = Some(started + 1);
            assert!(!handle.is_alive());
        }
    }

    #[test]
    fn program_that_names_the_folder_among_its_arguments_is_not_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let data = fs::canonicalize(folder.path()).unwrap();
        // Everything but the executable matches a server.
        let mut command = Command::new("sh");
        command.args(["-c", "read -r _", "postgres", "-D"]).arg(&data);
        let mut child = command.current_dir(&data).stdin(std::process::Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert!(server(pid, &data, uid).is_none());
        assert!(find_server(&data, uid).is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
