//! The checks of `run.tools` and `[[tool]]`.
mod calls;
mod guards;
mod mcp;

use super::{
    ApprovalRule, Definition, FETCH, FORGET, Kind, OnUnknown, PUBLIC, RECALL, REMEMBER, REQUEST_TASK,
    SQL_READ, TASKS, Tool, ToolKind,
    check::{Problems, check_program, url_problem},
};
use crate::{
    agent::{
        Env,
        think::ASK,
        tool::{judge::name_and_port, named_values},
    },
    task::{Effect, check_setting, is_word},
};
use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};

/// The tools that the daemon has itself.
const BUILT_IN: [&str; 8] = [ASK, FETCH, FORGET, RECALL, REMEMBER, REQUEST_TASK, SQL_READ, TASKS];
/// Most tools of an agent.
const TOOLS_MAX: usize = 64;
/// Most bytes of all tools as the model sees them.
const TOOLS_BYTES_MAX: usize = 128 << 10;

pub(super) fn check(definition: &Definition, env: &Env, found: &mut Problems) {
    let (run, limits) = (&definition.run, &definition.limits);
    if definition.run.kind != Kind::Llm && !definition.tool.is_empty() {
        found.add("tool", "only kind = \"llm\" has a model that could call a tool");
    }
    if !run.thinks() {
        for (key, is_given) in [
            ("run.tools_by", run.tools_by.is_some()),
            ("run.calls", !run.calls.is_empty()),
            ("run.stream", run.stream.is_some()),
            ("limits.steps_max", limits.steps_max.is_some()),
            ("limits.calls_max", limits.calls_max.is_some()),
        ] {
            if is_given {
                found.add(key, "it counts only for an agent with run.tools");
            }
        }
    } else if run.response_format.is_some() {
        let remedy = "leave the key out, or choose run.tools_by = \"schema\"";
        found.add_with("run.response_format", "an agent with tools gives its result with a tool", remedy);
    }
    if let Some(steps) = limits.steps_max {
        found.bounds("limits.steps_max", steps, 1, 1_000);
    }
    if let Some(calls) = limits.calls_max {
        found.bounds("limits.calls_max", calls, 1, 10_000);
    }
    if let Some(stream) = run.stream {
        for (key, wait) in [("first_byte", stream.first_byte), ("silence", stream.silence)] {
            if wait < Duration::from_millis(10) {
                found.add(format!("run.stream.{key}"), "it must be 10ms or more");
            }
        }
    }
    names(definition, found);
    sql_read(definition, found);
    fetch(definition, found);
    parts(definition, found);
    mcp::check(definition, env, found);
    calls::check(definition, found);
    guards::check(definition, found);
    for (at, tool) in definition.tool.iter().enumerate() {
        one(&format!("tool.{at}"), tool, definition, env, found);
    }
}

/// The names in `run.tools` and in `[[tool]]` must be the same.
fn names(definition: &Definition, found: &mut Problems) {
    let mut seen = HashSet::new();
    for (at, name) in definition.run.tools.iter().enumerate() {
        let key = format!("run.tools.{at}");
        if !seen.insert(name) {
            found.add(key, format!("{name} is listed twice"));
        } else if !BUILT_IN.contains(&name.as_str()) && definition.declared(name).is_none() {
            let message = format!("there is no tool {name:?}");
            found.add_with(
                key,
                message,
                "declare it with [[tool]], or use a built-in one: ask, fetch, forget, recall, remember, request_task, sql:read, tasks",
            );
        }
    }
    if definition.tool.len() > TOOLS_MAX {
        found.add("tool", format!("{} tools: {TOOLS_MAX} are the most", definition.tool.len()));
    }
    let bytes = |tool: &Tool| tool.name.len() + tool.description.len() + tool.parameters.to_string().len();
    let bytes: usize = definition.tool.iter().map(bytes).sum();
    if bytes > TOOLS_BYTES_MAX {
        found.add("tool", format!("the tools have {bytes} bytes: {TOOLS_BYTES_MAX} are the most"));
    }
    let mut seen = HashSet::new();
    for (at, tool) in definition.tool.iter().enumerate() {
        let key = format!("tool.{at}.name");
        if !Tool::is_name(&tool.name) {
            found.add(key, format!("{:?} is not 1 to 63 of a-z 0-9 _, beginning with a letter", tool.name));
        } else if Tool::is_built_in(&tool.name) {
            found.add(key, format!("{} is a built-in tool", tool.name));
        } else if !seen.insert(&tool.name) {
            found.add(key, format!("{} is declared twice", tool.name));
        } else if !definition.run.tools.contains(&tool.name) && !judges(definition, &tool.name) {
            let message = format!("{} is not in run.tools, so it is never offered", tool.name);
            found.add_with(key, message, "add it to run.tools, or remove it");
        }
    }
}

