//! Tasks as lines of a list, and the overview of an org: reads for pages, with bounds on what they look at.
use crate::task::storage::rows::{self, Columns};
use crate::task::storage::statement::sql;
use crate::task::{Error, OrgId, TaskId, TaskReader, TaskState};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Value, value::RawValue};
use std::{collections::HashMap, fmt::Display, str::FromStr};
use tokio_postgres::Row;
use uuid::Uuid;

/// Most lines of one answer.
const LINES_MAX: i64 = 200;
/// Most tasks of a tree, as in `lines_tree.sql`.
const TREE_MAX: i64 = 500;
/// Most items of a list in a filter.
const ITEMS_MAX: usize = 100;

/// Which tasks to list as lines. Lists are separated by commas.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineFilter {
    /// Always `line`.
    #[serde(rename = "view")]
    _view: Option<String>,
    /// Only of this org.
    pub org: Option<OrgId>,
    /// Only in these states.
    #[serde(default, deserialize_with = "states")]
    pub state: Vec<TaskState>,
    /// Only of these kinds. `*` stands for any text, and a kind after `-` is excluded.
    #[serde(default, deserialize_with = "list")]
    pub kind: Vec<String>,
    /// Only of these agents.
    #[serde(default, deserialize_with = "list")]
    pub agent_id: Vec<String>,
    /// Only those that wait for a person to give `input`, an `approval`, a `budget` or a `choice` among the offers.
    #[serde(default, deserialize_with = "list")]
    pub needs: Vec<Need>,
    /// Only of this requester.
    pub requester: Option<String>,
    /// Only these tasks.
    #[serde(default, deserialize_with = "list")]
    pub ids: Vec<TaskId>,
    /// Only those requested at this time or later.
    pub since: Option<DateTime<Utc>>,
    /// Only those requested before this one.
    pub before: Option<TaskId>,
    /// Most lines; defaults to 100, at most 200.
    pub limit: Option<i64>,
}

/// What a task needs from a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need(&'static str);

impl FromStr for Need {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = ["input", "approval", "budget", "choice"].into_iter().find(|need| *need == text);
        known.map(Self).ok_or_else(|| "use input, approval, budget or choice".into())
    }
}

/// Lines, newest first.
#[derive(Clone, Debug)]
pub struct Lines {
    /// The lines, as the database wrote them.
    pub tasks: Vec<Box<RawValue>>,
    /// The oldest task that was looked at, if older ones may match: at most 50,000 are.
    pub scanned_to: Option<TaskId>,
}

fn states<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<TaskState>, D::Error> {
    let text = String::deserialize(deserializer)?;
    split(&text, |word| TaskState::parse(word).ok_or_else(|| format!("{word:?} is no state of a task")))
        .map_err(D::Error::custom)
}

fn list<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr<Err: Display>,
    D: Deserializer<'de>,
{
    let text = String::deserialize(deserializer)?;
    split(&text, |item| item.parse().map_err(|e| format!("{item:?} cannot be used: {e}")))
        .map_err(D::Error::custom)
}

fn split<T>(text: &str, parse: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    if items.len() > ITEMS_MAX {
        return Err(format!("a list has {} items, at most {ITEMS_MAX}", items.len()));
    }
    items.into_iter().map(parse).collect()
}

impl TaskReader {
    /// Tasks as lines: without inputs and results, and with the scores of their last round. Looks at the newest 50,000
    /// tasks of the range, of whatever org. With only states that are not final it looks at all unfinished tasks.
    ///
    /// # Errors
    /// `BadRequest`, `Unavailable`.
    pub async fn lines(&self, filter: &LineFilter) -> Result<Lines, Error> {
        let (rows, scanned_to) = self.lines_below(filter, None, LINES_MAX).await?;
        Ok(Lines { tasks: rows.iter().map(|row| rows::json_text(row, "line")).collect(), scanned_to })
    }

    /// The tasks that a filter finds with their states, the newest first: at most `filter.limit`, which is not limited
    /// here.
    pub(in crate::task) async fn matching(
        &self,
        filter: &LineFilter,
    ) -> Result<Vec<(TaskId, Option<TaskState>)>, Error> {
        let (rows, _) = self.lines_below(filter, None, i64::MAX).await?;
        let read = |row| {
            let line = rows::json(row, "line");
            let id = line.get("id")?.as_str()?.parse().ok()?;
            Some((id, line.get("state")?.as_str().and_then(TaskState::parse)))
        };
        Ok(rows.iter().filter_map(read).collect())
    }

