//! The checks of `run.calls`.
use super::Problems;
use crate::{
    agent::{
        Definition,
        definition::{CALLED_BYTES_MAX, REQUEST_TASK, part_rule},
        think::{ASK, FINISH, GIVE_UP, ToolsBy},
        tool::callables,
    },
    task::check_setting,
};
use std::collections::BTreeSet;

/// Most calls that a rule may name: a run has no more.
const MOST_MAX: u32 = 10_000;

pub(super) fn check(definition: &Definition, found: &mut Problems) {
    let names = names(definition);
    for (name, rule) in &definition.run.calls {
        let key = format!("run.calls.{name}");
        if let Err(remedy) = known(definition, &names, name) {
            found.add_with(key, format!("there is no tool {name:?}"), remedy);
            continue;
        }
        if let Some(most) = rule.most {
            found.bounds(&format!("{key}.most"), most, u32::from(name == FINISH), MOST_MAX);
        }
        for (at, other) in rule.after.iter().enumerate() {
            let (key, no_tool) = (
                format!("{key}.after.{at}"),
                format!("there is no tool {other:?} that could be called before"),
            );
            match known(definition, &names, other) {
                Ok(()) if matches!(other.as_str(), FINISH | GIVE_UP) => found.add(key, no_tool),
                Ok(()) => {}
                Err(remedy) => found.add_with(key, no_tool, remedy),
            }
        }
        let Some(arguments) = &rule.arguments else { continue };
        let key = format!("{key}.arguments");
        if name == FINISH || name.split(':').next() == Some(REQUEST_TASK) {
            found.add(key, "the schemas of results and parts are run.result_schema and run.parts.KIND.input");
        } else if let Err(e) = check_setting(arguments) {
            found.add(key, format!("it is no JSON schema: {e}"));
        } else if arguments.get("type").and_then(|it| it.as_str()) != Some("object") {
            found.add(key, "its type must be \"object\"");
        }
    }
    if let Some(why) = no_end(definition) {
        found.add(format!("run.calls.{FINISH}"), format!("no run could end with a result: {why}"));
    }
}

/// The names that a rule may have, without those of the tools of servers.
fn names(definition: &Definition) -> BTreeSet<String> {
    let run = &definition.run;
    let own =
        [FINISH, GIVE_UP].into_iter().chain(run.tools.iter().map(String::as_str).filter(|name| *name == ASK));
    let mut names: BTreeSet<String> = own.map(str::to_owned).collect();
    names.extend(callables(definition).map(|tool| tool.name().to_owned()));
    names.extend(run.parts.keys().map(|kind| part_rule(kind)));
    names
}

/// Whether a tool can have this name in calls. The error is a remedy.
fn known(definition: &Definition, names: &BTreeSet<String>, name: &str) -> Result<(), String> {
    if names.contains(name) {
        return Ok(());
    }
    // The tools of a server are known when it is asked.
    let mut servers = definition.run.mcp.iter();
    let of_server = servers.find_map(|server| {
        let tool = server.tool_in_calls(name).filter(|tool| !tool.is_empty())?;
        Some((server, tool))
    });
    let Some((server, tool)) = of_server else {
        return Err(
            "use a name in calls (sql:read is sql_read there), SERVER__TOOL or request_task:KIND".into()
        );
    };
    let in_calls = server.name_in_calls(tool);
    if in_calls != name {
        Err(format!("the name of that tool in calls is {in_calls}"))
    } else if name.len() > CALLED_BYTES_MAX {
        Err(format!(
            "a name in calls has at most {CALLED_BYTES_MAX} bytes; a longer one is cut and gets a hash"
        ))
    } else if !server.may_offer(name) {
        Err(format!("{} lets in no tool of this name: see its allow, deny and pin", server.name))
    } else {
        Ok(())
    }
}

