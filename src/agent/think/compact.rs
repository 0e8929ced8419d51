//! Compaction: when a question fills most of the model's context, long results of old calls are left out of it.
//!
//! What is left out follows from the rows: a note names the last step whose result is left out. The rows stay as they are,
//! and the tool `step_result` reads a result again. The call stays in the history and its result becomes one line, so
//! that no call is without a result. Everything before the first result that is left out keeps its bytes, so the
//! provider's cache of the prompt holds up to there.
use super::machine::tool;
use crate::task::{NoteKind, Step, StepBody, ToolStep};
use serde_json::{Value, json};

/// Bytes of a token. Most texts have more, so that the estimate is rather too high than too low.
pub(super) const BYTES_PER_TOKEN: usize = 3;
/// Part of the room at which results are left out, and down to which, in percent.
const BEGINS_AT: usize = 75;
const DOWN_TO: usize = 50;
/// Least part of a question that is worth a compaction, in percent: it makes the provider's cache of the prompt useless.
const SAVES_MIN: usize = 20;
/// Steps at the end of a run whose results stay.
const STEPS_KEPT: usize = 6;
/// Results up to this size stay: the line in their place would be as long.
const SMALL_BYTES: usize = 512;

/// The step up to which long results are left out. 0 if none is.
pub(super) fn left_out_until(steps: &[Step]) -> i32 {
    let until = |step: &Step| match &step.body {
        StepBody::Note { kind: NoteKind::Compacted, text } => {
            let note: Value = serde_json::from_str(text).ok()?;
            i32::try_from(note.get("left_out_until")?.as_i64()?).ok()
        }
        _ => None,
    };
    steps.iter().rev().find_map(until).unwrap_or_default()
}

/// The text of the note that leaves out long results up to this step.
pub(super) fn note(until: i32) -> String {
    json!({ "left_out_until": until }).to_string()
}

/// The text of a compaction note for the model.
pub(super) const TOLD: &str = "To save room, long results of earlier steps are left out from here on. Call step_result to read one again.";

/// The line in the place of a result that is left out. `None` if it is not.
pub(super) fn stub(step: &Step, call: &ToolStep, until: i32) -> Option<String> {
    let bytes = call.result.as_ref().map_or(0, String::len);
    let is_left_out = step.seq <= until && bytes > SMALL_BYTES;
    is_left_out.then(|| {
        let seq = step.seq;
        format!("The result of this call, step {seq}, {bytes} bytes, is left out. Call step_result with step {seq} to read it.")
    })
}

