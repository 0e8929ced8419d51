//! Agents with their terms and the offers that they have won and lost, for pages.
use crate::task::rounds::tally::OffersTally;
use crate::task::storage::rows::{self, Columns};
use crate::task::storage::statement::sql;
use crate::task::{AgentId, AgentStatus, Error, OrgId, TaskReader};
use serde::Serialize;
use serde_json::Value;
use std::collections::HashMap;

/// An agent as a line of a list.
#[derive(Clone, Debug, Serialize)]
pub struct AgentLine {
    /// The agent.
    #[serde(flatten)]
    pub status: AgentStatus,
    /// What it promises until it is measured: `{computed, thinks, cost_microdollars, confidence, eta}`.
    pub terms: Value,
    /// How often its definition has changed, from 1.
    pub definition_version: i64,
    /// Its offers since the start of the daemon that arbitrates.
    pub offers: OffersTally,
}

impl TaskReader {
    /// The agents, of one org or of all, with their terms and offers.
    ///
    /// # Errors
    /// `Unavailable`.
    pub async fn agent_lines(&self, org: Option<&OrgId>) -> Result<Vec<AgentLine>, Error> {
        let rows = self.query(sql!("agent_terms"), &[&org.map(OrgId::as_str)]).await?;
        let mut terms: HashMap<AgentId, (Value, i64)> = HashMap::new();
        for row in &rows {
            if let Some(id) = rows::agent(row, "id")? {
                terms.insert(
                    id,
                    (rows::json(row, "terms"), row.read("definition_version").unwrap_or_default()),
                );
            }
        }
        // An agent that was registered between the two reads has no terms yet.
        let line = |status: AgentStatus| {
            let (terms, definition_version) = terms.remove(&status.id).unwrap_or_default();
            AgentLine { offers: self.offers.of(&status.id), status, terms, definition_version }
        };
        Ok(self.agents(org).await?.into_iter().map(line).collect())
    }
}
