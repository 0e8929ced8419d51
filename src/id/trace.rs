//! Trace contexts: which trace and span something belongs to, as W3C `traceparent` writes it.
//!
//! The ids of spans come from the ids of what they are about: a task, an assignment, a step. So every daemon, and a
//! daemon after a crash, gives the same span the same id, and nothing but the context of the request must be stored.
use super::{AssignmentId, TaskId};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// The flag of a trace that is recorded.
const SAMPLED: u8 = 1;

/// A trace and a span in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TraceContext {
    trace: u128,
    span: u64,
    flags: u8,
}

/// A text that is no trace context.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no trace context of W3C, like 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")]
pub struct BadTraceContext;

/// The last 8 bytes of a UUID, which are random in those of this program.
fn low(id: uuid::Uuid) -> u64 {
    // Two of the bits say the variant, so it is never 0.
    id.as_u64_pair().1
}

impl TraceContext {
    /// A trace that begins with this task and has its id.
    #[must_use]
    pub fn of_task(task: TaskId) -> Self {
        let id = task.as_uuid();
        Self { trace: id.as_u128(), span: low(id), flags: SAMPLED }
    }

    /// The span of a task in this trace.
    #[must_use]
    pub fn task(self, task: TaskId) -> Self {
        Self { span: low(task.as_uuid()), ..self }
    }

    /// The span of an assignment in this trace.
    #[must_use]
    pub fn assignment(self, assignment: AssignmentId) -> Self {
        Self { span: low(assignment.as_uuid()), ..self }
    }

    /// The span of a step of a run in this trace. `run` and `seq` begin at 1.
    #[must_use]
    pub fn step(self, task: TaskId, run: i32, seq: i32) -> Self {
        let number = (u64::from(run.unsigned_abs()) << 32) | u64::from(seq.unsigned_abs());
        // Different from that of the task, because the number is never 0; itself 0 for one of 2^64 tasks.
        Self { span: (low(task.as_uuid()) ^ number).max(1), ..self }
    }

    /// The id of the trace.
    #[must_use]
    pub fn trace_id(self) -> u128 {
        self.trace
    }

    /// The id of the span.
    #[must_use]
    pub fn span_id(self) -> u64 {
        self.span
    }

    /// Whether whoever began the trace records it.
    #[must_use]
    pub fn is_sampled(self) -> bool {
        self.flags & SAMPLED != 0
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, self.flags)
    }
}

impl FromStr for TraceContext {
    type Err = BadTraceContext;

    /// Reads version 00, and of later versions the part that has the same form.
    fn from_str(text: &str) -> Result<Self, BadTraceContext> {
        let is_digits = |part: &str, digits: usize| {
            part.len() == digits && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        };
        let mut parts = text.split('-');
        let [version, trace, span, flags] = [(); 4].map(|()| parts.next().unwrap_or_default());
        let is_whole =
            is_digits(version, 2) && is_digits(trace, 32) && is_digits(span, 16) && is_digits(flags, 2);
        if !is_whole || version == "ff" || parts.next().is_some() {
            return Err(BadTraceContext);
        }
        let read = || {
            let trace = u128::from_str_radix(trace, 16).ok().filter(|id| *id != 0)?;
            let span = u64::from_str_radix(span, 16).ok().filter(|id| *id != 0)?;
            Some(Self { trace, span, flags: u8::from_str_radix(flags, 16).ok()? })
        };
        read().ok_or(BadTraceContext)
    }
}

impl TryFrom<String> for TraceContext {
    type Error = BadTraceContext;
    fn try_from(text: String) -> Result<Self, BadTraceContext> {
        text.parse()
    }
}

impl From<TraceContext> for String {
    fn from(context: TraceContext) -> Self {
        context.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITTEN: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn context_is_written_as_it_was_read() {
        let context: TraceContext = WRITTEN.parse().unwrap();
        assert_eq!(context.to_string(), WRITTEN);
        assert!(context.is_sampled());
        assert_eq!(serde_json::to_string(&context).unwrap(), format!("{WRITTEN:?}"));
        let later = WRITTEN.replace("00-4", "cc-4").replace("-01", "-00");
        assert!(!later.parse::<TraceContext>().unwrap().is_sampled());
    }

    #[test]
    fn anything_else_is_refused() {
        let bad = [
            String::new(),
            "00".into(),
            WRITTEN.to_uppercase(),
            WRITTEN.replace("00-4b", "ff-4b"),
            WRITTEN.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            WRITTEN.replace("00f067aa0ba902b7", &"0".repeat(16)),
            WRITTEN.replace("-01", "-1"),
            WRITTEN.replace("-01", "-+1"),
            format!("{WRITTEN}-x"),
            format!(" {WRITTEN}"),
            WRITTEN.replace('4', "\u{e4}"),
        ];
        for text in bad {
            assert_eq!(text.parse::<TraceContext>(), Err(BadTraceContext), "{text}");
        }
    }

    #[test]
    fn spans_of_a_task_have_ids_of_their_own_and_always_the_same() {
        let (task, assignment) = (TaskId::generate(), AssignmentId::generate());
        let context = TraceContext::of_task(task);
        let mut ids =
            std::collections::HashSet::from([context.task(task).span, context.assignment(assignment).span]);
        for (run, seq) in [(1, 1), (1, 2), (2, 1), (2, 2), (1, i32::MAX)] {
            assert!(ids.insert(context.step(task, run, seq).span), "{run} {seq}");
            assert_eq!(context.step(task, run, seq).trace, context.trace);
        }
        assert_eq!(ids.len(), 7);
        assert_eq!(context, TraceContext::of_task(task));
    }
}
