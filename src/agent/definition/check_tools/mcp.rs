//! The checks of `[[run.mcp]]`.
use super::{approval, check_headers};
use crate::{
    agent::{
        Definition, Env, McpPin, McpServer, Tool,
        definition::check::{Problems, check_program, url_problem},
    },
    task::Effect,
};
use std::{collections::HashSet, time::Duration};

/// The classes of effects that a tool of a server may have.
const ALLOWED: [Effect; 3] = [Effect::Read, Effect::Keyed, Effect::Once];
/// Most servers of an agent.
const SERVERS_MAX: usize = 16;

pub(super) fn check(definition: &Definition, env: &Env, found: &mut Problems) {
    let servers = &definition.run.mcp;
    if servers.len() > SERVERS_MAX {
        found.add("run.mcp", format!("{} servers: {SERVERS_MAX} are the most", servers.len()));
    }
    let mut seen = HashSet::new();
    for (at, server) in servers.iter().enumerate() {
        let place = format!("run.mcp.{at}");
        let name = &server.name;
        // With a _ at its end, a tool could have the name of another server's.
        if !Tool::is_name(name) || name.len() > 20 || name.contains("__") || name.ends_with('_') {
            let message = format!(
                "{name:?} is not 1 to 20 of a-z 0-9 _, beginning with a letter, without __ and _ at its end"
            );
            found.add(format!("{place}.name"), message);
        } else if !seen.insert(name) {
            found.add(format!("{place}.name"), format!("{name} is declared twice"));
        }
        one(&place, server, definition, env, found);
        for (at, tool) in definition.tool.iter().enumerate() {
            if server.tool_in_calls(&tool.name).is_some() {
                let message = format!("{} is a name that tools of the MCP server {name} may have", tool.name);
                found.add(format!("tool.{at}.name"), message);
            }
        }
    }
}

