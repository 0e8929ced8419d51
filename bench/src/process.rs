//! What this process uses, as Linux counts it.
use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;

/// The unit of processor time in `/proc`: Linux reports hundredths of a second to programs on every machine.
const TICK: Duration = Duration::from_millis(10);
/// Fields of `/proc/PID/stat` after the program's name, as proc(5) numbers them less three.
const PARENT: usize = 1;
const USER_AND_SYSTEM: std::ops::Range<usize> = 11..13;
const USER_TO_WAITED_FOR: std::ops::Range<usize> = 11..15;
/// Open files besides sockets.
const FILES: usize = 200;

/// Returns the processor time of all threads so far.
pub(super) fn cpu() -> anyhow::Result<Duration> {
    cpu_of(std::process::id())
}

/// Returns the processor time of all threads of another process so far.
pub(super) fn cpu_of(pid: u32) -> anyhow::Result<Duration> {
    Ok(TICK * stat(pid)?.get(USER_AND_SYSTEM).context("a short stat")?.iter().sum())
}

/// Returns the processor time of a process and of its direct children, those that ended included.
pub(super) fn cpu_with_children(pid: u32) -> anyhow::Result<Duration> {
    let mut ticks: u32 = stat(pid)?.get(USER_TO_WAITED_FOR).context("a short stat")?.iter().sum();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    for child in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        // A child that ended meanwhile is counted by the next call.
        let stat = stat(child).unwrap_or_default();
        ticks += stat.get(USER_AND_SYSTEM).map_or(0, |ticks| ticks.iter().sum());
    }
    Ok(TICK * ticks)
}

/// Returns the process that started another one.
pub(super) fn parent(pid: u32) -> anyhow::Result<u32> {
    stat(pid)?.get(PARENT).copied().context("a short stat")
}

/// The numbers in `/proc/PID/stat` after the program's name; zero for those below zero or over 32 bits.
fn stat(pid: u32) -> anyhow::Result<Vec<u32>> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let stat = stat.with_context(|| format!("cannot read the state of process {pid}"))?;
    // The second field is the program's name in brackets, which may itself contain brackets and spaces.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    Ok(fields.split_whitespace().map(|field| field.parse().unwrap_or_default()).collect())
}

/// Returns the resident memory of this process in bytes.
pub(super) fn resident() -> anyhow::Result<u64> {
    status("VmRSS:")
}

/// Returns the highest resident memory since [`reset_peak`] in bytes.
pub(super) fn peak() -> anyhow::Result<u64> {
    status("VmHWM:")
}

/// Sets the highest resident memory to that of now.
pub(super) fn reset_peak() -> anyhow::Result<()> {
    std::fs::write("/proc/self/clear_refs", "5").context("cannot reset the peak of resident memory")
}

fn status(member: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read the resident memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix(member));
    let kib: u64 =
        line.and_then(|line| line.split_whitespace().next()).context("no resident memory")?.parse()?;
    Ok(kib << 10)
}

/// Raises this process's limit of open files for so many sockets.
///
/// # Errors
/// When the hard limit is lower.
pub(super) fn allow_sockets(sockets: usize) -> anyhow::Result<()> {
    let (needed, limits) = (u64::try_from(sockets + FILES)?, getrlimit(Resource::Nofile));
    if limits.current.is_some_and(|current| current < needed) {
        let maximum = limits.maximum;
        ensure!(
            maximum.is_none_or(|maximum| maximum >= needed),
            "{needed} open files are needed: raise the hard limit (ulimit -Hn)"
        );
        setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum })?;
    }
    Ok(())
}
