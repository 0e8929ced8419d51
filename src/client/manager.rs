//! A pool of shared channels: one for each id, reference-counted, limited, and left when unused.
use super::{Channel, ChannelBuilder, Client, Error, Status};
use crate::scope::OnExit;
use parking_lot::Mutex;
use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Deref,
    sync::{Arc, Weak},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// How long an unused channel is kept.
const UNUSED_MAX: Duration = Duration::from_secs(300);
/// The interval of the search for unused channels.
const PRUNE_INTERVAL: Duration = Duration::from_secs(15);

/// Hands out the channels of one [`Client`] by id, which is their topic. Clones share the pool.
///
/// A second request for an id shares its channel. A channel without leases is left after five minutes, or earlier
/// if the limit is reached.
#[derive(Clone, Debug)]
pub struct Manager(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    client: Client,
    max: usize,
    slots: Mutex<HashMap<Arc<str>, Slot>>,
}

#[derive(Debug)]
struct Slot {
    channel: Channel,
    /// Held while a caller subscribes the channel, so that concurrent callers wait for one join.
    gate: Arc<tokio::sync::Mutex<()>>,
    leases: usize,
    unused_since: Instant,
}

/// The use of a channel. The manager leaves a channel only after its last lease is dropped. Dereferences to the
/// [`Channel`].
#[derive(Debug)]
pub struct Lease {
    channel: Channel,
    id: Arc<str>,
    pool: Weak<Pool>,
}

impl Manager {
    /// A manager for at most `max` channels. Stay at or below the server's limit of channels for each connection, often
    /// 100. Must be called in a Tokio runtime.
    #[must_use]
    pub fn new(client: &Client, max: usize) -> Self {
        let pool = Arc::new(Pool { client: client.clone(), max, slots: Mutex::default() });
        let weak = Arc::downgrade(&pool);
        client.scope().spawn("channel manager", OnExit::Log, |stop| async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(PRUNE_INTERVAL) => match weak.upgrade() {
                        Some(pool) => pool.prune(Instant::now()),
                        None => break,
                    }
                }
            }
            Ok(())
        });
        Self(pool)
    }

    /// The subscribed channel of this id. `configure` applies only if the channel does not exist yet.
    ///
    /// # Errors
    /// [`Error::TooManyChannels`] if all are in use, and those of [`Channel::subscribe`].
    pub async fn channel(
        &self,
        id: &str,
        configure: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
    ) -> Result<Lease, Error> {
        let (lease, gate) = self.lease(id, configure)?;
        let guard = gate.lock().await;
        let closed = matches!(*lease.channel.status().borrow(), Status::Closed(_));
        let outcome = if closed { lease.channel.subscribe().await } else { Ok(()) };
        drop(guard);
        match outcome {
            Ok(()) => Ok(lease),
            Err(error) => {
                drop(lease);
                self.0.forget(id);
                Err(error)
            }
        }
    }

    /// The number of channels, used or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.slots.lock().len()
    }
    /// Whether there is no channel.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The number of leases of a channel; `None` if it does not exist.
    #[must_use]
    pub fn users(&self, id: &str) -> Option<usize> {
        self.0.slots.lock().get(id).map(|slot| slot.leases)
    }

    fn lease(
        &self,
        id: &str,
        configure: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
    ) -> Result<(Lease, Arc<tokio::sync::Mutex<()>>), Error> {
        let pool = &self.0;
        let mut slots = pool.slots.lock();
        if slots.len() >= pool.max && !slots.contains_key(id) {
            let unused = slots.iter().filter(|(_, slot)| slot.leases == 0);
            let oldest = unused.min_by_key(|(_, slot)| slot.unused_since).map(|(id, _)| id.clone());
            let oldest = oldest.ok_or(Error::TooManyChannels { max: pool.max })?;
            slots.remove(&oldest);
        }
        let slot = match slots.entry(id.into()) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(vacant) => {
                let channel = configure(pool.client.channel(id)).build();
                vacant.insert(Slot { channel, gate: Arc::default(), leases: 0, unused_since: Instant::now() })
            }
        };
        slot.leases += 1;
        let lease = Lease { channel: slot.channel.clone(), id: id.into(), pool: Arc::downgrade(pool) };
        Ok((lease, slot.gate.clone()))
    }
}

impl Pool {
    fn prune(&self, now: Instant) {
        let unused = |slot: &Slot| slot.leases == 0 && now.duration_since(slot.unused_since) >= UNUSED_MAX;
        self.slots.lock().retain(|_, slot| !unused(slot));
    }

    /// Removes a channel that was refused, unless another caller has a lease.
    fn forget(&self, id: &str) {
        let mut slots = self.slots.lock();
        if slots.get(id).is_some_and(|slot| slot.leases == 0) {
            slots.remove(id);
        }
    }
}

impl Deref for Lease {
    type Target = Channel;
    fn deref(&self) -> &Channel {
        &self.channel
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut slots = pool.slots.lock();
        if let Some(slot) = slots.get_mut(&self.id) {
            slot.leases -= 1;
            slot.unused_since = Instant::now();
        }
    }
}