    /// The tasks of a tree as lines: the root and the first 500 below it, level by level. Returns whether there may be
    /// more.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn tree(&self, root: TaskId) -> Result<(Vec<Value>, bool), Error> {
        let (rows, _) = self.lines_below(&LineFilter::default(), Some(root), TREE_MAX).await?;
        let tasks: Vec<Value> = rows.iter().map(|row| rows::json(row, "line")).collect();
        let more = i64::try_from(tasks.len()).is_ok_and(|count| count >= TREE_MAX);
        Ok((tasks, more))
    }

    /// The present state of these tasks with their org, for digests. Those that do not exist are left out.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn digest_lines(&self, ids: &[TaskId]) -> Result<HashMap<TaskId, (String, Value)>, Error> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.as_uuid()).collect();
        let rows = self.query(sql!("digest"), &[&ids]).await?;
        rows.iter()
            .map(|row| Ok((rows::task_id(row, "id")?, (row.read("org")?, rows::json(row, "line")))))
            .collect()
    }

    /// Rows with a `line` each, and the oldest task that was looked at, if older ones may match.
    async fn lines_below(
        &self,
        filter: &LineFilter,
        root: Option<TaskId>,
        limit_max: i64,
    ) -> Result<(Vec<Row>, Option<TaskId>), Error> {
        check(filter)?;
        let org = filter.org.as_ref().map(OrgId::as_str);
        let states: Vec<&str> = filter.state.iter().map(|state| state.as_str()).collect();
        let (excluded, included): (Vec<&String>, Vec<&String>) =
            filter.kind.iter().partition(|kind| kind.starts_with('-'));
        let included: Vec<String> = included.into_iter().map(|kind| pattern(kind)).collect();
        let excluded: Vec<String> =
            excluded.into_iter().map(|kind| pattern(kind.trim_start_matches('-'))).collect();
        let ids: Vec<Uuid> = filter.ids.iter().map(|id| id.as_uuid()).collect();
        let (since, before) = (filter.since.map(first_id), filter.before.map(TaskId::as_uuid));
        let root = root.map(TaskId::as_uuid);
        let limit = root.map_or(filter.limit.unwrap_or(100).clamp(1, limit_max), |_| TREE_MAX);
        // A task that waits for a person has not ended, so the filter reads no finished ones.
        let live = !filter.needs.is_empty()
            || (!filter.state.is_empty() && filter.state.iter().all(|state| !state.is_final()));
        let needs: Vec<&str> = filter.needs.iter().map(|need| need.0).collect();
        let (of_kinds, of_others) = self.policies.awards();
        let source = match (root, ids.is_empty(), live) {
            (Some(_), ..) => sql!("lines_tree"),
            (None, false, _) => sql!("lines_ids"),
            (None, true, true) => sql!("lines_live"),
            (None, true, false) => sql!("lines_range"),
        };
        let statement = sql!("lines").replace("{source}", source);
        let rows = self
            .query(
                &statement,
                &[
                    &org,
                    &given(&states),
                    &given(&included),
                    &given(&excluded),
                    &given(&filter.agent_id),
                    &filter.requester,
                    &given(&ids),
                    &since,
                    &before,
                    &limit,
                    &of_kinds,
                    &of_others.as_str(),
                    &given(&needs),
                    &root,
                ],
            )
            .await?;
        let is_full = i64::try_from(rows.len()).is_ok_and(|count| count >= limit);
        let scanned_to = if is_full || live || !ids.is_empty() || root.is_some() {
            None
        } else {
            let last = self.query(sql!("scanned_to"), &[&since, &before]).await?;
            last.first().map(|row| rows::task_id(row, "id")).transpose()?
        };
        Ok((rows, scanned_to))
    }

    /// What happens in an org now: `{at, org, states, needs, oldest_open_at, ended, agents, awards}`. `ended` counts the
    /// tasks that were requested in the last hour, of the newest 20,000; `partial` if there are more. `awards` are the
    /// last 8 with their best offers.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn overview(&self, org: &OrgId) -> Result<Value, Error> {
        let (of_kinds, of_others) = self.policies.awards();
        let rows = self.query(sql!("overview"), &[&org.as_str(), &of_kinds, &of_others.as_str()]).await?;
        Ok(rows.first().map(|row| rows::json(row, "overview")).unwrap_or_default())
    }
}

fn check(filter: &LineFilter) -> Result<(), Error> {
    let texts = filter.kind.iter().chain(&filter.agent_id).chain(&filter.requester);
    if texts.clone().any(|text| text.contains('\0')) {
        return Err(Error::BadRequest("a filter contains the character U+0000, which no value has".into()));
    }
    Ok(())
}

/// `None` for an empty list, which does not filter.
fn given<T>(list: &[T]) -> Option<&[T]> {
    (!list.is_empty()).then_some(list)
}

/// A pattern for `like` in which only `*` is special.
fn pattern(kind: &str) -> String {
    kind.replace('\\', "\\\\").replace('%', "\\%").replace('_', "\\_").replace('*', "%")
}

/// The lowest id of a task that was requested at this time: ids begin with the milliseconds.
pub(in crate::task) fn first_id(time: DateTime<Utc>) -> Uuid {
    let millis = u128::try_from(time.timestamp_millis()).unwrap_or(0) & 0xffff_ffff_ffff;
    Uuid::from_u128(millis << 80)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_the_star_is_special_in_a_kind() {
        assert_eq!(pattern("support.*"), "support.%");
        assert_eq!(pattern(r"100%_a\"), r"100\%\_a\\");
    }

    #[test]
    fn ids_of_a_time_begin_with_its_milliseconds() {
        let time = DateTime::from_timestamp_millis(0x0123_4567_89ab).unwrap();
        assert_eq!(first_id(time).to_string(), "01234567-89ab-0000-0000-000000000000");
    }

    #[test]
    fn lists_are_separated_by_commas_and_bounded() {
        let read = |state: &str| serde_json::from_value::<LineFilter>(json!({ "state": state }));
        assert_eq!(read("open, running,").unwrap().state, [TaskState::Open, TaskState::Running]);
        assert!(read("asleep").is_err());
        let many = vec!["x"; ITEMS_MAX + 1].join(",");
        assert!(serde_json::from_value::<LineFilter>(json!({ "kind": many })).is_err());
        assert!(serde_json::from_value::<LineFilter>(json!({ "color": "red" })).is_err());
        assert!(serde_json::from_value::<LineFilter>(json!({ "needs": "input,choice" })).is_ok());
        assert!(serde_json::from_value::<LineFilter>(json!({ "needs": "coffee" })).is_err());
    }
}