/// `sql:read` and its login belong together.
fn sql_read(definition: &Definition, found: &mut Problems) {
    let is_used = definition.run.tools.iter().any(|name| name == SQL_READ);
    match &definition.run.sql {
        None if is_used => {
            let remedy = "create a login role that may select what the agent reads, and name it: [run.sql] role = \"…\"";
            found.add_with("run.sql", "sql:read needs a login role of its own", remedy);
        }
        Some(_) if !is_used => found.add("run.sql", "it counts only with sql:read in run.tools"),
        Some(sql) if sql.role.is_empty() => found.add("run.sql.role", "role is empty: it is a login role"),
        _ => {}
    }
    let variable = definition.run.sql.as_ref().and_then(|sql| sql.password_env.as_ref());
    if let Some(name) = variable.filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
        found.add("run.sql.password_env", format!("{name:?} is no name of an environment variable"));
    }
}

/// `request_task` and the kinds of parts belong together, and the tools of the memory and its settings.
fn parts(definition: &Definition, found: &mut Problems) {
    let run = &definition.run;
    let is_used = run.tools.iter().any(|name| name == REQUEST_TASK);
    if is_used && run.parts.is_empty() {
        let remedy = "list them: [run.parts] \"research.look\" = [\"research\"]";
        found.add_with("run.parts", "request_task needs the kinds of parts that it may request", remedy);
    } else if !is_used && !run.parts.is_empty() {
        found.add("run.parts", "it counts only with request_task in run.tools");
    }
    let remembers = [FORGET, RECALL, REMEMBER];
    if run.memory.is_some() && !run.tools.iter().any(|name| remembers.contains(&name.as_str())) {
        found.add("run.memory", "it counts only with forget, recall or remember in run.tools");
    }
    let words = run.parts.iter().flat_map(|(kind, part)| std::iter::once(kind).chain(&part.requires));
    for word in words.filter(|word| !is_word(word)) {
        let message = format!("{word:?} is no kind or capability: 1 to 200 bytes without control characters");
        found.add("run.parts", message);
    }
    for (kind, part) in &run.parts {
        if let Some(Err(e)) = part.input.as_ref().map(check_setting) {
            found.add(format!("run.parts.{kind}.input"), format!("it is no JSON schema: {e}"));
        }
    }
}

