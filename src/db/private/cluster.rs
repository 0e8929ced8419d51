//! Creation of the private server's data, and its settings.
use super::{binaries::Binaries, os_user::Identity, paths::ServerPaths};
use crate::{
    db::Error,
    fault,
    files::{self, Folder},
};
use secrecy::{ExposeSecret, SecretString};
use std::{fs, io, path::Path};
use tracing::info;

/// Name of the role and of the database.
pub(super) const NAME: &str = "convoke";

/// Settings that differ from PostgreSQL's defaults: small, durable, and without statements or parameters in
/// the server's log.
const SETTINGS: [(&str, &str); 30] = [
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_permissions", "0700"),
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
    // Without this, a table of the operator would be created in the schema that is named like the role.
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

/// Most bytes that are read of a file of the server.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// Returns the major version that created the data; `None` if there is no data.
pub(super) fn version(paths: &ServerPaths, identity: &Identity) -> Result<Option<u32>, Error> {
    let folder = match Folder::open(&paths.cluster, identity.uid) {
        Ok(folder) => folder,
        Err(files::Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::of_files(e)),
    };
    let path = paths.cluster.join("PG_VERSION");
    match folder.read("PG_VERSION", FILE_BYTES_MAX).map_err(Error::of_files)? {
        Some(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(Error::Unfit(format!("{} is not a PostgreSQL version", path.display()))),
        },
        None => Err(Error::file("read", path, io::ErrorKind::NotFound.into())),
    }
}

/// Creates the data in a temporary folder and renames it, so that a kill leaves no partial data.
pub(super) async fn init(
    paths: &ServerPaths,
    binaries: &Binaries,
    identity: &Identity,
    password: &SecretString,
) -> Result<(), Error> {
    sweep(paths);
    // A random name: the initdb of a killed daemon may still be writing to another one.
    let making = paths.cluster.with_extension(format!("new-{:08x}", rand::random::<u32>()));
    Folder::make(&making, identity.owner()).map_err(Error::of_files)?;
    info!(path = %paths.cluster.display(), version = binaries.major, "creating a private PostgreSQL");
    // In the folder of the socket and not in the new one: initdb needs an empty folder. Both belong to the
    // server's user.
    let (name, folder) =
        ("initdb.password", Folder::open(&paths.sockets, identity.uid).map_err(Error::of_files)?);
    folder.write(name, password.expose_secret().as_bytes(), identity.owner()).map_err(Error::of_files)?;
    let made = run_initdb(&making, &paths.sockets.join(name), binaries, identity).await;
    folder.remove(name).map_err(Error::of_files)?;
    made?;
    // The rename is durable once the parent folder is synced.
    fault::point(fault::Point::DbDataMade);
    fs::rename(&making, &paths.cluster).map_err(|e| Error::file("create", &paths.cluster, e))?;
    let parent = paths.cluster.parent().map(fs::File::open);
    let synced = parent.map_or(Ok(()), |folder| folder.and_then(|folder| folder.sync_all()));
    synced.map_err(|e| Error::file("sync", &paths.cluster, e))
}

/// Removes the remains of unfinished attempts; errors are ignored.
fn sweep(paths: &ServerPaths) {
    let Some(folder) = paths.cluster.parent() else { return };
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
    let mut stderr = String::new();
    // Not every machine has `C.UTF-8`.
    for locale in ["C.UTF-8", "C"] {
        let mut command = identity.command(&program);
        command.arg("-D").arg(folder).arg("--pwfile").arg(secret);
        command.args(["--username", NAME, "--auth", "scram-sha-256", "--encoding", "UTF8"]);
        command.args(["--data-checksums", "--locale", locale]).kill_on_drop(true);
        let output = command.output().await.map_err(|e| Error::file("run", &program, e))?;
        if output.status.success() {
            return Ok(());
        }
        stderr = last_lines(&String::from_utf8_lossy(&output.stderr), 6);
        if !stderr.contains("invalid locale") {
            break;
        }
    }
    Err(Error::Initdb(stderr))
}

/// Writes the settings; returns whether they differ from those of before.
pub(super) fn configure(
    paths: &ServerPaths,
    identity: &Identity,
    extra: &[(String, String)],
) -> Result<bool, Error> {
    let (name, wanted) = ("postgresql.conf", settings(extra));
    // The database's OS user can create anything in its folder, so a link or FIFO in place of the file is
    // replaced, not followed.
    let folder = Folder::open(&paths.cluster, identity.uid).map_err(Error::of_files)?;
    if folder.read(name, FILE_BYTES_MAX).is_ok_and(|text| text.is_some_and(|text| text == wanted)) {
        return Ok(false);
    }
    folder.write(name, wanted.as_bytes(), identity.owner()).map_err(Error::of_files)?;
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

/// Returns the last `count` lines that are not empty.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().join("\n")
}
