//! Which user of the machine runs the private server.
//!
//! PostgreSQL refuses to run as root, so a daemon that is root runs it as
//! `postgres`, or else as `nobody`; any other user runs it as oneself.
use crate::db::Error;
use std::{io, os::unix::fs::chown, path::Path, process::Stdio};
use tokio::process::Command;

/// What the server's environment keeps: it needs no secret of the daemon's.
const ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR"];

/// The user that runs the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Numeric user id.
    pub(super) uid: u32,
    /// Numeric group id.
    pub(super) gid: u32,
    /// For messages.
    pub(super) name: String,
    /// Whether it is another user than the daemon's.
    pub(super) switched: bool,
}

impl Identity {
    /// Ourselves, or whom root hands the server to.
    pub(super) fn find() -> Result<Self, Error> {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if uid != 0 {
            return Ok(Self { uid, gid, name: format!("user {uid}"), switched: false });
        }
        let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        ["postgres", "_postgres", "nobody"].iter().find_map(|name| account(&accounts, name)).ok_or_else(
            || {
                let remedy = "add a user postgres (useradd --system postgres), or do not run convoke as root";
                Error::Unfit(format!(
                    "PostgreSQL does not run as root, and there is no other user for it: {remedy}"
                ))
            },
        )
    }

    /// A program that runs as this user, away from our folder, our terminal and our environment.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(ENVIRONMENT.iter().filter_map(|key| Some((key, std::env::var_os(key)?))));
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).process_group(0);
        if self.switched {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Whether this user gets into `folder`, asked of the system itself because of ACLs and the like.
    pub(super) async fn can_enter(&self, folder: &Path) -> bool {
        let mut command = self.command(Path::new("/bin/sh"));
        command.args(["-c", "cd -- \"$1\"", "sh"]).arg(folder);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        status.is_ok_and(|status| status.success())
    }

    /// Hands a file or folder to this user.
    pub(super) fn own(&self, path: &Path) -> Result<(), Error> {
        if !self.switched {
            return Ok(());
        }
        chown(path, Some(self.uid), Some(self.gid)).map_err(|e: io::Error| Error::file("chown", path, e))
    }
}

fn account(accounts: &str, name: &str) -> Option<Identity> {
    let line = accounts.lines().find(|line| line.split(':').next() == Some(name))?;
    let mut numbers = line.split(':').skip(2).map(str::parse);
    let (uid, gid) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some(Identity { uid, gid, name: name.to_owned(), switched: true })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_read_from_the_password_file() {
        let text =
            "root:x:0:0::/root:/bin/sh\npostgresql:x:9:9::/:/x\npostgres:x:101:104:,,,:/var:/bin/bash\n";
        let found = account(text, "postgres").unwrap();
        assert_eq!((found.uid, found.gid, found.switched), (101, 104, true));
        assert_eq!(account(text, "nobody"), None);
    }
}
