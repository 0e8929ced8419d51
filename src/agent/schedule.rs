//! Schedules at work: which of their times are due, and the requests of these times. Pure: the time is an argument,
//! and the times that have fired are in the database.
use super::{
    Definition, Missed, Schedule,
    wake::{BadTemplate, Context, Template},
};
use crate::{
    id::{AgentId, OrgId},
    task::Request,
};
use chrono::{DateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use croner::{
    Cron,
    parser::{CronParser, Seconds},
};
use serde_json::{Map, json};
use std::collections::VecDeque;

/// Missed times that are made up for at once.
const MISSED_MAX: usize = 100;
/// How far back due times are searched, step by step, until there are enough.
const BACK_HOURS: [i64; 4] = [1, 24, 24 * 31, 24 * 366 * 10];
/// Delay after which a time counts as missed.
const LATE: TimeDelta = TimeDelta::minutes(1);
/// Names that a template may use.
const NAMES: [&str; 2] = ["scheduled_at", "schedule"];

/// A `[[schedule]]` whose cron expression, time zone and templates are parsed.
#[derive(Debug)]
pub struct CronSchedule {
    /// Which `[[schedule]]`: `<agent>#schedule.<index>`.
    pub trigger: String,
    /// The agent of the schedule.
    pub agent: AgentId,
    /// The org of its tasks.
    pub org: OrgId,
    schedule: Schedule,
    cron: Cron,
    zone: Tz,
    input: Template,
}

/// Why a schedule cannot be read: the key, and what is wrong with it.
pub(super) type Unreadable = (&'static str, String);

impl CronSchedule {
    pub(super) fn read(definition: &Definition, at: usize, schedule: &Schedule) -> Result<Self, Unreadable> {
        let parser = CronParser::builder().seconds(Seconds::Optional).build();
        let cron = parser.parse(&schedule.cron).map_err(|e| ("cron", format!("{:?}: {e}", schedule.cron)))?;
        let zone: Tz = schedule
            .timezone
            .parse()
            .map_err(|_| ("timezone", format!("there is no time zone {:?}", schedule.timezone)))?;
        let input = Template::parse(&schedule.request.input, "input", &NAMES)
            .map_err(|BadTemplate { reason, .. }| ("request.input", reason))?;
        Ok(Self {
            trigger: format!("{}#schedule.{at}", definition.id),
            agent: definition.id.clone(),
            org: definition.org.clone(),
            schedule: schedule.clone(),
            cron,
            zone,
            input,
        })
    }

    /// Its cron expression and time zone, as they are stored: a changed one starts from the present.
    #[must_use]
    pub fn times(&self) -> String {
        format!("{} {}", self.schedule.cron, self.schedule.timezone)
    }

    /// Its first time after this one. `None` if there is none.
    #[must_use]
    pub fn next(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let next = self.cron.find_next_occurrence(&after.with_timezone(&self.zone), false).ok()?;
        Some(next.with_timezone(&Utc))
    }

    /// The times after `fired` that are due at `now` and request a task, the earliest first.
    #[must_use]
    pub fn due(&self, fired: DateTime<Utc>, now: DateTime<Utc>) -> Vec<DateTime<Utc>> {
        let mut come = VecDeque::new();
        // From the present backwards: forwards from `fired`, a schedule of seconds could take years of steps.
        for hours in BACK_HOURS {
            let since = fired.max(now - TimeDelta::hours(hours));
            come = self.between(since, now);
            if since == fired || come.len() == MISSED_MAX {
                break;
            }
        }
        match self.schedule.missed {
            Missed::All => come.into(),
            Missed::Once => come.pop_back().into_iter().collect(),
            Missed::Skip => come.into_iter().filter(|at| *at > now - LATE).collect(),
        }
    }

    /// The latest of the times after `since` up to `until`.
    fn between(&self, since: DateTime<Utc>, until: DateTime<Utc>) -> VecDeque<DateTime<Utc>> {
        let mut times = VecDeque::new();
        let mut at = since;
        while let Some(next) = self.next(at).filter(|next| *next <= until) {
            at = next;
            times.push_back(next);
            if times.len() > MISSED_MAX {
                times.pop_front();
            }
        }
        times
    }

    /// The request of this time.
    ///
    /// # Errors
    /// Why its templates cannot be filled in, one line.
    pub fn request(&self, at: DateTime<Utc>) -> Result<Request, String> {
        let asked = &self.schedule.request;
        let names = [("scheduled_at", json!(at)), ("schedule", json!(self.trigger))];
        let names = names.into_iter().map(|(name, value)| (name.to_owned(), value));
        let input = self.input.fill("input", &Context::new(names.collect::<Map<_, _>>()));
        let after = asked.deadline_after.and_then(|after| TimeDelta::from_std(after).ok());
        Ok(Request {
            kind: asked.kind.clone(),
            requires: asked.requires.clone(),
            input: input.map_err(|e| e.to_string())?,
            priority: asked.priority,
            deadline: after.and_then(|after| at.checked_add_signed(after)),
            policy: asked.policy.clone(),
            ..Request::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cron_schedule(text: &str) -> CronSchedule {
        let text = format!(
            "id = \"a\"\n[run]\nkind = \"remote\"\n[[schedule]]\n{text}\n[schedule.request]\nkind = \"k\"\n\
             input = {{ at = \"{{{{ scheduled_at }}}}\" }}"
        );
        let definition: Definition = toml::from_str(&text).unwrap();
        CronSchedule::read(&definition, 0, &definition.schedule[0]).unwrap()
    }

    fn at(text: &str) -> DateTime<Utc> {
        text.parse().unwrap()
    }

    #[test]
    fn time_in_a_zone_follows_its_summer_time() {
        let nine = cron_schedule("cron = \"0 9 * * *\"\ntimezone = \"Europe/Berlin\"");
        assert_eq!(nine.next(at("2026-01-10T00:00:00Z")), Some(at("2026-01-10T08:00:00Z")));
        assert_eq!(nine.next(at("2026-07-10T00:00:00Z")), Some(at("2026-07-10T07:00:00Z")));
    }

    #[test]
    fn missed_times_follow_the_policy() {
        let (fired, now) = (at("2026-01-10T00:00:30Z"), at("2026-01-10T00:05:10Z"));
        let due = |missed: &str| {
            cron_schedule(&format!("cron = \"* * * * *\"\nmissed = \"{missed}\"")).due(fired, now)
        };
        assert_eq!(due("once"), [at("2026-01-10T00:05:00Z")]);
        assert_eq!(due("skip"), [at("2026-01-10T00:05:00Z")]);
        assert_eq!(due("all").len(), 5);
        let every = cron_schedule("cron = \"* * * * * *\"\nmissed = \"all\"").due(fired, now);
        assert_eq!((every.len(), every.last()), (100, Some(&now)));
        assert!(cron_schedule("cron = \"0 0 1 1 *\"").due(fired, now).is_empty());
    }

    #[test]
    fn request_contains_its_time() {
        let request = cron_schedule("cron = \"0 9 * * *\"").request(at("2026-01-10T09:00:00Z")).unwrap();
        assert_eq!(request.input, json!({ "at": "2026-01-10T09:00:00Z" }));
    }

    #[test]
    fn invalid_schedule_is_refused_with_its_key() {
        let text = "id = \"a\"\n[run]\nkind = \"remote\"\n";
        for (schedule, key) in [
            ("cron = \"61 * * * *\"\nrequest = { kind = \"k\" }", "schedule.0.cron"),
            ("cron = \"* * * * *\"\ntimezone = \"Mars\"\nrequest = { kind = \"k\" }", "schedule.0.timezone"),
            ("cron = \"* * * * *\"\nrequest = { kind = \"\" }", "schedule.0.request.kind"),
            (
                "cron = \"* * * * *\"\nrequest = { kind = \"k\", input = \"{{ new }}\" }",
                "schedule.0.request.input",
            ),
            (
                "cron = \"* * * * *\"\nrequest = { kind = \"k\", policy = { leese = 1 } }",
                "schedule.0.request.policy",
            ),
        ] {
            let definition: Definition = toml::from_str(&format!("{text}[[schedule]]\n{schedule}")).unwrap();
            let found = super::super::check(&definition);
            assert_eq!(found.iter().map(|p| p.key.as_str()).collect::<Vec<_>>(), [key], "{found:?}");
        }
    }
}
