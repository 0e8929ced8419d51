//! The checks of a definition that need no database: all problems at once.
pub(super) use super::problems::{Problems, url_problem};
use super::{Definition, Kind, OfferBy, Problem, Wake, WakeEvent, check_models, check_tools};
use crate::{
    agent::{Env, kind::program, schedule::CronSchedule, wake::RequestTemplate},
    filter::Filter,
    task::{INPUT_BYTES_MAX, Policy, is_word},
};
use std::{collections::HashMap, time::Duration};

/// Most columns of `coalesce_by`.
const COALESCE_COLUMNS_MAX: usize = 16;

/// All problems of one definition, with the environment of this process.
#[must_use]
pub fn check(definition: &Definition) -> Vec<Problem> {
    check_in(definition, &Env::process())
}

/// All problems of definitions that run together: those of each, and duplicate ids. Each problem comes with the index
/// of its definition.
#[must_use]
pub fn check_all(definitions: &[Definition]) -> Vec<(usize, Problem)> {
    let mut seen = HashMap::new();
    let mut problems = Vec::new();
    for (at, definition) in definitions.iter().enumerate() {
        if let Some(first) = seen.insert(&definition.id, at) {
            let message = format!("{} is already the id of agent {}", definition.id, first + 1);
            let remedy = Some("give every agent its own id".to_owned());
            problems.push((at, Problem { key: "id".into(), message, remedy }));
        }
        problems.extend(check(definition).into_iter().map(|problem| (at, problem)));
    }
    problems
}

/// All problems of one definition, with this environment.
#[must_use]
pub fn check_in(definition: &Definition, env: &Env) -> Vec<Problem> {
    let mut found = Problems::default();
    general(definition, env, &mut found);
    for (key, kind) in definition.run.present_keys() {
        if kind != definition.run.kind {
            let message = format!("{key} belongs to kind = \"{kind}\", not to \"{}\"", definition.run.kind);
            found.add(format!("run.{key}"), message);
        }
    }
    match definition.run.kind {
        Kind::Command => command(definition, env, &mut found),
        Kind::Http => http(definition, &mut found),
        Kind::Llm => check_models::check(definition, env, &mut found),
        Kind::Rust | Kind::Remote => {}
    }
    check_tools::check(definition, env, &mut found);
    for (at, wake) in definition.wake.iter().enumerate() {
        check_wake(&format!("wake.{at}"), wake, &mut found);
    }
    for (at, schedule) in definition.schedule.iter().enumerate() {
        let place = format!("schedule.{at}");
        if let Err((key, message)) = CronSchedule::read(definition, at, schedule) {
            found.add(format!("{place}.{key}"), message);
        }
        let request = &schedule.request;
        check_kind(&place, &request.kind, &mut found);
        check_policy(&place, &request.policy, &mut found);
    }
    found.into_list()
}

fn general(definition: &Definition, env: &Env, found: &mut Problems) {
    if definition.description.len() > 1_000 {
        found.add(
            "description",
            format!("{} bytes are too long: 1000 are the most", definition.description.len()),
        );
    }
    for (at, capability) in definition.capabilities.iter().enumerate() {
        if !is_word(capability) {
            found.add(
                format!("capabilities.{at}"),
                "a capability has 1 to 200 bytes and no control characters",
            );
        }
    }
    found.bounds("slots", definition.slots, 1, 1_000);
    if definition.idle_timeout < Duration::from_millis(10) {
        found.add("idle_timeout", "it must be 10ms or more");
    }
    found.bounds("offer.confidence", definition.offer.confidence, 0.0, 1.0);
    check_hook(definition, env, found);
    let limits = &definition.limits;
    if limits.timeout < Duration::from_millis(10) {
        found.add("limits.timeout", "it must be 10ms or more");
    }
    found.bounds("limits.output_bytes", limits.output_bytes, 1, INPUT_BYTES_MAX);
    let kind = definition.run.kind;
    if let Some(memory) = limits.memory_bytes {
        found.bounds("limits.memory_bytes", memory, 1 << 20, 1 << 46);
        if kind != Kind::Command {
            found.add(
                "limits.memory_bytes",
                "only kind = \"command\" has a process whose memory can be limited",
            );
        }
    }
    if let Some(tokens) = limits.tokens_per_task {
        found.bounds("limits.tokens_per_task", tokens, 1, u32::MAX);
        if kind != Kind::Llm {
            found.add("limits.tokens_per_task", "only kind = \"llm\" uses tokens that can be limited");
        }
    }
}

