//! Accounts for the memory that clients hold: in total, for each org and for each connection.
//!
//! A message is counted once, however many outboxes queue it, until the last outbox has written it. The same holds for
//! a message that subscribers buffer during a replay; each buffers within the limit of its outbox. Memory that one
//! connection holds (its presence, partial messages, frames that wait for a policy, messages that wait to be written to
//! a history) is counted for that connection. Over a limit, the connection that holds the most is evicted, first
//! within an org that exceeds its share: a client that does not read is disconnected before other clients are affected.
//! The index of histories has a fixed share, within which the room with the most messages loses its oldest ones.
//! HTTP inboxes of agents use the remaining memory, and lose their oldest messages if it is used up.
use super::Outbox;
use crate::{id::OrgId, telemetry::Registry};
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::{counter::Counter, gauge::Gauge};
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// Smaller messages are not counted: an outbox reaches its limit of frames before they use much memory.
const COUNTED_BYTES_MIN: usize = 256;
/// The index of histories may use one part in this many of the total. It belongs to no connection, so it has its own
/// share: its growth evicts no connection.
const INDEX_SHARE: usize = 8;
/// How long [`Memory::state`] reports an eviction, and the least time between two log lines about evictions.
const EVICTIONS_SHOWN: Duration = Duration::from_secs(60);

/// Limits in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// All clients together.
    pub total: usize,
    /// The connections of one org; those without an org count as one org.
    pub per_org: usize,
    /// One connection, without its outbox.
    pub per_connection: usize,
}

/// Counts what clients hold. Clones share the counts.
#[derive(Clone)]
pub struct Memory(Arc<Inner>);

struct Inner {
    limits: Limits,
    /// Bytes held now.
    used: Gauge,
    orgs: Mutex<HashMap<Option<OrgId>, Weak<AtomicUsize>>>,
    accounts: Mutex<Vec<Weak<Account>>>,
    evictions: Counter,
    evicted_at: Mutex<Option<Instant>>,
}

/// A memory limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("clients hold too much memory")]
pub struct Full;

/// The memory account of one connection.
pub struct Account {
    memory: Memory,
    org: Mutex<Arc<AtomicUsize>>,
    own: AtomicUsize,
    outbox: Weak<Outbox>,
    evicted: AtomicBool,
}

/// Counted bytes. Dropping it releases them.
pub struct Charge {
    memory: Memory,
    org: Option<Arc<AtomicUsize>>,
    account: Option<Arc<Account>>,
    bytes: usize,
}

impl Memory {
    /// An empty account. Registers the metrics `hub_memory_…` in `registry`.
    #[must_use]
    pub fn new(limits: Limits, registry: &Registry) -> Self {
        let (used, evictions) = (Gauge::default(), Counter::default());
        registry.register("hub_memory_bytes", "Bytes that clients hold", used.clone());
        let help = "Connections closed because clients held too much memory, and they the most";
        registry.register("hub_memory_evictions", help, evictions.clone());
        let (orgs, accounts, evicted_at) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { limits, used, orgs, accounts, evictions, evicted_at }))
    }

    /// Opens the account of a new connection of `org` whose messages queue in `outbox`.
    #[must_use]
    pub fn account(&self, org: Option<&OrgId>, outbox: &Arc<Outbox>) -> Arc<Account> {
        let account = Arc::new(Account {
            memory: self.clone(),
            org: Mutex::new(self.org(org)),
            own: AtomicUsize::new(0),
            outbox: Arc::downgrade(outbox),
            evicted: AtomicBool::new(false),
        });
        let mut accounts = self.0.accounts.lock();
        // Dead entries are removed only when the list would grow: the amortized cost of a connection is constant.
        if accounts.len() == accounts.capacity() {
            accounts.retain(|account| account.strong_count() > 0);
        }
        accounts.push(Arc::downgrade(&account));
        account
    }

    /// The bytes held, the limit in bytes, and whether a connection was evicted in the last minute.
    #[must_use]
    pub fn state(&self) -> (usize, usize, bool) {
        let evicted = self.0.evicted_at.lock().is_some_and(|at| at.elapsed() < EVICTIONS_SHOWN);
        (self.used(), self.0.limits.total, evicted)
    }

    /// The same bytes, counted until the last clone is dropped. Never fails: over a limit, connections are evicted.
    pub(super) fn counted(&self, bytes: Bytes, sender: Option<&Arc<Account>>) -> Bytes {
        if bytes.len() < COUNTED_BYTES_MIN {
            return bytes;
        }
        let org = sender.map(|sender| sender.org.lock().clone());
        let charge = self.charge(org, None, bytes.len());
        if charge.is_too_much(0) {
            charge.make_room(0, 0);
        }
        Bytes::from_owner(Counted { bytes, _charge: charge })
    }

    /// An empty charge that belongs to no connection; see [`Charge::grow`].
    #[must_use]
    pub fn unowned_charge(&self) -> Charge {
        self.charge(None, None, 0)
    }

    fn org(&self, org: Option<&OrgId>) -> Arc<AtomicUsize> {
        let mut orgs = self.0.orgs.lock();
        if let Some(used) = orgs.get(&org.cloned()).and_then(Weak::upgrade) {
            return used;
        }
        let used = Arc::default();
        orgs.retain(|_, used| used.strong_count() > 0);
        orgs.insert(org.cloned(), Arc::downgrade(&used));
        used
    }

    fn charge(&self, org: Option<Arc<AtomicUsize>>, account: Option<Arc<Account>>, bytes: usize) -> Charge {
        let mut charge = Charge { memory: self.clone(), org, account, bytes: 0 };
        charge.add(bytes);
        charge
    }

    fn used(&self) -> usize {
        usize::try_from(self.0.used.get()).unwrap_or_default()
    }
}