/// Why no run could end with a result. `None` if one can.
fn no_end(definition: &Definition) -> Option<String> {
    let (rules, limits) = (&definition.run.calls, &definition.limits);
    let finish = rules.get(FINISH)?;
    let after = |name: &str| rules.get(name).map_or(&[][..], |rule| rule.after.as_slice());
    // What must be called before `finish`.
    let (mut needed, mut more) = (BTreeSet::new(), finish.after.iter().collect::<Vec<_>>());
    while let Some(name) = more.pop() {
        if needed.insert(name.as_str()) {
            let tool = name.strip_prefix(REQUEST_TASK).filter(|kind| kind.starts_with(':'));
            more.extend(after(name).iter().chain(tool.map_or(&[][..], |_| after(REQUEST_TASK))));
        }
    }
    let kinds: Vec<String> = definition.run.parts.keys().map(|kind| part_rule(kind)).collect();
    let opens = |name: &str, open: &BTreeSet<&str>| {
        // A kind of parts is open only with the tool that requests it.
        let tool = name.split_once(':').map_or(name, |(tool, _)| tool);
        [name, tool]
            .into_iter()
            .filter_map(|name| rules.get(name))
            .all(|rule| !rule.is_never_open() && rule.after.iter().all(|other| open.contains(other.as_str())))
    };
    // Answer by answer, all that is open is called. `request_task` has been called with the first kind of parts.
    let (mut open, mut answers) = (BTreeSet::<&str>::new(), 0_u32);
    while !needed.iter().all(|name| open.contains(name)) {
        let candidates = needed.iter().copied().chain(kinds.iter().map(String::as_str));
        let candidates = candidates.filter(|name| *name != REQUEST_TASK && !open.contains(name));
        let called: BTreeSet<&str> = candidates.filter(|name| opens(name, &open)).collect();
        if called.is_empty() {
            let missing = finish.after.iter().find(|name| !open.contains(name.as_str()))?;
            return Some(format!("{missing} is never open"));
        }
        if called.iter().any(|name| name.contains(':')) {
            open.insert(REQUEST_TASK);
        }
        open.extend(called);
        answers += 1;
    }
    let parts = needed.iter().filter(|name| name.contains(':')).count();
    // If all parts that are needed wait for another one, it is one more.
    let mut before = BTreeSet::<&str>::new();
    loop {
        let names = needed.difference(&before).copied().filter(|name| *name != REQUEST_TASK);
        let more: Vec<&str> = names.filter(|name| opens(name, &before)).collect();
        if more.is_empty() {
            break;
        }
        before.extend(more);
    }
    let is_one_more = needed.contains(REQUEST_TASK) && !before.iter().any(|name| name.contains(':'));
    let parts = u32::try_from(parts).unwrap_or(u32::MAX).saturating_add(u32::from(is_one_more));
    let others = needed.iter().filter(|name| **name != REQUEST_TASK && !name.contains(':')).count();
    let calls = u32::try_from(others).unwrap_or(u32::MAX).saturating_add(parts);
    let steps = if definition.run.tools_by == Some(ToolsBy::Schema) { calls } else { answers };
    let most_parts = rules.get(REQUEST_TASK).and_then(|rule| rule.most).unwrap_or(u32::MAX);
    if parts > most_parts {
        return Some(format!(
            "it needs {parts} calls of {REQUEST_TASK}, which may be called {most_parts} times"
        ));
    }
    if calls > limits.calls() {
        return Some(format!("it needs {calls} calls, and limits.calls_max is {}", limits.calls()));
    }
    // The question behind the last step still offers `finish`.
    (steps > limits.steps())
        .then(|| format!("it needs {steps} answers before, and limits.steps_max is {}", limits.steps()))
}

#[cfg(test)]
mod tests {
    use super::{super::tests::problems, *};

    const TOOLS: &str =
        "tools = [\"ask\", \"look\", \"tasks\", \"request_task\"]\nparts = { a = [\"x\"], b = [\"y\"] }\n";

    fn of(calls: &str) -> Vec<String> {
        let look =
            "[[tool]]\nname = \"look\"\nkind = \"http\"\nurl = \"http://127.0.0.1:1/\"\neffect = \"read\"";
        problems(&format!("{TOOLS}[run.calls]\n{calls}\n{look}"))
    }

    #[test]
    fn rules_of_every_kind_of_name_have_no_problem() {
        let calls = r#"
            ask = { most = 1 }
            give_up = { most = 0, after = ["look"], arguments = { type = "object" } }
            look = { most = 2, arguments = { type = "object" } }
            files__read = { after = ["look", "files__list"] }
            tasks = { after = ["request_task"] }
            "request_task:b" = { most = 1, after = ["request_task:a"] }
            finish = { after = ["request_task:b", "tasks"] }
            [[run.mcp]]
            name = "files"
            command = ["sh", "-c", "true"]
            allow = ["*"]"#;
        assert_eq!(of(calls), Vec::<String>::new());
    }

    #[test]
    fn rule_that_means_nothing_is_a_problem() {
        let look = "run.calls.look";
        for (calls, told) in [
            ("other = {}", "run.calls.other: there is no tool \"other\"".to_owned()),
            ("fetch = {}", "run.calls.fetch: there is no tool \"fetch\"".into()),
            (
                "\"request_task:c\" = {}",
                "run.calls.request_task:c: there is no tool \"request_task:c\"".into(),
            ),
            ("files__read = {}", "run.calls.files__read: there is no tool \"files__read\"".into()),
            ("look = { most = 10001 }", format!("{look}.most: 10001 is not in 0 to 10000")),
            ("finish = { most = 0 }", "run.calls.finish.most: 0 is not in 1 to 10000".into()),
            (
                "look = { after = [\"tasks\", \"finish\"] }",
                format!("{look}.after.1: there is no tool \"finish\" that could be called before"),
            ),
            ("look = { arguments = { type = \"odd\" } }", format!("{look}.arguments: it is no JSON schema")),
            ("look = { arguments = {} }", format!("{look}.arguments: its type must be \"object\"")),
            (
                "finish = { arguments = { type = \"object\" } }",
                "run.calls.finish.arguments: the schemas of results and parts are".into(),
            ),
        ] {
            let found = of(calls);
            assert!(found.len() == 1 && found[0].starts_with(&told), "{calls}: {found:?}");
        }
    }

