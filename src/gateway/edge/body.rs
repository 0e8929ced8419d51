//! A request body with time limits, whose memory is counted.
//!
//! Bodies have a share of the memory of clients, and the bodies of one address a part of it. A body that does not fit is
//! refused: it never evicts a connection, since anybody can send bodies slowly.
use crate::{
    hub::{
        Memory,
        memory::{Charge, Full},
    },
    id::client_address,
};
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use std::{
    collections::HashMap,
    error::Error,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::{Instant, Sleep, sleep};

/// The time limits of a body.
#[derive(Clone, Copy, Debug)]
pub struct BodyLimits {
    /// From its first wait to its last byte.
    pub whole: Duration,
    /// Between two parts.
    pub idle: Duration,
}

/// The memory that one byte of a body is charged: the body is kept, and copied where it is stored.
const BYTE_COST: usize = 4;
/// What a JSON object is charged in addition, at its brace: one node of a map.
const OBJECT_COST: usize = 640;
/// What a JSON value of a list or an object is charged in addition, at its comma, and a list at its bracket.
const VALUE_COST: usize = 32;
/// All bodies may use one part in this many of the memory of clients, and those of one address a part of that.
const BODIES_SHARE: usize = 2;
const ADDRESS_SHARE: usize = 4;

/// Counts the memory of request bodies until their requests are answered. Clones share the counts.
#[derive(Clone)]
pub struct Bodies(Arc<Counts>);

struct Counts {
    memory: Memory,
    total: AtomicUsize,
    by_address: Mutex<HashMap<IpAddr, Weak<AtomicUsize>>>,
}

/// The counted memory of one body. Dropping it releases the memory.
pub struct BodyCharge {
    counts: Arc<Counts>,
    of_address: Arc<AtomicUsize>,
    charge: Charge,
}

impl Bodies {
    /// Bodies that count in `memory`, too.
    #[must_use]
    pub fn new(memory: Memory) -> Self {
        Self(Arc::new(Counts { memory, total: AtomicUsize::new(0), by_address: Mutex::default() }))
    }

    /// An empty charge for a body of a client.
    #[must_use]
    pub fn charge(&self, client: IpAddr) -> BodyCharge {
        let mut by_address = self.0.by_address.lock();
        let address = client_address(client);
        let known = by_address.get(&address).and_then(Weak::upgrade);
        let of_address = known.unwrap_or_else(|| {
            // Dead entries are removed only when the map would grow: the amortized cost of a request is constant.
            if by_address.len() == by_address.capacity() {
                by_address.retain(|_, used| used.strong_count() > 0);
            }
            let fresh = Arc::default();
            by_address.insert(address, Arc::downgrade(&fresh));
            fresh
        });
        BodyCharge { counts: self.0.clone(), of_address, charge: self.0.memory.unowned_charge() }
    }
}

impl BodyCharge {
    /// Counts `more` bytes in addition. Evicts no connection.
    ///
    /// # Errors
    /// [`Full`] if the share of bodies, that of the address, or the memory of all clients would be exceeded.
    fn grow(&mut self, more: usize) -> Result<(), Full> {
        let limit = self.counts.memory.state().1;
        // Check and add are not one atomic step: concurrent bodies may exceed a share by what they add.
        let fits = |used: &AtomicUsize, share: usize| used.load(Ordering::Acquire) + more <= limit / share;
        let has_share = fits(&self.counts.total, BODIES_SHARE) && fits(&self.of_address, ADDRESS_SHARE);
        if !has_share || !self.charge.fits(self.charge.bytes() + more) {
            return Err(Full);
        }
        self.counts.total.fetch_add(more, Ordering::AcqRel);
        self.of_address.fetch_add(more, Ordering::AcqRel);
        Ok(())
    }
}

impl Drop for BodyCharge {
    fn drop(&mut self) {
        self.counts.total.fetch_sub(self.charge.bytes(), Ordering::AcqRel);
        self.of_address.fetch_sub(self.charge.bytes(), Ordering::AcqRel);
    }
}

/// The memory that a part of a body takes once it is parsed. Of a text with braces and commas it is too much: such bodies
/// are small beside their share.
fn cost(part: &[u8]) -> usize {
    let of_byte = |byte: &u8| match byte {
        b'{' => OBJECT_COST,
        b'[' | b',' => VALUE_COST,
        _ => 0,
    };
    BYTE_COST * part.len() + part.iter().map(of_byte).sum::<usize>()
}

/// A body that fails with [`io::ErrorKind::TimedOut`] if it is too slow, and with
/// [`io::ErrorKind::OutOfMemory`] over a memory limit. Time counts only while the body is being read.
pub struct TimedBody {
    body: Incoming,
    limits: BodyLimits,
    timer: Option<Pin<Box<Timer>>>,
    charge: Arc<Mutex<BodyCharge>>,
}

struct Timer {
    ends: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl TimedBody {
    /// `body` with these `limits`. The bytes read are charged to `charge`.
    #[must_use]
    pub fn new(body: Incoming, limits: BodyLimits, charge: Arc<Mutex<BodyCharge>>) -> Self {
        Self { body, limits, timer: None, charge }
    }
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let BodyLimits { whole, idle } = self.limits;
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
            let part = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref());
            if self.charge.lock().grow(part.map_or(0, |part| cost(part))).is_err() {
                return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::OutOfMemory).into())));
            }
            if let Some(timer) = &mut self.timer {
                let next = (Instant::now() + idle).min(timer.ends);
                timer.sleep.as_mut().reset(next);
                // Also ends a body whose parts each arrive in time.
                if Instant::now() >= timer.ends {
                    return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
                }
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let timer = self.timer.get_or_insert_with(|| {
            Box::pin(Timer { ends: Instant::now() + whole, sleep: Box::pin(sleep(idle.min(whole))) })
        });
        if timer.sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::TimedOut).into())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why the server stopped reading a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// It was too slow.
    TooSlow,
    /// A memory limit was reached.
    NoRoom,
}

