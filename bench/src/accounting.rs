//! Exact money: thousands of scripted questions with every form of usage that endpoints report, and what the daemon
//! counts beside a sum that this program makes itself.
//!
//! The expected cost of an answer is known when the script is written, from whole tokens and rates of its own. What a
//! lost answer counts as is made from the bytes of its request. Nothing here calls the daemon's code for prices.
use super::{
    daemon::Fixture,
    figures::Figures,
    think::{RUN_WITHIN, TOOL_NAME, provider, request, thinker},
};
use anyhow::{Context, ensure};
use convoke::{
    app::Parts,
    config::Config,
    id::TaskId,
    task::{INVARIANTS, TaskState},
    testing::{ModelServer, Reply, Script, StreamEnd},
};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use std::collections::HashMap;
use tokio::time::Instant;
use uuid::Uuid;

/// Models, each with a script of its own.
const MODELS: usize = 4;
/// Most questions of one run. The endpoint keeps every request, and each has all answers before it.
const RUN_MAX: usize = 25;
/// Runs of one model at once.
const SLOTS: u32 = 8;
/// Tokens that the daemon adds to the bytes of a request, for its frame (`docs/AGENTS.md`, budgets).
const FRAME_TOKENS: u128 = 64;
/// The money of the questions of these tasks, each row for itself.
const COUNTED: &str = "select microdollars from convoke.model_questions where task_id = any($1) order by 1";
/// The same money as charges, and as what is counted as spent.
const CHARGED: &str =
    "select coalesce(sum(microdollars), 0)::bigint from convoke.charges where task_id = any($1)";
const SPENT: &str =
    "select coalesce(sum(microdollars), 0)::bigint from convoke.spend where task_id = any($1)";

/// Rates in microdollars for a million tokens.
#[derive(Clone, Copy)]
struct Rates {
    input: u128,
    cached: u128,
    written: u128,
    output: u128,
    reasoning: u128,
}

/// The rates of the model that is asked.
const USUAL: Rates = Rates {
    input: 1_250_000,
    cached: 125_000,
    written: 1_562_500,
    output: 10_000_000,
    reasoning: 11_000_001,
};
/// Its rates for prompts of more tokens than these.
const TIER_OVER: u128 = 5_000;
const TIER: Rates = Rates {
    input: 2_500_000,
    cached: 250_000,
    written: 3_125_000,
    output: 15_000_000,
    reasoning: 15_000_000,
};
/// The rates of another model that some answers name.
const OTHER: Rates =
    Rates { input: 333_333, cached: 333_333, written: 333_333, output: 777_777, reasoning: 777_777 };

/// Tokens of an answer.
#[derive(Clone, Copy, Default)]
struct Tokens {
    input: u128,
    cached: u128,
    written: u128,
    output: u128,
    reasoning: u128,
}

impl Tokens {
    fn cost(self, rates: Rates) -> u128 {
        let rest = (self.input - self.cached - self.written) * rates.input;
        let prompt = rest + self.cached * rates.cached + self.written * rates.written;
        let answer = (self.output - self.reasoning) * rates.output + self.reasoning * rates.reasoning;
        (prompt + answer).div_ceil(1_000_000)
    }
}

/// What a request costs.
#[derive(Clone, Copy)]
enum Cost {
    /// Nothing: the endpoint refused it.
    Nothing,
    /// This.
    Exact(u128),
    /// As much as it may have cost: the endpoint did not say.
    Most,
}

/// The answers to one turn, one after the other, with what each costs; the last one is repeated.
struct Turn {
    replies: Vec<(Reply, Cost)>,
}

