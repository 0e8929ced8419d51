//! One line of JSON for each run, and the comparison of the newest line with the one before it.
//!
//! Lines are appended to `<command>.jsonl` in the folder of results; nothing is ever rewritten. Two runs are comparable
//! if their command, arguments, profile and machine are equal, whatever their commits are.
use crate::{
    figures::{Figures, unit},
    machine::Machine,
};
use anyhow::{Context, bail};
use convoke::clock::Clock;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{Seek, SeekFrom, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// The folder in the working tree that built this program.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/results");
/// The extension of files of results.
const EXTENSION: &str = "jsonl";

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// When it ended, RFC 3339 in UTC.
    pub(crate) time: String,
    /// The commit that the program was built from.
    pub(crate) commit: String,
    /// The program was built from a working tree with changes that are not in the commit.
    pub(crate) dirty: bool,
    pub(crate) profile: Profile,
    pub(crate) machine: Machine,
    pub(crate) command: String,
    /// Every argument, with defaults.
    pub(crate) arguments: Value,
    pub(crate) figures: BTreeMap<String, Figure>,
}

/// How the program was compiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) opt_level: String,
    pub(crate) rustc: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) value: f64,
    pub(crate) unit: String,
}

impl Record {
    /// A run of this program that ends now.
    pub(crate) fn new(command: &str, arguments: Value, figures: &Figures) -> Self {
        let figure = |(name, value): (&String, &f64)| {
            (name.clone(), Figure { value: *value, unit: unit(name).to_owned() })
        };
        Self {
            time: Clock::System.now().to_rfc3339(),
            commit: env!("BENCH_COMMIT").into(),
            dirty: env!("BENCH_DIRTY") == "true",
            profile: Profile {
                name: env!("BENCH_PROFILE").into(),
                opt_level: env!("BENCH_OPT_LEVEL").into(),
                rustc: env!("BENCH_RUSTC").into(),
            },
            machine: Machine::read(figures.postgres.clone()),
            command: command.into(),
            arguments,
            figures: figures.values().iter().map(figure).collect(),
        }
    }

    /// Appends this run to its file in `folder`, and returns the file's path.
    ///
    /// # Errors
    /// When the folder or the file cannot be written.
    pub(crate) fn append(&self, folder: &Path) -> anyhow::Result<PathBuf> {
        let path = folder.join(&self.command).with_extension(EXTENSION);
        let line = serde_json::to_string(self)?;
        let append = || -> std::io::Result<()> {
            fs::create_dir_all(folder)?;
            let mut file = OpenOptions::new().create(true).read(true).append(true).open(&path)?;
            // One call for each line: runs that end at the same time must not mix theirs.
            let separator = separator(&mut file)?;
            file.write_all(format!("{separator}{line}\n").as_bytes())
        };
        append().with_context(|| format!("cannot append to {}", path.display()))?;
        Ok(path)
    }

    /// Whether the figures of both mean the same thing measured in the same way.
    fn is_comparable(&self, other: &Self) -> bool {
        // A newer compiler is one of the differences that a comparison is for.
        let profile = |record: &Self| (record.profile.name.clone(), record.profile.opt_level.clone());
        self.command == other.command
            && self.arguments == other.arguments
            && self.machine == other.machine
            && profile(self) == profile(other)
    }

    /// The commit for people: ten digits, and `+` with changes.
    fn commit_short(&self) -> String {
        let short: String = self.commit.chars().take(10).collect();
        if self.dirty { format!("{short}+") } else { short }
    }
}

/// A line feed where the file does not end with one: a run that was killed while it wrote must not spoil this line too.
fn separator(file: &mut File) -> std::io::Result<&'static str> {
    let size = file.seek(SeekFrom::End(0))?;
    let mut last = [b'\n'];
    if let Some(at) = size.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    Ok(if last == [b'\n'] { "" } else { "\n" })
}

/// The folder of results: the one that was asked for, or `bench/results` of the working tree. `None` if runs are not
/// recorded, which an empty path asks for.
pub(crate) fn folder(asked: Option<OsString>) -> Option<PathBuf> {
    let folder = asked.unwrap_or_else(|| RESULTS.into());
    (!folder.is_empty()).then(|| folder.into())
}

/// Reads the runs of one command, oldest first. Lines that are not runs are counted, not read.
///
/// # Errors
/// When the file cannot be read; a missing file is one without runs.
pub(crate) fn read(folder: &Path, command: &str) -> anyhow::Result<(Vec<Record>, usize)> {
    let path = folder.join(command).with_extension(EXTENSION);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let lines = text.lines().filter(|line| !line.trim().is_empty());
    let (runs, bad): (Vec<_>, Vec<_>) = lines.map(serde_json::from_str).partition(Result::is_ok);
    Ok((runs.into_iter().flatten().collect(), bad.len()))
}