fn one(place: &str, server: &McpServer, definition: &Definition, env: &Env, found: &mut Problems) {
    match (&server.url, server.command.first()) {
        (Some(_), Some(_)) => found.add(format!("{place}.url"), "a server has a command or a url, not both"),
        (None, None) => found.add_with(
            format!("{place}.command"),
            "neither command nor url says where the server is",
            "name the program and its arguments, like command = [\"mcp-files\", \"/srv/data\"], or a url",
        ),
        (Some(url), None) => url_problem(&format!("{place}.url"), url, found),
        (None, Some(name)) => check_program(&format!("{place}.command"), name, definition, env, found),
    }
    for (key, of_url, is_given) in [
        ("cwd", false, server.cwd.is_some()),
        ("env", false, !server.env.is_empty()),
        ("env_set", false, !server.env_set.is_empty()),
        ("bearer_env", true, server.bearer_env.is_some()),
        ("headers_env", true, !server.headers_env.is_empty()),
    ] {
        if is_given && of_url != server.url.is_some() {
            let with = if of_url { "url" } else { "command" };
            found.add(format!("{place}.{key}"), format!("{key} belongs to a server with a {with}"));
        }
    }
    if let Some(cwd) = &server.cwd {
        let cwd = definition.folder.as_ref().map_or_else(|| cwd.clone(), |folder| folder.join(cwd));
        if !cwd.is_dir() {
            found.add(format!("{place}.cwd"), format!("{} is no folder", cwd.display()));
        }
    }
    let variables = server.env.iter().chain(server.env_set.keys()).chain(&server.bearer_env);
    for name in variables.filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
        found.add(place, format!("{name:?} is no name of an environment variable"));
    }
    check_headers(&format!("{place}.headers_env"), &server.headers_env, found);
    if server.allow.is_empty() {
        let remedy = "name its tools, like allow = [\"search\", \"read_*\"]";
        found.add_with(format!("{place}.allow"), "no tool is allowed", remedy);
    }
    if let Some((pattern, _)) = server.effects.iter().find(|(_, effect)| !ALLOWED.contains(effect)) {
        let message = "a tool of a server has read or keyed or once";
        found.add(format!("{place}.effects.{pattern}"), message);
    }
    for (pattern, rule) in &server.approval {
        approval(&format!("{place}.approval.{pattern}"), rule.0.as_ref(), found);
    }
    for (key, value) in [
        ("start_timeout", server.start_timeout),
        ("timeout", server.timeout),
        ("timeout_max", server.timeout_max),
    ] {
        if value < Duration::from_millis(10) || value > Duration::from_secs(86_400) {
            found.add(format!("{place}.{key}"), "it must be 10ms to 24h");
        }
    }
    found.bounds(&format!("{place}.result_bytes"), server.result_bytes, 256, 1 << 20);
    if let McpPin::Listed(pins) = &server.pin {
        let is_sha256 = |text: &String| text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit());
        for (tool, _) in pins.iter().filter(|(_, sha256)| !is_sha256(sha256)) {
            found.add(format!("{place}.pin.{tool}"), "it is no SHA-256 of 64 hexadecimal digits");
        }
    }
    if !server.found.is_empty() {
        found.add(format!("{place}.found"), "the daemon asks the server for its tools; remove the key");
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::problems, McpServer};

    #[test]
    fn servers_of_both_transports_have_no_problem() {
        let text = r#"
            tools_by = "schema"
            [[run.mcp]]
            name = "files"
            command = ["sh", "-c", "true"]
            env = ["HOME"]
            env_set = { LOG = "warn" }
            allow = ["read_*"]
            effects = { "read_*" = "read" }
            protocol = "2025-06-18"
            approval = { "*" = "never", read_all = { when = "{{ args.n > 3 }}", expires = "1h" } }
            pin = "off"
            [[run.mcp]]
            name = "far"
            url = "https://tools.example/mcp"
            bearer_env = "TOKEN"
            headers_env = { "X-Key" = "KEY" }
            allow = ["*"]
            deny = ["*delete*"]
            required = false
            pin = { search = "0000000000000000000000000000000000000000000000000000000000000000" }
        "#;
        assert_eq!(problems(text), Vec::<String>::new());
    }

    #[test]
    fn every_mistake_of_a_server_is_reported_with_its_key() {
        let text = r#"
            [[run.mcp]]
            name = "Files"
            allow = []
            bearer_env = "A=B"
            effects = { x = "database" }
            approval = { x = { when = "args.a", expires = "0s", approvers = ["anon"] } }
            timeout = "0s"
            result_bytes = 1
            pin = { x = "abc" }
            found = [{ name = "a", tool = "a", description = "", parameters = {}, effect = "read", sha256 = "" }]
            [[run.mcp]]
            name = "far"
            url = "ftp://x"
            cwd = "/"
            allow = ["*"]
            headers_env = { "a b" = "KEY" }
            [[run.mcp]]
            name = "far"
            url = "http://x"
            command = ["true"]
            allow = ["*"]
            [[run.mcp]]
            name = "near_"
            url = "http://x"
            allow = ["*"]
            [[tool]]
            name = "far__x"
            kind = "http"
            url = "http://x"
        "#;
        assert_eq!(
            problems(text)
                .into_iter()
                .filter(|line| line.starts_with("run.mcp") || line.contains("MCP"))
                .collect::<Vec<_>>(),
            [
                "run.mcp.0.name: \"Files\" is not 1 to 20 of a-z 0-9 _, beginning with a letter, without __ and _ at its end",
                "run.mcp.0.command: neither command nor url says where the server is",
                "run.mcp.0.bearer_env: bearer_env belongs to a server with a url",
                "run.mcp.0: \"A=B\" is no name of an environment variable",
                "run.mcp.0.allow: no tool is allowed",
                "run.mcp.0.effects.x: a tool of a server has read or keyed or once",
                "run.mcp.0.approval.x.when: it has no {{ expression }}",
                "run.mcp.0.approval.x.approvers.0: \"anon\" is no role that may answer",
                "run.mcp.0.approval.x.expires: it must be 1s to 364d",
                "run.mcp.0.timeout: it must be 10ms to 24h",
                "run.mcp.0.result_bytes: 1 is not in 256 to 1048576",
                "run.mcp.0.pin.x: it is no SHA-256 of 64 hexadecimal digits",
                "run.mcp.0.found: the daemon asks the server for its tools; remove the key",
                "run.mcp.1.url: \"ftp://x\" is no http or https URL",
                "run.mcp.1.cwd: cwd belongs to a server with a command",
                "run.mcp.1.headers_env: \"a b\" = \"KEY\" is no header with the name of a variable",
                "tool.0.name: far__x is a name that tools of the MCP server far may have",
                "run.mcp.2.name: far is declared twice",
                "run.mcp.2.url: a server has a command or a url, not both",
                "tool.0.name: far__x is a name that tools of the MCP server far may have",
                "run.mcp.3.name: \"near_\" is not 1 to 20 of a-z 0-9 _, beginning with a letter, without __ and _ at its end",
            ]
        );
    }

    #[test]
    fn unknown_pin_says_what_a_pin_is() {
        let text = "name = \"a\"\nallow = [\"*\"]\nurl = \"http://x\"\npin = \"always\"";
        let error = toml::from_str::<McpServer>(text).unwrap_err().to_string();
        assert!(error.contains("pin is \"first\", \"off\", or a table"), "{error}");
    }
}
