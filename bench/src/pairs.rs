//! Two command lines in turn on one machine, compared by their medians.
//!
//! Machines drift (temperature, other work), so one run of each says little. The order changes with each pair: before
//! and after, after and before, so that a drift that is steady falls on both alike. Knows nothing of the command lines
//! but that they print figures: a line `name number` for each, or one JSON object.
use crate::{figures::median, record::ratio};
use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, fmt::Write as _, process::Stdio};
use tokio::process::Command;

/// Two command lines, and what both are called with.
#[derive(Args, Serialize)]
pub(crate) struct PairsOptions {
    /// The first command line, read by the shell, like 'old/target/release/convoke bench'
    #[arg(long, value_name = "COMMAND")]
    before: String,
    /// The second command line, like target/release/convoke-bench
    #[arg(long, value_name = "COMMAND")]
    after: String,
    /// Runs of each
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Arguments of both, after --
    #[arg(last = true)]
    arguments: Vec<String>,
}

/// Values of one figure, a run each, in the order of the pairs.
#[derive(Default)]
struct Series {
    before: Vec<f64>,
    after: Vec<f64>,
}

/// Runs both, and returns a table of medians and their ratio.
///
/// # Errors
/// When a run fails or prints no figures.
pub(crate) async fn run(options: PairsOptions) -> anyhow::Result<String> {
    let mut series: BTreeMap<String, Series> = BTreeMap::new();
    for pair in 0..options.runs {
        let turns = if pair % 2 == 0 { [true, false] } else { [false, true] };
        for is_before in turns {
            let command = if is_before { &options.before } else { &options.after };
            eprintln!("pair {} of {}: {command}", pair + 1, options.runs);
            for (name, value) in figures(command, &options.arguments).await? {
                let series = series.entry(name).or_default();
                if is_before { series.before.push(value) } else { series.after.push(value) }
            }
        }
    }
    Ok(table(&series))
}

/// The figures of one run, by name.
pub(crate) type RunFigures = BTreeMap<String, f64>;

/// The figures that one run prints.
async fn figures(command: &str, arguments: &[String]) -> anyhow::Result<RunFigures> {
    let mut shell = Command::new("sh");
    // The shell splits the command line and hands the arguments on as they are; `exec` leaves no shell between this
    // process and the run, so that it receives signals.
    shell.args(["-c", &format!("exec {command} \"$@\""), "sh"]).args(arguments);
    figures_of(shell, &format!("{command} {}", arguments.join(" "))).await
}

/// The figures that a command prints, which errors call `name`.
///
/// # Errors
/// When it fails or prints no figures.
pub(crate) async fn figures_of(mut command: Command, name: &str) -> anyhow::Result<RunFigures> {
    // Runs of a comparison alternate with others: they are not part of the machine's record.
    command.env("CONVOKE_BENCH_RESULTS", "").stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    // `Command::output` would capture standard error too, and hide why a run fails.
    let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
    let output = child.wait_with_output().await?;
    ensure!(output.status.success(), "{name}: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let figures = parse(&text);
    ensure!(!figures.is_empty(), "{name} printed no figures: {text:?}");
    Ok(figures)
}

/// Numbers by name: members of a JSON object, or lines of a name and a number. Everything else is ignored.
fn parse(text: &str) -> BTreeMap<String, f64> {
    if let Ok(Value::Object(members)) = serde_json::from_str(text) {
        return members.into_iter().filter_map(|(name, value)| Some((name, value.as_f64()?))).collect();
    }
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (name, number) = (words.next()?, words.next()?.parse().ok()?);
        words.next().is_none().then(|| (name.to_owned(), number))
    };
    text.lines().filter_map(line).collect()
}

fn table(series: &BTreeMap<String, Series>) -> String {
    let mut table = format!(
        "{:44} {:>14} {:>14} {:>8}  {}\n",
        "medians", "before", "after", "ratio", "ratios of the pairs"
    );
    for (name, Series { before, after }) in series {
        let (Some(old), Some(new)) = (median(before), median(after)) else {
            let which = if before.is_empty() { "after" } else { "before" };
            let _ = writeln!(table, "{name:44} only {which}");
            continue;
        };
        let mut ratios: Vec<f64> = before.iter().zip(after).map(|(before, after)| after / before).collect();
        ratios.retain(|ratio| ratio.is_finite());
        ratios.sort_unstable_by(f64::total_cmp);
        let range = ratios.first().zip(ratios.last());
        let range = range.map_or_else(|| "-".into(), |(low, high)| format!("{low:.3} to {high:.3}"));
        let _ = writeln!(table, "{name:44} {old:>14} {new:>14} {:>8}  {range}", ratio(old, new));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_text_and_from_json() {
        // As the daemon's own `bench` of earlier commits printed them, and with its --json.
        let text = "bare_p50_ms                  0.5\ndeliveries_per_second        812345.0\nerror: not a figure\nword text\n";
        let expected =
            BTreeMap::from([("bare_p50_ms".into(), 0.5), ("deliveries_per_second".into(), 812_345.0)]);
        assert_eq!(parse(text), expected);
        assert_eq!(
            parse("{\"bare_p50_ms\":0.5,\"deliveries_per_second\":812345.0,\"name\":\"x\"}\n"),
            expected
        );
        assert!(parse("nothing here\n").is_empty());
    }

    #[tokio::test]
    async fn both_command_lines_run_in_turn_with_the_same_arguments() {
        let folder = tempfile::tempdir().unwrap();
        let order = folder.path().join("order");
        let write = |name: &str, factor: u32| {
            let path = folder.path().join(name);
            let text = format!(
                "echo {name} >> '{0}'\necho \"argument_ms $1\"\necho \"count $(($(grep -c {name} '{0}') * {factor}))\"\n",
                order.display()
            );
            std::fs::write(&path, text).unwrap();
            format!("sh '{}'", path.display())
        };
        let options = PairsOptions {
            before: write("old", 10),
            after: write("new", 20),
            runs: 3,
            arguments: vec!["4".into()],
        };
        let table = run(options).await.unwrap();
        assert_eq!(std::fs::read_to_string(&order).unwrap(), "old\nnew\nnew\nold\nold\nnew\n");
        let row = |name: &str| -> Vec<&str> {
            table.lines().find(|line| line.starts_with(name)).unwrap().split_whitespace().skip(1).collect()
        };
        assert_eq!(row("argument_ms"), ["4", "4", "1.000", "1.000", "to", "1.000"], "{table}");
        assert_eq!(row("count"), ["20", "40", "2.000", "2.000", "to", "2.000"], "{table}");
    }

    #[tokio::test]
    async fn run_that_fails_or_prints_no_figure_is_named() {
        for (before, expected) in
            [("false", "false x: exit status: 1"), ("true", "true x printed no figures")]
        {
            let (before, after) = (before.into(), "true".into());
            let options = PairsOptions { before, after, runs: 1, arguments: vec!["x".into()] };
            let error = run(options).await.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