pub(super) async fn run(config: &Config, questions: usize) -> anyhow::Result<Figures> {
    let length = questions.min(RUN_MAX);
    let runs = questions.div_ceil(length * MODELS);
    let (mut models, mut turns, mut config) = (Vec::new(), Vec::new(), config.clone());
    let mut definitions = Vec::new();
    for model in 0..MODELS {
        let script: Vec<Turn> = (0..length).map(|turn| turn_of(model, turn, length)).collect();
        let replies =
            script.iter().map(|turn| Reply::in_turn(turn.replies.iter().map(|(reply, _)| reply.clone())));
        let server = ModelServer::start(Script::by_turn(replies)).await?;
        let id = format!("accounted-{model}");
        config.llm.providers.insert(id.clone(), provider(&server.base_url(), SLOTS)?);
        definitions.push(thinker(&id, &server.base_url(), SLOTS, u32::try_from(length)?)?);
        models.push(server);
        turns.push(script);
    }
    let tier = format!("[[tiers]]\nover_tokens = {TIER_OVER}\n{}", rates(TIER));
    config.llm.prices.insert("m".into(), toml::from_str(&format!("{}\n{tier}", rates(USUAL)))?);
    config.llm.prices.insert("other".into(), toml::from_str(&rates(OTHER))?);
    let fixture = Fixture { config, agents: Vec::new(), definitions, schema: "", finished: 0 };
    let mut figures = Figures::default();
    let measured = fixture.measure(&mut figures, async |daemon, figures| {
        let began = Instant::now();
        let tasks = run_all(daemon, runs).await?;
        let took = began.elapsed().as_secs_f64();
        let mut expected = Vec::new();
        for (server, script) in models.iter().zip(&turns) {
            expected.extend(expected_of(server, script)?);
        }
        compare(daemon, &tasks, expected, figures).await?;
        figures.add("seconds", took);
        anyhow::Ok(())
    });
    measured.await?;
    Ok(figures)
}

/// Runs so many tasks of each model, and returns them when all are completed.
async fn run_all(daemon: &Parts, runs: usize) -> anyhow::Result<Vec<Uuid>> {
    let wanted = (0..runs).flat_map(|_| (0..MODELS).map(|model| format!("accounted-{model}")));
    let requested = stream::iter(wanted).map(async |capability| request(daemon, &capability).await);
    let tasks: Vec<TaskId> = requested.buffered(8).try_collect().await?;
    for task in &tasks {
        let ended = daemon.tasks.wait(*task, RUN_WITHIN).await?;
        ensure!(ended.state == TaskState::Completed, "a run did not complete: {:?}", ended.error);
    }
    Ok(tasks.into_iter().map(TaskId::as_uuid).collect())
}

/// Compares the daemon's rows with the expected costs: one by one, and as sums.
async fn compare(
    daemon: &Parts,
    tasks: &[Uuid],
    mut expected: Vec<u128>,
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let client = daemon.database.client().await?;
    let rows = client.query(COUNTED, &[&tasks]).await?;
    let mut counted = Vec::with_capacity(rows.len());
    for row in &rows {
        counted.push(u128::try_from(row.try_get::<_, i64>(0)?)?);
    }
    expected.sort_unstable();
    let total: u128 = expected.iter().sum();
    let differ = counted.iter().zip(&expected).filter(|(counted, expected)| counted != expected).count();
    let mut sums = vec![counted.iter().sum::<u128>()];
    for query in [CHARGED, SPENT] {
        sums.push(u128::try_from(client.query_one(query, &[&tasks]).await?.try_get::<_, i64>(0)?)?);
    }
    for (name, query) in INVARIANTS {
        ensure!(client.query(*query, &[]).await?.is_empty(), "invariant {name} is broken");
    }
    ensure!(
        counted.len() == expected.len() && differ == 0 && sums.iter().all(|sum| *sum == total),
        "{} questions cost {total} microdollars; {} are counted, {differ} of them otherwise; questions, charges and \
         spending are {sums:?}",
        expected.len(),
        counted.len()
    );
    // Far below what a figure can show exactly.
    figures.add("questions", f64::from(u32::try_from(counted.len())?));
    figures.add("microdollars", f64::from(u32::try_from(total)?));
    let error = sums.iter().map(|sum| sum.abs_diff(total)).max().context("no sum")?;
    figures.add("error_microdollars", f64::from(u32::try_from(error)?));
    Ok(())
}

