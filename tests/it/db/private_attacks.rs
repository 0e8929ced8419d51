//! Files that the user of the private PostgreSQL, or a power cut, can leave in its folders.
use super::{
    private::{Folder, one, server_user},
    private_faults::other_daemon,
};
use convoke::{
    db::{Database, Error},
    scope::Scope,
};
use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Gives a file or a link to the server's user, as if that user had created it.
fn as_made_by_server(path: &Path) {
    if let Some((uid, gid)) = server_user() {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).unwrap();
    }
}

async fn open(folder: &Folder) -> Database {
    Database::open(&folder.config(), &Scope::default()).await.unwrap()
}

/// A data folder whose server has run and was stopped.
async fn used() -> (Folder, PathBuf) {
    let folder = Folder::new();
    open(&folder).await.stop().await.unwrap();
    let cluster = folder.data_dir().join("postgres");
    (folder, cluster)
}

#[tokio::test]
async fn planted_link_is_neither_written_through_nor_given_away() {
    let (folder, cluster) = used().await;
    let victim = folder.path().join("victim");
    fs::write(&victim, "untouched").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o640)).unwrap();
    let before = fs::metadata(&victim).unwrap();
    for name in ["postgresql.conf", "postgresql.conf.new", "postmaster.pid"] {
        let path = cluster.join(name);
        let _ = fs::remove_file(&path);
        symlink(&victim, &path).unwrap();
        as_made_by_server(&path);
    }
    let planted = folder.data_dir().join("run/planted");
    symlink(&victim, &planted).unwrap();
    as_made_by_server(&planted);

    let db = open(&folder).await;
    assert_eq!(one(&db, "show listen_addresses").await, "127.0.0.1", "its own settings are in place");
    db.stop().await.unwrap();
    let after = fs::metadata(&victim).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "untouched");
    assert_eq!(
        (after.uid(), after.gid(), after.mode()),
        (before.uid(), before.gid(), before.mode()),
        "owner and mode"
    );
    assert!(fs::symlink_metadata(cluster.join("postgresql.conf")).unwrap().is_file());
    assert!(fs::symlink_metadata(&planted).is_err(), "the folder of the socket is emptied");
}

#[tokio::test]
async fn fifo_in_place_of_a_file_does_not_hold_up_the_start() {
    let (folder, cluster) = used().await;
    for name in ["postgresql.conf", "postmaster.pid"] {
        let path = cluster.join(name);
        let _ = fs::remove_file(&path);
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        as_made_by_server(&path);
    }
    let db = open(&folder).await;
    assert_eq!(one(&db, "select 'alive'").await, "alive");
    db.stop().await.unwrap();
    let version = cluster.join("PG_VERSION");
    fs::remove_file(&version).unwrap();
    assert!(Command::new("mkfifo").arg(&version).status().unwrap().success());
    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err();
    assert!(
        matches!(&error, Error::Unfit(message) if message.contains("PG_VERSION is not a regular file")),
        "{error:?}"
    );
}

/// A process of the server's user that matches the server in everything but its executable.
fn look_alike(cluster: &Path) -> Child {
    let mut command = Command::new("sh");
    // It waits in a builtin: a program that the shell starts would outlive it and hold the output of the test open.
    command
        .args(["-c", "read line", "postgres", "-D"])
        .arg(cluster)
        .current_dir(cluster)
        .stdin(Stdio::piped());
    if let Some((uid, gid)) = server_user() {
        command.uid(uid).gid(gid);
    }
    command.spawn().unwrap()
}

#[tokio::test]
async fn process_that_names_the_folder_is_not_signaled() {
    let (folder, cluster) = used().await;
    let mut other = look_alike(&cluster);
    let sockets = folder.data_dir().join("run");
    let record = cluster.join("postmaster.pid");
    let (path, sockets) = (cluster.display(), sockets.display());
    for record_of in [
        format!("{}\n{path}\n1790000000\n5433\n{sockets}\n127.0.0.1\n  1  2\nready   \n", other.id()),
        format!("{}\n", other.id()),
    ] {
        fs::write(&record, record_of).unwrap();
        as_made_by_server(&record);
        let db = open(&folder).await;
        assert_eq!(one(&db, "select 'alive'").await, "alive");
        assert_ne!(folder.server_pid(), i32::try_from(other.id()).ok());
        assert!(other.try_wait().unwrap().is_none(), "the other process runs beside the server");
        db.stop().await.unwrap();
        assert!(other.try_wait().unwrap().is_none(), "the other process runs after the stop");
    }
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn damaged_pid_file_does_not_prevent_the_next_start() {
    let (folder, cluster) = used().await;
    let record = cluster.join("postmaster.pid");
    let garbage = "\0".repeat(64);
    for text in ["", "\n", "rubbish\n", "12", &garbage, "-7\n/x\n1\n5433\n/run\n", "4194304\n/x\n"] {
        fs::write(&record, text).unwrap();
        as_made_by_server(&record);
        // The lock file of the socket has the same format.
        for name in [".s.PGSQL.5433.lock", ".s.PGSQL.5433"] {
            let lock = folder.data_dir().join("run").join(name);
            fs::write(&lock, "").unwrap();
            as_made_by_server(&lock);
        }
        let db = open(&folder).await;
        assert_eq!(one(&db, "select 'alive'").await, "alive", "{text:?}");
        db.stop().await.unwrap();
    }
}

#[tokio::test]
async fn server_with_a_damaged_pid_file_is_stopped_before_another_starts() {
    let folder = Folder::new();
    let (mut daemon, _) = other_daemon(&folder);
    let server = folder.server_pid().unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    fs::write(folder.data_dir().join("postgres/postmaster.pid"), "").unwrap();
    let db = open(&folder).await;
    assert_eq!(one(&db, "select 'alive'").await, "alive");
    assert_ne!(folder.server_pid(), Some(server));
    assert!(fs::read_link(format!("/proc/{server}/exe")).is_err(), "the old one is gone");
    db.stop().await.unwrap();
}

#[tokio::test]
async fn data_folder_that_others_can_write_to_is_refused() {
    let folder = Folder::new();
    fs::create_dir(folder.data_dir()).unwrap();
    for mode in [0o777, 0o775, 0o1777] {
        fs::set_permissions(folder.data_dir(), fs::Permissions::from_mode(mode)).unwrap();
        let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err().to_string();
        assert!(error.contains(&format!("mode {mode:o}")) && error.contains("chmod go-w"), "{error}");
        assert_eq!(error.lines().count(), 1);
        assert_eq!(fs::read_dir(folder.data_dir()).unwrap().count(), 0, "nothing was made in it");
    }
    if server_user().is_some() {
        fs::set_permissions(folder.data_dir(), fs::Permissions::from_mode(0o755)).unwrap();
        std::os::unix::fs::chown(folder.data_dir(), Some(4242), None).unwrap();
        let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err().to_string();
        assert!(error.contains("belongs to user 4242"), "{error}");
    }
}

#[tokio::test]
async fn password_that_others_can_write_is_refused_and_one_that_they_can_read_is_closed() {
    let (folder, _) = used().await;
    let password = folder.data_dir().join("postgres.password");
    fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
    open(&folder).await.stop().await.unwrap();
    assert_eq!(fs::metadata(&password).unwrap().mode() & 0o7777, 0o600);
    fs::set_permissions(&password, fs::Permissions::from_mode(0o606)).unwrap();
    let error = Database::open(&folder.config(), &Scope::default()).await.unwrap_err().to_string();
    assert!(error.contains("postgres.password can be written to by other users"), "{error}");
}
