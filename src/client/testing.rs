//! Helpers for tests of programs that use channels: against a real server, without sleeps.
//!
//! ```no_run
//! # async fn example(client: &convoke::client::Client) -> anyhow::Result<()> {
//! use convoke::client::testing::{create_test_channel, mock_presence, wait_for_event};
//! use serde_json::json;
//! use std::time::Duration;
//!
//! let channel = create_test_channel(client).await?;
//! let mut pings = channel.broadcasts("ping");
//! channel.broadcast("ping", json!({"n": 1})).await?;
//! let ping = wait_for_event(&mut pings, Duration::from_secs(5), |_| true).await?;
//!
//! let others = mock_presence(&channel, [("ada", json!({"status": "busy"}))]).await?;
//! let mut presences = channel.presences();
//! drop(others);
//! wait_for_event(&mut presences, Duration::from_secs(5), |sync| !sync.leaves.is_empty()).await?;
//! # Ok(())
//! # }
//! ```
use super::{Channel, Client, Error, Listener, Missed};
use futures_util::future::try_join_all;
use serde::Serialize;
use std::time::Duration;
use tokio::time::timeout;

/// Why an awaited event did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// Only other events arrived, or none.
    #[error("not within {within:?}; {others} others came")]
    TimedOut {
        /// The timeout.
        within: Duration,
        /// Other events that arrived.
        others: usize,
    },
    /// The listener lost events, so the awaited one may be among them.
    #[error(transparent)]
    Missed(#[from] Missed),
    /// The channel closed before the event arrived.
    #[error("the channel closed; {others} others came")]
    Closed {
        /// Other events that arrived.
        others: usize,
    },
}

/// A subscribed public channel on a unique topic. It receives its own broadcasts, which are acknowledged, and may
/// track its presence.
///
/// # Errors
/// Those of [`Channel::subscribe`].
pub async fn create_test_channel(client: &Client) -> Result<Channel, Error> {
    let topic = format!("test:{}", uuid::Uuid::new_v4());
    client.channel(&topic).receive_own().acknowledged().presence().subscribe().await
}

/// The next event that is `wanted`; earlier ones are skipped. Make the listener before the event can occur.
///
/// # Errors
/// [`WaitError`].
pub async fn wait_for_event<T>(
    listener: &mut Listener<T>,
    within: Duration,
    mut wanted: impl FnMut(&T) -> bool,
) -> Result<T, WaitError> {
    let mut others = 0;
    let found = async {
        while let Some(event) = listener.next().await {
            let event = event?;
            if wanted(&event) {
                return Ok(event);
            }
            others += 1;
        }
        Err(WaitError::Closed { others })
    };
    let found = timeout(within, found).await;
    found.unwrap_or(Err(WaitError::TimedOut { within, others }))
}

/// Other clients that are present, each on its own connection. Dropping it makes them leave.
#[derive(Debug)]
pub struct MockPresence(Vec<(String, Channel)>);

/// Makes other clients present on the channel's topic, under these keys and with these metas. They are present when
/// this resolves.
///
/// # Errors
/// Those of [`Channel::subscribe`] and [`Channel::track`].
pub async fn mock_presence<K: Into<String>, M: Serialize>(
    channel: &Channel,
    members: impl IntoIterator<Item = (K, M)>,
) -> Result<MockPresence, Error> {
    let join = async |key: String, meta: M| {
        let member = channel.client().sibling().channel(channel.topic()).presence_key(&key);
        let member = if channel.is_private() { member.private() } else { member };
        let member = member.subscribe().await?;
        member.track(&meta).await?;
        Ok::<_, Error>((key, member))
    };
    let members = members.into_iter().map(|(key, meta)| join(key.into(), meta));
    try_join_all(members).await.map(MockPresence)
}

impl MockPresence {
    /// The channel of one client, for example to track another meta.
    #[must_use]
    pub fn member(&self, key: &str) -> Option<&Channel> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, channel)| channel)
    }

    /// Makes one client leave.
    pub fn leave(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }
}
