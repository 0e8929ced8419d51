//! `convoke dashboard`: prints a link that signs a person in to the dashboard.
use super::{
    Outcome, daemon,
    exit::Failure,
    output,
    settings::{Settings, keys},
};
use crate::{
    auth::{DashboardRole, Keys, Login},
    clock::Clock,
    config::load_agents,
    dashboard::{self as page, PATH},
    id::OrgId,
};
use serde_json::json;

/// The role of the user of this shell, who can read the secret of the data folder and so sign any token.
pub(super) const OWN_ROLE: DashboardRole = DashboardRole::Admin;

#[derive(clap::Args)]
pub(super) struct Args {
    /// The org that the person sees [default: the one of the first agent's file]
    #[arg(long)]
    org: Option<OrgId>,
    /// Name of the person, which the page shows [default: the name of the user of this shell]
    #[arg(long, value_name = "NAME")]
    sub: Option<String>,
    /// What the person may do: viewer reads, operator also commands tasks and agents, admin also sees the channels of
    /// the daemon [default: admin]
    #[arg(long, value_name = "ROLE")]
    role: Option<DashboardRole>,
}

pub(super) fn run(settings: &Settings, args: Args) -> Outcome {
    let config = settings.load()?.config;
    if !config.dashboard.enabled {
        return Err(Failure::Usage("the dashboard is off: set dashboard.enabled = true".into()));
    }
    let subject = args.sub.unwrap_or_else(user);
    Login::check_subject(&subject).map_err(|e| Failure::Usage(format!("--sub: {e}")))?;
    // Agents whose files cannot be read do not matter here: they only choose a default.
    let first = || load_agents(&config.agents.dir).ok()?.first().map(|agent| agent.org.clone());
    let org = args.org.or_else(first).unwrap_or_default();
    let url = daemon::url(settings, &config);
    let login = Login::new(subject, org, args.role.unwrap_or(OWN_ROLE), Clock::System.now());
    let link = link(&config.dashboard, &keys(&config)?, &url, &login)?;
    if settings.json {
        let told = json!({
            "url": link, "user": login.subject, "org": login.org, "role": login.role, "expires_at": login.expires_at,
        });
        output::json(&told);
    } else {
        output::line(link);
    }
    Ok(())
}

/// The link with the code. The code is in the fragment, which browsers send to no server.
pub(super) fn link(config: &page::Config, keys: &Keys, url: &str, login: &Login) -> anyhow::Result<String> {
    let base = config.public_url.as_deref().unwrap_or(url);
    Ok(format!("{base}{PATH}/#code={}", keys.sign_login(login)?))
}

/// The name of the user of this shell.
pub(super) fn user() -> String {
    let named = std::env::var("USER").ok().filter(|name| Login::check_subject(name).is_ok());
    named.unwrap_or_else(|| "operator".into())
}
