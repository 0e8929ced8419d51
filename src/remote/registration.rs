//! Registers connected remote agents with the negotiation, and deregisters those that disconnect.
//!
//! Compares [`ConnectedAgents`] with the registrations that it made, agent by agent, whenever a connection changed
//! and once a second for what failed before. An agent is registered while at least one of its connections exists;
//! the metadata of the latest one is its profile, and a new profile keeps the registration. When the last connection
//! ends the registration ends at once, and other agents get what the agent held.
use super::{
    connected_agents::{AgentConnection, ConnectedAgents},
    digest::Digests,
    publisher::{self, CoordinationPublisher},
};
use crate::{
    agent::{self, Agents, Kind},
    auth::Principal,
    id::{AgentId, Incarnation, OrgId},
    presence::Tracker,
    task::{Error, Profile, Tasks, Terms},
};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// Interval of a comparison of all agents.
const INTERVAL: Duration = Duration::from_secs(1);
/// The same after a failure.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);
/// Agents that are registered or deregistered concurrently.
const CONCURRENT_MAX: usize = 4;
/// Unknown agents whose orgs are read in one statement.
const HEARD_MAX: usize = 1000;
/// Most `slots` of an agent.
const SLOTS_MAX: u64 = 1000;
/// Most capabilities of an agent, and the longest of them and of its description in bytes.
const CAPABILITIES_MAX: usize = 100;
const CAPABILITY_BYTES_MAX: usize = 200;
const DESCRIPTION_BYTES_MAX: usize = 1000;
/// Members of an agent's own presence that its org sees.
const SHOWN: [&str; 5] = ["activity_type", "current_task", "progress", "queue_depth", "last_active"];

/// Which remote agents may register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Any.
    Open,
    /// Those with a definition of kind `remote`.
    Listed,
    /// None.
    Off,
}

impl Admission {
    /// The admission of a setting; `auto` is open on a loopback address only.
    #[must_use]
    pub fn of(remote: agent::Remote, listen: SocketAddr) -> Self {
        match remote {
            agent::Remote::Auto if listen.ip().is_loopback() => Self::Open,
            agent::Remote::Open => Self::Open,
            agent::Remote::Auto | agent::Remote::Listed => Self::Listed,
            agent::Remote::Off => Self::Off,
        }
    }
}

/// What the reconciler needs.
pub(super) struct Deps {
    pub(super) tasks: Tasks,
    pub(super) agents: Agents,
    pub(super) tracker: Tracker,
    pub(super) publisher: CoordinationPublisher,
    pub(super) connected: ConnectedAgents,
    pub(super) admission: Admission,
    pub(super) digests: Digests,
}

/// Keeps the registrations equal to the connected agents.
pub(super) struct RegistrationReconciler {
    deps: Deps,
    registrations: HashMap<AgentId, Registration>,
    /// Why the store refuses connected agents: each is told once.
    refused: HashMap<AgentId, String>,
}

#[derive(Clone)]
struct Registration {
    incarnation: Incarnation,
    profile: Profile,
}

/// A change of one agent's registration.
struct Step {
    agent: AgentId,
    current: Option<Registration>,
    wanted: Option<Profile>,
}

impl RegistrationReconciler {
    pub(super) fn new(deps: Deps) -> Self {
        Self { deps, registrations: HashMap::new(), refused: HashMap::new() }
    }

