//! The tools that a new run finds at the MCP servers of its agent. They are part of the run's definition from then on.
use super::thinker::{Thinker, unwritten};
use crate::{
    agent::{
        CallRule, Definition, FoundTool, Job, McpPin, McpPinRule, McpServer,
        job::{outage, retryable},
        mcp::offered,
        retry::again,
        tool::callables,
    },
    task::{Error, Failure, SeenTool, TaskCommands},
};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use tracing::{debug, warn};

/// Most tools of a run, and most bytes of them as the model sees them.
const TOOLS_MAX: usize = 64;
const TOOLS_BYTES_MAX: usize = 128 << 10;

/// The definition of a new run, and the servers that it must do without.
///
/// # Errors
/// An outage if a server that is required is down.
pub(super) async fn with_tools(
    thinker: &Thinker,
    job: &Job,
    tasks: &TaskCommands,
) -> Result<(Definition, Vec<String>), Failure> {
    let mut definition = (*thinker.definition).clone();
    if definition.run.mcp.is_empty() {
        return Ok((definition, Vec::new()));
    }
    // Side by side: a server that hangs holds up no other.
    let asked = join_all(definition.run.mcp.iter().map(|server| listed(thinker, job, server))).await;
    let mut missing = Vec::new();
    for server in &mut definition.run.mcp {
        // A call uses the server of now, so the rows need no values that may be secret.
        server.env_set.clear();
    }
    for (at, asked) in asked.into_iter().enumerate() {
        let Some(server) = definition.run.mcp.get(at).cloned() else { continue };
        let tools = match asked {
            Ok(tools) => tools,
            Err(why) if server.required => {
                return Err(outage(format!("the MCP server {}: {why}", server.name)));
            }
            Err(why) => {
                debug!(server = server.name, why, "MCP server is missing in a run");
                missing.push(server.name);
                continue;
            }
        };
        let mut found = accepted(thinker, job, tasks, &server, tools).await?;
        let agent = &thinker.definition.id;
        for tool in without_ambiguous(&definition.run.calls, &server, &mut found) {
            warn!(%agent, server = server.name, tool,
                "MCP tool left out: a rule of run.calls names it, and another tool of the server has the same name in calls");
        }
        for name in missing_in_calls(&definition.run.calls, &server, &found) {
            warn!(%agent, server = server.name, name, "MCP tool is missing that a rule of run.calls names");
        }
        if let Some(server) = definition.run.mcp.get_mut(at) {
            server.found = found;
        }
    }
    limit(&mut definition);
    Ok((definition, missing))
}

async fn listed(
    thinker: &Thinker,
    job: &Job,
    server: &McpServer,
) -> Result<Vec<(FoundTool, String)>, String> {
    let folder = thinker.definition.folder.as_deref();
    let listed = async {
        let connection = thinker.parts.servers.connect(&job.start.org, folder, server).await?;
        Ok(offered(server, &connection.tools(server.start_timeout).await?))
    };
    tokio::select! {
        listed = listed => listed,
        () = job.stopped() => Err("the job was stopped".into()),
    }
}

/// Those whose descriptions are accepted, and whose schemas can be used.
async fn accepted(
    thinker: &Thinker,
    job: &Job,
    tasks: &TaskCommands,
    server: &McpServer,
    tools: Vec<(FoundTool, String)>,
) -> Result<Vec<FoundTool>, Failure> {
    let tools: Vec<FoundTool> = match &server.pin {
        McpPin::Rule(McpPinRule::Off) => tools.into_iter().map(|(tool, _)| tool).collect(),
        McpPin::Listed(pins) => {
            let is_listed = |tool: &FoundTool| {
                pins.get(&tool.tool).is_some_and(|sha256| sha256.eq_ignore_ascii_case(&tool.sha256))
            };
            tools.into_iter().map(|(tool, _)| tool).filter(is_listed).collect()
        }
        McpPin::Rule(McpPinRule::First) => {
            let seen: Vec<SeenTool<'_>> = tools
                .iter()
                .map(|(tool, text)| SeenTool { tool: &tool.tool, sha256: &tool.sha256, text })
                .collect();
            let agent = &thinker.definition.id;
            let see = || tasks.see_tools(agent, &server.name, &seen);
            let seen = again(job.deadline, see).await.map_err(|e| unwritten(&e))?;
            for changed in &seen.news {
                warn!(agent = %agent, server = server.name, tool = changed,
                    "MCP tool changed: not offered until `convoke mcp pin` accepts it");
            }
            tools
                .into_iter()
                .map(|(tool, _)| tool)
                .filter(|tool| seen.accepted.contains(&tool.tool))
                .collect()
        }
    };
    let mut usable = Vec::with_capacity(tools.len());
    for tool in tools {
        let is_object = tool.parameters.get("type").and_then(serde_json::Value::as_str) == Some("object");
        let compiled = match is_object {
            true => thinker.schemas.compile(&tool.parameters).await,
            false => Err(Error::BadRequest("its type is not object".into())),
        };
        match compiled {
            Ok(()) => usable.push(tool),
            // A run without the tool would be one by chance.
            Err(Error::Busy(why)) => return Err(retryable(why)),
            Err(_) => {
                debug!(
                    server = server.name,
                    tool = tool.tool,
                    "MCP tool left out: its schema cannot be used"
                );
            }
        }
    }
    Ok(usable)
}

/// The names in calls that rules mention.
fn ruled(rules: &BTreeMap<String, CallRule>) -> impl Iterator<Item = &String> {
    rules.iter().flat_map(|(name, rule)| std::iter::once(name).chain(&rule.after))
}

