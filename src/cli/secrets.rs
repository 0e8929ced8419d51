//! Hides secrets of this process from the rest of the machine: the password in `--database-url`, which every user can
//! read in the list of processes, and its memory, which a crash would write to a file.
use anyhow::Context;
use rustix::process::{Resource, Rlimit, setrlimit};
use std::{
    ffi::{OsStr, OsString},
    os::unix::{ffi::OsStrExt, process::CommandExt},
    process::Command,
};

/// The flag that may hold a password.
const FLAG: &str = "--database-url";
/// The variable that holds the flag's value instead. It is internal: `CONVOKE_DATABASE__URL` is the setting for users,
/// and a flag takes precedence over it.
pub(super) const VARIABLE: &str = "CONVOKE_FLAG_DATABASE_URL";

/// Forbids core files of this process and its children. With the flag on the command line, executes the same program
/// without it, in the same process.
pub(super) fn hide() -> anyhow::Result<()> {
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .context("cannot forbid core files")?;
    // The limit does not bind a core handler that is a program (`core_pattern` with a pipe). A process that is not
    // dumpable also denies /proc/<pid>/environ and /proc/<pid>/mem to other processes of the user, like agents' commands.
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .context("cannot forbid core files")?;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    let Some((rest, url)) = split(&arguments) else { return Ok(()) };
    let program = std::env::current_exe().context("cannot find this program")?;
    let error = Command::new(program).arg0(name).args(rest).env(VARIABLE, url).exec();
    Err(error).context("cannot restart without --database-url on the command line")
}

/// Returns the arguments without the flag, and its last value. `None` if there is no flag with a value.
fn split(arguments: &[OsString]) -> Option<(Vec<OsString>, OsString)> {
    let (mut rest, mut url) = (Vec::new(), None);
    let mut left = arguments.iter();
    while let Some(argument) = left.next() {
        if argument == "--" {
            rest.push(argument.clone());
            rest.extend(left.by_ref().cloned());
        } else if argument == FLAG {
            // A flag without a value stays on the command line: clap reports it.
            url = Some(left.next()?.clone());
        } else if let Some(value) = value_of(argument) {
            url = Some(value.to_owned());
        } else {
            rest.push(argument.clone());
        }
    }
    url.map(|url| (rest, url))
}

/// The value in `--database-url=value`.
fn value_of(argument: &OsStr) -> Option<&OsStr> {
    let value = argument.as_bytes().strip_prefix(FLAG.as_bytes())?.strip_prefix(b"=")?;
    Some(OsStr::from_bytes(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(words: &[&str]) -> Option<(Vec<OsString>, OsString)> {
        split(&words.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn database_url_flag_is_removed_from_the_arguments() {
        let expected = Some((vec!["up".into(), "--json".into()], "postgres://a:b@c/d".into()));
        for words in [
            &["up", "--database-url", "postgres://a:b@c/d", "--json"][..],
            &["--database-url=postgres://a:b@c/d", "up", "--json"],
            &["up", "--database-url=first", "--json", "--database-url", "postgres://a:b@c/d"],
        ] {
            assert_eq!(split_words(words), expected, "{words:?}");
        }
        for words in [&["up"][..], &["up", "--database-url"], &["up", "--", "--database-url", "x"]] {
            assert_eq!(split_words(words), None, "{words:?}");
        }
    }
}
