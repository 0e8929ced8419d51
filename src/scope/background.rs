//! Threads of low priority for what takes long and comes from clients.
//!
//! The runtime's workers serve every client. A message of megabytes would occupy one of them for milliseconds, and the
//! processor of another. So such work is polled on a few threads of [lower
//! priority](super::lower_priority_of_this_thread), where it delays work of its kind only.
use std::{
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    thread::available_parallelism,
};
use tokio::{
    runtime::{Builder, Handle, Runtime},
    sync::oneshot,
};
use tokio_util::task::AbortOnDropHandle;

const THREAD_NAME: &str = "background";

/// A few threads of low priority, at most half as many as processors. Clones share them.
#[derive(Clone, Debug)]
pub struct Background(Arc<Threads>);

#[derive(Debug)]
struct Threads(Option<Runtime>);

impl Drop for Threads {
    fn drop(&mut self) {
        // Without waiting: the last clone may be dropped on a thread of a runtime, which must not block.
        self.0.take().into_iter().for_each(Runtime::shutdown_background);
    }
}

/// Whether a future has ended, or must be polled elsewhere.
enum Outcome<T> {
    Ended(T),
    Moves,
}

impl Background {
    /// Starts the threads. Without them, which is logged, all work stays on the threads of its caller.
    #[must_use]
    pub fn start() -> Self {
        let threads = available_parallelism().map_or(1, usize::from) / 2;
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name(THREAD_NAME)
            .on_thread_start(super::lower_priority_of_this_thread)
            .build();
        let runtime = runtime.inspect_err(|error| tracing::warn!(%error, "no threads of low priority"));
        Self(Arc::new(Threads(runtime.ok())))
    }

    /// Whether this thread is one of low priority.
    #[must_use]
    pub fn is_here() -> bool {
        std::thread::current().name() == Some(THREAD_NAME)
    }

    /// Runs `future` to its end. It is polled on the threads of low priority while `is_heavy` returns true, and by the
    /// caller else; `is_heavy` is asked after each poll that is pending.
    ///
    /// What it spawns, and its timers and sockets, belong to the caller's runtime wherever it is polled. Boxed, because
    /// it moves between tasks.
    pub async fn carry<F, C>(&self, mut future: Pin<Box<F>>, is_heavy: C) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
        C: Fn() -> bool + Clone + Send + Sync + 'static,
    {
        let Some(threads) = &self.0.0 else { return future.await };
        let caller = Handle::current();
        loop {
            if let Outcome::Ended(output) = until(&mut future, &is_heavy).await {
                return output;
            }
            let (caller, is_heavy) = (caller.clone(), is_heavy.clone());
            let carried = threads.spawn(async move {
                let mut entered = EnteredWhilePolled { future, caller };
                let outcome = until(&mut entered, &|| !is_heavy()).await;
                (outcome, entered)
            });
            // The work ends with its owner, like a future that is dropped.
            match AbortOnDropHandle::new(carried).await {
                Ok((Outcome::Ended(output), _)) => return output,
                Ok((Outcome::Moves, entered)) => future = entered.future,
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                // The threads stop with the daemon only.
                Err(_) => return std::future::pending().await,
            }
        }
    }

    /// Runs `work` on a thread of low priority; on the caller's thread if there is none. `None` if it panicked.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let Some(threads) = &self.0.0 else { return Some(work()) };
        let (sender, answer) = oneshot::channel();
        // A caller that is gone needs no answer.
        threads.spawn(async move { sender.send(work()).ok() });
        answer.await.ok()
    }
}

/// Polls `future` until it ends, or until it is pending and `moves` returns true.
async fn until<F: Future + Unpin>(future: &mut F, moves: &impl Fn() -> bool) -> Outcome<F::Output> {
    poll_fn(|cx| match Pin::new(&mut *future).poll(cx) {
        Poll::Ready(output) => Poll::Ready(Outcome::Ended(output)),
        // It is polled at once where it moves to, so a wake-up in between is not lost.
        Poll::Pending if moves() => Poll::Ready(Outcome::Moves),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Polls a future in the context of the runtime that it came from: a connection to the database that it opens must not
/// depend on threads of low priority.
struct EnteredWhilePolled<F> {
    future: Pin<Box<F>>,
    caller: Handle,
}

impl<F: Future> Future for EnteredWhilePolled<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Self { future, caller } = &mut *self;
        let _entered = caller.enter();
        future.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Mutex,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };
    use tokio::{sync::Notify, task::yield_now};

    #[tokio::test]
    async fn heavy_future_is_polled_in_the_background_until_it_is_light_again() {
        let background = Background::start();
        let (heavy, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (flag, places) = (heavy.clone(), seen.clone());
        let work = async move {
            for is_heavy in [false, true, true, false, false, true] {
                flag.store(is_heavy, Ordering::Release);
                yield_now().await;
                places.lock().unwrap().push((is_heavy, Background::is_here()));
            }
            7
        };
        assert_eq!(background.carry(Box::pin(work), move || heavy.load(Ordering::Acquire)).await, 7);
        assert!(seen.lock().unwrap().iter().all(|(heavy, background)| heavy == background), "{seen:?}");
    }

    #[tokio::test]
    async fn heavy_future_spawns_sleeps_and_is_woken_through_its_own_runtime() {
        let background = Background::start();
        let (woken, wake) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (own, other) = (woken.clone(), wake.clone());
        let caller = Handle::current().id();
        let work = async move {
            yield_now().await;
            assert!(Background::is_here());
            assert_eq!(Handle::current().id(), caller);
            #[expect(clippy::disallowed_methods, reason = "where it runs is what is tested")]
            let spawned = tokio::spawn(async { Background::is_here() }).await.unwrap();
            assert!(!spawned);
            tokio::time::sleep(Duration::from_millis(1)).await;
            own.notify_one();
            other.notified().await;
            Background::is_here()
        };
        let waker = async {
            woken.notified().await;
            wake.notify_one();
        };
        assert!(tokio::join!(background.carry(Box::pin(work), || true), waker).0);
    }

    #[tokio::test]
    async fn heavy_future_ends_when_its_owner_is_dropped() {
        let background = Background::start();
        let (owner, token) = (Arc::new(()), Arc::new(Notify::new()));
        let (held, begun) = (owner.clone(), token.clone());
        let mut carried = Box::pin(background.carry(
            Box::pin(async move {
                yield_now().await;
                begun.notify_one();
                let _held = held;
                std::future::pending::<()>().await;
            }),
            || true,
        ));
        tokio::select! {
            () = &mut carried => unreachable!(),
            () = token.notified() => {}
        }
        drop(carried);
        while Arc::strong_count(&owner) > 1 {
            yield_now().await;
        }
    }

    #[tokio::test]
    async fn work_runs_at_low_priority_and_a_panic_is_no_answer() {
        let background = Background::start();
        assert_eq!(background.run(Background::is_here).await, Some(true));
        #[cfg(target_os = "linux")]
        {
            let nice = || rustix::process::getpriority_process(Some(rustix::thread::gettid())).unwrap();
            let usual = nice();
            assert!(background.run(nice).await > Some(usual));
            assert_eq!(nice(), usual, "the other threads keep theirs");
        }
        assert_eq!(background.run(|| panic!("expected by the test")).await, None::<()>);
    }
}
