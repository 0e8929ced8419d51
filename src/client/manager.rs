//! Channels that parts of a program share: one for each id, counted, limited, and left when nobody uses them.
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

/// How long a channel is kept that nobody uses.
const UNUSED_MAX: Duration = Duration::from_secs(300);
/// How often unused channels are looked for.
const LOOK_PERIOD: Duration = Duration::from_secs(15);

/// Gives out the channels of one [`Client`] by their id, which is their topic. Clones give out the same ones.
///
/// Whoever asks for an id that is there shares its channel. A channel that nobody has held for five minutes is left,
/// and earlier when its place is needed.
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
    /// Held by whoever subscribes it.
    gate: Arc<tokio::sync::Mutex<()>>,
    leases: usize,
    unused_since: Instant,
}

/// The use of a channel; it may be left by the manager only after this is dropped. Behaves like the [`Channel`].
#[derive(Debug)]
pub struct Lease {
    channel: Channel,
    id: Arc<str>,
    pool: Weak<Pool>,
}

impl Manager {
    /// For at most `max` channels; a server that takes 100 on a connection refuses the one after. To be called in a
    /// Tokio runtime.
    #[must_use]
    pub fn new(client: &Client, max: usize) -> Self {
        let pool = Arc::new(Pool { client: client.clone(), max, slots: Mutex::default() });
        let weak = Arc::downgrade(&pool);
        client.scope().spawn("channel manager", OnExit::Log, |stop| async move {
            loop {
                tokio::select! {
                    () = stop.cancelled() => break,
                    () = sleep(LOOK_PERIOD) => match weak.upgrade() {
                        Some(pool) => pool.prune(Instant::now()),
                        None => break,
                    }
                }
            }
            Ok(())
        });
        Self(pool)
    }

    /// The subscribed channel of this id. `wish` says what it asks for, and counts only when it is not there yet.
    ///
    /// # Errors
    /// [`Error::TooManyChannels`] when all are in use, and those of [`Channel::subscribe`].
    pub async fn channel(
        &self,
        id: &str,
        wish: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
    ) -> Result<Lease, Error> {
        let (lease, gate) = self.lease(id, wish)?;
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

    /// Channels that are there, used or not.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.slots.lock().len()
    }
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// How many hold this channel; nothing: it is not there.
    #[must_use]
    pub fn users(&self, id: &str) -> Option<usize> {
        self.0.slots.lock().get(id).map(|slot| slot.leases)
    }

    fn lease(
        &self,
        id: &str,
        wish: impl FnOnce(ChannelBuilder) -> ChannelBuilder,
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
                let channel = wish(pool.client.channel(id)).build();
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

    /// A channel that was refused has no place, unless others hope for it.
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
