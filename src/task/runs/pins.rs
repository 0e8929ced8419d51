//! What was accepted of the words of MCP servers about their tools: the first that was seen, or what an operator
//! accepted later.
use crate::db::{self, Database};
use crate::task::storage::rows::{Columns, Unreadable};
use crate::task::storage::statement::sql;
use crate::task::{AgentId, Error, TaskCommands};
use std::collections::HashSet;
use tokio_postgres::Row;

/// What a server says about a tool.
#[derive(Clone, Copy, Debug)]
pub struct SeenTool<'a> {
    /// Its name.
    pub tool: &'a str,
    /// SHA-256 of the text.
    pub sha256: &'a str,
    /// The JSON text.
    pub text: &'a str,
}

/// What is accepted of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SeenTools {
    /// The tools that may be offered.
    pub accepted: HashSet<String>,
    /// Those with words that were not seen before and are not accepted.
    pub news: Vec<String>,
}

impl TaskCommands {
    /// Compares what a server says about its tools with what was accepted for an agent. The first sight of a tool
    /// accepts it, up to 256 tools of a server; other words than the accepted ones are kept for an operator.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn see_tools(
        &self,
        agent: &AgentId,
        server: &str,
        seen: &[SeenTool<'_>],
    ) -> Result<SeenTools, Error> {
        let tools: Vec<&str> = seen.iter().map(|seen| seen.tool).collect();
        let hashes: Vec<&str> = seen.iter().map(|seen| seen.sha256).collect();
        // Bytes, because the text may have characters that the database's encoding lacks.
        let texts: Vec<&[u8]> = seen.iter().map(|seen| seen.text.as_bytes()).collect();
        let mut found = SeenTools::default();
        for _ in 0..2 {
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 5] =
                [&agent.as_str(), &server, &tools, &hashes, &texts];
            let rows = self.query(sql!("mcp_see_tools"), &params).await?;
            let mut is_whole = true;
            for row in &rows {
                let tool: String = row.read("tool")?;
                match row.read::<Option<bool>>("accepted")? {
                    Some(true) => {
                        found.accepted.insert(tool.clone());
                    }
                    Some(false) => {}
                    // Another run saw it first, at the same time: its row is visible to the next statement.
                    None => is_whole = false,
                }
                if row.read("is_news")? {
                    found.news.push(tool);
                }
            }
            if is_whole {
                break;
            }
        }
        Ok(found)
    }
}

/// What is accepted of one tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedTool {
    /// The agent.
    pub agent: String,
    /// The server.
    pub server: String,
    /// The tool.
    pub tool: String,
    /// SHA-256 of the accepted words.
    pub sha256: String,
    /// The accepted words, JSON.
    pub body: Vec<u8>,
    /// What the server says now, if it is something else: its SHA-256 and the words.
    pub seen: Option<(String, Vec<u8>)>,
}

/// What is accepted of the tools of MCP servers, ordered by agent, server and tool. `only` selects one tool.
///
/// # Errors
/// `Unavailable`.
pub async fn pinned_tools(
    database: &Database,
    only: Option<(&AgentId, &str, &str)>,
) -> Result<Vec<PinnedTool>, Error> {
    let agent = only.map(|(agent, _, _)| agent.as_str());
    let (server, tool) = (only.map(|(_, server, _)| server), only.map(|(_, _, tool)| tool));
    let client = database.client().await?;
    let rows = client.query(sql!("mcp_pinned"), &[&agent, &server, &tool]).await.map_err(db::Error::from)?;
    let one = |row: &Row| {
        let seen: Option<String> = row.read("seen_sha256")?;
        Ok(PinnedTool {
            agent: row.read("agent_id")?,
            server: row.read("server")?,
            tool: row.read("tool")?,
            sha256: row.read("sha256")?,
            body: row.read("body")?,
            seen: seen.zip(row.read("seen_body")?),
        })
    };
    rows.iter().map(one).collect::<Result<_, Unreadable>>().map_err(Error::from)
}

/// Accepts what a server says now about a tool, if it is still what the operator has read. False if it is not.
///
/// # Errors
/// `Unavailable`.
pub async fn accept_tool(database: &Database, tool: &PinnedTool) -> Result<bool, Error> {
    let Some((sha256, _)) = &tool.seen else { return Ok(false) };
    let client = database.client().await?;
    let params: [&(dyn tokio_postgres::types::ToSql + Sync); 4] =
        [&tool.agent, &tool.server, &tool.tool, sha256];
    let changed = client.execute(sql!("mcp_accept"), &params).await.map_err(db::Error::from)?;
    Ok(changed == 1)
}
