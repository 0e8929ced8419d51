//! Who is eligible from outside: the agents that are here by a socket, and nobody else.
//!
//! Compares the gateway's list with the lives that it began, agent by agent, whenever
//! something changed and once a second for what failed before. An agent is here while
//! at least one of its sockets is; what the latest of them tracks is its profile, and a
//! new profile goes on with the life. When the last socket is gone the life ends at
//! once, and with it everything that the agent held. Departures go before arrivals.
use super::{Admission, Deps};
use crate::{
    agent::Kind,
    app::voice,
    gateway::Attendant,
    id::{AgentId, Incarnation, OrgId},
    task::{Error, Profile, Terms},
};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tokio_util::sync::CancellationToken;

/// How often everything is compared, whatever was told.
const EVERY: Duration = Duration::from_secs(1);
/// The same, after something failed.
const RETRY: Duration = Duration::from_millis(200);
/// Agents that come and go at the same time.
const TOGETHER_MAX: usize = 4;
/// Tasks that one agent may have at once.
const SLOTS_MAX: u64 = 1000;
/// Most capabilities of an agent, and the longest of them and of its description in bytes.
const CAPABILITIES_MAX: usize = 100;
const CAPABILITY_BYTES_MAX: usize = 200;
const DESCRIPTION_BYTES_MAX: usize = 1000;
/// What of an agent's own presence is shown to its org.
const SHOWN: [&str; 5] = ["activity_type", "current_task", "progress", "queue_depth", "last_active"];

pub(super) struct House {
    deps: Deps,
    lives: HashMap<AgentId, Life>,
}

#[derive(Clone)]
struct Life {
    incarnation: Incarnation,
    profile: Profile,
}

/// An agent that comes, changes or goes.
struct Step {
    agent: AgentId,
    life: Option<Life>,
    wanted: Option<Profile>,
}

impl House {
    pub(super) fn new(deps: Deps) -> Self {
        Self { deps, lives: HashMap::new() }
    }

