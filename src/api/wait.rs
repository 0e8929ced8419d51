//! Long polls: repeat a query after commits until it has a result.
use super::{polls::PollPermit, problem::Problem};
use serde::{Deserialize, Deserializer, de::Error};
use std::{future::Future, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;

/// Longest wait; longer ones are shortened to it, before a proxy cuts the connection.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// Least time between two queries of a poll. A busy daemon commits all the time, so the interval doubles with
/// each query without a result: many polls must not take the database from the work.
const QUERY_INTERVAL: Duration = Duration::from_millis(20);
const QUERY_INTERVAL_MAX: Duration = Duration::from_millis(320);

/// Parses `30s`, `500ms` or a number of seconds.
pub(super) fn parse<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let seconds = text.parse().ok().and_then(|s| Duration::try_from_secs_f64(s).ok());
    let wait = seconds.or_else(|| humantime::parse_duration(&text).ok());
    wait.map(|wait| wait.min(WAIT_MAX))
        .ok_or_else(|| D::Error::custom(format!("wait={text} is not a time like 30s")))
}

/// Returns the first answer that is `done`, or the last one when the time is up or the daemon stops. `permit`
/// limits how many waiting polls query at the same time.
pub(super) async fn until<T, F>(
    wait: Duration,
    permit: Option<&PollPermit>,
    mut changed: watch::Receiver<u64>,
    stop: &CancellationToken,
    mut ask: impl FnMut() -> F,
    done: impl Fn(&T) -> bool,
) -> Result<T, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let end = Instant::now() + wait;
    let mut pause = QUERY_INTERVAL;
    loop {
        // Marked as seen before the query: a commit during the query wakes `changed` below.
        changed.borrow_and_update();
        let asked_at = Instant::now();
        // The first query needs no permit, so that a result that is there already is returned at once.
        let answer = match permit.filter(|_| pause > QUERY_INTERVAL) {
            Some(permit) => {
                let _query = permit.query().await;
                ask().await?
            }
            None => ask().await?,
        };
        // Checked after the query: a wait of zero still returns the current state.
        if done(&answer) || Instant::now() >= end {
            return Ok(answer);
        }
        tokio::select! {
            // The daemon stops: the current answer is the result.
            () = stop.cancelled() => return Ok(answer),
            changed = timeout_at(end, changed.changed()) => match changed {
                Ok(Ok(())) => {
                    // A commit after a pause has its answer at once.
                    sleep_until(asked_at + pause).await;
                    pause = (pause * 2).min(QUERY_INTERVAL_MAX);
                }
                Ok(Err(_)) => return Ok(answer),
                Err(_) => {}
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::time::sleep;

    #[tokio::test(start_paused = true)]
    async fn poll_ends_with_a_change_or_at_its_timeout() {
        let (tick, changed) = watch::channel(0);
        let stop = CancellationToken::new();
        let state = AtomicU64::new(0);
        let ask = || async { Ok(state.load(Ordering::Relaxed)) };
        let poll = |wanted| {
            until(Duration::from_secs(30), None, changed.clone(), &stop, ask, move |n: &u64| *n == wanted)
        };
        let started = Instant::now();
        let change = async {
            sleep(Duration::from_secs(3)).await;
            state.store(1, Ordering::Relaxed);
            tick.send_modify(|n| *n += 1);
        };
        assert_eq!(tokio::join!(poll(1), change).0.unwrap(), 1);
        assert!(started.elapsed() < Duration::from_secs(4));
        assert_eq!(poll(2).await.unwrap(), 1);
        assert!(started.elapsed() >= Duration::from_secs(33));
        stop.cancel();
        assert_eq!(poll(2).await.unwrap(), 1);
        assert!(started.elapsed() < Duration::from_secs(35));
    }

    #[tokio::test(start_paused = true)]
    async fn commit_after_a_pause_is_answered_at_once_and_a_row_of_commits_is_slowed() {
        let (tick, changed) = watch::channel(0);
        let stop = CancellationToken::new();
        let (begun, asked) = (Instant::now(), parking_lot::Mutex::new(Vec::new()));
        let ask = || async {
            asked.lock().push(begun.elapsed());
            Ok(())
        };
        let poll = until(Duration::from_secs(3), None, changed, &stop, ask, |()| false);
        let commits = async {
            sleep(Duration::from_secs(1)).await;
            tick.send_modify(|n| *n += 1);
            sleep(Duration::from_secs(1)).await;
            for _ in 0..100 {
                tick.send_modify(|n| *n += 1);
                sleep(Duration::from_millis(5)).await;
            }
        };
        let ((), result) = tokio::join!(commits, poll);
        result.unwrap();
        let asked: Vec<u128> = asked.lock().iter().map(Duration::as_millis).collect();
        assert_eq!(asked, [0, 1000, 2000, 2080, 2240, 2560, 3000]);
    }

    #[derive(Deserialize)]
    struct Query {
        #[serde(deserialize_with = "parse")]
        wait: Duration,
    }

    #[test]
    fn wait_is_parsed_and_limited() {
        let read =
            |text: &str| serde_json::from_value::<Query>(serde_json::json!({ "wait": text })).map(|q| q.wait);
        assert_eq!(read("30s").unwrap(), Duration::from_secs(30));
        assert_eq!(read("2").unwrap(), Duration::from_secs(2));
        assert_eq!(read("3h").unwrap(), WAIT_MAX);
        assert!(read("-1").is_err() && read("soon").is_err());
    }
}
