//! The table of the machine, and random runs with kills.
use super::*;
use crate::agent::think::{
    ToolsBy, messages,
    testing::{asked, model, model_of, note, note_of, tool_step},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::json;
use std::collections::{HashMap, HashSet};

const RULES: Rules = Rules { steps_max: 50, calls_max: 200 };
const ASK_NEXT: Action = Action::Ask { again: None, last: false };

fn answer() -> Step {
    model(2, json!({}))
}

/// A run of a note, an answer with calls, and these.
fn run(calls: Vec<Step>) -> Vec<Step> {
    [note(1, "task"), answer()].into_iter().chain(calls).collect()
}

fn call(seq: i32, name: &str, effect: Effect, state: StepState) -> Step {
    let result = state.has_ended().then_some("result");
    let tries = i32::from(state != StepState::Planned);
    Step { state, tries, ..tool_step(seq, 2, seq - 3, name, effect, result) }
}

#[test]
fn call_of_every_effect_in_every_state_has_its_action() {
    use StepState::{Denied, Done, Failed, Planned, Skipped, Started, Unknown};
    for effect in Effect::ALL.iter().copied() {
        for state in StepState::ALL.iter().copied() {
            let expected = match (state, effect) {
                (Done | Failed | Denied | Skipped, _) => ASK_NEXT,
                (Unknown, _) => Action::AskPerson(3),
                (Started, Effect::Once) => Action::Doubt(3),
                (Started, Effect::Checked) => Action::Probe(3),
                (Planned | Started, _) => Action::Run(vec![3]),
            };
            assert_eq!(
                next(&run(vec![call(3, "x", effect, state)]), RULES),
                expected,
                "{effect:?} {state:?}"
            );
        }
    }
}

#[test]
fn question_that_was_refused_as_too_large_is_asked_anew() {
    for last in [false, true] {
        let body = StepBody::Model { answer: None, ending: None, last, asked: None };
        let refused = Step { seq: 2, state: StepState::Failed, tries: 1, rejected: false, body };
        let steps = [note(1, "task"), refused, note_of(3, NoteKind::Compacted, "{}")];
        assert_eq!(next(&steps, RULES), Action::Ask { again: None, last });
    }
}

fn approved(mut step: Step, approval: Option<Approval>) -> Step {
    if let StepBody::Tool(tool) = &mut step.body {
        tool.approval = approval;
    }
    step
}

#[test]
fn call_with_every_approval_in_every_state_has_its_action() {
    use StepState::{Planned, Started, Unknown};
    for effect in Effect::ALL.iter().copied() {
        for (state, approval, expected) in [
            (Planned, Approval::Asked, Action::AskApproval(vec![3])),
            (Planned, Approval::Expired, Action::AskApproval(vec![3])),
            (Planned, Approval::Granted, Action::Run(vec![3])),
            // Never again with the same approval, whatever the effect.
            (Started, Approval::Used, Action::Doubt(3)),
            (Unknown, Approval::Used, Action::AskPerson(3)),
        ] {
            let steps = run(vec![approved(call(3, "x", effect, state), Some(approval))]);
            let is_probed = state == Started && effect == Effect::Checked;
            let expected = if is_probed { Action::Probe(3) } else { expected };
            assert_eq!(next(&steps, RULES), expected, "{effect:?} {state:?} {approval:?}");
        }
    }
}

#[test]
fn calls_that_wait_for_approval_are_asked_about_together_after_all_others() {
    let held = |seq, effect| approved(call(seq, "pay", effect, StepState::Planned), Some(Approval::Asked));
    let other = |seq, state| call(seq, "write", Effect::Keyed, state);
    let calls = |state| {
        vec![
            held(3, Effect::Once),
            other(4, state),
            held(5, Effect::Read),
            call(6, FINISH, Effect::Read, StepState::Planned),
        ]
    };
    assert_eq!(next(&run(calls(StepState::Planned)), RULES), Action::Run(vec![4]));
    assert_eq!(next(&run(calls(StepState::Done)), RULES), Action::AskApproval(vec![3, 5]));
    let denied = |seq| call(seq, "pay", Effect::Once, StepState::Denied);
    let after = vec![denied(3), call(6, FINISH, Effect::Read, StepState::Planned)];
    assert_eq!(next(&run(after), RULES), Action::RefuseFinish(6), "a denial is looked at first");
}

#[test]
fn built_in_tool_in_every_state_has_its_action() {
    use StepState::{Done, Failed, Planned, Skipped, Started};
    for (name, state, expected) in [
        (FINISH, Planned, Action::Finish(3)),
        (FINISH, Done, Action::Finish(3)),
        (FINISH, Failed, ASK_NEXT),
        (GIVE_UP, Planned, Action::GiveUp(3)),
        (GIVE_UP, Done, Action::GiveUp(3)),
        (ASK, Planned, Action::AskPerson(3)),
        (ASK, Started, Action::AskPerson(3)),
        (ASK, Done, ASK_NEXT),
        (ASK, Skipped, ASK_NEXT),
    ] {
        let steps = run(vec![call(3, name, Effect::Read, state)]);
        assert_eq!(next(&steps, RULES), expected, "{name} {state:?}");
    }
}

#[test]
fn every_ending_of_an_answer_has_its_action() {
    let run = |ending| vec![note(1, "task"), model_of(2, json!({}), ending, false)];
    let noted = |ending| [run(ending), vec![note_of(3, NoteKind::Nudge, "again")]].concat();
    assert_eq!(next(&run(Ending::Text), RULES), Action::TryText(2));
    assert_eq!(next(&noted(Ending::Text), RULES), ASK_NEXT);
    assert_eq!(next(&run(Ending::Cut), RULES), Action::Note(NoteKind::Smaller));
    assert_eq!(next(&noted(Ending::Cut), RULES), ASK_NEXT);
    assert_eq!(next(&run(Ending::Refused), RULES), Action::End(Why::Refused));
    assert_eq!(next(&run(Ending::Calls), RULES), ASK_NEXT, "calls that were all dropped");
    let twice = [noted(Ending::Cut), vec![model_of(4, json!({}), Ending::Cut, false)]].concat();
    assert_eq!(next(&twice, RULES), Action::End(Why::Length));
}

#[test]
fn empty_run_and_lost_answer_ask_the_model() {
    assert_eq!(next(&[note(1, "task")], RULES), ASK_NEXT);
    let lost = Action::Ask { again: Some(2), last: false };
    assert_eq!(next(&[note(1, "task"), asked(2)], RULES), lost);
}

#[test]
fn rejected_result_is_noted_once() {
    let rejected = |step: Step| Step { rejected: true, ..step };
    let finish = rejected(call(3, FINISH, Effect::Read, StepState::Done));
    assert_eq!(next(&run(vec![finish.clone()]), RULES), Action::Note(NoteKind::Rejected));
    let told = run(vec![finish, note_of(4, NoteKind::Rejected, "too short")]);
    assert_eq!(next(&told, RULES), ASK_NEXT);
    let text = rejected(model_of(2, json!({}), Ending::Text, false));
    assert_eq!(next(&[note(1, "task"), text], RULES), Action::Note(NoteKind::Rejected));
}

#[test]
fn reading_calls_run_together_and_others_alone_in_their_order() {
    let reads = |from: i32, count: i32| {
        (from..from + count).map(|seq| call(seq, "look", Effect::Read, StepState::Planned))
    };
    let write = |state| call(5, "write", Effect::Keyed, state);
    let calls: Vec<Step> = reads(3, 2).chain([write(StepState::Planned)]).chain(reads(6, 2)).collect();
    assert_eq!(next(&run(calls.clone()), RULES), Action::Run(vec![3, 4]));
    let done = |mut calls: Vec<Step>, seqs: &[i32]| {
        for step in calls.iter_mut().filter(|step| seqs.contains(&step.seq)) {
            step.state = StepState::Done;
        }
        calls
    };
    assert_eq!(next(&run(done(calls.clone(), &[3])), RULES), Action::Run(vec![4]));
    assert_eq!(next(&run(done(calls.clone(), &[3, 4])), RULES), Action::Run(vec![5]));
    assert_eq!(next(&run(done(calls, &[3, 4, 5])), RULES), Action::Run(vec![6, 7]));
    let many: Vec<Step> = reads(3, 12).collect();
    assert_eq!(next(&run(many), RULES), Action::Run((3..11).collect()));
}

#[test]
fn finish_comes_after_the_others_and_not_after_a_failure() {
    let finish = || call(3, FINISH, Effect::Read, StepState::Planned);
    let other = |state| call(4, "write", Effect::Keyed, state);
    assert_eq!(next(&run(vec![finish(), other(StepState::Planned)]), RULES), Action::Run(vec![4]));
    assert_eq!(next(&run(vec![finish(), other(StepState::Done)]), RULES), Action::Finish(3));
    assert_eq!(next(&run(vec![finish(), other(StepState::Failed)]), RULES), Action::RefuseFinish(3));
}

/// A run with this many answers, each with one call that differs.
fn long_run(answers: i32) -> Vec<Step> {
    let mut steps = vec![note(1, "task")];
    for n in 0..answers {
        let seq = 2 + 2 * n;
        steps.push(model(seq, json!({})));
        let mut step = tool_step(seq + 1, seq, 0, "look", Effect::Read, Some("x"));
        if let StepBody::Tool(tool) = &mut step.body {
            tool.args_sha256 = n.to_string();
        }
        steps.push(step);
    }
    steps
}

#[test]
fn limits_are_told_then_the_last_question_comes_then_the_end() {
    let rules = Rules { steps_max: 10, calls_max: 200 };
    assert_eq!(next(&long_run(7), rules), ASK_NEXT);
    let mut steps = long_run(8);
    assert_eq!(next(&steps, rules), Action::Note(NoteKind::Limit));
    steps.push(note_of(99, NoteKind::Limit, "two are left"));
    assert_eq!(next(&steps, rules), ASK_NEXT);
    assert_eq!(next(&long_run(10), rules), Action::Ask { again: None, last: true });
    let mut steps = long_run(10);
    steps.push(model_of(100, json!({}), Ending::Calls, true));
    assert_eq!(next(&steps, rules), Action::End(Why::Steps));
    // A raised limit does not revive a last question, but the calls count alike.
    let rules = Rules { steps_max: 50, calls_max: 3 };
    assert_eq!(next(&long_run(3), rules), Action::Ask { again: None, last: true });
}

#[test]
fn equal_answers_bad_calls_and_texts_end_the_run() {
    let same = |answers: i32| {
        let mut steps = long_run(answers);
        for step in &mut steps {
            if let StepBody::Tool(tool) = &mut step.body {
                tool.args_sha256 = "same".into();
            }
        }
        steps
    };
    assert_eq!(same_answers(&same(4)), 4);
    assert_eq!(next(&same(4), RULES), ASK_NEXT);
    assert_eq!(next(&same(5), RULES), Action::End(Why::Loop));
    let mut bad = long_run(3);
    for step in bad.iter_mut().filter(|step| tool(step).is_some()) {
        (step.state, step.tries) = (StepState::Failed, 0);
    }
    assert_eq!(next(&bad, RULES), Action::End(Why::BadCalls));
    let mut texts = vec![note(1, "task")];
    for n in 1..4 {
        texts.push(model_of(2 * n, json!({}), Ending::Text, false));
        let expected = if n < 3 { Action::Note(NoteKind::Nudge) } else { Action::End(Why::NoResult) };
        assert_eq!(no_result(&texts), expected, "{n} texts");
        texts.push(note_of(2 * n + 1, NoteKind::Nudge, "call finish"));
    }
}

/// The rows, and the world that they have effects on.
struct World {
    rng: StdRng,
    steps: Vec<Step>,
    /// How often each call had its effect.
    effects: HashMap<i32, u32>,
    /// How often each question was answered by the model.
    answers: HashMap<i32, u32>,
    /// The calls that need an approval.
    needs: HashSet<i32>,
    ended: bool,
    kills: u32,
}

impl World {
    fn new(seed: u64) -> Self {
        let (effects, answers) = (HashMap::new(), HashMap::new());
        let rng = StdRng::seed_from_u64(seed);
        let (steps, needs) = (vec![note(1, "task")], HashSet::new());
        Self { rng, steps, effects, answers, needs, ended: false, kills: 0 }
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.rng.random_range(0..100) < percent
    }

    /// Whether the daemon dies here. It is not killed for ever, so that every run ends.
    fn dies(&mut self) -> bool {
        let dies = self.kills < 200 && self.chance(15);
        self.kills += u32::from(dies);
        dies
    }

    fn at(&mut self, seq: i32) -> &mut Step {
        self.steps.iter_mut().find(|step| step.seq == seq).expect("a row")
    }

    fn end(&mut self, seq: i32, state: StepState) {
        let step = self.at(seq);
        assert!(!step.state.has_ended(), "step {seq} has one result");
        step.state = state;
        if let StepBody::Tool(tool) = &mut step.body {
            tool.result = Some("result".into());
        }
    }

    fn seq(&self) -> i32 {
        i32::try_from(self.steps.len()).unwrap() + 1
    }

    /// Performs one action, or a part of it before a kill.
    fn perform(&mut self, action: Action) {
        match action {
            Action::Note(kind) => self.steps.push(note_of(self.seq(), kind, "note")),
            Action::Ask { again, last } => self.ask(again, last),
            Action::TryText(seq) if self.chance(30) => {
                assert!(self.at(seq).state == StepState::Done);
                self.ended = !self.dies();
            }
            Action::TryText(_) => {
                let action = no_result(&self.steps);
                self.perform(action);
            }
            Action::Run(seqs) => {
                let is_held = |seq: &i32| self.needs.contains(seq) && self.approval(*seq).is_none();
                let held: Vec<i32> = seqs.iter().copied().filter(is_held).collect();
                held.iter().for_each(|seq| self.approve(*seq, Approval::Asked));
                for seq in seqs.into_iter().filter(|_| held.is_empty()) {
                    self.run_call(seq);
                }
            }
            Action::AskApproval(seqs) => self.ask_approval(&seqs),
            Action::Probe(seq) => self.probe(seq),
            Action::Doubt(seq) => self.at(seq).state = StepState::Unknown,
            Action::AskPerson(seq) => self.person(seq),
            Action::RefuseFinish(seq) => self.end(seq, StepState::Failed),
            Action::Finish(seq) | Action::GiveUp(seq) => {
                if self.at(seq).state != StepState::Done {
                    self.end(seq, StepState::Done);
                }
                self.ended = !self.dies();
            }
            Action::End(_) => self.ended = true,
        }
    }

    fn ask(&mut self, again: Option<i32>, last: bool) {
        check_messages(&self.steps);
        let seq = again.unwrap_or_else(|| {
            let seq = self.seq();
            let body = StepBody::Model { answer: None, ending: None, last, asked: None };
            self.steps.push(Step { seq, state: StepState::Started, tries: 0, rejected: false, body });
            seq
        });
        self.at(seq).tries += 1;
        if self.dies() {
            return;
        }
        *self.answers.entry(seq).or_default() += 1;
        if self.dies() {
            return;
        }
        let ending = match self.rng.random_range(0..20) {
            0 => Ending::Text,
            1 => Ending::Cut,
            2 => Ending::Refused,
            _ => Ending::Calls,
        };
        // One commit: the answer and its calls.
        let step = self.at(seq);
        step.state = StepState::Done;
        step.body = StepBody::Model {
            answer: Some(json!({ "content": "" })),
            ending: Some(ending),
            last,
            asked: None,
        };
        if ending == Ending::Calls {
            self.plan(seq);
        }
    }

    fn plan(&mut self, after: i32) {
        let mut ends = false;
        for place in 0..self.rng.random_range(1..5) {
            let effect = Effect::ALL[self.rng.random_range(0..Effect::ALL.len())];
            let (name, effect) = match self.rng.random_range(0..40) {
                0 if !ends => (FINISH, Effect::Read),
                1 if !ends => (GIVE_UP, Effect::Read),
                2..4 if !ends => (ASK, Effect::Read),
                _ => ("work", effect),
            };
            ends |= name != "work";
            let mut step = tool_step(self.seq(), after, place, name, effect, None);
            if let StepBody::Tool(tool) = &mut step.body {
                tool.args_sha256 = self.rng.random_range(0..5).to_string();
            }
            if self.rng.random_range(0..10) == 0 {
                step.state = StepState::Failed;
                if let StepBody::Tool(tool) = &mut step.body {
                    tool.result = Some("refused".into());
                }
            } else if name == "work" && self.rng.random_range(0..6) == 0 {
                self.needs.insert(step.seq);
            }
            self.steps.push(step);
        }
    }

    fn approval(&self, seq: i32) -> Option<Approval> {
        let found = self.steps.iter().filter_map(tool).find(|(step, _)| step.seq == seq);
        found.and_then(|(_, call)| call.approval)
    }

    fn approve(&mut self, seq: i32, approval: Approval) {
        let step = self.at(seq);
        assert_eq!(step.state, StepState::Planned);
        if let StepBody::Tool(tool) = &mut step.body {
            tool.approval = Some(approval);
        }
    }

    fn ask_approval(&mut self, seqs: &[i32]) {
        let last = self.steps.iter().rfind(|step| is_model(step)).map_or(0, |step| step.seq);
        for (step, call) in self.steps.iter().filter_map(tool).filter(|(step, _)| step.seq > last) {
            let is_own = BUILT_IN.contains(&call.name.as_str());
            assert!(is_own || step.state.has_ended() || seqs.contains(&step.seq), "others come first");
        }
        if self.dies() {
            return;
        }
        for seq in seqs {
            match self.rng.random_range(0..10) {
                _ if self.approval(*seq) == Some(Approval::Expired) => self.approve(*seq, Approval::Asked),
                0..6 => self.approve(*seq, Approval::Granted),
                6 => self.approve(*seq, Approval::Expired),
                _ => self.end(*seq, StepState::Denied),
            }
        }
    }

    /// The row that begins a call uses its approval up.
    fn use_approval(&mut self, seq: i32) {
        if !self.needs.contains(&seq) {
            return;
        }
        assert_eq!(self.approval(seq), Some(Approval::Granted), "one approval, one beginning");
        if let StepBody::Tool(tool) = &mut self.at(seq).body {
            tool.approval = Some(Approval::Used);
        }
    }

    fn run_call(&mut self, seq: i32) {
        let step = self.at(seq).clone();
        let (_, call) = tool(&step).unwrap();
        assert!(!BUILT_IN.contains(&call.name.as_str()) && !step.state.has_ended());
        let outcome = if self.chance(80) { StepState::Done } else { StepState::Failed };
        if call.effect == Effect::Database {
            assert_eq!(step.state, StepState::Planned);
            if !self.dies() {
                // One commit: the effect and the result.
                self.use_approval(seq);
                *self.effects.entry(seq).or_default() += 1;
                self.end(seq, outcome);
            }
            return;
        }
        let is_repeatable = matches!(call.effect, Effect::Read | Effect::Keyed);
        assert!(is_repeatable || step.state == StepState::Planned, "it is never run again by itself");
        self.use_approval(seq);
        self.begin_call(seq, outcome);
    }

    fn probe(&mut self, seq: i32) {
        let happened = self.effects.get(&seq).copied().unwrap_or(0) > 0;
        match self.rng.random_range(0..10) {
            0 => self.at(seq).state = StepState::Unknown,
            _ if happened => self.end(seq, StepState::Done),
            _ if self.needs.contains(&seq) => self.end(seq, StepState::Failed),
            _ => self.begin_call(seq, StepState::Done),
        }
    }

    fn begin_call(&mut self, seq: i32, outcome: StepState) {
        let step = self.at(seq);
        (step.state, step.tries) = (StepState::Started, step.tries + 1);
        if self.dies() {
            return;
        }
        *self.effects.entry(seq).or_default() += 1;
        if !self.dies() {
            self.end(seq, outcome);
        }
    }

    /// The person knows the truth.
    fn person(&mut self, seq: i32) {
        let step = self.at(seq).clone();
        let happened = self.effects.get(&seq).copied().unwrap_or(0) > 0;
        match step.state {
            StepState::Unknown if happened => self.end(seq, StepState::Done),
            StepState::Unknown if self.chance(20) => self.end(seq, StepState::Skipped),
            StepState::Unknown => self.begin_call(seq, StepState::Done),
            StepState::Planned => self.at(seq).state = StepState::Started,
            _ => self.end(seq, StepState::Done),
        }
    }
}

/// What endpoints demand: every call is followed by its result, in order, before any other message.
fn check_messages(steps: &[Step]) {
    let to = crate::task::AskedModel { provider: "p".into(), model: "m".into() };
    let sent = messages(1, steps, ToolsBy::Native, &to);
    let mut open: Vec<&str> = Vec::new();
    let mut ids = HashSet::new();
    for message in &sent {
        if message["role"] == "tool" {
            assert_eq!(open.remove(0), message["tool_call_id"]);
        } else {
            assert!(open.is_empty(), "a call has no result: {sent:?}");
        }
        for call in message["tool_calls"].as_array().into_iter().flatten() {
            let id = call["id"].as_str().unwrap();
            assert!(ids.insert(id), "ids repeat");
            open.push(id);
        }
    }
    assert!(open.is_empty());
}

/// Random runs with kills, until this many actions were performed.
fn random_runs(actions: u64) {
    let (mut performed, mut seed) = (0, 0);
    while performed < actions {
        let mut world = World::new(seed);
        for count in 0.. {
            assert!(count < 5_000, "run {seed} does not end: {:?}", next(&world.steps, RULES));
            let before = world.steps.clone();
            let action = next(&world.steps, RULES);
            assert_eq!(action, next(&before, RULES), "the machine is pure");
            world.perform(action);
            performed += 1;
            for (old, new) in before.iter().zip(&world.steps) {
                let fixed = old.state.has_ended();
                assert!(!fixed || old == new, "run {seed}: an ended step changed: {old:?} {new:?}");
            }
            if world.ended {
                break;
            }
        }
        for (step, call) in world.steps.iter().filter_map(tool) {
            let effects = world.effects.get(&step.seq).copied().unwrap_or(0);
            match call.effect {
                Effect::Once | Effect::Checked => assert!(effects <= 1, "run {seed}: {step:?}"),
                Effect::Database => assert_eq!(
                    effects,
                    u32::from(
                        step.state.has_ended()
                            && step.tries == 0
                            && step.state != StepState::Denied
                            && call.result.as_deref() == Some("result")
                            && call.name == "work"
                    ),
                    "run {seed}: {step:?}"
                ),
                Effect::Read | Effect::Keyed => {}
            }
        }
        for step in world.steps.iter().filter(|step| is_model(step)) {
            let answers = world.answers.get(&step.seq).copied().unwrap_or(0);
            assert!(answers <= u32::try_from(step.tries).unwrap(), "run {seed}: asked more often than begun");
        }
        seed += 1;
    }
}

#[test]
fn random_runs_with_kills_keep_every_promise() {
    random_runs(10_000);
}

/// By hand: `cargo test --release -- --ignored a_million_random_steps`.
#[test]
#[ignore = "two minutes"]
fn a_million_random_steps_with_kills_keep_every_promise() {
    random_runs(1_000_000);
}
