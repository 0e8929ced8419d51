//! The checks of `run.calls`.
use super::Problems;
use crate::{
    agent::{
        CallRule, Definition,
        definition::{CALLED_BYTES_MAX, REQUEST_TASK, part_rule},
        think::{ASK, FINISH, GIVE_UP, ToolsBy},
        tool::callables,
    },
    task::check_setting,
};
use std::collections::{BTreeMap, BTreeSet};

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
    let order = Order { rules: &definition.run.calls };
    let finish = order.rules.get(FINISH)?;
    let required = order.required_before(finish);
    let kinds: Vec<String> = definition.run.parts.keys().map(|kind| part_rule(kind)).collect();
    let all: BTreeSet<&str> = required.iter().copied().chain(kinds.iter().map(String::as_str)).collect();
    let (called, answers) = order.call_all(&all, &required, true);
    if let Some(missing) = finish.after.iter().find(|name| !called.contains(name.as_str())) {
        return Some(format!("{missing} is never open"));
    }
    let is_part = |name: &&str| name.contains(':');
    // A part may itself be the call of `request_task` that others wait for, unless all required ones wait for it too.
    let (without_other_parts, _) = order.call_all(&required, &required, false);
    let needs_another_part = required.contains(REQUEST_TASK) && !without_other_parts.iter().any(is_part);
    let parts = count(required.iter().copied().filter(is_part)) + u32::from(needs_another_part);
    let calls =
        parts + count(required.iter().copied().filter(|name| *name != REQUEST_TASK && !is_part(name)));
    let steps = if definition.run.tools_by == Some(ToolsBy::Schema) { calls } else { answers };
    let most_parts = order.rules.get(REQUEST_TASK).and_then(|rule| rule.most).unwrap_or(u32::MAX);
    let limits = &definition.limits;
    if parts > most_parts {
        Some(format!("it needs {parts} calls of {REQUEST_TASK}, which may be called {most_parts} times"))
    } else if calls > limits.calls() {
        Some(format!("it needs {calls} calls, and limits.calls_max is {}", limits.calls()))
    } else if steps > limits.steps() {
        // The question behind the last step still offers `finish`.
        Some(format!("it needs {steps} answers before, and limits.steps_max is {}", limits.steps()))
    } else {
        None
    }
}

/// The order of calls that the rules of a definition allow.
struct Order<'a> {
    rules: &'a BTreeMap<String, CallRule>,
}

impl<'a> Order<'a> {
    /// The rules that a call must satisfy: its own, and for a kind of parts that of `request_task`.
    fn rules_of(&self, name: &str) -> impl Iterator<Item = &'a CallRule> {
        let tool = name.split_once(':').map(|(tool, _)| tool);
        [Some(name), tool].into_iter().flatten().filter_map(|name| self.rules.get(name))
    }

    /// All names that must be called before a tool with this rule: its `after`, theirs, and so on.
    fn required_before(&self, rule: &'a CallRule) -> BTreeSet<&'a str> {
        let (mut required, mut more) = (BTreeSet::new(), rule.after.iter().collect::<Vec<_>>());
        while let Some(name) = more.pop() {
            if required.insert(name.as_str()) {
                more.extend(self.rules_of(name).flat_map(|rule| &rule.after));
            }
        }
        required
    }

    /// Calls in each answer all of `names` that are open, until all of `goal` were called or no more open. Returns what
    /// was called, and in how many answers. `request_task` is called by its first kind of parts if `parts_call_it`, else
    /// never.
    fn call_all<'b>(
        &self,
        names: &BTreeSet<&'b str>,
        goal: &BTreeSet<&str>,
        parts_call_it: bool,
    ) -> (BTreeSet<&'b str>, u32) {
        let (mut called, mut answers) = (BTreeSet::new(), 0);
        while !goal.iter().all(|name| called.contains(name)) {
            let is_open = |name: &&str| {
                self.rules_of(name).all(|rule| {
                    !rule.is_never_open() && rule.after.iter().all(|other| called.contains(other.as_str()))
                })
            };
            let waiting = names.difference(&called).copied().filter(|name| *name != REQUEST_TASK);
            let open: Vec<&str> = waiting.filter(is_open).collect();
            if open.is_empty() {
                break;
            }
            if parts_call_it && open.iter().any(|name| name.contains(':')) {
                called.insert(REQUEST_TASK);
            }
            called.extend(open);
            answers += 1;
        }
        (called, answers)
    }
}

fn count<'a>(names: impl Iterator<Item = &'a str>) -> u32 {
    u32::try_from(names.count()).unwrap_or(u32::MAX / 2)
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