/// What the requests that an endpoint has received cost, without those that cost nothing and leave no row.
fn expected_of(server: &ModelServer, script: &[Turn]) -> anyhow::Result<Vec<u128>> {
    let (mut seen, mut costs) = (HashMap::<usize, usize>::new(), Vec::new());
    for received in server.requests() {
        let turn = script.get(received.turn).context("a question beyond the script")?;
        let place = seen.entry(received.turn).or_default();
        let (_, cost) = turn.replies.get(*place).or(turn.replies.last()).context("a turn without replies")?;
        *place += 1;
        match cost {
            Cost::Nothing => {}
            Cost::Exact(microdollars) => costs.push(*microdollars),
            Cost::Most => costs.push(most(&received.json, received.body.len())?),
        }
    }
    Ok(costs)
}

/// The most that a request may cost: a token for each byte, at the dearest rates that can apply.
fn most(request: &Value, bytes: usize) -> anyhow::Result<u128> {
    let input = u128::try_from(bytes)? + FRAME_TOKENS;
    let output = request.get("max_tokens").and_then(Value::as_u64).context("no max_tokens")?;
    let of = |rates: Rates| {
        let (prompt, answer) =
            (rates.input.max(rates.cached).max(rates.written), rates.output.max(rates.reasoning));
        (input * prompt + u128::from(output) * answer).div_ceil(1_000_000)
    };
    Ok(if input > TIER_OVER { of(USUAL).max(of(TIER)) } else { of(USUAL) })
}

fn rates(rates: Rates) -> String {
    let Rates { input, cached, written, output, reasoning } = rates;
    format!(
        "input = {input}\ncached_input = {cached}\ncache_write = {written}\noutput = {output}\nreasoning = {reasoning}"
    )
}

