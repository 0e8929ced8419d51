//! For tests of programs that use channels: against a real server, without sleeping.
//!
//! ```ignore
//! let channel = create_test_channel(&client).await?;
//! let mut pings = channel.broadcasts("ping");
//! channel.broadcast("ping", &json!({"n": 1})).await?;
//! let ping = wait_for_event(&mut pings, Duration::from_secs(5), |_| true).await?;
//!
//! let others = mock_presence(&channel, [("ada", json!({"status": "busy"}))]).await?;
//! let mut presences = channel.presences();
//! drop(others);
//! wait_for_event(&mut presences, Duration::from_secs(5), |sync| !sync.leaves.is_empty()).await?;
//! ```
use super::{Channel, Client, Error, Listener, Missed};
use futures_util::future::try_join_all;
use serde::Serialize;
use std::time::Duration;
use tokio::time::timeout;

/// Why an awaited event did not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaitError {
    /// Others came, or none.
    #[error("not within {within:?}; {others} others came")]
    TimedOut {
        /// How long was waited.
        within: Duration,
        /// Events that came and were not wanted.
        others: usize,
    },
    /// Some were dropped before they were looked at, so it may have come.
    #[error(transparent)]
    Missed(#[from] Missed),
    /// The channel closed before it came.
    #[error("the channel closed; {others} others came")]
    Closed {
        /// Events that came and were not wanted.
        others: usize,
    },
}

/// A subscribed public channel that nobody else uses: it hears itself, its broadcasts are acknowledged, and it may
/// track its presence.
///
/// # Errors
/// As of [`Channel::subscribe`].
pub async fn create_test_channel(client: &Client) -> Result<Channel, Error> {
    let topic = format!("test:{}", uuid::Uuid::new_v4());
    client.channel(&topic).receive_own().acknowledged().presence().subscribe().await
}

/// The next event that is `wanted`; those before it are skipped. The listener must be older than what it waits for.
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

/// Others who are there, each on a connection of its own; when it is dropped, they leave.
#[derive(Debug)]
pub struct MockPresence(Vec<(String, Channel)>);

/// Makes others be present on the channel's topic, under these keys and with what they say about themselves; they are
/// there when this returns.
///
/// # Errors
/// As of [`Channel::subscribe`] and [`Channel::track`].
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
    /// The channel of one of them, to say something else.
    #[must_use]
    pub fn member(&self, key: &str) -> Option<&Channel> {
        self.0.iter().find(|(name, _)| name == key).map(|(_, channel)| channel)
    }

    /// One of them leaves.
    pub fn leave(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }
}
