//! Runs a daemon in this process until a signal, and the texts that describe it to people.
use super::{Outcome, daemon, settings::Settings};
use crate::{
    agent::{Definition, Env},
    app::{Builder, Daemon, Parts},
    auth::{MintRequest, Role, mint},
    clock::Clock,
    config::Config,
    db::{Database, private::password_file},
    files,
};
use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a daemon may take to become ready before its address is printed anyway.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(15);

/// The signals that a daemon obeys. From [`Signals::install`] on none of them ends the process by itself: a private
/// PostgreSQL would go on without it.
pub(super) struct Signals {
    end: EndSignals,
    hang_up: Signal,
}

/// SIGINT and SIGTERM.
struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    pub(super) fn install() -> io::Result<Self> {
        let end = EndSignals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        };
        Ok(Self { end, hang_up: signal(SignalKind::hangup())? })
    }
}

impl EndSignals {
    /// Waits for one of them. The first one cancels `stop`. A second one exits immediately; the private PostgreSQL then
    /// keeps running, and the next daemon takes it over. Cancel safe.
    async fn cancel(&mut self, stop: &CancellationToken) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
        if stop.is_cancelled() {
            std::process::exit(130);
        }
        eprintln!("stopping; a second signal exits immediately");
        stop.cancel();
    }
}

/// Builds the daemon; `None` if a signal canceled `stop` first and everything is stopped again. An address in use gets a
/// remedy in its error.
pub(super) async fn build(
    builder: Builder,
    signals: &mut Signals,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Daemon>> {
    let building = builder.keeper(std::env::current_exe()?).stop(stop.clone()).build();
    tokio::pin!(building);
    let built = loop {
        tokio::select! {
            built = &mut building => break built,
            () = signals.end.cancel(stop) => {}
        }
    };
    match built {
        Ok(daemon) => Ok(Some(daemon)),
        Err(e) if stop.is_cancelled() => {
            eprintln!("{e:#}");
            Ok(None)
        }
        Err(e) => {
            let taken = e.chain().any(|cause| {
                cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::AddrInUse)
            });
            let remedy = "stop what listens there, or give another --listen";
            Err(if taken { anyhow::anyhow!("{e:#}: {remedy}") } else { e })
        }
    }
}

/// Serves until `end` is cancelled, then stops in order. The first SIGINT or SIGTERM cancels `stop`, which must lead to
/// `end`. SIGHUP reads the agents' files and the settings again. Calls `print` once, when the daemon is ready or
/// [`READY_WITHIN`] has passed.
pub(super) async fn until_signal(
    daemon: Daemon,
    config: &Config,
    mut signals: Signals,
    stop: CancellationToken,
    end: CancellationToken,
    print: impl FnOnce(),
) -> Outcome {
    let url_file = leave_url(daemon.parts(), config)?;
    let (health, reload) = (daemon.parts().health.clone(), daemon.parts().reload.clone());
    let ready = tokio::time::timeout(READY_WITHIN, health.ready());
    tokio::pin!(ready);
    let mut print = Some(print);
    let serving = daemon.run(end);
    tokio::pin!(serving);
    let outcome = loop {
        tokio::select! {
            outcome = &mut serving => break outcome,
            outcome = &mut ready, if print.is_some() => {
                if outcome.is_err() {
                    eprintln!("not ready yet: {}", health.missing());
                }
                print.take().into_iter().for_each(|print| print());
            }
            _ = signals.hang_up.recv() => {
                let reads = reload.soon();
                let what = if reads { "agents' files and settings are read again" } else { "no files to read" };
                tracing::info!("SIGHUP: {what}");
            }
            () = signals.end.cancel(&stop) => {}
        }
    };
    let _ = std::fs::remove_file(url_file);
    Ok(outcome?)
}

/// Writes the daemon's URL to the data folder, where the other commands read it.
fn leave_url(parts: &Parts, config: &Config) -> anyhow::Result<PathBuf> {
    let file = config.database.data_dir.join(daemon::URL_FILE);
    files::own_folder(&config.database.data_dir)?;
    files::write_own(&file, daemon::http_url(parts.addr).as_bytes())?;
    Ok(file)
}