impl Account {
    /// Moves the account to `org`. Charges made before stay with the old org.
    pub fn belongs_to(&self, org: Option<&OrgId>) {
        *self.org.lock() = self.memory.org(org);
    }

    /// An empty charge for this connection; see [`Charge::resize`].
    #[must_use]
    pub fn charge(self: &Arc<Self>) -> Charge {
        self.memory.charge(Some(self.org.lock().clone()), Some(self.clone()), 0)
    }

    /// Whether the connection must end now, without sending its queued frames.
    #[must_use]
    pub fn is_evicted(&self) -> bool {
        self.evicted.load(Ordering::Acquire)
    }

    /// An upper bound of the bytes that the end of the connection would free.
    fn held(&self) -> usize {
        self.own.load(Ordering::Acquire) + self.outbox.upgrade().map_or(0, |outbox| outbox.held())
    }

    /// Evicts the connection. Its outbox is freed now, the rest when its task ends.
    fn evict(&self) {
        self.evicted.store(true, Ordering::Release);
        if let Some(outbox) = self.outbox.upgrade() {
            outbox.close_as_slow();
        }
        self.memory.0.evictions.inc();
        let mut last = self.memory.0.evicted_at.lock();
        if last.is_none_or(|at| at.elapsed() >= EVICTIONS_SHOWN) {
            tracing::warn!(
                "client memory limit reached, evicting connections (logged at most once a minute)"
            );
        }
        *last = Some(Instant::now());
    }
}

impl Charge {
    /// The counted bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Replaces the counted bytes with `bytes`. Over a limit, evicts connections that hold more than this one.
    ///
    /// # Errors
    /// [`Full`] if the connection would exceed its own limit, or if evictions do not free enough. The charge is
    /// then unchanged.
    pub fn resize(&mut self, bytes: usize) -> Result<(), Full> {
        let before = self.bytes;
        if bytes <= before {
            self.sub(before - bytes);
            return Ok(());
        }
        let more = bytes - before;
        let own = self.account.as_ref().map_or(0, |account| account.own.load(Ordering::Acquire));
        if own + more > self.memory.0.limits.per_connection {
            return Err(Full);
        }
        // Check and add are not one atomic step: concurrent charges may exceed a limit by what they add.
        if self.is_too_much(more) {
            // Evicts only connections that hold more than this one would, else a small one would pay for a large one.
            self.make_room(more, more + self.account.as_ref().map_or(0, |account| account.held()));
        }
        if self.is_too_much(more) {
            return Err(Full);
        }
        self.add(more);
        Ok(())
    }

    /// Replaces the counted bytes with `bytes`, whatever the limits: for memory that has a limit of its own.
    pub(super) fn set(&mut self, bytes: usize) {
        self.sub(self.bytes.saturating_sub(bytes));
        self.add(bytes.saturating_sub(self.bytes));
    }

