//! Agent definitions: the keys of `agents/*.toml`, and their checks that need no database.
//!
//! Every key is plain serde, with a default where there is one, so that the loader can find unknown keys and
//! report their place. What depends on several keys (a command without `argv`, a filter that cannot be parsed) is
//! checked by [`check`], which returns all problems at once. Never reads a definition file and never starts
//! anything; it reads the environment and the disk only to see whether a command and its folder exist.
mod approval;
mod built_in;
mod call_rule;
mod check;
mod check_models;
mod check_tools;
mod guard;
mod limits;
mod mcp;
mod models;
mod problems;
mod run;
mod schedule;
mod shown;
mod tool;
mod unknown;
mod wake;

pub(crate) use approval::APPROVAL_EXPIRES;
pub use approval::{ApprovalRule, NamedApproval};
pub(crate) use built_in::{FETCH, FORGET, PUBLIC, RECALL, REMEMBER, REQUEST_TASK, SQL_READ, TASKS};
pub use built_in::{Fetch, FetchMethod, MemorySettings, PartKind, SqlRead};
pub use call_rule::CallRule;
pub(crate) use call_rule::{Called, part_rule};
pub use check::{check, check_all, check_in};
pub use guard::{Guard, GuardOn};
pub use limits::{Limits, Offer, OfferBy};
pub(crate) use mcp::CALLED_BYTES_MAX;
pub use mcp::{FoundTool, McpPin, McpPinRule, McpProtocol, McpServer};
pub use models::{Failover, ModelChoice};
pub use problems::Problem;
pub use run::{Kind, Price, ResponseFormat, Run, Stream, Tier};
pub use schedule::{Missed, Schedule, ScheduleRequest};
pub use tool::{Tool, ToolKind};
pub use unknown::{OnDaemonDeath, OnUnknown};
pub use wake::{Wake, WakeEvent, WakeRequest};

use super::Env;
use crate::{
    id::{AgentId, OrgId},
    llm::Caller,
    task::{Profile, Terms},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{path::PathBuf, time::Duration};

/// The definition of one agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// Its id, unique in the database.
    pub id: AgentId,
    /// The org whose tasks it takes. Defaults to `default`.
    #[serde(default)]
    pub org: OrgId,
    /// One line for people, up to 1,000 bytes.
    #[serde(default)]
    pub description: String,
    /// Its capabilities. It is eligible for a task whose `requires` are all among them.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Tasks at the same time, 1 to 1,000. Defaults to 1.
    #[serde(default = "one")]
    pub slots: u32,
    /// How long its actor stays without work. Defaults to 5 minutes.
    #[serde(default = "five_minutes", with = "humantime_serde")]
    pub idle_timeout: Duration,
    /// How it does its work.
    pub run: Run,
    /// Its offers.
    #[serde(default)]
    pub offer: Offer,
    /// The row changes that request a task.
    #[serde(default)]
    pub wake: Vec<Wake>,
    /// The times that request a task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub schedule: Vec<Schedule>,
    /// The tools that its model may call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool: Vec<Tool>,
    /// What judges its input, calls, results and answer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guard: Vec<Guard>,
    /// The limits of one task.
    #[serde(default)]
    pub limits: Limits,
    /// The folder of its file, for relative paths; set by the loader. `None` for a definition from code.
    #[serde(skip)]
    pub folder: Option<PathBuf>,
}

fn one() -> u32 {
    1
}
fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

/// How much longer a round waits than its hook may take, so that the computed offer in its place is not late.
const HOOK_GRACE: Duration = Duration::from_millis(500);

