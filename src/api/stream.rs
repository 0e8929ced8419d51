//! A task's events as server-sent events, until the task has ended or the client goes away.
//!
//! Each has its `seq` as its id, so a client that comes back with `Last-Event-ID` misses nothing. A stream
//! looks at the database when something was committed, one page at a time and no page before the last one
//! was taken; a comment every few seconds keeps proxies from closing it. The last event is `end`.
use super::{polls::Place, wait};
use crate::{
    id::TaskId,
    task::{Event, TaskState, Tasks},
};
use axum::response::{
    IntoResponse, Response, Sse,
    sse::{self, KeepAlive},
};
use futures_util::stream;
use std::{collections::VecDeque, convert::Infallible, time::Duration};
use tokio_util::sync::CancellationToken;

/// Events that are read together.
const PAGE: i64 = 200;
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long one look waits for something new.
const WAIT: Duration = Duration::from_secs(30);

struct Reader {
    tasks: Tasks,
    task: TaskId,
    after: i64,
    page: VecDeque<Event>,
    /// How the task ended, until that is told.
    end: Option<TaskState>,
    over: bool,
    place: Option<Place>,
    stop: CancellationToken,
}

/// The events of a task after `after`; the caller may see it.
pub(super) fn of(
    tasks: Tasks,
    task: TaskId,
    after: i64,
    place: Option<Place>,
    stop: CancellationToken,
) -> Response {
    let (page, end, over) = (VecDeque::new(), None, false);
    let reader = Reader { tasks, task, after, page, end, over, place, stop };
    let events = stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await?;
        Some((Ok::<_, Infallible>(event), reader))
    });
    let keep_alive = KeepAlive::new().interval(KEEP_ALIVE).text("still here");
    // A proxy that collects what it passes on would make a stream of no use.
    let headers = [("x-accel-buffering", "no"), ("cache-control", "no-store")];
    (headers, Sse::new(events).keep_alive(keep_alive)).into_response()
}

impl Reader {
    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.page.pop_front() {
                self.after = event.seq;
                let told = sse::Event::default().id(event.seq.to_string()).event(&event.event_type);
                // A name with a line break cannot be sent; ours have none.
                return told.json_data(&event).ok();
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
                // The state is read first: a task that is final then has all its events now.
                let state = self.tasks.get(self.task).await?.state;
                Ok((self.tasks.events(self.task, self.after, PAGE).await?, state))
            };
            let done = |(events, state): &(Vec<Event>, TaskState)| state.is_final() || !events.is_empty();
            let looked = wait::until(WAIT, self.place.as_ref(), self.tasks.changed(), &self.stop, ask, done);
            let Ok((events, state)) = looked.await else {
                // The client comes again, with the last id.
                return None;
            };
            let all = i64::try_from(events.len()).is_ok_and(|count| count < PAGE);
            self.page = events.into();
            self.end = Some(state).filter(|state| state.is_final() && all);
        }
    }
}
