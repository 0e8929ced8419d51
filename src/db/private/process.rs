//! Processes that are not our children: a server that another daemon left running.
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What the server's `postmaster.pid` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PidFile {
    /// The process that wrote it, alive or not.
    pub(super) pid: i32,
    /// The port that it listens on.
    pub(super) port: u16,
    /// The folder of its socket.
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

/// Whether the process runs; one that ended and was never waited for does not.
pub(super) fn is_alive(pid: i32) -> bool {
    if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        // The state follows the name, which stands in parentheses and may hold any character.
        let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
        return !matches!(state, Some('Z' | 'X'));
    }
    let Some(pid) = Pid::from_raw(pid) else { return false };
    // Where there is a /proc, a process without an entry is gone; "not permitted" proves a process elsewhere.
    !Path::new("/proc/self/stat").exists() && !matches!(test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

/// Whether the process is a server that was started on this data folder.
pub(super) fn serves(pid: i32, data: &Path) -> bool {
    if !is_alive(pid) {
        return false;
    }
    let data = data.to_string_lossy();
    if let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) {
        let mut arguments = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
        return arguments.any(|argument| argument == data);
    }
    let output = Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output();
    output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(data.as_ref()))
}

/// Sends a signal; a process that is gone is fine.
pub(super) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_is_read_and_a_half_written_one_is_not() {
        let text = "4211\n/data/postgres\n1790000000\n5433\n/data/run\n127.0.0.1\n  1234   5\nready   \n";
        let read = PidFile::parse(text).unwrap();
        assert_eq!(read, PidFile { pid: 4211, port: 5433, sockets: "/data/run".into() });
        assert_eq!(PidFile::parse("4211\n/data/postgres\n"), None);
        assert_eq!(PidFile::parse("-4211\n/data\n1\n5433\n/run\n"), None);
    }

    #[test]
    fn a_process_that_nobody_waited_for_is_not_alive() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        while is_alive(pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(is_alive(i32::try_from(std::process::id()).unwrap()));
    }

    #[test]
    fn another_program_with_the_same_number_is_not_the_server() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!serves(me, Path::new("/data/postgres")));
    }
}
