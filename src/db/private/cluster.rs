//! Making the private server's data, and its settings.
use super::{binaries::Binaries, identity::Identity, places::Places};
use crate::{db::Error, fault};
use secrecy::{ExposeSecret, SecretString};
use std::{
    fs,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};
use tracing::info;

/// The role and the database that are made.
pub(super) const NAME: &str = "convoke";

/// What differs from PostgreSQL's own defaults. Small, durable, and quiet: no statement or
/// parameter reaches the log.
const SETTINGS: [(&str, &str); 29] = [
    ("listen_addresses", "127.0.0.1"),
    ("password_encryption", "scram-sha-256"),
    ("max_connections", "100"),
    ("shared_buffers", "64MB"),
    ("logical_decoding_work_mem", "16MB"),
    ("wal_level", "logical"),
    ("max_replication_slots", "10"),
    ("max_wal_senders", "10"),
    ("max_slot_wal_keep_size", "4GB"),
    ("wal_sender_timeout", "15s"),
    ("max_wal_size", "1GB"),
    ("checkpoint_timeout", "15min"),
    ("fsync", "on"),
    ("synchronous_commit", "on"),
    ("full_page_writes", "on"),
    ("restart_after_crash", "on"),
    ("jit", "off"),
    ("autovacuum_naptime", "15s"),
    ("cluster_name", "convoke"),
    // Without it a table that the operator makes would land in the schema named like the role.
    ("search_path", "public"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("lc_messages", "C"),
    ("logging_collector", "off"),
    ("log_line_prefix", "%m [%p] "),
    ("log_checkpoints", "off"),
    ("log_min_error_statement", "panic"),
    ("log_error_verbosity", "terse"),
    ("log_parameter_max_length_on_error", "0"),
];

/// The major version that made the data, or none where there is none.
pub(super) fn version(cluster: &Path) -> Result<Option<u32>, Error> {
    let path = cluster.join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(Error::Unfit(format!("{} is not a PostgreSQL version", path.display()))),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound && !cluster.exists() => Ok(None),
        Err(e) => Err(Error::file("read", path, e)),
    }
}

/// Makes the data beside its place and moves it there whole, so that a kill in between leaves none.
pub(super) async fn init(
    places: &Places,
    binaries: &Binaries,
    identity: &Identity,
    password: &SecretString,
) -> Result<(), Error> {
    sweep(places);
    // A name of its own, because the initdb of a daemon that was killed may still be at work.
    let making = places.cluster.with_extension(format!("new-{:08x}", rand::random::<u32>()));
    fs::create_dir(&making).map_err(|e| Error::file("create", &making, e))?;
    identity.own(&making)?;
    info!(path = %places.cluster.display(), version = binaries.major, "making a private PostgreSQL");
    // Beside it and not in it, because initdb wants an empty folder; the folder of the socket is the user's.
    let secret = places.sockets.join("initdb.password");
    let _ = fs::remove_file(&secret);
    let made = write_new(&secret, password.expose_secret()).and_then(|()| identity.own(&secret));
    let made = match made {
        Ok(()) => run_initdb(&making, &secret, binaries, identity).await,
        Err(e) => Err(e),
    };
    let _ = fs::remove_file(&secret);
    made?;
    fault::point("db.data_made");
    fs::rename(&making, &places.cluster).map_err(|e| Error::file("create", &places.cluster, e))?;
    let parent = places.cluster.parent().map(fs::File::open);
    let synced = parent.map_or(Ok(()), |folder| folder.and_then(|folder| folder.sync_all()));
    synced.map_err(|e| Error::file("sync", &places.cluster, e))
}

/// Removes what was begun and never finished, as far as it lets itself be removed.
fn sweep(places: &Places) {
    let Some(folder) = places.cluster.parent() else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("postgres.new-") {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

async fn run_initdb(
    folder: &Path,
    secret: &Path,
    binaries: &Binaries,
    identity: &Identity,
) -> Result<(), Error> {
    let program = binaries.dir.join("initdb");
    let mut said = String::new();
    // Not every machine has the first one.
    for locale in ["C.UTF-8", "C"] {
        let mut command = identity.command(&program);
        command.arg("-D").arg(folder).arg("--pwfile").arg(secret);
        command.args(["--username", NAME, "--auth", "scram-sha-256", "--encoding", "UTF8"]);
        command.args(["--data-checksums", "--locale", locale]).kill_on_drop(true);
        let output = command.output().await.map_err(|e| Error::file("run", &program, e))?;
        if output.status.success() {
            return Ok(());
        }
        said = last_lines(&String::from_utf8_lossy(&output.stderr), 6);
        if !said.contains("invalid locale") {
            break;
        }
    }
    Err(Error::Initdb(said))
}

/// Writes the settings; whether they were others before.
pub(super) fn configure(
    places: &Places,
    identity: &Identity,
    extra: &[(String, String)],
) -> Result<bool, Error> {
    let path = places.cluster.join("postgresql.conf");
    let wanted = settings(extra);
    if fs::read_to_string(&path).is_ok_and(|text| text == wanted) {
        return Ok(false);
    }
    super::places::write_private(&path, wanted.as_bytes())?;
    identity.own(&path)?;
    Ok(true)
}

fn settings(extra: &[(String, String)]) -> String {
    let mut text = String::from(
        "# Written by convoke at every start. Your own settings: alter system set …, which wins over this.\n",
    );
    let own = SETTINGS.iter().map(|(name, value)| (*name, *value));
    let extra = extra.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.chain(extra) {
        text.push_str(&format!("{name} = '{}'\n", value.replace('\'', "''")));
    }
    text
}

fn write_new(path: &Path, content: &str) -> Result<(), Error> {
    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content.as_bytes())).map_err(|e| Error::file("write", path, e))
}

/// The end of a text.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}