/// `fetch` and its hosts belong together.
fn fetch(definition: &Definition, found: &mut Problems) {
    let is_used = definition.run.tools.iter().any(|name| name == FETCH);
    let Some(fetch) = &definition.run.fetch else {
        if is_used {
            let remedy = "list them: [run.fetch] hosts = [\"docs.example.com\"]";
            found.add_with("run.fetch", "fetch needs the hosts that it may reach", remedy);
        }
        return;
    };
    if !is_used {
        found.add("run.fetch", "it counts only with fetch in run.tools");
    }
    if fetch.hosts.is_empty() && fetch.private_hosts.is_empty() {
        found.add("run.fetch.hosts", "no host: nothing could be fetched");
    }
    if fetch.methods.is_empty() {
        found.add("run.fetch.methods", "no method: name GET or HEAD");
    }
    for (key, hosts) in [("hosts", &fetch.hosts), ("private_hosts", &fetch.private_hosts)] {
        for (at, host) in hosts.iter().enumerate() {
            let (name, _) = name_and_port(host);
            let name = name.strip_prefix("*.").unwrap_or(name);
            let as_host = reqwest::Url::parse(&format!("http://{name}/"));
            let is_host = as_host.is_ok_and(|url| {
                url.host_str() == Some(&name.to_ascii_lowercase())
                    && url.path() == "/"
                    && url.port().is_none()
            });
            if !is_host {
                let message =
                    format!("{host:?} is no name of a host, *.name or address, with or without :port");
                found.add(format!("run.fetch.{key}.{at}"), message);
            } else if key == "private_hosts" && name == PUBLIC {
                found.add(format!("run.fetch.{key}.{at}"), "name each host that may have a private address");
            }
        }
    }
    check_headers("run.fetch.headers_env", &fetch.headers_env, found);
}

fn check_headers(key: &str, headers: &BTreeMap<String, String>, found: &mut Problems) {
    for (header, variable) in headers {
        let is_header = reqwest::header::HeaderName::try_from(header.as_str()).is_ok();
        if !is_header || variable.is_empty() || variable.contains(['=', '\0']) {
            let message = format!("{header:?} = {variable:?} is no header with the name of a variable");
            found.add(key, message);
        }
    }
}

fn one(place: &str, tool: &Tool, definition: &Definition, env: &Env, found: &mut Problems) {
    if let Err(e) = check_setting(&tool.parameters) {
        found.add(format!("{place}.parameters"), format!("it is no JSON schema: {e}"));
    } else if tool.parameters.get("type").and_then(|it| it.as_str()) != Some("object") {
        found.add(format!("{place}.parameters"), "its type must be \"object\"");
    }
    let timeout = tool.timeout();
    if timeout < Duration::from_millis(10) || timeout > Duration::from_secs(3_600) {
        found.add(format!("{place}.timeout"), "it must be 10ms to 1h");
    }
    costs(place, tool, found);
    approval(&format!("{place}.approval"), tool.approval.as_ref(), found);
    unknown(place, tool, definition, found);
    found.bounds(&format!("{place}.output_bytes"), tool.output_bytes, 256, 1 << 20);
    let allowed: &[Effect] = match tool.kind {
        ToolKind::Sql => &[Effect::Read, Effect::Database],
        ToolKind::Command | ToolKind::Http => &[Effect::Read, Effect::Keyed, Effect::Checked, Effect::Once],
    };
    if !allowed.contains(&tool.effect()) {
        let words: Vec<&str> = allowed.iter().map(|effect| effect.as_str()).collect();
        found.add(format!("{place}.effect"), format!("a tool of this kind has {}", words.join(" or ")));
    }
    for (key, kind, is_given) in [
        ("argv", ToolKind::Command, tool.argv.is_some()),
        ("env", ToolKind::Command, !tool.env.is_empty()),
        ("on_daemon_death", ToolKind::Command, tool.on_daemon_death.is_some()),
        ("url", ToolKind::Http, tool.url.is_some()),
        ("headers_env", ToolKind::Http, !tool.headers_env.is_empty()),
        ("statement", ToolKind::Sql, tool.statement.is_some()),
        ("role", ToolKind::Sql, tool.role.is_some()),
    ] {
        if is_given && kind != tool.kind {
            found.add(format!("{place}.{key}"), format!("{key} does not belong to this kind of tool"));
        }
    }
    match tool.kind {
        ToolKind::Command => match tool.argv.as_deref() {
            None | Some([]) => {
                found.add(format!("{place}.argv"), "argv is missing: there is no command to run")
            }
            Some([name, ..]) => check_program(&format!("{place}.argv"), name, definition, env, found),
        },
        ToolKind::Http => http(place, tool, found),
        ToolKind::Sql => sql(place, tool, found),
    }
}

