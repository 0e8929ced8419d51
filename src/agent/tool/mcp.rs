//! A tool of an MCP server.
use super::{Outcome, ToolCall};
use crate::agent::{FoundTool, McpPin, McpPinRule, McpServer, hex, mcp::pinned_text};
use sha2::{Digest, Sha256};

pub(super) async fn call(call: ToolCall<'_>, server: &McpServer, tool: &FoundTool) -> Outcome {
    let connected = async {
        let connection = call.parts.servers.connect(call.org, call.folder, server).await?;
        let tools = connection.tools(server.timeout).await?;
        Ok::<_, String>((connection, tools))
    };
    let (connection, tools) = tokio::select! {
        connected = connected => match connected {
            Ok(connected) => connected,
            Err(why) => return Outcome::Failed("failed", format!("the server {}: {why}", server.name), true),
        },
        () = call.stop.cancelled() => return Outcome::Stopped,
    };
    // What the model was told about the tool must still hold.
    let denied = |why: &str| Outcome::Failed("denied", format!("the server {} {why}", server.name), false);
    let Some(now) = tools.iter().find(|now| now.name == tool.tool) else {
        return denied("has no such tool any more");
    };
    let is_pinned = server.pin != McpPin::Rule(McpPinRule::Off);
    if is_pinned && hex(&Sha256::digest(pinned_text(now))) != tool.sha256 {
        return denied("has changed this tool since the run began");
    }
    connection.call(server, &tool.tool, call.args, call.key, call.stop).await
}