/// Why a body could not be read; `None` if the server did not stop it.
#[must_use]
pub fn body_error(error: &(dyn Error + 'static)) -> Option<BodyError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref::<io::Error>().map(io::Error::kind) {
            Some(io::ErrorKind::TimedOut) => return Some(BodyError::TooSlow),
            Some(io::ErrorKind::OutOfMemory) => return Some(BodyError::NoRoom),
            _ => cause = error.source(),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{hub::memory::Limits, telemetry::Registry};

    fn memory(total: usize) -> Memory {
        let limits = Limits { total, per_org: total, per_connection: total };
        Memory::new(limits, &Registry::default())
    }

    #[test]
    fn bodies_of_one_address_and_of_all_have_a_share_of_the_memory() {
        let (memory, ip) = (memory(1000), |last: u8| IpAddr::from([192, 0, 2, last]));
        let bodies = Bodies::new(memory.clone());
        let (mut one, mut two) = (bodies.charge(ip(1)), bodies.charge(ip(1)));
        one.grow(200).unwrap();
        assert_eq!(two.grow(51), Err(Full), "a quarter for one address");
        two.grow(50).unwrap();
        let (mut other, mut third) = (bodies.charge(ip(2)), bodies.charge(ip(3)));
        other.grow(250).unwrap();
        assert_eq!(third.grow(1), Err(Full), "a half for all");
        drop(one);
        third.grow(200).unwrap();
        assert_eq!(memory.state().0, 500);
        drop((two, other, third));
        assert_eq!(memory.state().0, 0);
        bodies.charge(ip(1)).grow(250).unwrap();
    }

    #[test]
    fn body_is_refused_and_evicts_no_connection() {
        let memory = memory(1000);
        let outbox = Arc::new(crate::hub::Outbox::new(10, usize::MAX));
        let account = memory.account(None, &outbox);
        let mut held = account.charge();
        held.resize(900).unwrap();
        let mut body = Bodies::new(memory.clone()).charge(IpAddr::from([192, 0, 2, 1]));
        assert_eq!(body.grow(101), Err(Full));
        assert!(!account.is_evicted());
        body.grow(100).unwrap();
    }

    #[test]
    fn parsed_values_are_charged() {
        assert_eq!(cost(b"abc"), 3 * BYTE_COST);
        assert_eq!(cost(br#"[{"a":1},{"b":[]}]"#), 18 * BYTE_COST + 2 * OBJECT_COST + 3 * VALUE_COST);
    }
}
