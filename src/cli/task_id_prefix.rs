//! A task's id as people type it: whole, or a prefix that no other task has.
use super::{daemon::Daemon, exit::Failure, output};
use crate::{clock::Clock, id::TaskId};
use anyhow::anyhow;
use serde_json::Value;
use std::{str::FromStr, time::Duration};
use uuid::Uuid;

/// Hexadecimal digits of a whole id.
const DIGITS: usize = 32;
/// Fewest digits of a prefix.
const DIGITS_MIN: usize = 4;
/// Candidates that are listed when a prefix is ambiguous.
const LISTED_MAX: usize = 10;

/// A reference to a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TaskRef {
    Whole(TaskId),
    /// A prefix in lower-case hexadecimal digits, without hyphens.
    Prefix(String),
}

impl FromStr for TaskRef {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // An id that was copied from a truncated list ends with an ellipsis.
        let text = text.trim().trim_end_matches('…').trim_end_matches("...");
        if let Ok(id) = text.parse() {
            return Ok(Self::Whole(id));
        }
        let digits: String = text.chars().filter(|c| *c != '-').collect::<String>().to_ascii_lowercase();
        let fits = (DIGITS_MIN..DIGITS).contains(&digits.len());
        if fits && digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Ok(Self::Prefix(digits));
        }
        Err(format!("give a task's id, or at least its first {DIGITS_MIN} digits"))
    }
}

impl TaskRef {
    /// Asks the daemon for the only task with this id or prefix. Ids sort by time, so ids with the same prefix are
    /// adjacent in the list of tasks.
    pub(super) async fn find(&self, daemon: &Daemon) -> Result<TaskId, Failure> {
        let digits = match self {
            Self::Whole(id) => return Ok(*id),
            Self::Prefix(digits) => digits,
        };
        let mut query = vec![("limit", (LISTED_MAX + 1).to_string())];
        query.extend(end(digits).map(|end| ("before", end.to_string())));
        let answer = daemon.get("/v1/tasks", &query, Duration::ZERO).await?;
        let listed = answer.get("tasks").and_then(Value::as_array).cloned().unwrap_or_default();
        let id =
            |task: &Value| task.get("id").and_then(Value::as_str).and_then(|id| id.parse::<TaskId>().ok());
        let matches =
            |task: &&Value| id(task).is_some_and(|id| id.as_uuid().simple().to_string().starts_with(digits));
        let found: Vec<&Value> = listed.iter().filter(matches).collect();
        match found.as_slice() {
            [] => Err(anyhow!("no task has an id that begins with {digits}: see `convoke task list`").into()),
            [one] => id(one).ok_or_else(|| anyhow!("the daemon listed a task without an id").into()),
            several => Err(anyhow!("{}", ambiguous(digits, several)).into()),
        }
    }
}

/// The first id after all ids with this prefix; `None` if there is none.
fn end(digits: &str) -> Option<Uuid> {
    let after = u128::from_str_radix(digits, 16).ok()? + 1;
    let bits = u32::try_from(4 * (DIGITS - digits.len())).ok()?;
    let end = after.checked_mul(1_u128.checked_shl(bits)?)?;
    Some(Uuid::from_u128(end))
}

fn ambiguous(digits: &str, tasks: &[&Value]) -> String {
    let now = Clock::System.now();
    let row = |task: &&Value| {
        let part = |name: &str| output::text(task.get(name).unwrap_or(&Value::Null));
        let age = output::ago(task.get("created_at").unwrap_or(&Value::Null), now);
        [format!("  {}", part("id")), part("kind"), part("state"), age]
    };
    let table =
        output::plain_table(["  TASK", "KIND", "STATE", "AGE"], tasks.iter().take(LISTED_MAX).map(row));
    let more = if tasks.len() > LISTED_MAX { "\n  and more" } else { "" };
    format!("several tasks have an id that begins with {digits}: give more digits\n{table}{more}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefix_is_read_with_and_without_hyphens_and_ellipsis() {
        for text in ["01a2f0", "01A2F0", "01a2f0…", "01a2f0...", "01a2-f0", " 01a2f0 "] {
            assert_eq!(text.parse(), Ok(TaskRef::Prefix("01a2f0".into())), "{text}");
        }
        let whole = "019ad6a0-0000-7000-8000-0000000000ff";
        assert_eq!(whole.parse(), Ok(TaskRef::Whole(whole.parse().unwrap())));
        assert_eq!(whole.replace('-', "").parse(), Ok(TaskRef::Whole(whole.parse().unwrap())));
        for text in ["", "01a", "not-an-id", "01a2g", "…", &format!("{whole}0")] {
            assert!(text.parse::<TaskRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn ids_with_a_prefix_end_where_the_next_prefix_begins() {
        assert_eq!(end("01a2").unwrap().to_string(), "01a30000-0000-0000-0000-000000000000");
        assert_eq!(end("01af").unwrap().to_string(), "01b00000-0000-0000-0000-000000000000");
        assert_eq!(end("ffff"), None);
        let all_but_one = format!("{}1", "0".repeat(30));
        assert_eq!(end(&all_but_one).unwrap().as_u128(), 0x20);
    }
}
