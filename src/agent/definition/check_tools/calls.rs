//! The checks of `run.calls`.
use super::Problems;
use crate::{
    agent::{
        Definition,
        definition::{REQUEST_TASK, part_rule},
        think::{ASK, FINISH, GIVE_UP},
        tool::callables,
    },
    task::check_setting,
};
use std::collections::BTreeSet;

/// Most calls that a rule may name: a run has no more.
const MOST_MAX: u32 = 10_000;

pub(super) fn check(definition: &Definition, found: &mut Problems) {
    let run = &definition.run;
    let names = names(definition);
    // The tools of a server are known when it is asked.
    let of_server = |name: &str| {
        name.split_once("__")
            .is_some_and(|(server, tool)| !tool.is_empty() && run.mcp.iter().any(|mcp| mcp.name == server))
    };
    let is_known = |name: &str| names.contains(name) || of_server(name);
    for (name, rule) in &run.calls {
        let key = format!("run.calls.{name}");
        if !is_known(name) {
            let remedy =
                "use a name in calls (sql:read is sql_read there), SERVER__TOOL or request_task:KIND";
            found.add_with(key, format!("there is no tool {name:?}"), remedy);
            continue;
        }
        if let Some(most) = rule.most {
            found.bounds(&format!("{key}.most"), most, u32::from(name == FINISH), MOST_MAX);
        }
        for (at, other) in rule.after.iter().enumerate() {
            if !is_known(other) || matches!(other.as_str(), FINISH | GIVE_UP) {
                found.add(
                    format!("{key}.after.{at}"),
                    format!("there is no tool {other:?} that could be called before"),
                );
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
    if let Some(missing) = unreachable(definition) {
        found.add(
            format!("run.calls.{FINISH}"),
            format!("no run could end with a result: {missing} is never open"),
        );
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

/// A name that the end of a run waits for, and that never opens. `None` if a run can end.
fn unreachable(definition: &Definition) -> Option<&str> {
    let rules = &definition.run.calls;
    let finish = rules.get(FINISH)?;
    let named: BTreeSet<&str> = rules.values().flat_map(|rule| &rule.after).map(String::as_str).collect();
    let mut open: BTreeSet<&str> = BTreeSet::new();
    loop {
        let opens = |name: &str| {
            // A kind of parts is open only with the tool that requests it.
            let tool = name.split_once(':').map_or(name, |(tool, _)| tool);
            [name, tool].into_iter().filter_map(|name| rules.get(name)).all(|rule| {
                rule.most != Some(0) && rule.after.iter().all(|other| open.contains(other.as_str()))
            })
        };
        let more: Vec<&str> = named.difference(&open).copied().filter(|name| opens(name)).collect();
        if more.is_empty() {
            return finish.after.iter().map(String::as_str).find(|name| !open.contains(name));
        }
        open.extend(more);
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::problems;

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
        ] {
            let told = format!("run.calls.finish: no run could end with a result: {missing} is never open");
            assert_eq!(of(calls), [told]);
        }
        let reached = "finish = { after = [\"request_task:a\"] }\nrequest_task = { after = [\"look\"] }";
        assert_eq!(of(reached), Vec::<String>::new());
    }
}
