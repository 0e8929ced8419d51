//! What each command does and for whom: the same for every door.
use super::{AgentCommand, RequesterCommand};
use crate::{
    auth::Principal,
    id::{AgentId, OrgId, Requester, TaskId},
    task::{Error, Requested, Start, Task, TaskCommands, TaskReader, Update},
};

/// A command and its sender. The door has checked with [`Principal`] that the bearer may act as that sender.
#[derive(Clone, Debug)]
pub enum RemoteCommand {
    /// As an agent.
    Agent(AgentId, AgentCommand),
    /// As a requester, which makes its requests in this org.
    Requester(Requester, OrgId, RequesterCommand),
}

/// The result of a command.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Done, without a result.
    Done,
    /// The task after the command.
    Updated(Update),
    /// The work to start.
    Started(Box<Start>),
    /// The task that was requested.
    Requested(Box<Requested>),
}

impl From<Update> for Reply {
    fn from(update: Update) -> Self {
        Self::Updated(update)
    }
}
impl From<()> for Reply {
    fn from((): ()) -> Self {
        Self::Done
    }
}
impl From<Requested> for Reply {
    fn from(requested: Requested) -> Self {
        Self::Requested(Box::new(requested))
    }
}

/// Executes a command. A task of an org that the bearer does not see is `UnknownTask`, like one that does not exist.
///
/// # Errors
/// Those of `task`, and `Forbidden` for a decision about another requester's task.
pub async fn execute(
    tasks: &TaskCommands,
    principal: &Principal,
    command: RemoteCommand,
) -> Result<Reply, Error> {
    principal.may_change().map_err(super::forbidden)?;
    match command {
        RemoteCommand::Agent(agent, command) => as_agent(tasks, principal, &agent, command).await,
        RemoteCommand::Requester(asker, org, command) => {
            as_requester(tasks, principal, asker, org, command).await
        }
    }
}

async fn as_agent(
    tasks: &TaskCommands,
    principal: &Principal,
    agent: &AgentId,
    command: AgentCommand,
) -> Result<Reply, Error> {
    Ok(match command {
        AgentCommand::Offer { task, offer } => {
            let offered = tasks.offer(task, agent, offer).await;
            unless_hidden(tasks, principal, task, offered).await?.into()
        }
        AgentCommand::Decline { task, round, reason } => {
            let declined = tasks.decline(task, agent, round, &reason).await;
            unless_hidden(tasks, principal, task, declined).await?.into()
        }
        AgentCommand::Refuse { key, reason } => tasks.refuse(key, agent, &reason).await?.into(),
        AgentCommand::Confirm(key) => tasks.confirm(key, agent).await?.into(),
        AgentCommand::Accept(key) => Reply::Started(Box::new(tasks.accept(key, agent).await?)),
        AgentCommand::Ask { key, question } => tasks.ask(key, agent, *question).await?.into(),
        AgentCommand::Progress(key, progress) => tasks.progress(key, agent, progress).await?.into(),
        AgentCommand::Heartbeat(key) => tasks.heartbeat(key, agent).await?.into(),
        AgentCommand::Finish { key, result, usage } => tasks.finish(key, agent, result, usage).await?.into(),
        AgentCommand::Fail { key, failure } => tasks.fail(key, agent, failure).await?.into(),
        AgentCommand::Release { key, reason, checkpoint } => {
            tasks.release(key, agent, &reason, checkpoint).await?.into()
        }
        AgentCommand::RequestPart { key, request } => {
            // A part belongs to the org of the whole, whatever the token's own org is.
            let org = visible(tasks, principal, key.task_id).await?.org;
            tasks.request_part(&org, key, agent, *request).await?.into()
        }
    })
}

async fn as_requester(
    tasks: &TaskCommands,
    principal: &Principal,
    asker: Requester,
    org: OrgId,
    command: RequesterCommand,
) -> Result<Reply, Error> {
    let may = |what, task| check_requester(tasks, principal, what, task);
    Ok(match command {
        RequesterCommand::Request(request) => tasks.request(&org, asker, *request).await?.into(),
        RequesterCommand::Cancel { task, reason } => {
            may("cancel", task).await?;
            tasks.cancel_by(task, &reason, asker).await?.into()
        }
        RequesterCommand::Choose { task, chosen } => {
            may("choose an offer on", task).await?;
            tasks.choose(task, &chosen, asker).await?.into()
        }
        RequesterCommand::Answer { task, answer } => {
            may_answer(tasks, principal, task).await?;
            tasks.answer(task, asker, answer).await?.into()
        }
        RequesterCommand::Requeue(task) => {
            may("requeue", task).await?;
            tasks.requeue(task, asker).await?.into()
        }
        RequesterCommand::SetBudget { task, budget } => {
            may("give a budget to", task).await?;
            tasks.set_budget(task, asker, budget).await?.into()
        }
    })
}

/// Refuses a decision about a task that another requester requested, except to an operator of its org.
async fn check_requester(
    tasks: &TaskCommands,
    principal: &Principal,
    what: &str,
    task: TaskId,
) -> Result<(), Error> {
    let found = visible(tasks, principal, task).await?;
    principal.may_decide_for(what, &found.org, &found.requester).map_err(super::forbidden)
}

/// Refuses an answer to a question of another requester's task, except to an operator of its org, and to people with a
/// role that the question names.
async fn may_answer(tasks: &TaskCommands, principal: &Principal, task: TaskId) -> Result<(), Error> {
    let found = visible(tasks, principal, task).await?;
    let named = found.question.as_ref().and_then(|question| question.get("approvers")?.as_array());
    let claims = principal.claims();
    let (role, is_agent) = (claims.role.as_str(), claims.agent_id.is_some());
    if !is_agent
        && !role.is_empty()
        && named.is_some_and(|roles| roles.iter().any(|named| named.as_str() == Some(role)))
    {
        return Ok(());
    }
    principal.may_decide_for("answer", &found.org, &found.requester).map_err(super::forbidden)
}

async fn visible(tasks: &TaskReader, principal: &Principal, id: TaskId) -> Result<Task, Error> {
    let task = tasks.get(id).await?;
    // Not `Forbidden`: that would tell another org which ids exist.
    if principal.sees(&task.org) { Ok(task) } else { Err(Error::UnknownTask(id)) }
}

/// The outcome of an offer, or `UnknownTask` if the bearer does not see the task. The task is read only after a
/// refusal: an accepted offer is on a task of the agent's own org.
async fn unless_hidden(
    tasks: &TaskCommands,
    principal: &Principal,
    task: TaskId,
    outcome: Result<(), Error>,
) -> Result<(), Error> {
    if outcome.is_err() {
        visible(tasks, principal, task).await?;
    }
    outcome
}