    pub(super) async fn serve(mut self, stop: CancellationToken) {
        let mut wait = EVERY;
        loop {
            let everybody = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = self.deps.attendance.changed() => false,
                () = tokio::time::sleep(wait) => true,
            };
            wait = if self.compare(everybody).await { EVERY } else { RETRY };
        }
    }

    /// True when all agents are as they should be.
    async fn compare(&mut self, everybody: bool) -> bool {
        let changed = self.deps.attendance.changes();
        let mut agents = changed.clone();
        if everybody {
            agents.extend(self.deps.attendance.agents());
            agents.extend(self.lives.keys().cloned());
        }
        // Only the node that arbitrates asks agents for offers.
        let leads = self.deps.tasks.arbitrates();
        let mut steps: Vec<Step> =
            agents.into_iter().filter_map(|agent| self.step(agent, leads, &changed)).collect();
        steps.sort_by_key(|step| step.wanted.is_some());
        let deps = &self.deps;
        let done: Vec<(AgentId, Result<Option<Life>, Error>)> = futures_util::stream::iter(steps)
            .map(|step| async move { (step.agent.clone(), carry_out(deps, step).await) })
            .buffer_unordered(TOGETHER_MAX)
            .collect()
            .await;
        let mut well = true;
        for (agent, outcome) in done {
            match outcome {
                Ok(Some(life)) => {
                    // Whoever is seen is eligible.
                    if let Some(attendant) = self.deps.attendance.latest(&agent) {
                        self.show(&life.profile, &attendant);
                    }
                    self.lives.insert(agent, life);
                }
                Ok(None) => {
                    self.lives.remove(&agent);
                }
                Err(error @ (Error::Unavailable(_) | Error::Internal(_))) => {
                    tracing::warn!(agent = %agent, %error, "an agent outside is not registered as it should be");
                    well = false;
                }
                Err(error) => self.refuse(&agent, error.code(), &error.to_string()),
            }
        }
        well
    }

    fn step(&self, agent: AgentId, leads: bool, changed: &HashSet<AgentId>) -> Option<Step> {
        let life = self.lives.get(&agent).cloned();
        let here = self.deps.attendance.latest(&agent).filter(|_| leads);
        let wanted = match here.as_ref().map(|attendant| self.admit(&agent, attendant)) {
            Some(Ok(profile)) => Some(profile),
            Some(Err((code, message))) => {
                if changed.contains(&agent) {
                    self.refuse(&agent, code, &message);
                }
                None
            }
            None => None,
        };
        let same = match (&life, &wanted) {
            (None, None) => true,
            (Some(life), Some(wanted)) => life.profile == *wanted,
            _ => false,
        };
        if let (true, Some(profile), Some(attendant)) = (same, &wanted, &here) {
            self.show(profile, attendant);
        }
        (!same).then_some(Step { agent, life, wanted })
    }

    /// What an agent that is here would be, or why it may not be.
    fn admit(&self, agent: &AgentId, attendant: &Attendant) -> Result<Profile, (&'static str, String)> {
        let org = attendant.claims.org.as_ref();
        let forbidden = |message: String| Err(("forbidden", message));
        match self.deps.agents.definition(agent) {
            Some(file) if file.run.kind != Kind::Remote => {
                forbidden(format!("the daemon hosts agent {agent}: nobody joins as it"))
            }
            _ if self.deps.admission == Admission::Off => {
                forbidden("no agent works from outside here: agents.remote is \"off\"".into())
            }
            Some(file) if org.is_some_and(|org| *org != file.org) => {
                forbidden(format!("the token is of another org than agent {agent}"))
            }
            Some(file) => Ok(file.profile()),
            None if self.deps.admission == Admission::Listed => forbidden(format!(
                "agent {agent} has no file here, and agents.remote lets in only those that have one"
            )),
            None => profile(agent, org.cloned(), &attendant.meta).map_err(|message| ("bad_request", message)),
        }
    }

    fn refuse(&self, agent: &AgentId, code: &str, message: &str) {
        let members = json!({ "code": code, "message": message, "in_reply_to": null });
        let channels = self.deps.attendance.channels(agent);
        self.deps.voice.tell(&voice::agent_room(agent), &channels, "error", Some(agent.as_str()), members);
    }

    /// Shows an agent to its org, as hosted ones are.
    fn show(&self, profile: &Profile, attendant: &Attendant) {
        let mut meta: Map<String, Value> = SHOWN
            .iter()
            .map(|name| ((*name).to_owned(), attendant.meta.get(*name).cloned().unwrap_or_default()))
            .collect();
        if !meta.get("activity_type").is_some_and(Value::is_string) {
            meta.insert("activity_type".into(), json!("idle"));
        }
        meta.insert("agent_id".into(), json!(profile.id));
        meta.insert("capabilities".into(), json!(profile.capabilities));
        self.deps.tracker.set(voice::org_room(&profile.org), profile.id.as_str(), meta);
    }
}

async fn carry_out(deps: &Deps, step: Step) -> Result<Option<Life>, Error> {
    let Step { agent, life, wanted } = step;
    let moved = |org: &OrgId| life.as_ref().is_some_and(|life| life.profile.org != *org);
    if let Some(life) = life.as_ref().filter(|_| wanted.as_ref().is_none_or(|wanted| moved(&wanted.org))) {
        deps.tracker.clear(voice::org_room(&life.profile.org), agent.as_str());
        deps.tasks.leave_remote(&agent, life.incarnation).await?;
    }
    let Some(profile) = wanted else {
        tracing::info!(agent = %agent, "an agent outside is gone");
        return Ok(None);
    };
    let before = life.filter(|life| life.profile.org == profile.org);
    let incarnation =
        deps.tasks.join_remote(profile.clone(), before.as_ref().map(|it| it.incarnation)).await?;
    if before.is_none() {
        tracing::info!(agent = %agent, incarnation = incarnation.0, "an agent outside is here");
    }
    Ok(Some(Life { incarnation, profile }))
}

/// The profile of an agent without a file, from what it tracks.
fn profile(agent: &AgentId, org: Option<OrgId>, meta: &Map<String, Value>) -> Result<Profile, String> {
    let org = match org {
        Some(org) => org,
        None => OrgId::try_from("default").map_err(|e| e.to_string())?,
    };
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
        kind: Kind::Remote.to_string(),
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
        profile(&"far".parse().unwrap(), None, &meta)
    }

    #[test]
    fn an_agent_without_a_file_is_what_it_tracks() {
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
    fn what_cannot_be_a_profile_is_told() {
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