/// An anon key for web pages.
pub(super) fn anon_key(parts: &Parts) -> anyhow::Result<String> {
    Ok(mint(&parts.keys, &MintRequest::new(Role::Anon), Clock::System.now())?)
}

/// Agents that cannot work on this machine although their files are valid: id and reason.
pub(super) fn absent(definitions: &[Definition]) -> Vec<(String, String)> {
    let env = Env::process();
    let why = |agent: &Definition| Some((agent.id.to_string(), agent.unavailable(&env)?));
    definitions.iter().filter_map(why).collect()
}

/// Installs the client that [`javascript`] uses, in the version of the tests: older ones have a known fault
/// (`docs/PROTOCOL.md`).
pub(super) const INSTALL_CLIENT: &str = "npm install @supabase/supabase-js@2.119.1";

/// JavaScript that connects a page to this daemon.
pub(super) fn javascript(url: &str, org: &str, anon_key: &str) -> String {
    format!(
        "  import {{ createClient }} from '@supabase/supabase-js'
  const client = createClient('{url}', '{anon_key}')
  const room = client.channel('org:{org}')
  room.on('presence', {{ event: 'sync' }}, () => console.log(room.presenceState()))
  room.on('broadcast', {{ event: 'coordination' }}, ({{ payload }}) => console.log(payload))
  room.subscribe()"
    )
}

/// The command line of this program with the same settings, for a shell in this folder.
pub(super) fn again(settings: &Settings) -> String {
    let mut words = vec![std::env::current_exe().map_or_else(|_| "convoke".into(), |exe| shell_name(&exe))];
    if let Some(config) = &settings.config {
        words.extend(["--config".into(), shell_word(&config.display().to_string())]);
    }
    if let Some(data_dir) = &settings.data_dir {
        words.extend(["--data-dir".into(), shell_word(data_dir)]);
    }
    words.join(" ")
}

/// The name of a program if the shell finds it by name, else its path.
fn shell_name(exe: &Path) -> String {
    let name = exe.file_name().map(OsStr::to_os_string).unwrap_or_default();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(&name)).find(|found| found.is_file());
    let found = found.and_then(|found| found.canonicalize().ok());
    if found.is_some() && found == exe.canonicalize().ok() {
        return name.to_string_lossy().into_owned();
    }
    let here = std::env::current_dir().ok();
    let below =
        here.and_then(|here| exe.strip_prefix(here).ok()).filter(|path| path.components().count() > 1);
    shell_word(&below.unwrap_or(exe).display().to_string())
}

/// A word for a shell, in quotes if it needs them.
pub(super) fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// The `psql` command line for the database. It reads the password from its file: what is printed ends up in process
/// logs and shell histories.
pub(super) fn psql(database: &Database, data_dir: &Path) -> String {
    let target = database.target();
    if database.is_private() {
        let file = password_file(data_dir).display().to_string();
        let (port, user, name) = (target.port, &target.user, &target.database);
        return format!(
            "PGPASSWORD=$(cat {}) psql -h 127.0.0.1 -p {port} -U {user} -d {name}",
            shell_word(&file)
        );
    }
    format!("psql {}", shell_word(&target.url_without_password()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_where_a_shell_needs_it() {
        for (text, quoted) in [
            ("target/debug/convoke", "target/debug/convoke"),
            ("my data", "'my data'"),
            ("it's", "'it'\\''s'"),
            ("$HOME", "'$HOME'"),
            ("", "''"),
        ] {
            assert_eq!(shell_word(text), quoted);
        }
    }

    #[test]
    fn program_off_the_path_is_named_by_its_path() {
        assert_eq!(shell_name(Path::new("/nowhere/convoke")), "/nowhere/convoke");
        let sh = ["/bin/sh", "/usr/bin/sh"].map(Path::new).into_iter().find(|sh| sh.exists()).unwrap();
        assert_eq!(shell_name(sh), "sh");
    }
}
