//! Events of a task as server-sent events, until the task is final or the client disconnects.
//!
//! The `seq` of an event is its id, so a client that reconnects with `Last-Event-ID` misses nothing. A stream
//! queries the database after commits, one page at a time, and reads a page only after the last one was sent
//! (backpressure). A comment every 15 seconds keeps proxies from closing it. The last event is `end`. A stream ends
//! without it when the token of its request expires.
use super::{polls::PollPermit, wait};
use crate::{
    id::TaskId,
    task::{Event, TaskReader, TaskState},
};
use axum::response::{
    IntoResponse, Response, Sse,
    sse::{self, KeepAlive},
};
use futures_util::stream;
use std::{collections::VecDeque, convert::Infallible, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Events of one page.
const PAGE: i64 = 200;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long one query waits for new events.
const WAIT: Duration = Duration::from_secs(30);

struct Reader {
    tasks: TaskReader,
    task: TaskId,
    after: i64,
    page: VecDeque<Event>,
    /// The final state, until `end` is sent.
    end: Option<TaskState>,
    /// `end` was sent.
    over: bool,
    permit: Option<PollPermit>,
    stop: CancellationToken,
    /// When the token of the request expires; `None` if that is beyond the clock.
    until: Option<Instant>,
}

/// Streams the events of a task after `after`, for at most `within`, the rest of the life of the bearer's token. The
/// caller has checked that the bearer may see the task.
pub(super) fn of(
    tasks: TaskReader,
    task: TaskId,
    after: i64,
    permit: Option<PollPermit>,
    (stop, within): (CancellationToken, Duration),
) -> Response {
    let (page, end, over) = (VecDeque::new(), None, false);
    let until = Instant::now().checked_add(within);
    let reader = Reader { tasks, task, after, page, end, over, permit, stop, until };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("still here");
    // A proxy that buffers the response would delay its events.
    let headers = [("x-accel-buffering", "no"), ("cache-control", "no-store")];
    (headers, Sse::new(events).keep_alive(keep_alive)).into_response()
}

impl Reader {
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            // Before each event: a client that reads slowly has pages of before the end of its token.
            let left = self.until.map_or(WAIT, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return None;
            }
            if let Some(event) = self.page.pop_front() {
                self.after = event.seq;
                let sent = sse::Event::default().id(event.seq.to_string()).event(&event.event_type);
                // Fails for a name with a line break; no event type has one.
                return sent.json_data(&event).ok();
            }
            if let Some(state) = self.end.take() {
                self.over = true;
                let state = serde_json::json!({ "state": state }).to_string();
                return Some(sse::Event::default().event("end").data(state));
            }
            if self.over || self.stop.is_cancelled() {
                return None;
            }
            let ask = || async {
                // The state before the events: if the task is final, the events read afterwards are complete.
                let state = self.tasks.get(self.task).await?.state;
                Ok((self.tasks.events(self.task, self.after, PAGE).await?, state))
            };
            let done = |(events, state): &(Vec<Event>, TaskState)| state.is_final() || !events.is_empty();
            let polled = wait::until(
                WAIT.min(left),
                self.permit.as_ref(),
                self.tasks.changed(),
                &self.stop,
                ask,
                done,
            );
            let Ok((events, state)) = polled.await else {
                // The stream ends, and the client reconnects with the last id.
                return None;
            };
            // A full page may have successors, so `end` must wait for the next one.
            let all = i64::try_from(events.len()).is_ok_and(|count| count < PAGE);
            self.page = events.into();
            self.end = Some(state).filter(|state| state.is_final() && all);
        }
    }
}