    /// Replaces the counted bytes with `bytes` if that needs no eviction. Returns false otherwise; the charge is then
    /// unchanged.
    #[must_use]
    pub fn fits(&mut self, bytes: usize) -> bool {
        if self.is_too_much(bytes.saturating_sub(self.bytes)) && bytes > self.bytes {
            return false;
        }
        self.set(bytes);
        true
    }

    /// Counts `more` bytes in addition.
    ///
    /// # Errors
    /// Those of [`Charge::resize`].
    pub fn grow(&mut self, more: usize) -> Result<(), Full> {
        self.resize(self.bytes + more)
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.memory.0.used.inc_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        if let Some(org) = &self.org {
            org.fetch_add(bytes, Ordering::AcqRel);
        }
        if let Some(account) = &self.account {
            account.own.fetch_add(bytes, Ordering::AcqRel);
        }
    }

    fn sub(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.memory.0.used.dec_by(i64::try_from(bytes).unwrap_or(i64::MAX));
        if let Some(org) = &self.org {
            org.fetch_sub(bytes, Ordering::AcqRel);
        }
        if let Some(account) = &self.account {
            account.own.fetch_sub(bytes, Ordering::AcqRel);
        }
    }

    fn org_is_too_much(&self, more: usize) -> bool {
        let per_org = self.memory.0.limits.per_org;
        self.org.as_ref().is_some_and(|org| org.load(Ordering::Acquire) + more > per_org)
    }

    /// Whether `more` additional bytes would exceed the total or the org's limit.
    fn is_too_much(&self, more: usize) -> bool {
        self.memory.used() + more > self.memory.0.limits.total || self.org_is_too_much(more)
    }

    /// Evicts the connections that hold the most, and more than `least`, until `more` bytes fit. Bytes of evicted
    /// connections count as free: a connection takes a moment to end, and no other may be evicted because of that.
    fn make_room(&self, more: usize, least: usize) {
        let limits = self.memory.0.limits;
        // Held while victims are chosen, so that two concurrent callers do not evict twice as many. Lock order:
        // accounts, then an outbox or an account's org. No caller locks an outbox before the accounts.
        let accounts = self.memory.0.accounts.lock();
        let all: Vec<Arc<Account>> = accounts.iter().filter_map(Weak::upgrade).collect();
        let (mut leaving, mut staying) = (0, Vec::new());
        for account in all {
            let held = account.held();
            if account.evicted.load(Ordering::Acquire) {
                leaving += held;
            } else {
                let same_org = self.org.as_ref().is_some_and(|org| Arc::ptr_eq(org, &account.org.lock()));
                staying.push((same_org, held, account));
            }
        }
        // Connections of an org over its limit are evicted first: `pop` takes from the end.
        let org_first = self.org_is_too_much(more);
        staying.sort_unstable_by_key(|(same_org, held, _)| (org_first && *same_org && *held > least, *held));
        loop {
            let total_is_too_much = (self.memory.used() + more).saturating_sub(leaving) > limits.total;
            if !total_is_too_much && !self.org_is_too_much(more) {
                break;
            }
            let Some((same_org, held, worst)) = staying.pop().filter(|(_, held, _)| *held > least) else {
                break;
            };
            if !same_org && !total_is_too_much {
                break;
            }
            worst.evict();
            leaving += worst.held();
            tracing::debug!(held, "connection evicted: client memory limit");
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.sub(self.bytes);
    }
}

/// Bytes with their charge, as the owner of a `Bytes`.
struct Counted {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// The memory that a hub charges, once the gateway has set it.
#[derive(Default)]
pub(super) struct Counting(OnceLock<Memory>);

impl Counting {
    pub(super) fn set(&self, memory: Memory) {
        let _only_the_first = self.0.set(memory);
    }

    pub(super) fn counted(&self, bytes: Bytes, sender: Option<&Arc<Account>>) -> Bytes {
        match self.0.get() {
            Some(memory) => memory.counted(bytes, sender),
            None => bytes,
        }
    }

    /// Charges `bytes` that wait outside of an outbox to the connection that sent them.
    ///
    /// # Errors
    /// Those of [`Charge::resize`].
    pub(super) fn waiting(
        &self,
        bytes: usize,
        sender: Option<&Arc<Account>>,
    ) -> Result<Option<Charge>, Full> {
        let Some(memory) = self.0.get() else { return Ok(None) };
        let mut charge = sender.map_or_else(|| memory.unowned_charge(), Account::charge);
        charge.grow(bytes)?;
        Ok(Some(charge))
    }

