//! Agents and requesters outside the daemon: their commands, their identity and their presence, for every door.
//!
//! | file | holds |
//! |---|---|
//! | `command` | the commands of agents and requesters, read from JSON |
//! | `execute` | what each command does, and for whom |
//! | `dispatch` | the order in which commands of websockets run, and the answers |
//! | `coordination`, `identity` | messages on agents' rooms, and the one check of their sender and recipient |
//! | `observers` | channels that end when an agent turns out to be of another org |
//! | `connected_agents`, `registration` | which agents are connected, and their registration with the negotiation |
//! | `inbox` | agents that are connected by HTTP |
//! | `publisher`, `notifications`, `announcements` | what the daemon itself sends on agents' rooms |
//! | `digest` | what changed in an org, numbered, for dashboards |
//!
//! A door parses a message, asks [`Identity`] for the sender, and maps the reply or the error code to its own form;
//! it decides nothing. This module owns no durable state: the rows are the truth, and everything that it sends is a
//! hint. Fails with the errors of `task`.
mod announcements;
mod command;
mod connected_agents;
mod coordination;
mod digest;
mod dispatch;
mod execute;
mod identity;
mod inbox;
mod notifications;
mod observers;
mod publisher;
mod registration;

pub use command::{AgentCommand, AssignmentCommand, Message, RequesterCommand, no_cancel_reason};
pub use connected_agents::{AgentConnection, ConnectedAgents, NotConnected, PresenceGuard};
pub use coordination::Coordination;
pub use digest::is_digest_room;
pub use execute::{RemoteCommand, Reply, execute};
pub use identity::{Audience, BroadcastSource, Identity, Relay};
pub use inbox::{
    INBOX_LEASE, INBOX_LEASE_MAX, INBOX_LEASE_MIN, InboxMessage, InboxPage, Inboxes, OpenError, SendError,
};
pub use observers::ObserverGuard;
pub use registration::Admission;

use crate::{
    agent::Agents,
    auth::Denied,
    clock::Clock,
    hub::Hub,
    presence::Tracker,
    scope::{OnExit, Scope},
    task::{Error, Notice, Tasks},
};
use dispatch::CommandDispatcher;
use notifications::NoticePublisher;
use publisher::CoordinationPublisher;
use registration::RegistrationReconciler;
use tokio::sync::mpsc;

/// What remote agents need from the daemon.
pub struct Deps {
    /// The negotiation.
    pub tasks: Tasks,
    /// The hosted agents, which receive messages of remote ones.
    pub agents: Agents,
    /// Shows connected agents to their org.
    pub tracker: Tracker,
    /// Carries answers and notices.
    pub hub: Hub,
    /// The time in messages.
    pub clock: Clock,
    /// Which agents are connected, and whose they are.
    pub identity: Identity,
    /// The agents that are connected by HTTP.
    pub inboxes: Inboxes,
    /// Which remote agents may register.
    pub admission: Admission,
    /// Messages on agents' rooms that doors have queued.
    pub coordination: mpsc::Receiver<Coordination>,
    /// What commits of the negotiation did.
    pub notices: mpsc::Receiver<Vec<Notice>>,
}

/// Starts registration, dispatch, announcements and notifications in `scope`.
///
/// # Errors
/// When the registered agents cannot be read from the database.
pub async fn start(scope: &Scope, deps: Deps) -> Result<(), Error> {
    let Deps { tasks, agents, tracker, hub, clock, identity, inboxes, admission, coordination, notices } =
        deps;
    let connected = identity.connected_agents().clone();
    let registered = tasks.agents(None).await?;
    connected.set_orgs(registered.into_iter().map(|agent| (agent.id, agent.org)));
    // A definition decides over an older registration.
    connected.set_orgs(agents.orgs());
    let (own, known) = (agents.clone(), connected.clone());
    scope.spawn("orgs of agents", OnExit::Log, |stop| async move {
        let mut changed = own.changed();
        while let Some(Ok(())) = stop.run_until_cancelled(changed.changed()).await {
            known.set_orgs(own.orgs());
        }
        Ok(())
    });
    let publisher = CoordinationPublisher { hub, clock };
    let digests = identity.digests().clone();
    let (own, reader, to) = (digests.clone(), tasks.clone(), publisher.clone());
    scope.spawn("digests", OnExit::StopDaemon, |stop| async move {
        digest::run(&own, &reader, &to, stop).await;
        Ok(())
    });

    let reconciler = RegistrationReconciler::new(registration::Deps {
        tasks: tasks.clone(),
        agents: agents.clone(),
        tracker,
        publisher: publisher.clone(),
        connected: connected.clone(),
        admission,
        digests: digests.clone(),
    });
    scope.spawn("remote agents", OnExit::StopDaemon, |stop| async move {
        reconciler.run(stop).await;
        Ok(())
    });
    let dispatcher = CommandDispatcher {
        tasks: tasks.commands(),
        agents: agents.clone(),
        identity,
        inboxes,
        publisher: publisher.clone(),
    };
    scope.spawn("remote commands", OnExit::StopDaemon, |stop| async move {
        dispatch::run(&dispatcher, coordination, stop).await;
        Ok(())
    });
    let announcements = announcements::start(scope, tasks.reader(), publisher.clone(), connected.clone());
    let notifications = NoticePublisher { publisher, agents, connected, announcements, digests };
    scope.spawn("notices", OnExit::StopDaemon, |stop| async move {
        notifications.run(notices, stop).await;
        Ok(())
    });
    Ok(())
}

fn forbidden(denied: Denied) -> Error {
    Error::Forbidden(denied.to_string())
}