/// The step up to which long results are to be left out before a question of `used` bytes is asked, with `room` bytes for
/// it. `None` if it fits well, or if too little can be left out.
pub(super) fn due(steps: &[Step], used: usize, room: usize) -> Option<i32> {
    if used.saturating_mul(100) < room.saturating_mul(BEGINS_AT) {
        return None;
    }
    let done = left_out_until(steps);
    let old = steps.get(..steps.len().saturating_sub(STEPS_KEPT)).unwrap_or_default();
    let long = |(step, call): (&Step, &ToolStep)| {
        let bytes = call.result.as_ref().filter(|_| step.state.has_ended()).map_or(0, String::len);
        (step.seq > done && bytes > SMALL_BYTES).then_some((step.seq, bytes))
    };
    let wanted = used.saturating_sub(room.saturating_mul(DOWN_TO) / 100);
    let (mut saved, mut until) = (0_usize, None);
    for (seq, bytes) in old.iter().filter_map(tool).filter_map(long) {
        if saved >= wanted {
            break;
        }
        // The line in its place is shorter than the smallest result that is left out.
        saved = saved.saturating_add(bytes - SMALL_BYTES);
        until = Some(seq);
    }
    // A question that does not fit takes whatever helps.
    let is_worth = saved.saturating_mul(100) >= used.saturating_mul(SAVES_MIN) || used > room;
    until.filter(|_| is_worth)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::think::{
        messages::{ToolsBy, messages},
        testing::{model, note as input, note_of, tool_step},
    };
    use crate::task::{AskedModel, Effect};
    use proptest::prelude::*;

    /// A run of so many answers, each with one call whose result has so many bytes.
    fn run(results: &[usize]) -> Vec<Step> {
        let mut steps = vec![input(1, "the task")];
        for bytes in results {
            let seq = i32::try_from(steps.len()).unwrap() + 1;
            let call = json!({ "id": "c", "function": { "name": "look", "arguments": "{}" } });
            steps.push(model(seq, json!({ "role": "assistant", "content": null, "tool_calls": [call] })));
            let result = "x".repeat(*bytes);
            steps.push(tool_step(seq + 1, seq, 0, "look", Effect::Read, Some(&result)));
        }
        steps
    }

    fn all_sent(steps: &[Step]) -> Vec<Value> {
        messages(1, steps, ToolsBy::Native, &AskedModel { provider: "p".into(), model: "m".into() })
    }

    fn sent(steps: &[Step]) -> Vec<String> {
        all_sent(steps).iter().map(ToString::to_string).collect()
    }

    fn bytes(steps: &[Step]) -> usize {
        sent(steps).iter().map(String::len).sum()
    }

    fn compacted(mut steps: Vec<Step>, until: i32) -> Vec<Step> {
        let seq = i32::try_from(steps.len()).unwrap() + 1;
        steps.push(note_of(seq, NoteKind::Compacted, &note(until)));
        steps
    }

    #[test]
    fn oldest_long_results_are_left_out_down_to_half_of_the_room() {
        let steps = run(&[10_000, 300, 10_000, 10_000, 10_000, 10_000, 10_000]);
        assert_eq!(due(&steps, bytes(&steps), 1_000_000), None, "there is room");
        let room = 70_000;
        let until = due(&steps, bytes(&steps), room).unwrap();
        assert_eq!(until, 9, "steps 3, 7 and 9: the small result of step 5 stays");
        let after = compacted(steps.clone(), until);
        assert!(bytes(&after) < room * 60 / 100, "{}", bytes(&after));
        let text = sent(&after);
        assert!(text[2].contains("step 3, 10000 bytes, is left out"), "{}", text[2]);
        assert!(text[4].contains(&"x".repeat(300)) && text[10].contains(&"x".repeat(10_000)));
        assert!(text.last().unwrap().contains("step_result"));
        assert_eq!(text[..2], sent(&steps)[..2], "what is before the first of them keeps its bytes");
        assert_eq!(due(&after, bytes(&after), room), None);
    }

    #[test]
    fn compaction_that_saves_little_waits_until_the_question_does_not_fit() {
        // The last six steps are most of it.
        let steps = run(&[2_000, 30_000, 30_000, 30_000]);
        let used = bytes(&steps);
        assert_eq!(due(&steps, used, used + 1_000), None);
        assert_eq!(due(&steps, used, used - 1_000), Some(3));
        assert_eq!(due(&run(&[100; 50]), 100_000, 10_000), None, "nothing is long");
    }

    #[test]
    fn note_that_cannot_be_read_leaves_nothing_out() {
        for text in ["", "7", "{\"left_out_until\": \"x\"}", "{\"left_out_until\": 99999999999}"] {
            let mut steps = run(&[1_000]);
            steps.push(note_of(4, NoteKind::Compacted, text));
            assert_eq!(left_out_until(&steps), 0, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_run_comes_to_an_end_and_keeps_every_call_with_a_result(
            results in prop::collection::vec(0_usize..5_000, 1..40), room in 1_000_usize..100_000
        ) {
            let mut steps = run(&results);
            let mut before = 0;
            while let Some(until) = due(&steps, bytes(&steps), room) {
                prop_assert!(until > before, "each compaction goes further");
                before = until;
                steps = compacted(steps, until);
            }
            let all = all_sent(&steps);
            let of = |role: &str| all.iter().filter(|message| message["role"] == role).count();
            prop_assert_eq!((of("assistant"), of("tool")), (results.len(), results.len()));
        }
    }
}