/// The forms of answers, in turn. The last answer of a run finishes it.
fn turn_of(model: usize, turn: usize, length: usize) -> Turn {
    let number = model * length + turn;
    // Small numbers without a pattern that the forms could share.
    let mixed = u64::try_from(number).unwrap_or(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 17;
    let up_to = |most: u64| u128::from(mixed % most);
    let (input, output) = (1 + up_to(4_999), up_to(1_009));
    let whole = |usage: Value, cost: Cost| (body(turn, length, Some(usage), "m"), cost);
    let plain = Tokens { input, output, ..Tokens::default() };
    let usage = json!({ "prompt_tokens": small(input), "completion_tokens": small(output) });
    let usual = Cost::Exact(plain.cost(USUAL));
    let one = |reply: (Reply, Cost)| Turn { replies: vec![reply] };
    match number % 18 {
        0 => one(whole(with(usage, "total_tokens", json!(small(input + output))), usual)),
        1 => {
            let (cached, written) = (input / 2, input / 3);
            let cost = Tokens { cached, written, ..plain }.cost(USUAL);
            let details = json!({ "cached_tokens": small(cached), "cache_write_tokens": small(written) });
            one(whole(with(usage, "prompt_tokens_details", details), Cost::Exact(cost)))
        }
        2 => {
            let reasoning = output / 2;
            let cost = Tokens { reasoning, ..plain }.cost(USUAL);
            let details = json!({ "reasoning_tokens": small(reasoning) });
            one(whole(with(usage, "completion_tokens_details", details), Cost::Exact(cost)))
        }
        // Some endpoints leave reasoning out of the answer's tokens, and not out of the total.
        3 => {
            let cost = Tokens { output: output + 17, ..plain }.cost(USUAL);
            one(whole(with(usage, "total_tokens", json!(small(input + output + 17))), Cost::Exact(cost)))
        }
        4 => {
            let texts =
                json!({ "prompt_tokens": input.to_string(), "completion_tokens": output.to_string() });
            one(whole(texts, usual))
        }
        5 => {
            let fraction: Value = serde_json::from_str(&format!("{output}.2")).unwrap_or_default();
            let fraction = json!({ "prompt_tokens": small(input), "completion_tokens": fraction });
            one(whole(fraction, Cost::Exact(Tokens { output: output + 1, ..plain }.cost(USUAL))))
        }
        6 => {
            let cost = Tokens { cached: input / 4, ..plain }.cost(USUAL);
            one(whole(with(usage, "prompt_cache_hit_tokens", json!(small(input / 4))), Cost::Exact(cost)))
        }
        // A part that is larger than its whole is the whole.
        7 => {
            let cost = Tokens { cached: input, ..plain }.cost(USUAL);
            let details = json!({ "cached_tokens": small(input + 5) });
            one(whole(with(usage, "prompt_tokens_details", details), Cost::Exact(cost)))
        }
        // The cost that the endpoint names goes before the prices; with a key of one's own it is not the whole.
        8 => {
            let picodollars = up_to(7_919_000_003);
            let dollars = format!("0.{picodollars:012}");
            one(whole(with(usage, "cost", json!(dollars)), Cost::Exact(picodollars.div_ceil(1_000_000))))
        }
        9 => one(whole(with(with(usage, "cost", json!(0.5)), "is_byok", json!(true)), usual)),
        10 => one((body(turn, length, Some(usage), "other"), Cost::Exact(plain.cost(OTHER)))),
        11 => {
            let input = TIER_OVER + 1 + up_to(7_000);
            let cost = Tokens { input, cached: input - 1, ..plain }.cost(TIER);
            let usage = json!({ "prompt_tokens": small(input), "completion_tokens": small(output),
                "prompt_tokens_details": { "cached_tokens": small(input - 1) } });
            one(whole(usage, Cost::Exact(cost)))
        }
        12 => one(whole(json!({ "prompt_tokens": 0, "completion_tokens": 0 }), Cost::Exact(0))),
        13 => one((body(turn, length, None, "m"), Cost::Most)),
        14 => one(whole(json!({ "prompt_tokens": small(input), "completion_tokens": null }), Cost::Most)),
        15 => one((streamed(turn, length, Some(usage)), usual)),
        16 => one((streamed(turn, length, None), Cost::Most)),
        // Lost, refused and answered in the end: three requests of one step.
        _ => Turn {
            replies: vec![
                (Reply::events(events(turn, length, None).into_iter().take(2), StreamEnd::Reset), Cost::Most),
                (Reply::status(500, "{}"), Cost::Nothing),
                (streamed(turn, length, Some(usage)), usual),
            ],
        },
    }
}

/// A number as it is in JSON.
fn small(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn with(mut usage: Value, name: &str, value: Value) -> Value {
    if let Some(members) = usage.as_object_mut() {
        members.insert(name.to_owned(), value);
    }
    usage
}

/// The call of an answer: the tool with another argument in each turn, and the end of the run in the last one.
fn call(turn: usize, length: usize) -> (&'static str, String) {
    if turn + 1 == length {
        return ("finish", json!({ "result": turn }).to_string());
    }
    (TOOL_NAME, json!({ "n": turn }).to_string())
}

fn body(turn: usize, length: usize, usage: Option<Value>, model: &str) -> Reply {
    let (name, arguments) = call(turn, length);
    let call = json!({ "id": "c", "type": "function", "function": { "name": name, "arguments": arguments } });
    let message = json!({ "role": "assistant", "content": null, "tool_calls": [call] });
    let choice = json!({ "index": 0, "message": message, "finish_reason": "tool_calls" });
    let answer = json!({ "model": model, "choices": [choice] });
    Reply::body(usage.map_or(answer.clone(), |usage| with(answer, "usage", usage)))
}

/// The events of an answer; the first two have not its end.
fn events(turn: usize, length: usize, usage: Option<Value>) -> Vec<String> {
    let (name, arguments) = call(turn, length);
    let delta = |delta: Value, finish: Value| json!({ "model": "m", "choices": [{ "index": 0, "delta": delta, "finish_reason": finish }] });
    let call = |call: Value| delta(json!({ "tool_calls": [call] }), Value::Null);
    let named =
        json!({ "index": 0, "id": "c", "type": "function", "function": { "name": name, "arguments": "" } });
    let chunks = [
        call(named),
        call(json!({ "index": 0, "function": { "arguments": arguments } })),
        delta(json!({}), json!("tool_calls")),
    ];
    let usage = usage.map(|usage| json!({ "model": "m", "choices": [], "usage": usage }));
    let events = chunks.into_iter().chain(usage).map(|chunk| format!("data: {chunk}\n\n"));
    events.chain(["data: [DONE]\n\n".to_owned()]).collect()
}

fn streamed(turn: usize, length: usize, usage: Option<Value>) -> Reply {
    Reply::events(events(turn, length, usage), StreamEnd::Body)
}