fn check_hook(definition: &Definition, env: &Env, found: &mut Problems) {
    let offer = &definition.offer;
    found.bounds("offer.tokens", offer.tokens, 1, 100_000);
    if offer.timeout < Duration::from_millis(10) || offer.timeout > Duration::from_secs(600) {
        found.add("offer.timeout", "it must be 10ms to 10m");
    }
    let kind = definition.run.kind;
    match offer.by {
        OfferBy::Runtime => {}
        _ if kind == Kind::Remote => {
            found.add("offer.by", "an agent of kind = \"remote\" makes its offers itself");
        }
        OfferBy::Model if kind != Kind::Llm => {
            found.add("offer.by", "only kind = \"llm\" has a model that could think about it");
        }
        OfferBy::Command => match offer.argv.as_deref() {
            None | Some([]) => {
                found.add("offer.argv", "argv is missing: there is no command that makes the offers");
            }
            Some([name, ..]) => check_program("offer.argv", name, definition, env, found),
        },
        OfferBy::Http => match &offer.url {
            None => found.add("offer.url", "url is missing: there is nowhere to POST"),
            Some(url) => url_problem("offer.url", url, found),
        },
        OfferBy::Model => {}
    }
    if offer.argv.is_some() && offer.by != OfferBy::Command {
        found.add("offer.argv", "argv belongs to by = \"command\"");
    }
    if offer.url.is_some() && offer.by != OfferBy::Http {
        found.add("offer.url", "url belongs to by = \"http\"");
    }
}

fn command(definition: &Definition, env: &Env, found: &mut Problems) {
    let run = &definition.run;
    match run.argv.as_deref() {
        None | Some([]) => found.add_with(
            "run.argv",
            "argv is missing: there is no command to run",
            "name the program and its arguments, like argv = [\"python3\", \"triage.py\"]",
        ),
        Some([name, ..]) => check_program("run.argv", name, definition, env, found),
    }
    if let Some(cwd) = &run.cwd {
        let cwd = definition.folder.as_ref().map_or_else(|| cwd.clone(), |folder| folder.join(cwd));
        if !cwd.is_dir() {
            found.add("run.cwd", format!("{} is no folder", cwd.display()));
        }
    }
    for name in run.env.iter().chain(run.env_set.keys()) {
        if name.is_empty() || name.contains(['=', '\0']) {
            found.add("run.env", format!("{name:?} is no name of an environment variable"));
        }
    }
}

pub(super) fn check_program(key: &str, name: &str, definition: &Definition, env: &Env, found: &mut Problems) {
    match program(name, definition.folder.as_deref(), env) {
        // The error about a file that exists says what to do.
        Err(e) if !e.starts_with("there is no") => found.add(key, e),
        Err(e) => found.add_with(key, e, "install it, correct the name, or give its full path"),
        Ok(_) => {}
    }
}

fn http(definition: &Definition, found: &mut Problems) {
    match &definition.run.url {
        None => found.add("run.url", "url is missing: there is nowhere to POST"),
        Some(url) => url_problem("run.url", url, found),
    }
}

fn check_kind(place: &str, kind: &str, found: &mut Problems) {
    if !is_word(kind) {
        let message = "the kind of a task has 1 to 200 bytes and no control characters";
        found.add(format!("{place}.request.kind"), message);
    }
}

fn check_policy(place: &str, policy: &serde_json::Map<String, serde_json::Value>, found: &mut Problems) {
    if let Err(e) = Policy::default().with(policy).and_then(|policy| policy.compile_setting()) {
        found.add(format!("{place}.request.policy"), e);
    }
}

fn check_wake(place: &str, wake: &Wake, found: &mut Problems) {
    let (schema, table) = wake.table_name();
    if schema.is_empty() || table.is_empty() {
        found.add(format!("{place}.table"), format!("{:?} is not of the form schema.table", wake.table));
    }
    if wake.events.is_empty() {
        let remedy = "name some of INSERT, UPDATE, DELETE, TRUNCATE";
        found.add_with(format!("{place}.events"), "no event: it would never wake", remedy);
    }
    match Filter::parse(wake.filter.as_deref().unwrap_or_default()) {
        Err(e) => found.add(format!("{place}.filter"), e.to_string()),
        Ok(filter) if !filter.conditions.is_empty() && wake.events.contains(&WakeEvent::Truncate) => {
            let remedy = "make it a [[wake]] of its own without filter";
            found.add_with(
                format!("{place}.filter"),
                "TRUNCATE has no row that a filter could look at",
                remedy,
            );
        }
        Ok(_) => {}
    }
    if let Some(debounce) = wake.debounce
        && !(Duration::from_millis(1)..=Duration::from_secs(3600)).contains(&debounce)
    {
        found.add(format!("{place}.debounce"), "it must be 1ms to 1h");
    }
    if let Some(columns) = &wake.coalesce_by {
        if columns.len() > COALESCE_COLUMNS_MAX {
            let message = format!("{} columns: {COALESCE_COLUMNS_MAX} are the most", columns.len());
            found.add(format!("{place}.coalesce_by"), message);
        }
        if !columns.is_empty() && wake.events.contains(&WakeEvent::Truncate) {
            let remedy = "make it a [[wake]] of its own without coalesce_by";
            let message = "TRUNCATE has no row whose columns could be compared";
            found.add_with(format!("{place}.coalesce_by"), message, remedy);
        }
    }
    let request = &wake.request;
    check_kind(place, &request.kind, found);
    if request.idempotency_key.is_some() {
        let message = "idempotency_key is not supported in a wake yet: each change requests one task";
        let remedy = "leave the key out, or put changes together with coalesce_by";
        found.add_with(format!("{place}.request.idempotency_key"), message, remedy);
    }
    if let Err(e) = RequestTemplate::parse(request) {
        found.add(format!("{place}.request.{}", e.place), e.reason);
    }
    check_policy(place, &request.policy, found);
}

