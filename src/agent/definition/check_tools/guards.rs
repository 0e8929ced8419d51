//! The checks of `[[guard]]`.
use crate::{
    agent::{
        Definition, Guard, GuardOn, Tool, ToolKind,
        definition::check::Problems,
        tool::{Callable, callables},
    },
    task::{Effect, check_setting},
};
use std::collections::HashSet;

/// Most guards of an agent.
const GUARDS_MAX: usize = 32;

pub(super) fn check(definition: &Definition, found: &mut Problems) {
    if definition.guard.is_empty() {
        return;
    }
    if !definition.run.thinks() {
        found.add("guard", "it counts only for an agent with run.tools");
    }
    if definition.guard.len() > GUARDS_MAX {
        found.add("guard", format!("{} guards: {GUARDS_MAX} are the most", definition.guard.len()));
    }
    let mut seen = HashSet::new();
    for (at, guard) in definition.guard.iter().enumerate() {
        let place = format!("guard.{at}");
        if !Tool::is_name(&guard.name) {
            let message = format!("{:?} is not 1 to 63 of a-z 0-9 _, beginning with a letter", guard.name);
            found.add(format!("{place}.name"), message);
        } else if !seen.insert(&guard.name) {
            found.add(format!("{place}.name"), format!("{} is declared twice", guard.name));
        }
        judge(&place, guard, definition, found);
        judged(&place, guard, definition, found);
    }
}

/// What judges: one of three.
fn judge(place: &str, guard: &Guard, definition: &Definition, found: &mut Problems) {
    let given = [guard.regex.is_some(), guard.schema.is_some(), guard.tool.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        let remedy = "give it one of regex, schema and tool";
        found.add_with(
            place,
            format!("{} of regex, schema and tool judge", given.iter().filter(|it| **it).count()),
            remedy,
        );
    }
    if let Some(Err(e)) = guard.regex.as_deref().map(regex::Regex::new) {
        // The first line of its error is a headline, the last one the reason.
        let why = e.to_string();
        let why = why.lines().last().unwrap_or_default().trim().to_owned();
        found.add(format!("{place}.regex"), format!("it is no regular expression: {why}"));
    }
    if let Some(Err(why)) = guard.schema.as_ref().map(check_setting) {
        found.add(format!("{place}.schema"), format!("it is no JSON schema: {why}"));
    }
    if guard.replace.is_some() && guard.regex.is_none() {
        found.add(format!("{place}.replace"), "it counts only with regex");
    } else if guard.replace.is_some() && guard.on == GuardOn::Call {
        let message = "arguments are not replaced: a person who approved them would not have seen them";
        found.add(format!("{place}.replace"), message);
    }
    if let Some(name) = &guard.tool {
        match definition.declared(name) {
            None => found.add(format!("{place}.tool"), format!("there is no tool {name:?}")),
            Some(tool) if tool.effect() != Effect::Read || tool.kind == ToolKind::Sql => {
                let message = format!("{name} is no command or http tool with effect = \"read\"");
                found.add(format!("{place}.tool"), message);
            }
            Some(_) => {}
        }
    }
}

/// What is judged.
fn judged(place: &str, guard: &Guard, definition: &Definition, found: &mut Problems) {
    let of_tools = matches!(guard.on, GuardOn::Call | GuardOn::Result);
    if !of_tools && !guard.tools.is_empty() {
        found.add(format!("{place}.tools"), "it counts only with on = \"call\" or \"result\"");
    }
    if guard.on != GuardOn::Result {
        return;
    }
    // Such a result is there only when its commit is.
    let names = callables(definition).filter(Callable::commits_with_its_step);
    let names: Vec<String> = names.map(|tool| tool.name().to_owned()).collect();
    if let Some(name) = names.iter().find(|name| guard.judges(GuardOn::Result, Some(name))) {
        let message = format!("the result of {name} is committed with its effect, so it cannot be judged");
        found.add_with(format!("{place}.tools"), message, "list the tools whose results are judged");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::problems;

    #[test]
    fn guards_of_every_kind_have_no_problem() {
        let text = r#"
            tools = ["look", "write"]
            [[tool]]
            name = "look"
            kind = "command"
            argv = ["true"]
            effect = "read"
            [[tool]]
            name = "write"
            kind = "sql"
            role = "r"
            statement = "select 1"
            [[tool]]
            name = "judge"
            kind = "http"
            url = "http://127.0.0.1:1"
            effect = "read"
            [[guard]]
            name = "cards"
            on = "result"
            tools = ["look"]
            regex = '\b\d{16}\b'
            replace = "[card]"
            [[guard]]
            name = "small"
            on = "call"
            tools = ["wr*"]
            schema = { properties = { n = { maximum = 3 } } }
            [[guard]]
            name = "polite"
            on = "answer"
            tool = "judge"
            [[guard]]
            name = "start"
            on = "input"
            regex = "secret"
        "#;
        assert_eq!(problems(text), Vec::<String>::new());
    }

    #[test]
    fn every_mistake_of_a_guard_is_reported_with_its_key() {
        let text = r#"
            tools = ["write"]
            [[tool]]
            name = "write"
            kind = "sql"
            role = "r"
            statement = "select 1"
            [[guard]]
            name = "A"
            on = "result"
            regex = "("
            schema = { type = 7 }
            [[guard]]
            name = "b"
            on = "input"
            tools = ["x"]
            tool = "write"
            replace = "x"
            [[guard]]
            name = "b"
            on = "call"
            regex = "x"
            replace = "y"
            [[guard]]
            name = "c"
            on = "answer"
            tool = "missing"
            [[guard]]
            name = "d"
            on = "answer"
        "#;
        let found = problems(text);
        let told = |part: &str| assert!(found.iter().any(|line| line.contains(part)), "{part}: {found:#?}");
        told("guard.0.name: \"A\" is not 1 to 63");
        told("guard.0: 2 of regex, schema and tool judge");
        told("guard.0.regex: it is no regular expression: ");
        told("guard.0.schema: it is no JSON schema: ");
        told("guard.0.tools: the result of write is committed with its effect");
        told("guard.1.tool: write is no command or http tool");
        told("guard.1.replace: it counts only with regex");
        told("guard.1.tools: it counts only with on = \"call\" or \"result\"");
        told("guard.2.name: b is declared twice");
        told("guard.2.replace: arguments are not replaced");
        told("guard.3.tool: there is no tool \"missing\"");
        told("guard.4: 0 of regex, schema and tool judge");
        assert_eq!(found.len(), 12, "{found:#?}");
    }
}
