//! Lower scheduling priority for work whose amount a client decides.
//!
//! Best effort: where the system refuses, the work runs at the usual priority. On Linux only, where a thread has a
//! priority of its own.

/// The nice value. Threads of the usual priority get about ten times the processor time when both want it, and run at
/// once when they wake. Not the lowest: such a thread can hold a lock that others wait for.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;
/// The nice value of other processes, which share no lock with this one.
#[cfg(target_os = "linux")]
const PROCESS_NICE: i32 = 19;

/// Lowers the priority of the calling thread, for good.
pub fn lower_priority_of_this_thread() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE) {
        tracing::debug!(%error, "the priority of a thread stays");
    }
}

/// Lowers the priority of a process of this machine, for good.
#[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "not supported"))]
pub fn lower_priority_of_process(pid: u32) {
    #[cfg(target_os = "linux")]
    {
        let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
        let Some(pid) = pid else { return };
        if let Err(error) = rustix::process::setpriority_process(Some(pid), PROCESS_NICE) {
            tracing::debug!(%pid, %error, "the priority of a process stays");
        }
        // Linux may schedule by session first and compare nice values only within one, and each backend of Postgres is
        // a session of its own. Missing in kernels without that.
        let group = format!("/proc/{}/autogroup", pid.as_raw_nonzero());
        if let Err(error) = std::fs::write(group, PROCESS_NICE.to_string()) {
            tracing::debug!(%pid, %error, "the priority of a session stays");
        }
    }
}