/// What a call costs.
fn costs(place: &str, tool: &Tool, found: &mut Problems) {
    let given = [
        ("cost_microdollars", tool.cost_microdollars),
        ("max_cost_microdollars", tool.max_cost_microdollars),
    ];
    for (key, _) in given.into_iter().filter(|(_, given)| given.is_some() && tool.kind == ToolKind::Sql) {
        found.add(format!("{place}.{key}"), "a statement in the daemon's own database costs nothing");
    }
    if let (Some(cost), Some(max)) = (tool.cost_microdollars, tool.max_cost_microdollars)
        && cost > max
    {
        let message = format!("{max} is less than cost_microdollars, {cost}");
        found.add(format!("{place}.max_cost_microdollars"), message);
    }
}

/// Whether the daemon itself calls it: a probe, or the tool of a guard.
fn judges(definition: &Definition, name: &str) -> bool {
    let probes = definition.tool.iter().filter_map(|tool| tool.probe.as_deref());
    let guards = definition.guard.iter().filter_map(|guard| guard.tool.as_deref());
    probes.chain(guards).any(|other| other == name)
}

/// What is known about the effect of a call, and what happens if it is not.
fn unknown(place: &str, tool: &Tool, definition: &Definition, found: &mut Problems) {
    let (effect, key) = (tool.effect(), format!("{place}.probe"));
    match &tool.probe {
        None if effect == Effect::Checked => {
            let remedy = "name a tool with effect = \"read\" that answers {\"happened\": true or false}";
            found.add_with(key, "a checked tool needs a probe that says whether a call happened", remedy);
        }
        Some(_) if effect != Effect::Checked => found.add(key, "it counts only with effect = \"checked\""),
        Some(probe) => match definition.declared(probe) {
            None => found.add(key, format!("there is no tool {probe:?}")),
            Some(probe) if probe.effect() != Effect::Read || probe.kind == ToolKind::Sql => {
                found.add(key, format!("{} is no command or http tool with effect = \"read\"", probe.name));
            }
            Some(_) => {}
        },
        None => {}
    }
    let is_known = matches!(effect, Effect::Read | Effect::Database);
    match tool.on_unknown {
        Some(_) if is_known => {
            found.add(format!("{place}.on_unknown"), "the outcome of such a tool is never unknown");
        }
        Some(OnUnknown::Retry) if effect == Effect::Once => {
            let remedy = "give it effect = \"keyed\" if it has one effect for each key, or a probe";
            found.add_with(format!("{place}.on_unknown"), "a once tool may not run again", remedy);
        }
        _ => {}
    }
    if tool.retries > 0 && !matches!(effect, Effect::Read | Effect::Keyed) {
        found.add(format!("{place}.retries"), "only a read or keyed tool may be repeated");
    } else if tool.retries > 0 && tool.kind == ToolKind::Sql {
        found.add(format!("{place}.retries"), "a statement is repeated by the daemon where that can help");
    }
    found.bounds(&format!("{place}.retries"), tool.retries, 0, 10);
    for (key, limit) in [("per_minute", tool.per_minute), ("concurrent", tool.concurrent)] {
        let Some(limit) = limit else { continue };
        found.bounds(&format!("{place}.{key}"), limit, 1, 10_000);
        if tool.kind == ToolKind::Sql {
            found.add(format!("{place}.{key}"), "a statement is limited by its timeout only");
        }
    }
}

fn approval(key: &str, rule: Option<&ApprovalRule>, found: &mut Problems) {
    let Some(rule) = rule else { return };
    if let Some(Err(e)) = rule.when.as_deref().map(ApprovalRule::template) {
        found.add(format!("{key}.when"), e.reason);
    }
    for (at, role) in rule.approvers.iter().enumerate() {
        if role.is_empty() || role == "anon" {
            found.add(format!("{key}.approvers.{at}"), format!("{role:?} is no role that may answer"));
        }
    }
    if rule.expires < Duration::from_secs(1) || rule.expires > Duration::from_secs(364 * 86_400) {
        found.add(format!("{key}.expires"), "it must be 1s to 364d");
    }
}