/// Leaves out the tools that share their name in calls with others, if a rule has that name: it would hold for none of
/// them. Returns their names at the server.
fn without_ambiguous(
    rules: &BTreeMap<String, CallRule>,
    server: &McpServer,
    found: &mut Vec<FoundTool>,
) -> Vec<String> {
    let is_ambiguous = |tool: &mut FoundTool| {
        let name = server.name_in_calls(&tool.tool);
        tool.name != name && ruled(rules).any(|ruled| *ruled == name)
    };
    found.extract_if(.., is_ambiguous).map(|tool| tool.tool).collect()
}

/// The names that rules mention for tools of a server, and that no tool has.
fn missing_in_calls(
    rules: &BTreeMap<String, CallRule>,
    server: &McpServer,
    found: &[FoundTool],
) -> BTreeSet<String> {
    let of_server = |name: &&String| {
        server.tool_in_calls(name).is_some() && !found.iter().any(|tool| tool.name == **name)
    };
    ruled(rules).filter(of_server).cloned().collect()
}

/// Leaves out the last tools of the last servers that are too many.
fn limit(definition: &mut Definition) {
    let own: Vec<usize> = callables(&Definition { run: without_servers(definition), ..definition.clone() })
        .map(|tool| tool.name().len() + tool.description().len() + tool.parameters().to_string().len())
        .collect();
    let (mut count, mut bytes) = (own.len(), own.iter().sum::<usize>());
    for server in &mut definition.run.mcp {
        server.found.retain(|tool| {
            let size = tool.name.len() + tool.description.len() + tool.parameters.to_string().len();
            let fits = count < TOOLS_MAX && bytes.saturating_add(size) <= TOOLS_BYTES_MAX;
            if fits {
                (count, bytes) = (count + 1, bytes + size);
            }
            fits
        });
    }
}

fn without_servers(definition: &Definition) -> crate::agent::Run {
    crate::agent::Run { mcp: Vec::new(), ..definition.run.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Effect;
    use serde_json::json;

    fn definition(server: &str, tools: usize, description_bytes: usize) -> Definition {
        let text = format!(
            "id = \"t\"\n[run]\nkind = \"llm\"\ntools = [\"recall\"]\n[[run.mcp]]\nname = \"{server}\"\n\
             url = \"http://127.0.0.1:1\"\nallow = [\"*\"]\ndeny = [\"drop*\"]"
        );
        let mut definition: Definition = toml::from_str(&text).unwrap();
        let tool = |at: usize| FoundTool {
            name: format!("{server}__tool_{at:03}"),
            tool: format!("tool_{at:03}"),
            description: "x".repeat(description_bytes),
            parameters: json!({ "type": "object" }),
            effect: Effect::Once,
            sha256: String::new(),
        };
        definition.run.mcp[0].found = (0..tools).map(tool).collect();
        definition
    }

    #[test]
    fn tools_that_are_too_many_or_too_long_are_left_out_from_the_end() {
        let mut many = definition("files", 100, 10);
        limit(&mut many);
        // One place is that of `recall`.
        assert_eq!(many.run.mcp[0].found.len(), TOOLS_MAX - 1);
        assert_eq!(many.run.mcp[0].found[62].name, "files__tool_062");
        let mut long = definition("files", 100, 4_000);
        limit(&mut long);
        assert_eq!(long.run.mcp[0].found.len(), 32);
    }

    #[test]
    fn tools_that_a_rule_means_by_one_name_are_left_out() {
        let found = definition("files", 4, 10).run.mcp.remove(0).found;
        let with = |at: usize, name: &str, tool: &str| FoundTool {
            name: name.into(),
            tool: tool.into(),
            ..found[at].clone()
        };
        let all = [
            with(0, "files__drop_it_1a2b3c4d", "drop-it"),
            with(1, "files__drop_it_5e6f7a8b", "drop_it"),
            with(2, "files__read_it_1a2b3c4d", "read-it"),
            with(3, "files__list", "list"),
        ];
        let rule = |after: &[&str]| CallRule {
            after: after.iter().map(|name| (*name).to_owned()).collect(),
            ..CallRule::default()
        };
        let server = definition("files", 0, 0).run.mcp.remove(0);
        for (rules, left_out, missing) in [
            (vec![], &[][..], &[][..]),
            (vec![("files__drop_it", rule(&[]))], &["drop-it", "drop_it"], &["files__drop_it"]),
            (
                vec![("finish", rule(&["files__drop_it", "files__list"]))],
                &["drop-it", "drop_it"],
                &["files__drop_it"],
            ),
            (vec![("files__list", rule(&["files2__a", "files__b"]))], &[], &["files__b"]),
        ] {
            let rules: BTreeMap<String, CallRule> =
                rules.into_iter().map(|(name, rule)| (name.to_owned(), rule)).collect();
            let mut found = all.to_vec();
            assert_eq!(without_ambiguous(&rules, &server, &mut found), left_out);
            assert_eq!(found.len(), all.len() - left_out.len());
            let told: Vec<String> = missing_in_calls(&rules, &server, &found).into_iter().collect();
            assert_eq!(told, missing);
        }
    }

    #[test]
    fn tool_of_a_run_is_permitted_as_long_as_its_server_allows_it() {
        let pinned = definition("files", 1, 10);
        let tool = callables(&pinned).find(|tool| tool.name() == "files__tool_000").unwrap();
        assert!(
            tool.permitted(&definition("files", 0, 0)).is_some(),
            "its definition has no tools of its own"
        );
        assert!(tool.permitted(&definition("other", 0, 0)).is_none());
        let mut denied = definition("files", 0, 0);
        denied.run.mcp[0].deny = vec!["tool_*".into()];
        assert!(tool.permitted(&denied).is_none());
    }
}