    /// Reconciles until `stop` is cancelled.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut wait = INTERVAL;
        loop {
            let all = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.deps.connected.changed() => false,
                () = tokio::time::sleep(wait) => true,
            };
            wait = if self.reconcile(all).await { INTERVAL } else { RETRY_INTERVAL };
        }
    }

    /// Reconciles the agents that changed, or `all` of them; false if something failed and must be tried again.
    async fn reconcile(&mut self, all: bool) -> bool {
        let changed = self.deps.connected.take_changes();
        let mut agents = changed.clone();
        if all {
            self.learn_heard().await;
            agents.extend(self.deps.connected.agents());
            agents.extend(self.registrations.keys().cloned());
            self.refused.retain(|agent, _| self.deps.connected.latest(agent).is_some());
        }
        // Only the leader asks agents for offers, so only it registers them.
        let leads = self.deps.tasks.arbitrates();
        let mut steps: Vec<Step> =
            agents.into_iter().filter_map(|agent| self.step(agent, leads, &changed)).collect();
        // Departures first: what they free is there for the arrivals.
        steps.sort_by_key(|step| step.wanted.is_some());
        let deps = &self.deps;
        let done: Vec<(AgentId, Result<Option<Registration>, Error>)> = futures_util::stream::iter(steps)
            .map(|step| async move { (step.agent.clone(), apply(deps, step).await) })
            .buffer_unordered(CONCURRENT_MAX)
            .collect()
            .await;
        let mut complete = true;
        for (agent, outcome) in done {
            let changed = changed.contains(&agent);
            complete &= self.finish(agent, changed, outcome).await;
        }
        complete
    }

    /// Records the outcome of a step; false if it must be tried again.
    async fn finish(
        &mut self,
        agent: AgentId,
        changed: bool,
        outcome: Result<Option<Registration>, Error>,
    ) -> bool {
        if outcome.is_ok() {
            self.refused.remove(&agent);
            if let Some(org) = self.deps.connected.org_of(&agent) {
                self.deps.digests.agents(&org);
            }
        }
        match outcome {
            Ok(Some(registration)) => {
                let org = registration.profile.org.clone();
                self.deps.digests.agents(&org);
                self.deps.connected.set_orgs([(agent.clone(), org)]);
                // Shown only after it is registered: an agent that its org sees is eligible.
                if let Some(connection) = self.deps.connected.latest(&agent) {
                    self.show(&registration.profile, &connection);
                }
                self.registrations.insert(agent, registration);
            }
            Ok(None) => {
                self.registrations.remove(&agent);
            }
            Err(error @ (Error::Unavailable(_) | Error::Internal(_))) => {
                tracing::warn!(agent = %agent, %error, "failed to update remote agent registration, will retry");
                return false;
            }
            Err(error) => {
                self.learn_org(&agent).await;
                let message = error.to_string();
                let before = self.refused.insert(agent.clone(), message.clone());
                // It is tried again every second: the same message each time would fill the agent's inbox.
                if changed || before.as_ref() != Some(&message) {
                    self.refuse(&agent, error.code(), &message);
                }
            }
        }
        true
    }

    /// Reads the org of an agent that another node has registered, so that tokens of other orgs are refused from
    /// now on.
    async fn learn_org(&self, agent: &AgentId) {
        if let Ok(status) = self.deps.tasks.agent(agent).await {
            self.deps.connected.set_orgs([(agent.clone(), status.org)]);
        }
    }

    /// Reads the orgs of agents that another daemon may have registered and whose rooms are heard here.
    async fn learn_heard(&self) {
        let heard = self.deps.connected.heard_unregistered(HEARD_MAX);
        if heard.is_empty() {
            return;
        }
        match self.deps.tasks.orgs_of(&heard).await {
            Ok(orgs) => self.deps.connected.set_orgs(orgs),
            // It is tried again in a second.
            Err(error) => tracing::debug!(%error, "failed to read the orgs of agents"),
        }
    }

    /// What to do about an agent; `None` if its registration is as it should be.
    fn step(&self, agent: AgentId, leads: bool, changed: &HashSet<AgentId>) -> Option<Step> {
        let current = self.registrations.get(&agent).cloned();
        let connection = self.deps.connected.latest(&agent).filter(|_| leads);
        let wanted = match connection.as_ref().map(|connection| self.admit(&agent, connection)) {
            Some(Ok(profile)) => Some(profile),
            Some(Err((code, message))) => {
                // Only once per change, not in every comparison.
                if changed.contains(&agent) {
                    self.refuse(&agent, code, &message);
                }
                None
            }
            None => None,
        };
        let same = match (&current, &wanted) {
            (None, None) => true,
            (Some(current), Some(wanted)) => current.profile == *wanted,
            _ => false,
        };
        if let (true, Some(profile), Some(connection)) = (same, &wanted, &connection) {
            self.show(profile, connection);
        }
        (!same).then_some(Step { agent, current, wanted })
    }

    /// The profile of a connected agent.
    ///
    /// # Errors
    /// Code and message of the refusal.
    fn admit(
        &self,
        agent: &AgentId,
        connection: &AgentConnection,
    ) -> Result<Profile, (&'static str, String)> {
        let principal = Principal::of(connection.claims.clone());
        let forbidden = |message: String| Err(("forbidden", message));
        match self.deps.agents.definition(agent) {
            Some(file) if file.run.kind != Kind::Remote => {
                forbidden(format!("the daemon hosts agent {agent}: no connection may join as it"))
            }
            _ if self.deps.admission == Admission::Off => {
                forbidden("no agent works from outside here: agents.remote is \"off\"".into())
            }
            Some(file) if connection.claims.org.as_ref().is_some_and(|org| *org != file.org) => {
                forbidden(format!("the token is of another org than agent {agent}"))
            }
            Some(file) => Ok(file.profile()),
            None if self.deps.admission == Admission::Listed => forbidden(format!(
                "agent {agent} has no file here, and agents.remote lets in only those that have one"
            )),
            None => profile(agent, self.org_of(agent, &principal), &connection.meta)
                .map_err(|message| ("bad_request", message)),
        }
    }

    /// The org to register the agent in. The org of a service token says nothing about the agent.
    fn org_of(&self, agent: &AgentId, principal: &Principal) -> OrgId {
        let known = self.deps.connected.org_of(agent).filter(|_| principal.is_service());
        known.unwrap_or_else(|| principal.org())
    }

    fn refuse(&self, agent: &AgentId, code: &str, message: &str) {
        let members = json!({ "code": code, "message": message, "in_reply_to": null });
        let channels = self.deps.connected.all_channels(agent);
        let room = publisher::agent_room(agent);
        self.deps.publisher.send_to(&room, &channels, "error", Some(agent.as_str()), members);
    }

    /// Shows an agent on the channel of its org, like a hosted one.
    fn show(&self, profile: &Profile, connection: &AgentConnection) {
        let mut meta: Map<String, Value> = SHOWN
            .iter()
            .map(|name| ((*name).to_owned(), connection.meta.get(*name).cloned().unwrap_or_default()))
            .collect();
        if !meta.get("activity_type").is_some_and(Value::is_string) {
            meta.insert("activity_type".into(), json!("idle"));
        }
        meta.insert("agent_id".into(), json!(profile.id));
        meta.insert("capabilities".into(), json!(profile.capabilities));
        self.deps.tracker.set(publisher::org_room(&profile.org), profile.id.as_str(), meta);
    }
}

