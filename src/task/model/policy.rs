//! Policies: how tasks are awarded, timed and retried, and the limits of each member.
use crate::id::AgentId;
use crate::task::{
    OnInputTimeout, Verifier,
    model::schema::{check_setting, check_shape},
};
use serde::{Deserialize, Deserializer, Serialize, de::Visitor};
use serde_json::Value;
use std::{fmt, time::Duration};

/// How a task is awarded, timed and retried. Every member has a default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// Who wins.
    pub award: Award,
    /// `weighted`: the weight of each part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weights>,
    /// `direct`: the only agent that is asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentId>,
    /// `requester`: how long the requester has to choose.
    #[serde(with = "ascii_duration")]
    pub choose_within: Duration,
    /// `requester`: the award if nothing was chosen in time.
    pub fallback: Award,
    /// Attempts before `failed(attempts_exhausted)`.
    pub attempts_max: u32,
    /// Rounds of offers before `failed(unallocatable)`.
    pub rounds_max: u32,
    /// How long a round collects offers when an eligible agent must be asked.
    #[serde(with = "ascii_duration")]
    pub bid_window: Duration,
    /// A round with offers closes this long after the last one.
    #[serde(with = "ascii_duration")]
    pub quiet_gap: Duration,
    /// A round closes early with this many offers.
    pub offers_min: Option<u32>,
    /// A round closes early with one offer like this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_enough: Option<GoodEnough>,
    /// How long the winner has to accept.
    #[serde(with = "ascii_duration")]
    pub confirm: Duration,
    /// How long a winner that confirms without starting has to start.
    #[serde(with = "ascii_duration")]
    pub start: Duration,
    /// How long an assignment lives without a heartbeat.
    #[serde(with = "ascii_duration")]
    pub lease: Duration,
    /// How long an attempt may take.
    #[serde(with = "ascii_duration")]
    pub attempt: Duration,
    /// How long a canceled assignee has to stop by itself.
    #[serde(with = "ascii_duration")]
    pub cancel_grace: Duration,
    /// An assignee without progress for this long is nudged; after twice this time it is stalled.
    #[serde(with = "ascii_duration")]
    pub progress: Duration,
    /// How long a question waits for its answer.
    #[serde(with = "ascii_duration")]
    pub input: Duration,
    /// What happens without an answer by then.
    pub on_input_timeout: OnInputTimeout,
    /// The pause before the second round when there was no offer; it doubles up to a minute.
    #[serde(with = "ascii_duration")]
    pub backoff: Duration,
    /// How long a task waits for absent capable agents: those that are expected or were present within this time. 0
    /// does not wait: the task ends after `rounds_max`.
    #[serde(with = "ascii_duration")]
    pub absence: Duration,
    /// How long attempts that end because of an outage do not count, from the first in a row: an endpoint that is down
    /// or over its rate limit, a restart of the daemon.
    #[serde(with = "ascii_duration")]
    pub outage: Duration,
    /// How long an offer can be awarded.
    #[serde(with = "ascii_duration")]
    pub offer_validity: Duration,
    /// JSON schema that a result must satisfy; bounded in size, depth, references and time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result_schema: Option<Value>,
    /// The task that verifies each result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verifier: Option<Verifier>,
}

impl Policy {
    /// This policy with the members of `patch` in place of its own.
    ///
    /// # Errors
    /// Why the patch is wrong: an unknown member, a wrong type, a number out of range.
    pub fn with(&self, patch: &serde_json::Map<String, Value>) -> Result<Self, String> {
        if patch.is_empty() {
            return Ok(self.clone());
        }
        let Ok(Value::Object(mut members)) = serde_json::to_value(self) else {
            return Err("policy is not an object".into());
        };
        members.extend(patch.clone());
        let policy: Self =
            serde_json::from_value(Value::Object(members)).map_err(|e| format!("policy: {e}"))?;
        policy.check()?;
        Ok(policy)
    }

    /// Compiles its schema, for policies of settings; see [`check_setting`].
    ///
    /// # Errors
    /// Why it cannot.
    pub fn compile_setting(&self) -> Result<(), String> {
        let Some(schema) = &self.result_schema else { return Ok(()) };
        check_setting(schema).map_err(|e| format!("policy.result_schema: {e}"))
    }