    /// An empty charge that belongs to no connection; `None` until memory is counted.
    pub(super) fn charge(&self) -> Option<Charge> {
        self.0.get().map(Memory::unowned_charge)
    }

    /// The charge of the index of histories, and its limit in bytes.
    pub(super) fn index(&self) -> Option<(Charge, usize)> {
        let memory = self.0.get()?;
        Some((memory.unowned_charge(), memory.0.limits.total / INDEX_SHARE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(total: usize, per_org: usize) -> Memory {
        Memory::new(Limits { total, per_org, per_connection: 500 }, &Registry::default())
    }

    fn connection(memory: &Memory, org: &str) -> (Arc<Outbox>, Arc<Account>) {
        let outbox = Arc::new(Outbox::new(100, usize::MAX));
        let org: Option<OrgId> = org.parse().ok();
        let account = memory.account(org.as_ref(), &outbox);
        (outbox, account)
    }

    fn publish(memory: &Memory, sender: &Arc<Account>, receivers: &[&Arc<Outbox>], size: usize) {
        let bytes = memory.counted(vec![b'x'; size].into(), Some(sender));
        for outbox in receivers {
            outbox.push_control(bytes.clone()).unwrap();
        }
    }

    #[test]
    fn message_is_counted_once_until_the_last_outbox_has_written_it() {
        let memory = memory(10_000, 10_000);
        let ((one, sender), (two, _two)) = (connection(&memory, "a"), connection(&memory, "a"));
        publish(&memory, &sender, &[&one, &two], 1000);
        assert_eq!(memory.state(), (1000, 10_000, false));
        drop(one);
        assert_eq!(memory.used(), 1000);
        drop(two);
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn only_the_connection_that_holds_the_most_is_evicted() {
        let memory = memory(3000, 3000);
        let ((idle, sender), (little, _b), (worst, _c)) =
            (connection(&memory, "a"), connection(&memory, "b"), connection(&memory, "c"));
        publish(&memory, &sender, &[&little], 1000);
        publish(&memory, &sender, &[&worst], 1900);
        publish(&memory, &sender, &[&little], 500);
        assert_eq!((memory.used(), memory.state().2), (1500, true));
        assert!(worst.push_control(Bytes::from_static(b"x")).is_err(), "it is closed");
        for stays in [&idle, &little] {
            assert!(stays.push_control(Bytes::from_static(b"x")).is_ok());
        }
    }

    #[test]
    fn org_over_its_share_loses_its_largest_connection() {
        let memory = memory(10_000, 1500);
        let ((a1, a), (a2, _a2), (b1, b)) =
            (connection(&memory, "a"), connection(&memory, "a"), connection(&memory, "b"));
        publish(&memory, &b, &[&b1], 1400);
        publish(&memory, &a, &[&a1], 400);
        publish(&memory, &a, &[&a2], 900);
        publish(&memory, &a, &[&a1], 300);
        assert!(a2.push_control(Bytes::from_static(b"x")).is_err());
        assert!(a1.push_control(Bytes::from_static(b"x")).is_ok());
        assert!(b1.push_control(Bytes::from_static(b"x")).is_ok(), "of another org");
        assert_eq!(memory.used(), 2100);
    }

    #[test]
    fn charge_over_the_connection_limit_is_refused() {
        let memory = memory(10_000, 10_000);
        let (_outbox, account) = connection(&memory, "a");
        let (mut one, mut two) = (account.charge(), account.charge());
        one.resize(300).unwrap();
        assert_eq!(two.resize(201), Err(Full));
        two.resize(200).unwrap();
        one.resize(100).unwrap();
        two.resize(400).unwrap();
        assert_eq!((memory.used(), two.resize(401)), (500, Err(Full)));
        drop((one, two));
        assert_eq!(memory.used(), 0);
    }

    #[test]
    fn charge_without_a_victim_fails_and_counts_nothing() {
        let memory = memory(400, 400);
        let (_outbox, account) = connection(&memory, "a");
        let message = memory.counted(vec![0; 399].into(), None);
        let mut charge = account.charge();
        assert_eq!(charge.resize(300), Err(Full));
        assert_eq!(memory.used(), 399);
        drop(message);
        assert!(!account.evicted.load(Ordering::Acquire), "refused, not evicted");
        charge.resize(300).unwrap();
        assert_eq!(memory.used(), 300);
    }
}
