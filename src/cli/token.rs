//! `convoke token`: signs a token that the daemon of this data folder accepts.
use super::{
    Outcome,
    exit::Failure,
    output,
    settings::{Settings, keys},
};
use crate::{
    auth::{DashboardRole, Login, MintRequest, Role, mint},
    clock::Clock,
    id::{AgentId, OrgId},
};
use clap::ValueEnum;
use serde_json::json;
use std::time::Duration;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Role of the bearer
    #[arg(long, value_enum, default_value_t = Bearer::Anon)]
    role: Bearer,
    /// The agent that the bearer may act as (with --role agent)
    #[arg(long, value_name = "ID", required_if_eq("role", "agent"))]
    agent: Option<AgentId>,
    /// Name of the user, the claim sub (with --role user and --role operator). It owns the tasks that it requests, and
    /// the event log names it.
    #[arg(long, value_name = "NAME", required_if_eq("role", "operator"))]
    sub: Option<String>,
    /// The org that the bearer belongs to
    #[arg(long)]
    org: Option<OrgId>,
    /// Validity of the token, like 1h or 30d
    #[arg(long, default_value = "365d", value_parser = humantime::parse_duration)]
    ttl: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bearer {
    /// Anonymous: joins public channels. Can be in web pages.
    Anon,
    /// A program of yours, with all rights. Keep it secret.
    Service,
    /// A remote agent.
    Agent,
    /// A user of an org: requests tasks and sees those of the org.
    User,
    /// A user who also commands every task and agent of the org.
    Operator,
}

pub(super) fn run(settings: &Settings, args: &Args) -> Outcome {
    if args.agent.is_some() && args.role != Bearer::Agent {
        return Err(Failure::Usage("--agent needs --role agent".into()));
    }
    if args.sub.is_some() && !matches!(args.role, Bearer::User | Bearer::Operator) {
        return Err(Failure::Usage("--sub needs --role user or --role operator".into()));
    }
    if let Some(name) = &args.sub {
        Login::check_subject(name).map_err(|e| Failure::Usage(format!("--sub: {e}")))?;
    }
    let config = settings.load()?.config;
    let keys = keys(&config)?;
    let role = match args.role {
        Bearer::Anon => Role::Anon,
        Bearer::Service => Role::ServiceRole,
        Bearer::Agent | Bearer::User | Bearer::Operator => Role::Authenticated,
    };
    let request = MintRequest {
        role,
        org: args.org.clone(),
        agent_id: args.agent.clone(),
        subject: args.sub.clone(),
        dashboard: (args.role == Bearer::Operator).then_some(DashboardRole::Operator),
        ttl: args.ttl,
    };
    let now = Clock::System.now();
    let token = mint(&keys, &request, now)?;
    if settings.json {
        let claims = keys.verify(&token, now)?;
        output::json(&json!({ "token": token, "role": claims.role, "expires_at": claims.exp }));
    } else {
        output::line(token);
    }
    Ok(())
}