impl Definition {
    /// This agent as the caller of a model.
    pub(crate) fn caller(&self) -> Caller<'static> {
        Caller::new(format!("{}/{}", self.org, self.id))
    }

    /// A definition of this kind with all defaults, for agents defined in code.
    #[must_use]
    pub fn new(id: AgentId, org: OrgId, kind: Kind) -> Self {
        Self {
            id,
            org,
            description: String::new(),
            capabilities: Vec::new(),
            slots: one(),
            idle_timeout: five_minutes(),
            run: Run::new(kind),
            offer: Offer::default(),
            wake: Vec::new(),
            schedule: Vec::new(),
            tool: Vec::new(),
            guard: Vec::new(),
            limits: Limits::default(),
            folder: None,
        }
    }

    /// Adds capabilities.
    #[must_use]
    pub fn capable<'a>(mut self, capabilities: impl IntoIterator<Item = &'a str>) -> Self {
        self.capabilities.extend(capabilities.into_iter().map(str::to_owned));
        self
    }

    /// The declared tool of a name.
    pub(crate) fn declared(&self, name: &str) -> Option<&Tool> {
        self.tool.iter().find(|tool| tool.name == name)
    }

    /// A hash of everything but the order of keys: 32 hexadecimal digits.
    #[must_use]
    pub fn hash(&self) -> String {
        // A JSON value sorts the keys, so their order in the file does not matter.
        let text = serde_json::to_value(self).map(|value| value.to_string()).unwrap_or_default();
        super::hex(Sha256::digest(text).as_slice().get(..16).unwrap_or_default())
    }

    /// Why the agent cannot work in this environment although its definition is right: a missing key. `None` if it
    /// can. Such an agent is not registered, so that no round waits for its offers.
    #[must_use]
    pub fn unavailable(&self, env: &Env) -> Option<String> {
        match self.run.kind {
            Kind::Llm => {
                self.run.choices().iter().find_map(|choice| choice.endpoint(env).err()).or_else(|| {
                    let of_tools = self.tool.iter().flat_map(|tool| tool.headers_env.values());
                    let of_fetch = self.run.fetch.iter().flat_map(|fetch| fetch.headers_env.values());
                    let of_sql = self.run.sql.iter().flat_map(|sql| &sql.password_env);
                    let of_servers = self.run.mcp.iter().flat_map(|server| server.secrets());
                    let mut variables = of_tools.chain(of_fetch).chain(of_sql).chain(of_servers);
                    variables.find(|name| env.get(name).is_none()).map(|name| format!("{name} is not set"))
                })
            }
            Kind::Http => {
                let name = self.run.secret_env.as_ref()?;
                env.get(name).is_none().then(|| format!("{name} is not set"))
            }
            Kind::Command | Kind::Rust | Kind::Remote => None,
        }
    }

    /// Its profile for the negotiation.
    #[must_use]
    pub fn profile(&self) -> Profile {
        Profile {
            id: self.id.clone(),
            org: self.org.clone(),
            kind: self.run.kind,
            description: self.description.clone(),
            capabilities: self.capabilities.clone(),
            slots: self.slots.max(1),
            definition_hash: self.hash(),
            terms: Terms {
                thinks: (self.offer.by != OfferBy::Runtime).then_some(self.offer.timeout + HOOK_GRACE),
                computed: self.run.kind != Kind::Remote && self.offer.by == OfferBy::Runtime,
                cost_microdollars: self.offer.cost_microdollars,
                confidence: self.offer.confidence,
                eta: self.offer.eta,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRIAGE: &str = r#"
        id = "triage"
        org = "demo"
        description = "Sorts new support tickets by urgency"
        capabilities = ["support.triage"]
        slots = 4
        idle_timeout = "5m"
        [run]
        kind = "llm"
        model = "gpt-4o-mini"
        base_url = "http://127.0.0.1:8080/v1"
        instructions = "You sort support tickets"
        [offer]
        by = "runtime"
        cost_microdollars = 150
        [[wake]]
        table = "public.tickets"
        events = ["INSERT"]
        filter = "priority=gte.3"
        request = { kind = "support.triage", requires = ["support.triage"], input = { ticket = "{{ new }}" } }
        [limits]
        tokens_per_task = 20_000
        microdollars_per_hour = 500_000
        timeout = "2m"
    "#;

    #[test]
    fn definition_of_the_guide_is_read() {
        let definition: Definition = toml::from_str(TRIAGE).unwrap();
        assert_eq!(definition.slots, 4);
        assert_eq!(definition.limits.timeout, Duration::from_secs(120));
        assert_eq!(definition.limits.tokens_per_task, Some(20_000));
        assert_eq!(definition.wake[0].table_name(), ("public", "tickets"));
        assert_eq!(check(&definition), []);
        let profile = definition.profile();
        assert!(profile.terms.computed);
        assert_eq!((profile.kind.as_str(), profile.terms.cost_microdollars), ("llm", 150));
    }

    #[test]
    fn hash_ignores_the_order_of_keys() {
        let one: Definition = toml::from_str(TRIAGE).unwrap();
        let (top, rest) = TRIAGE.split_once("org = \"demo\"\n").unwrap();
        let two: Definition = toml::from_str(&format!("org = \"demo\"\n{top}{rest}")).unwrap();
        assert_eq!(one.hash(), two.hash());
        assert_eq!(one.hash().len(), 32);
        let three: Definition = toml::from_str(&TRIAGE.replace("150", "151")).unwrap();
        assert_ne!(one.hash(), three.hash());
    }

    #[test]
    fn model_without_its_key_is_unavailable() {
        let keyed = TRIAGE.replace("base_url = ", "base_url_env = \"BASE\"\napi_key_env = \"KEY\"\n#");
        let definition: Definition = toml::from_str(&keyed).unwrap();
        let none = Env::of([]);
        assert_eq!(definition.unavailable(&none).unwrap(), "neither KEY nor BASE is set in the environment");
        assert_eq!(definition.unavailable(&Env::of([("KEY", "k")])), None);
        assert_eq!(definition.unavailable(&Env::of([("BASE", "http://127.0.0.1:1/v1")])), None);
        assert!(definition.unavailable(&Env::of([("KEY", "")])).is_some());
    }

    #[test]
    fn remote_agent_makes_its_own_offers() {
        let definition: Definition = toml::from_str("id = \"far\"\n[run]\nkind = \"remote\"").unwrap();
        assert!(!definition.profile().terms.computed);
        assert_eq!(definition.org.as_str(), "default");
        assert_eq!(check(&definition), []);
    }
}