/// The problems of a file with this text, as key and message.
#[cfg(test)]
pub(super) fn found_in(text: &str, env: &Env) -> Vec<String> {
    let definition: Definition = toml::from_str(text).unwrap();
    check_in(&definition, env).into_iter().map(|found| format!("{}: {}", found.key, found.message)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(text: &str) -> Vec<String> {
        found_in(text, &Env::of([("PATH", "/nowhere:/bin")]))
    }

    #[test]
    fn all_problems_are_returned_with_their_keys() {
        let text = r#"
            id = "bad"
            slots = 0
            [run]
            kind = "command"
            argv = ["convoke-no-such-program"]
            cwd = "/no/such/folder"
            model = "x"
            [offer]
            by = "model"
            confidence = 1.5
            [limits]
            tokens_per_task = 5
            output_bytes = 0
            [[wake]]
            table = "tickets"
            events = []
            filter = "priority>3"
            debounce = "0s"
            request = { kind = "", policy = { leese = "1s" }, idempotency_key = "x", input = { a = ["{{ nwe }}"] } }
        "#;
        assert_eq!(
            problems(text)
                .iter()
                .map(|text| text.split(", expected one of").next().unwrap())
                .collect::<Vec<_>>(),
            [
                "slots: 0 is not in 1 to 1000",
                "offer.confidence: 1.5 is not in 0 to 1",
                "offer.by: only kind = \"llm\" has a model that could think about it",
                "limits.output_bytes: 0 is not in 1 to 1048576",
                "limits.tokens_per_task: only kind = \"llm\" uses tokens that can be limited",
                "run.model: model belongs to kind = \"llm\", not to \"command\"",
                "run.argv: there is no command convoke-no-such-program on PATH",
                "run.cwd: /no/such/folder is no folder",
                "wake.0.events: no event: it would never wake",
                "wake.0.filter: [\"priority>3\"] is not a condition of the form column=operator.value",
                "wake.0.debounce: it must be 1ms to 1h",
                "wake.0.request.kind: the kind of a task has 1 to 200 bytes and no control characters",
                "wake.0.request.idempotency_key: idempotency_key is not supported in a wake yet: each change \
                 requests one task",
                "wake.0.request.input.a.0: there is no \"nwe\": use new, old, event, schema, table, commit_lsn, \
                 committed_at, changes",
                "wake.0.request.policy: policy: unknown field `leese`",
            ]
        );
    }

    #[test]
    fn model_needs_a_name_and_an_endpoint() {
        let text = r#"
            id = "m"
            [run]
            kind = "llm"
            tools = ["sql:read"]
            temperature = 3.0
            prompt = "{{ inptu }}"
            result_schema = { type = "nonsense" }
        "#;
        let found = problems(text);
        assert_eq!(found[0], "run.model: model is missing: name it as its endpoint knows it");
        assert!(found[1].starts_with("run.base_url: neither base_url nor base_url_env"));
        assert!(found[2].starts_with("run.prompt: there is no \"inptu\": use "));
        assert!(found[3].starts_with("run.result_schema: it is no JSON schema: "));
        assert_eq!(found[4], "run.temperature: 3 is not in 0 to 2");
        assert_eq!(found[5], "run.sql: sql:read needs a login role of its own");
        assert_eq!(found.len(), 6);
    }

    #[test]
    fn urls_are_checked() {
        let http = |url: &str| problems(&format!("id = \"h\"\n[run]\nkind = \"http\"\nurl = {url:?}"));
        assert_eq!(http("http://127.0.0.1:9/x"), Vec::<String>::new());
        assert_eq!(http("ftp://x/y"), ["run.url: \"ftp://x/y\" is no http or https URL"]);
        assert_eq!(http("nowhere"), ["run.url: \"nowhere\" is no URL: relative URL without a base"]);
    }

    #[test]
    fn truncate_cannot_be_coalesced_by_columns() {
        let wake = |by: &str| {
            let wake = format!(
                "table = \"t\"\nevents = [\"TRUNCATE\"]\ncoalesce_by = {by}\nrequest = {{ kind = \"k\" }}"
            );
            problems(&format!("id = \"w\"\n[run]\nkind = \"remote\"\n[[wake]]\n{wake}"))
        };
        assert_eq!(wake("[]"), Vec::<String>::new());
        let told = "wake.0.coalesce_by: TRUNCATE has no row whose columns could be compared";
        assert_eq!(wake("[\"a\"]"), [told]);
    }

    #[test]
    fn duplicate_ids_are_a_problem() {
        let one: Definition = toml::from_str("id = \"a\"\n[run]\nkind = \"remote\"").unwrap();
        let found = check_all(&[one.clone(), one]);
        assert_eq!(
            (found.len(), found[0].0, found[0].1.message.as_str()),
            (1, 1, "a is already the id of agent 1")
        );
    }
}