fn http(place: &str, tool: &Tool, found: &mut Problems) {
    match &tool.url {
        None => found.add(format!("{place}.url"), "url is missing: there is nowhere to POST"),
        Some(url) => url_problem(&format!("{place}.url"), url, found),
    }
    check_headers(&format!("{place}.headers_env"), &tool.headers_env, found);
}

fn sql(place: &str, tool: &Tool, found: &mut Problems) {
    if tool.role.as_deref().unwrap_or_default().is_empty() {
        let remedy =
            "create a role with the rights that the statement needs, and grant it to the daemon's role";
        found.add_with(format!("{place}.role"), "role is missing: the role that runs the statement", remedy);
    }
    let Some(statement) = &tool.statement else {
        return found.add(format!("{place}.statement"), "statement is missing");
    };
    let properties = tool.parameters.get("properties");
    for name in named_values::bind(statement).names {
        if properties.and_then(|it| it.get(&name)).is_none() {
            found.add(format!("{place}.statement"), format!(":{name} is not in parameters.properties"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::found_in;
    use super::*;

    /// The problems of a file with this text in its section `run`.
    pub(super) fn problems(text: &str) -> Vec<String> {
        let text = format!(
            "id = \"t\"\n[run]\nkind = \"llm\"\nmodel = \"m\"\nbase_url = \"http://127.0.0.1:1/v1\"\n{text}"
        );
        found_in(&text, &Env::of([("PATH", "/bin")]))
    }

    #[test]
    fn tools_of_every_kind_have_no_problem() {
        let text = r#"
            tools = ["a", "b", "c", "ask"]
            tools_by = "schema"
            [limits]
            steps_max = 3
            calls_max = 5
            [[tool]]
            name = "a"
            kind = "command"
            argv = ["sh", "-c", "true"]
            effect = "keyed"
            [[tool]]
            name = "b"
            kind = "http"
            url = "http://127.0.0.1:1/b"
            headers_env = { Authorization = "KEY" }
            approval = "always"
            [[tool]]
            name = "c"
            approval = { when = "{{ args.a > 3 }}", expires = "1h" }
            kind = "sql"
            role = "writer"
            statement = "update t set a = :a::int returning a, ':x'"
            parameters = { type = "object", properties = { a = { type = "integer" } } }
        "#;
        assert_eq!(problems(text), Vec::<String>::new());
    }

    #[test]
    fn every_mistake_is_reported_with_its_key() {
        let text = r#"
            tools = ["a", "a", "missing", "d"]
            response_format = "text"
            [limits]
            steps_max = 0
            [[tool]]
            name = "a"
            kind = "command"
            url = "http://x"
            effect = "database"
            timeout = "0s"
            output_bytes = 1
            [[tool]]
            name = "Big"
            kind = "http"
            parameters = { type = "array" }
            [[tool]]
            name = "finish"
            kind = "sql"
            effect = "once"
            statement = "select :x"
            [[tool]]
            name = "d"
            kind = "http"
            url = "http://x"
            headers_env = { "a b" = "KEY" }
            on_daemon_death = "kill"
            approval = { when = "args.amount > 3", expires = "0s", approvers = ["anon"] }
            [[tool]]
            name = "e"
            kind = "sql"
            role = "r"
            approval = { when = "{{ arg.a }}" }
        "#;
        assert_eq!(
            problems(text),
            [
                "run.response_format: an agent with tools gives its result with a tool",
                "limits.steps_max: 0 is not in 1 to 1000",
                "run.tools.1: a is listed twice",
                "run.tools.2: there is no tool \"missing\"",
                "tool.1.name: \"Big\" is not 1 to 63 of a-z 0-9 _, beginning with a letter",
                "tool.2.name: finish is a built-in tool",
                "tool.4.name: e is not in run.tools, so it is never offered",
                "tool.0.timeout: it must be 10ms to 1h",
                "tool.0.output_bytes: 1 is not in 256 to 1048576",
                "tool.0.effect: a tool of this kind has read or keyed or checked or once",
                "tool.0.url: url does not belong to this kind of tool",
                "tool.0.argv: argv is missing: there is no command to run",
                "tool.1.parameters: its type must be \"object\"",
                "tool.1.url: url is missing: there is nowhere to POST",
                "tool.2.effect: a tool of this kind has read or database",
                "tool.2.role: role is missing: the role that runs the statement",
                "tool.2.statement: :x is not in parameters.properties",
                "tool.3.approval.when: it has no {{ expression }}",
                "tool.3.approval.approvers.0: \"anon\" is no role that may answer",
                "tool.3.approval.expires: it must be 1s to 364d",
                "tool.3.on_daemon_death: on_daemon_death does not belong to this kind of tool",
                "tool.3.headers_env: \"a b\" = \"KEY\" is no header with the name of a variable",
                "tool.4.approval.when: there is no \"arg\": use args, task, agent, spent",
                "tool.4.statement: statement is missing",
            ]
        );
    }

    #[test]
    fn classes_of_tools_are_checked_together() {
        let tool = |name: &str, more: &str| {
            format!("[[tool]]\nname = \"{name}\"\nkind = \"http\"\nurl = \"http://x\"\n{more}\n")
        };
        let list = "tools = [\"a\", \"b\"]\n";
        let good = tool("a", "effect = \"checked\"\nprobe = \"p\"\non_unknown = \"retry\"")
            + &tool("p", "effect = \"read\"")
            + &tool("b", "effect = \"keyed\"\nretries = 2\nrepeat = true\non_unknown = \"tell\"");
        assert_eq!(problems(&format!("{list}{good}")), Vec::<String>::new());
        let bad = tool("a", "effect = \"checked\"\nretries = 1\nper_minute = 0")
            + &tool("b", "probe = \"a\"\non_unknown = \"retry\"\nretries = 11")
            + &tool("c", "effect = \"checked\"\nprobe = \"b\"")
            + &tool("d", "effect = \"checked\"\nprobe = \"z\"")
            + &tool("e", "effect = \"read\"\non_unknown = \"ask\"");
        let found = problems(&format!("tools = [\"a\", \"b\", \"c\", \"d\", \"e\"]\n{bad}"));
        assert_eq!(
            found,
            [
                "tool.0.probe: a checked tool needs a probe that says whether a call happened",
                "tool.0.retries: only a read or keyed tool may be repeated",
                "tool.0.per_minute: 0 is not in 1 to 10000",
                "tool.1.probe: it counts only with effect = \"checked\"",
                "tool.1.on_unknown: a once tool may not run again",
                "tool.1.retries: only a read or keyed tool may be repeated",
                "tool.1.retries: 11 is not in 0 to 10",
                "tool.2.probe: b is no command or http tool with effect = \"read\"",
                "tool.3.probe: there is no tool \"z\"",
                "tool.4.on_unknown: the outcome of such a tool is never unknown",
            ]
        );
    }

    #[test]
    fn settings_of_tools_without_tools_are_a_problem() {
        let found = problems("tools_by = \"native\"\n[limits]\ncalls_max = 5");
        let told = "it counts only for an agent with run.tools";
        assert_eq!(found, [format!("run.tools_by: {told}"), format!("limits.calls_max: {told}")]);
        let text = "id = \"t\"\n[run]\nkind = \"remote\"\n[[tool]]\nname = \"a\"\nkind = \"http\"\nurl = \"http://x\"";
        let found = found_in(text, &Env::of([]));
        let message = found[0].split_once(": ").map(|(_, message)| message);
        assert_eq!(message, Some("only kind = \"llm\" has a model that could call a tool"));
    }
}
