//! Runs a daemon in this process until a signal, and tells where it is.
use super::{Outcome, daemon, settings::Settings};
use crate::{
    agent::{Definition, Env},
    app::{Builder, Daemon, Parts},
    auth::{MintRequest, Role, mint},
    clock::Clock,
    config::Config,
};
use anyhow::Context;
use std::{future::Future, io, path::PathBuf, time::Duration};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// How long a daemon may take to get ready before people are told anyway.
pub(super) const READY_WITHIN: Duration = Duration::from_secs(15);

/// Builds, and says what to do about a port that is taken.
pub(super) async fn build(builder: Builder) -> anyhow::Result<Daemon> {
    builder.build().await.map_err(|e| {
        let taken = e.chain().any(|cause| {
            cause.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::AddrInUse)
        });
        if taken { anyhow::anyhow!("{e:#}: stop what listens there, or give another --listen") } else { e }
    })
}

/// Serves until `end`, then stops in order. The first SIGINT or SIGTERM cancels `stop`, from which
/// `end` follows; a second one exits at once (the private PostgreSQL stays, and the next daemon takes
/// it over). Calls `tell` once, when everything is ready or has taken [`READY_WITHIN`].
pub(super) async fn until_signal(
    daemon: Daemon,
    config: &Config,
    stop: CancellationToken,
    end: CancellationToken,
    tell: impl FnOnce(),
) -> Outcome {
    let url_file = leave_url(daemon.parts(), config)?;
    let health = daemon.parts().health.clone();
    let ready = tokio::time::timeout(READY_WITHIN, health.ready());
    tokio::pin!(ready);
    let mut tell = Some(tell);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let serving = daemon.run(end);
    tokio::pin!(serving);
    let outcome = loop {
        tokio::select! {
            outcome = &mut serving => break outcome,
            outcome = &mut ready, if tell.is_some() => {
                if outcome.is_err() {
                    eprintln!("not ready yet; /health says what is missing");
                }
                tell.take().into_iter().for_each(|tell| tell());
            }
            _ = hang_up.recv() => {
                tracing::warn!("SIGHUP: settings are not reloaded yet; restart the daemon to apply them");
            }
            () = either(interrupt.recv(), terminate.recv()) => {
                if stop.is_cancelled() {
                    std::process::exit(130);
                }
                eprintln!("stopping; once more exits at once");
                stop.cancel();
            }
        }
    };
    let _ = std::fs::remove_file(url_file);
    Ok(outcome?)
}

async fn either<T>(one: impl Future<Output = T>, other: impl Future<Output = T>) {
    tokio::select! {
        _ = one => {}
        _ = other => {}
    }
}

/// Leaves the address where the other commands look for it.
fn leave_url(parts: &Parts, config: &Config) -> anyhow::Result<PathBuf> {
    let file = config.database.data_dir.join(daemon::URL_FILE);
    std::fs::create_dir_all(&config.database.data_dir)
        .and_then(|()| std::fs::write(&file, daemon::http_url(parts.addr)))
        .with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// An anon key for web pages.
pub(super) fn anon_key(parts: &Parts) -> anyhow::Result<String> {
    Ok(mint(&parts.keys, &MintRequest::new(Role::Anon), Clock::System.now())?)
}

/// Those that cannot work here though nothing is wrong with their files: id and why.
pub(super) fn absent(definitions: &[Definition]) -> Vec<(String, String)> {
    let env = Env::process();
    let why = |agent: &Definition| Some((agent.id.to_string(), agent.unavailable(&env)?));
    definitions.iter().filter_map(why).collect()
}

/// The lines that connect a page to this daemon.
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

/// How to call this program again with the same settings.
pub(super) fn again(settings: &Settings) -> String {
    let program = std::env::current_exe()
        .ok()
        .zip(std::env::current_dir().ok())
        .and_then(|(exe, here)| Some(exe.strip_prefix(here).ok()?.display().to_string()));
    let mut words = program.unwrap_or_else(|| "convoke".into());
    if let Some(data_dir) = &settings.data_dir {
        words.push_str(&format!(" --data-dir {data_dir}"));
    }
    words
}
