//! The OS user that runs the private server.
//!
//! PostgreSQL refuses to run as root, so a root daemon runs it as `postgres`, or else as `nobody`. Any other
//! daemon runs it as its own user.
use crate::db::Error;
use std::{path::Path, process::Stdio};
use tokio::process::Command;

/// Variables that are passed on to the server. All others are removed: they may hold secrets of the daemon.
const ENVIRONMENT: [&str; 4] = ["PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR"];

/// The user that runs the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// Numeric user id.
    pub(super) uid: u32,
    /// Numeric group id.
    pub(super) gid: u32,
    /// Name for messages.
    pub(super) name: String,
    /// Whether it differs from the daemon's user.
    pub(super) switched: bool,
}

impl Identity {
    /// Returns the daemon's own user, or for root the user that the server runs as.
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

    /// A command that runs as this user, with a separate working folder, process group and environment.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().envs(ENVIRONMENT.iter().filter_map(|key| Some((key, std::env::var_os(key)?))));
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).process_group(0);
        if self.switched {
            command.uid(self.uid).gid(self.gid);
        }
        command
    }

    /// Whether this user can enter `folder`. Tried with a process, because modes alone do not show ACLs and
    /// the like.
    pub(super) async fn can_enter(&self, folder: &Path) -> bool {
        let mut command = self.command(Path::new("/bin/sh"));
        command.args(["-c", "cd -- \"$1\"", "sh"]).arg(folder);
        let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status().await;
        status.is_ok_and(|status| status.success())
    }

    /// User and group of the server's files.
    pub(super) fn owner(&self) -> (u32, u32) {
        (self.uid, self.gid)
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
    fn account_is_parsed_from_the_password_file() {
        let text =
            "root:x:0:0::/root:/bin/sh\npostgresql:x:9:9::/:/x\npostgres:x:101:104:,,,:/var:/bin/bash\n";
        let found = account(text, "postgres").unwrap();
        assert_eq!((found.uid, found.gid, found.switched), (101, 104, true));
        assert_eq!(account(text, "nobody"), None);
    }
}