/// Compares the last run with the last comparable one before it, as a table of ratios. Reports if there is no earlier run.
///
/// # Errors
/// When there is no run.
pub(crate) fn compare(command: &str, runs: &[Record]) -> anyhow::Result<String> {
    let Some((after, earlier)) = runs.split_last() else {
        bail!("no run of {command} is recorded");
    };
    let Some(before) = earlier.iter().rev().find(|run| run.is_comparable(after)) else {
        return Ok(format!(
            "no earlier run of {command} {} with profile {} on this machine: nothing to compare\n",
            after.arguments, after.profile.name
        ));
    };
    let mut table = format!("{command} {}\n", after.arguments);
    for (name, run) in [("before", before), ("after", after)] {
        let _ = writeln!(table, "{name:6} {} {}", run.commit_short(), run.time);
    }
    let _ = writeln!(table, "{:44} {:>14} {:>14} {:>8}", "", "before", "after", "ratio");
    for (name, figure) in &after.figures {
        let Some(earlier) = before.figures.get(name) else {
            let _ = writeln!(table, "{name:44} {:>14} {:>14} {:>8}", "-", figure.value, "-");
            continue;
        };
        let ratio = ratio(earlier.value, figure.value);
        let _ = writeln!(table, "{name:44} {:>14} {:>14} {ratio:>8}", earlier.value, figure.value);
    }
    for (name, figure) in before.figures.iter().filter(|(name, _)| !after.figures.contains_key(*name)) {
        let _ = writeln!(table, "{name:44} {:>14} {:>14} {:>8}", figure.value, "-", "-");
    }
    Ok(table)
}

/// After divided by before with three digits; a dash where before is zero.
pub(crate) fn ratio(before: f64, after: f64) -> String {
    if before == 0.0 { "-".into() } else { format!("{:.3}", after / before) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(commit: &str, figures: &[(&str, f64)]) -> Record {
        let mut measured = Figures::default();
        for (name, value) in figures {
            measured.add(*name, *value);
        }
        let record = Record::new("fanout", json!({ "subscribers": 10 }), &measured);
        Record { commit: commit.repeat(40), dirty: false, ..record }
    }

    #[test]
    fn last_run_is_compared_with_the_last_comparable_run() {
        let first = run("a", &[("p50_ms", 1.0)]);
        let before = run("b", &[("p50_ms", 2.0), ("deliveries_per_second", 100.0), ("gone_ms", 7.0)]);
        let after = run("c", &[("p50_ms", 3.0), ("deliveries_per_second", 90.0), ("new_ms", 5.0)]);
        let other_arguments = Record { arguments: json!({ "subscribers": 11 }), ..before.clone() };
        let other_machine = Record { machine: Machine::default(), ..before.clone() };
        let other_command = Record { command: "tasks".into(), ..before.clone() };
        let mut other_profile = before.clone();
        other_profile.profile.opt_level = "other".into();
        let runs = [first, before, other_arguments, other_machine, other_command, other_profile, after];
        let table = compare("fanout", &runs).unwrap();
        let row = |name: &str| -> Vec<String> {
            let row = table.lines().find(|line| line.starts_with(name)).unwrap();
            row.split_whitespace().skip(1).map(str::to_owned).collect()
        };
        assert_eq!(row("p50_ms"), ["2", "3", "1.500"], "{table}");
        assert_eq!(row("deliveries_per_second"), ["100", "90", "0.900"], "{table}");
        assert_eq!(row("gone_ms"), ["7", "-", "-"], "{table}");
        assert_eq!(row("new_ms"), ["-", "5", "-"], "{table}");
        assert_eq!((&row("before")[0], &row("after")[0]), (&"b".repeat(10), &"c".repeat(10)), "{table}");
    }

    #[test]
    fn run_without_an_earlier_comparable_run_says_so() {
        let only = run("a", &[("p50_ms", 1.0)]);
        let elsewhere = Record { machine: Machine::default(), ..only.clone() };
        for runs in [&[only.clone()][..], &[elsewhere, only]] {
            let told = compare("fanout", runs).unwrap();
            assert!(told.starts_with("no earlier run of fanout {\"subscribers\":10}"), "{told}");
        }
        assert_eq!(compare("fanout", &[]).unwrap_err().to_string(), "no run of fanout is recorded");
    }

    #[test]
    fn ratio_to_zero_is_a_dash() {
        assert_eq!((ratio(0.0, 3.0).as_str(), ratio(4.0, 3.0).as_str()), ("-", "0.750"));
    }

    #[test]
    fn line_that_was_cut_off_spoils_no_other_line() {
        let folder = tempfile::tempdir().unwrap();
        let runs = [run("a", &[("p50_ms", 1.0)]), run("b", &[("p50_ms", 2.0)])];
        let path = runs[0].append(folder.path()).unwrap();
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"time\":\"2026");
        fs::write(&path, text).unwrap();
        runs[1].append(folder.path()).unwrap();
        assert_eq!(read(folder.path(), "fanout").unwrap(), (runs.to_vec(), 1));
        assert_eq!(read(folder.path(), "tasks").unwrap(), (Vec::new(), 0));
    }
}
