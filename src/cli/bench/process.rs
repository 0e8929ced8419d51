//! What this process uses, as Linux counts it.
use anyhow::{Context, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::time::Duration;

/// Linux counts processor time in hundredths of a second for programs, on every machine.
const TICK: Duration = Duration::from_millis(10);
/// Files besides sockets.
const FILES: usize = 200;

/// Processor time of all threads so far.
pub(super) fn cpu() -> anyhow::Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat").context("cannot read the processor time")?;
    // The second field is a name in brackets, which may contain anything.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
    let ticks = fields.split_whitespace().skip(11).take(2).map(str::parse::<u32>);
    Ok(TICK * ticks.sum::<Result<u32, _>>()?)
}

/// Bytes of this process that are in memory.
pub(super) fn resident() -> anyhow::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read the memory in use")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.and_then(|line| line.split_whitespace().next()).context("no VmRSS")?.parse()?;
    Ok(kib << 10)
}

/// Raises this process's limit of open files as far as needed.
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