    #[test]
    fn end_that_never_opens_is_a_problem() {
        for (calls, missing) in [
            ("finish = { after = [\"look\"] }\nlook = { most = 0 }", "look"),
            (
                "finish = { after = [\"tasks\"] }\nlook = { after = [\"tasks\"] }\ntasks = { after = [\"look\"] }",
                "tasks",
            ),
            (
                "finish = { after = [\"request_task:a\"] }\nrequest_task = { after = [\"request_task:b\"] }",
                "request_task:a",
            ),
            (
                "finish = { after = [\"request_task\"] }\n\"request_task:a\" = { most = 0 }\n\"request_task:b\" = { most = 0 }",
                "request_task",
            ),
            (
                "finish = { after = [\"tasks\"] }\ntasks = { after = [\"request_task\"] }\nrequest_task = { most = 0 }",
                "tasks",
            ),
        ] {
            let told = format!("run.calls.finish: no run could end with a result: {missing} is never open");
            assert_eq!(of(calls), [told], "{calls}");
        }
        let reached = "finish = { after = [\"request_task:a\"] }\nrequest_task = { after = [\"look\"] }";
        assert_eq!(of(reached), Vec::<String>::new());
    }

    #[test]
    fn end_that_needs_more_calls_than_there_may_be_is_a_problem() {
        let both = "finish = { after = [\"request_task:a\", \"request_task:b\"] }";
        let other_first =
            "finish = { after = [\"request_task:a\"] }\n\"request_task:a\" = { after = [\"request_task\"] }";
        let chain = "finish = { after = [\"tasks\"] }\ntasks = { after = [\"look\"] }";
        for (calls, limits, why) in [
            (
                format!("{both}\nrequest_task = {{ most = 1 }}"),
                "",
                "2 calls of request_task, which may be called 1 times",
            ),
            (format!("{both}\nrequest_task = {{ most = 2 }}"), "", ""),
            (
                format!("{other_first}\nrequest_task = {{ most = 1 }}"),
                "",
                "2 calls of request_task, which may be called 1 times",
            ),
            (format!("{other_first}\nrequest_task = {{ most = 2 }}"), "", ""),
            (
                "request_task = { most = 1 }\n\"request_task:a\" = { after = [\"look\"] }\nfinish = { after = [\"request_task:a\", \"request_task\"] }".into(),
                "calls_max = 2",
                "",
            ),
            (
                "request_task = { most = 1 }\ntasks = { after = [\"request_task\"] }\nfinish = { after = [\"tasks\", \"request_task:a\"] }".into(),
                "calls_max = 2",
                "",
            ),
            (
                "request_task = { most = 1 }\ntasks = { after = [\"request_task\"] }\n\"request_task:a\" = { after = [\"tasks\"] }\nfinish = { after = [\"request_task:a\"] }".into(),
                "",
                "2 calls of request_task, which may be called 1 times",
            ),
            (chain.into(), "calls_max = 1", "2 calls, and limits.calls_max is 1"),
            (chain.into(), "steps_max = 1", "2 answers before, and limits.steps_max is 1"),
            (chain.into(), "steps_max = 2\ncalls_max = 2", ""),
            (both.into(), "steps_max = 1", ""),
        ] {
            let limits = if limits.is_empty() { String::new() } else { format!("[limits]\n{limits}\n") };
            let found = of(&format!("{calls}\n{limits}"));
            match why {
                "" => assert_eq!(found, Vec::<String>::new(), "{calls} {limits}"),
                why => assert_eq!(
                    found,
                    [format!("run.calls.finish: no run could end with a result: it needs {why}")],
                    "{calls} {limits}"
                ),
            }
        }
    }

    #[test]
    fn name_that_no_tool_of_a_server_has_in_calls_is_a_problem() {
        let definition: Definition = toml::from_str(
            "id = \"t\"\nrun.kind = \"llm\"\n[[run.mcp]]\nname = \"files\"\ncommand = [\"sh\"]\nallow = [\"Read-*\", \"x*\", \"DROP\"]",
        )
        .unwrap();
        let long = "x".repeat(60);
        for (tool, remedy) in [
            ("read_it", ""),
            ("drop", ""),
            ("Read-it", "the name of that tool in calls is files__read_it"),
            ("read.it", "the name of that tool in calls is files__read_it"),
            ("größe", "the name of that tool in calls is files__gr__e"),
            (long.as_str(), "a name in calls has at most 63 bytes; a longer one is cut and gets a hash"),
            ("write", "files lets in no tool of this name: see its allow, deny and pin"),
        ] {
            let name = format!("files__{tool}");
            let mut shut = definition.clone();
            shut.run.mcp[0].deny = vec!["*".into()];
            assert!(known(&shut, &names(&shut), &name).is_err(), "{tool}");
            let told = known(&definition, &names(&definition), &name);
            assert_eq!(told.err().unwrap_or_default(), remedy, "{tool}");
        }
    }
}
