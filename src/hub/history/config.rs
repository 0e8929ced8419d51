//! Which topics have a history, and how much of it is kept. Settings `[[channels]]` and `[history]`.
use crate::id::Topic;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// No history is longer.
const HISTORY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const BYTES_MIN: u64 = 1 << 20;

/// One `[[channels]]` of the settings: what holds for topics that match and that no earlier one matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// A topic without `realtime:`, in which `*` stands for any text, also none.
    pub topic: String,
    /// How long broadcasts are kept; nothing is kept without it.
    #[serde(default, with = "humantime_serde")]
    pub history: Duration,
    /// Whether clients with a `client_id` get what they missed.
    #[serde(default)]
    pub resume: bool,
}

/// How much all histories together may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Bytes on disk; the oldest messages go first.
    pub bytes_max: u64,
    /// Positions of clients that are remembered, one for each client and topic.
    pub positions_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, positions_max: 100_000 }
    }
}

impl Config {
    /// The key that cannot work, what is wrong with it, and what to do.
    #[must_use]
    pub fn check(&self) -> Option<(&'static str, String, &'static str)> {
        if self.bytes_max < BYTES_MIN {
            let what = format!("{} bytes are too few", self.bytes_max);
            return Some(("bytes_max", what, "use 1_048_576 or more"));
        }
        (self.positions_max == 0)
            .then(|| ("positions_max", "no client could be remembered".into(), "use 1 or more, like 100_000"))
    }
}

/// All rules, in the order of the settings.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Rules that were found good by [`check`].
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// How long broadcasts of a topic are kept, if at all.
    pub(super) fn history(&self, topic: &Topic) -> Option<Duration> {
        let rule = self.0.iter().find(|rule| matches(&rule.topic, topic.as_str()))?;
        (rule.resume && !rule.history.is_zero()).then_some(rule.history)
    }

    /// The longest history of all; nothing when no topic has one.
    #[must_use]
    pub fn longest(&self) -> Option<Duration> {
        self.0.iter().filter(|rule| rule.resume).map(|rule| rule.history).max().filter(|d| !d.is_zero())
    }
}

/// What cannot work in some rules: which one, the key, what is wrong, what to do.
#[must_use]
pub fn check(rules: &[Rule]) -> Vec<(usize, &'static str, String, String)> {
    let mut wrong = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let mut tell = |key, what: String, remedy: &str| wrong.push((at, key, what, remedy.to_owned()));
        if rule.topic.is_empty() {
            tell("topic", "an empty pattern matches no topic".into(), "name a topic, like \"chat:*\"");
        } else if rule.topic.starts_with(crate::wire::TOPIC_PREFIX) {
            tell("topic", "patterns are of topics without realtime:".into(), "leave realtime: out");
        }
        if rule.resume && rule.history.is_zero() {
            tell("history", "resume needs a history".into(), "say how long, like history = \"10m\"");
        } else if !rule.resume && !rule.history.is_zero() {
            tell("resume", "nobody could ask for this history".into(), "add resume = true, or leave it out");
        } else if rule.history > HISTORY_MAX {
            tell(
                "history",
                "more than 7 days".into(),
                "use at most \"7d\"; keep older messages in the database",
            );
        }
        // A pattern that takes the text of another with its stars takes all that the other takes.
        let earlier = rules.iter().take(at).find(|earlier| matches(&earlier.topic, &rule.topic));
        if let Some(earlier) = earlier.filter(|_| !rule.topic.is_empty()) {
            let what = format!("never used, because \"{}\" above takes all that it matches", earlier.topic);
            tell("topic", what, "the first match holds: put the narrower pattern first");
        }
    }
    wrong
}

/// Whether a pattern takes a topic. Only `*` is special.
fn matches(pattern: &str, topic: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else { return pattern == topic };
    let Some(mut topic) = topic.strip_prefix(start) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let end = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = topic.find(part) else { return false };
        topic = topic.get(at + part.len()..).unwrap_or_default();
    }
    topic.len() >= end.len() && topic.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(topic: &str, minutes: u64, resume: bool) -> Rule {
        Rule { topic: topic.into(), history: Duration::from_secs(minutes * 60), resume }
    }

    #[test]
    fn a_star_is_any_text_and_everything_else_itself() {
        for (pattern, topic) in [
            ("chat:*", "chat:"),
            ("chat:*", "chat:a:b"),
            ("*", "x"),
            ("*:log", "a:log"),
            ("a*b*c", "a-b-b-c"),
            ("a*b*c", "abc"),
            ("den", "den"),
            ("a.c?[x]", "a.c?[x]"),
        ] {
            assert!(matches(pattern, topic), "{pattern} {topic}");
        }
        for (pattern, topic) in [
            ("chat:*", "chat"),
            ("*:log", "a:logs"),
            ("ab*ba", "aba"),
            ("a.c", "abc"),
            ("den", "Den"),
            ("a*b*c", "acb"),
        ] {
            assert!(!matches(pattern, topic), "{pattern} {topic}");
        }
    }

    #[test]
    fn the_first_match_holds() {
        let rules = Rules::new(vec![rule("chat:noise", 0, false), rule("chat:*", 10, true)]);
        let history = |topic| rules.history(&Topic::new(topic).unwrap());
        assert_eq!(history("chat:noise"), None);
        assert_eq!(history("chat:den"), Some(Duration::from_secs(600)));
        assert_eq!(history("den"), None);
    }

    #[test]
    fn what_cannot_work_is_told() {
        let rules = [
            rule("chat:*", 10, true),
            rule("chat:a*", 10, true),
            rule("", 10, true),
            rule("a", 0, true),
            rule("b", 1, false),
            rule("c", 60 * 24 * 8, true),
            rule("realtime:d", 1, true),
            rule("*", 1, true),
        ];
        let told: Vec<_> = check(&rules).into_iter().map(|(at, key, ..)| (at, key)).collect();
        let expected =
            [(1, "topic"), (2, "topic"), (3, "history"), (4, "resume"), (5, "history"), (6, "topic")];
        assert_eq!(told, expected);
    }
}
