//! Which topics have a history, and how much is kept. Settings `[[channels]]` and `[history]`.
use crate::id::Topic;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The longest history that may be configured.
const HISTORY_MAX: Duration = Duration::from_secs(7 * 24 * 3600);
const BYTES_MIN: u64 = 1 << 20;

/// One `[[channels]]` entry. It applies to the topics that it matches and no earlier entry matches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// A topic pattern without `realtime:`. `*` matches any text, including none.
    pub topic: String,
    /// How long broadcasts are kept. Defaults to zero: nothing is kept.
    #[serde(default, with = "humantime_serde")]
    pub history: Duration,
    /// Whether clients with a `client_id` receive the messages they missed.
    #[serde(default)]
    pub resume: bool,
}

/// Limits of all histories together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Bytes on disk. The oldest messages are evicted first.
    pub bytes_max: u64,
    /// Stored positions, one for each client and topic.
    pub positions_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, positions_max: 100_000 }
    }
}

impl Config {
    /// The first invalid key, the problem, and the remedy; `None` if the settings are valid.
    #[must_use]
    pub fn check(&self) -> Option<(&'static str, String, &'static str)> {
        if self.bytes_max < BYTES_MIN {
            let what = format!("{} bytes are too few", self.bytes_max);
            return Some(("bytes_max", what, "use 1_048_576 or more"));
        }
        (self.positions_max == 0)
            .then(|| ("positions_max", "no position could be stored".into(), "use 1 or more, like 100_000"))
    }
}

/// All rules, in the order of the settings.
#[derive(Clone, Debug, Default)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Rules that [`check`] accepted.
    #[must_use]
    pub fn new(rules: Vec<Rule>) -> Self {
        Self(rules)
    }

    /// How long broadcasts of a topic are kept; `None` if they are not.
    pub(super) fn history(&self, topic: &Topic) -> Option<Duration> {
        let rule = self.0.iter().find(|rule| matches(&rule.topic, topic.as_str()))?;
        (rule.resume && !rule.history.is_zero()).then_some(rule.history)
    }

    /// The longest history; `None` if no topic has one.
    #[must_use]
    pub fn longest(&self) -> Option<Duration> {
        self.0.iter().filter(|rule| rule.resume).map(|rule| rule.history).max().filter(|d| !d.is_zero())
    }
}

/// The problems of some rules: the index of the rule, the key, the problem, the remedy.
#[must_use]
pub fn check(rules: &[Rule]) -> Vec<(usize, &'static str, String, String)> {
    let mut wrong = Vec::new();
    for (at, rule) in rules.iter().enumerate() {
        let mut report = |key, what: String, remedy: &str| wrong.push((at, key, what, remedy.to_owned()));
        if rule.topic.is_empty() {
            report("topic", "an empty pattern matches no topic".into(), "name a topic, like \"chat:*\"");
        } else if rule.topic.starts_with(crate::wire::TOPIC_PREFIX) {
            report("topic", "topic patterns have no realtime: prefix".into(), "leave realtime: out");
        }
        if rule.resume && rule.history.is_zero() {
            report("history", "resume needs a history".into(), "set a duration, like history = \"10m\"");
        } else if !rule.resume && !rule.history.is_zero() {
            report(
                "resume",
                "a history without resume is never replayed".into(),
                "add resume = true, or leave it out",
            );
        } else if rule.history > HISTORY_MAX {
            report(
                "history",
                "more than 7 days".into(),
                "use at most \"7d\"; keep older messages in the database",
            );
        }
        // If a pattern matches the text of another pattern, it matches every topic that the other matches.
        let earlier = rules.iter().take(at).find(|earlier| matches(&earlier.topic, &rule.topic));
        if let Some(earlier) = earlier.filter(|_| !rule.topic.is_empty()) {
            let what = format!(
                "never used, because \"{}\" above matches every topic that it matches",
                earlier.topic
            );
            report("topic", what, "the first match applies: put the narrower pattern first");
        }
    }
    wrong
}

/// Whether a pattern matches a topic. Only `*` is special.
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
    fn star_matches_any_text_and_other_characters_match_themselves() {
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
    fn first_matching_rule_applies() {
        let rules = Rules::new(vec![rule("chat:noise", 0, false), rule("chat:*", 10, true)]);
        let history = |topic| rules.history(&Topic::new(topic).unwrap());
        assert_eq!(history("chat:noise"), None);
        assert_eq!(history("chat:den"), Some(Duration::from_secs(600)));
        assert_eq!(history("den"), None);
    }

    #[test]
    fn invalid_rules_are_reported() {
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
        let reported: Vec<_> = check(&rules).into_iter().map(|(at, key, ..)| (at, key)).collect();
        let expected =
            [(1, "topic"), (2, "topic"), (3, "history"), (4, "resume"), (5, "history"), (6, "topic")];
        assert_eq!(reported, expected);
    }
}
