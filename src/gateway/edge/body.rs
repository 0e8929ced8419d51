//! A request body with time limits, charged to a memory account.
use crate::hub::memory::Charge;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use std::{
    error::Error,
    io,
    pin::Pin,
    sync::Arc,
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

/// The memory that one byte of a body is charged: the body is kept, and its JSON values take several times its size.
const COUNTED_FACTOR: usize = 4;

/// A body that fails with [`io::ErrorKind::TimedOut`] if it is too slow, and with
/// [`io::ErrorKind::OutOfMemory`] over a memory limit. Time counts only while the body is being read.
pub struct TimedBody {
    body: Incoming,
    limits: BodyLimits,
    timer: Option<Pin<Box<Timer>>>,
    charge: Arc<Mutex<Charge>>,
}

struct Timer {
    ends: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl TimedBody {
    /// `body` with these `limits`. The bytes read are charged to `charge`.
    #[must_use]
    pub fn new(body: Incoming, limits: BodyLimits, charge: Arc<Mutex<Charge>>) -> Self {
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
            let bytes =
                frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()).map_or(0, Bytes::len);
            if self.charge.lock().grow(COUNTED_FACTOR * bytes).is_err() {
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