    pub(in crate::task) fn check(&self) -> Result<(), String> {
        for (name, count) in [("attempts_max", self.attempts_max), ("rounds_max", self.rounds_max)] {
            if !(1..=9999).contains(&count) {
                return Err(format!("policy.{name} is {count}; use 1 to 9999"));
            }
        }
        if (self.award == Award::Direct) != self.agent.is_some() {
            return Err("policy.agent and policy.award = \"direct\" belong together: name the agent".into());
        }
        if self.good_enough.is_some_and(|enough| !enough.is_sense()) {
            return Err("policy.good_enough needs cost, eta_ms or confidence (0 to 1)".into());
        }
        if self.weights.is_some_and(|weights| !weights.are_good()) {
            return Err("policy.weights must be numbers from 0 to 1000, and one of them more than 0".into());
        }
        if matches!(self.fallback, Award::Direct | Award::Requester) {
            return Err("policy.fallback must be a policy that decides by itself".into());
        }
        let week = Duration::from_secs(7 * 24 * 3600);
        for (name, time) in [
            ("bid_window", self.bid_window),
            ("choose_within", self.choose_within),
            ("quiet_gap", self.quiet_gap),
            ("confirm", self.confirm),
            ("start", self.start),
            ("lease", self.lease),
            ("attempt", self.attempt),
            ("progress", self.progress),
            ("offer_validity", self.offer_validity),
            ("cancel_grace", self.cancel_grace),
            ("backoff", self.backoff),
        ] {
            if time.is_zero() || time > week {
                return Err(format!("policy.{name} is {time:?}; use more than 0 and at most 7 days"));
            }
        }
        for (name, time) in [("absence", self.absence), ("outage", self.outage)] {
            if time > week * 52 {
                return Err(format!("policy.{name} is {time:?}; use at most 364 days"));
            }
        }
        if self.input.is_zero() || self.input > week * 52 {
            return Err(format!("policy.input is {:?}; use more than 0 and at most 364 days", self.input));
        }
        if let Some(schema) = &self.result_schema {
            check_shape(schema).map_err(|e| format!("policy.result_schema: {e}"))?;
        }
        self.verifier.as_ref().map_or(Ok(()), Verifier::check)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            award: Award::default(),
            weights: None,
            agent: None,
            choose_within: Duration::from_secs(60),
            fallback: Award::default(),
            attempts_max: 3,
            rounds_max: 5,
            bid_window: Duration::from_millis(250),
            quiet_gap: Duration::from_millis(100),
            offers_min: None,
            good_enough: None,
            confirm: Duration::from_secs(1),
            start: Duration::from_secs(15),
            lease: Duration::from_secs(30),
            attempt: Duration::from_secs(600),
            cancel_grace: Duration::from_secs(10),
            progress: Duration::from_secs(300),
            input: Duration::from_secs(7 * 24 * 3600),
            on_input_timeout: OnInputTimeout::Fail,
            backoff: Duration::from_secs(1),
            absence: Duration::from_secs(24 * 3600),
            outage: Duration::from_secs(24 * 3600),
            offer_validity: Duration::from_secs(60),
            result_schema: None,
            verifier: None,
        }
    }
}

/// How the winner of a round is selected. Ties go to the agent that has waited longest, then by agent id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Award {
    /// The offer that came first.
    First,
    /// The lowest cost.
    Cheapest,
    /// The lowest time to finish.
    Fastest,
    /// The agent with the most free slots for its size.
    LeastLoaded,
    /// Cost, time, confidence, load and reputation together.
    #[default]
    Weighted,
    /// The highest product of confidence and measured success at that confidence.
    Calibrated,
    /// Only the agent that `policy.agent` names.
    Direct,
    /// The offer that the requester chooses; `policy.fallback` if it chooses none within `choose_within`.
    Requester,
}

impl Award {
    /// The word in a policy.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Cheapest => "cheapest",
            Self::Fastest => "fastest",
            Self::LeastLoaded => "least_loaded",
            Self::Weighted => "weighted",
            Self::Calibrated => "calibrated",
            Self::Direct => "direct",
            Self::Requester => "requester",
        }
    }
}

/// An offer that closes the round early; all given members must hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoodEnough {
    /// Highest cost, in microdollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
    /// Longest time, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<u64>,
    /// Lowest confidence, 0 to 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confidence: Option<f32>,
}

impl GoodEnough {
    fn is_sense(self) -> bool {
        let one = self.cost.is_some() || self.eta_ms.is_some() || self.confidence.is_some();
        one && self.confidence.is_none_or(|confidence| (0.0..=1.0).contains(&confidence))
    }

    pub(in crate::task) fn is_met_by(self, cost_microdollars: u64, eta_ms: u64, confidence: f32) -> bool {
        self.cost.is_none_or(|most| cost_microdollars <= most)
            && self.eta_ms.is_none_or(|most| eta_ms <= most)
            && self.confidence.is_none_or(|least| confidence >= least)
    }
}

/// The weights of the parts of a score for `weighted`, relative to their sum. A weight that is left out is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// A low cost.
    #[serde(default)]
    pub cost: u16,
    /// A short time.
    #[serde(default)]
    pub speed: u16,
    /// Confidence.
    #[serde(default)]
    pub confidence: u16,
    /// Free slots.
    #[serde(default)]
    pub load: u16,
    /// Earlier outcomes.
    #[serde(default)]
    pub reputation: u16,
}

impl Weights {
    fn are_good(&self) -> bool {
        let all = [self.cost, self.speed, self.confidence, self.load, self.reputation];
        all.iter().all(|weight| *weight <= 1000) && all.iter().any(|weight| *weight > 0)
    }
}

impl Default for Weights {
    fn default() -> Self {
        Self { cost: 20, speed: 20, confidence: 30, load: 10, reputation: 20 }
    }
}

/// Durations as `convoke.request_task` reads them: in ASCII, so `us` and not `µs`.
mod ascii_duration {
    use super::{Deserializer, Duration, Visitor, fmt};
    pub(super) use humantime_serde::serialize;
    use serde::de::{Error, IntoDeserializer, Unexpected, value::StrDeserializer};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        from.deserialize_str(Ascii)
    }

    struct Ascii;

    impl Visitor<'_> for Ascii {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a duration")
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            if !text.is_ascii() {
                return Err(E::invalid_value(Unexpected::Str(text), &self));
            }
            let from: StrDeserializer<'_, E> = text.into_deserializer();
            humantime_serde::deserialize(from)
        }
    }
}