/// Deregisters, registers or re-registers an agent. Returns the registration that holds now.
async fn apply(deps: &Deps, step: Step) -> Result<Option<Registration>, Error> {
    let Step { agent, current, wanted } = step;
    let ends = |current: &&Registration| wanted.as_ref().is_none_or(|it| it.org != current.profile.org);
    if let Some(current) = current.as_ref().filter(ends) {
        // Hidden first: an agent that its org sees is eligible.
        deps.tracker.clear(publisher::org_room(&current.profile.org), agent.as_str());
        deps.tasks.leave_remote(&agent, current.incarnation).await?;
    }
    let Some(profile) = wanted else {
        tracing::info!(agent = %agent, "remote agent deregistered");
        return Ok(None);
    };
    let before = current.filter(|current| current.profile.org == profile.org);
    let incarnation =
        deps.tasks.join_remote(profile.clone(), before.as_ref().map(|it| it.incarnation)).await?;
    if before.is_none() {
        tracing::info!(agent = %agent, incarnation = incarnation.0, "remote agent registered");
    }
    Ok(Some(Registration { incarnation, profile }))
}

/// The profile of an agent without a definition, from the metadata that it tracks.
///
/// # Errors
/// What is wrong with the metadata, one line.
fn profile(agent: &AgentId, org: OrgId, meta: &Map<String, Value>) -> Result<Profile, String> {
    let wrong = || {
        format!(
            "capabilities must be a list of at most {CAPABILITIES_MAX} texts of 1 to {CAPABILITY_BYTES_MAX} bytes"
        )
    };
    let capability = |value: &Value| {
        let good = |text: &&str| (1..=CAPABILITY_BYTES_MAX).contains(&text.len()) && !text.contains('\0');
        value.as_str().filter(good).map(str::to_owned)
    };
    let capabilities = match meta.get("capabilities") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(list)) if list.len() <= CAPABILITIES_MAX => {
            list.iter().map(capability).collect::<Option<Vec<_>>>().ok_or_else(wrong)?
        }
        Some(_) => return Err(wrong()),
    };
    let slots = match meta.get("slots") {
        None | Some(Value::Null) => 1,
        Some(slots) => slots
            .as_u64()
            .filter(|slots| (1..=SLOTS_MAX).contains(slots))
            .and_then(|slots| u32::try_from(slots).ok())
            .ok_or_else(|| format!("slots must be a whole number from 1 to {SLOTS_MAX}"))?,
    };
    let description = match meta.get("description") {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) if text.len() <= DESCRIPTION_BYTES_MAX && !text.contains('\0') => {
            text.clone()
        }
        Some(_) => {
            return Err(format!("description must be a text of at most {DESCRIPTION_BYTES_MAX} bytes"));
        }
    };
    Ok(Profile {
        id: agent.clone(),
        org,
        kind: Kind::Remote,
        description,
        capabilities,
        slots,
        definition_hash: String::new(),
        terms: Terms {
            computed: false,
            cost_microdollars: 0,
            confidence: 0.0,
            eta: Duration::ZERO,
            thinks: None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(meta: Value) -> Result<Profile, String> {
        let Value::Object(meta) = meta else { panic!("no object") };
        profile(&"far".parse().unwrap(), OrgId::default(), &meta)
    }

    #[test]
    fn profile_of_an_agent_without_a_definition_is_its_metadata() {
        let bare = read(json!({ "mood": "fine" })).unwrap();
        assert_eq!((bare.slots, bare.org.as_str(), bare.kind.as_str()), (1, "default", "remote"));
        assert!(!bare.terms.computed && bare.capabilities.is_empty());
        let full = read(json!({ "capabilities": ["a", "b"], "slots": 3, "description": "d" })).unwrap();
        assert_eq!(
            (full.slots, full.capabilities, full.description.as_str()),
            (3, vec!["a".into(), "b".into()], "d")
        );
    }

    #[test]
    fn invalid_metadata_is_refused_with_the_member() {
        for (meta, word) in [
            (json!({ "capabilities": "a" }), "capabilities"),
            (json!({ "capabilities": ["a", 1] }), "capabilities"),
            (json!({ "capabilities": [""] }), "capabilities"),
            (json!({ "slots": 0 }), "slots"),
            (json!({ "slots": 1.5 }), "slots"),
            (json!({ "slots": 1_000_000 }), "slots"),
            (json!({ "description": ["x"] }), "description"),
        ] {
            assert!(read(meta.clone()).unwrap_err().starts_with(word), "{meta}");
        }
    }
}
