//! A client that reconnects whenever its connection is cut, and checks the order of the rows that it receives.
use crate::realtime::Message;
use crate::support::PATIENCE;
use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_tungstenite::connect_async;

/// Between a heartbeat's answer and the next one: what came before an answer is proved by the next.
const BEAT: Duration = Duration::from_millis(60);

/// What it heard so far. Rows are numbered 1, 2, 3 … in the order of their commits.
#[derive(Clone, Debug, Default)]
pub struct Received {
    /// The first row that it heard of.
    pub first: Option<i64>,
    /// The last one: everything between was heard, in order.
    pub last: i64,
    pub replayed: u64,
    /// Rows that it heard of again.
    pub again: u64,
    pub joins: u64,
    /// Gaps that it was told of, after its first join.
    pub gaps: Vec<Value>,
    /// What went wrong.
    pub wrong: Option<String>,
}

pub struct Listener {
    heard: watch::Receiver<Received>,
    pub task: tokio::task::JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Where it connects to: the daemon may come back somewhere else.
pub type Place = watch::Receiver<String>;

impl Listener {
    /// Watches table `n` on channel `room`; `url` is that of a socket, with its parameters.
    pub fn start(url: Place, items: Value) -> Self {
        let (sender, heard) = watch::channel(Received::default());
        #[expect(clippy::disallowed_methods, reason = "it ends with the value")]
        let task = tokio::spawn(listen(url, items, sender));
        Self { heard, task }
    }

    /// Waits until it heard of that row.
    pub async fn until(&mut self, last: i64) -> Received {
        let wait = self.heard.wait_for(|heard| heard.last >= last || heard.wrong.is_some());
        let in_time = timeout(PATIENCE, wait).await.is_ok();
        let heard = self.received();
        assert!(in_time, "it waits for {last}: {heard:?}");
        assert_eq!(heard.wrong, None, "{heard:?}");
        heard
    }

    /// Waits until it has joined.
    pub async fn joined(&mut self) {
        let wait = self.heard.wait_for(|heard| heard.joins > 0);
        timeout(PATIENCE, wait).await.expect("it joins").unwrap();
    }

    pub fn received(&self) -> Received {
        self.heard.borrow().clone()
    }
}

async fn listen(url: Place, items: Value, heard: watch::Sender<Received>) {
    loop {
        let address = url.borrow().clone();
        if let Ok((mut ws, _)) = connect_async(&address).await {
            let join =
                json!(["1", "1", "realtime:room", "phx_join", {"config": {"postgres_changes": items}}]);
            let _ = ws.send(Message::text(join.to_string())).await;
            let (mut beats, mut answered, mut beat_at) = (0_u64, true, Instant::now() + BEAT);
            loop {
                if answered && Instant::now() >= beat_at {
                    (beats, answered) = (beats + 1, false);
                    let beat = json!([null, format!("h{beats}"), "phoenix", "heartbeat", {}]);
                    if ws.send(Message::text(beat.to_string())).await.is_err() {
                        break;
                    }
                }
                let frame = match timeout(Duration::from_millis(20), ws.next()).await {
                    Err(_) => continue,
                    Ok(Some(Ok(Message::Text(text)))) => serde_json::from_str::<Value>(&text).unwrap(),
                    Ok(Some(Ok(Message::Close(_)) | Err(_)) | None) => break,
                    Ok(Some(Ok(_))) => continue,
                };
                if frame[2] == "phoenix" {
                    (answered, beat_at) = (true, Instant::now() + BEAT);
                } else if frame[3] == "phx_reply" && frame[4]["status"] == "error" {
                    // The database is away: clients join again.
                    break;
                } else {
                    heard.send_modify(|heard| heard.take(&frame));
                }
            }
        }
        sleep(Duration::from_millis(20)).await;
    }
}

impl Received {
    fn take(&mut self, frame: &Value) {
        let payload = &frame[4];
        match frame[3].as_str().unwrap() {
            "phx_reply" => self.joins += 1,
            "system" if payload["extension"] == "resume" => {
                let gap = &payload["meta"]["gap"];
                if !gap.is_null() && self.first.is_some() {
                    self.gaps.push(gap.clone());
                }
            }
            "system" if payload["status"] != "ok" => self.gaps.push(payload.clone()),
            "postgres_changes" => {
                let id = payload["data"]["record"]["id"].as_i64().unwrap();
                let replayed = payload["meta"]["replayed"] == true;
                self.replayed += u64::from(replayed);
                if self.first.is_none() {
                    (self.first, self.last) = (Some(id), id);
                } else if id == self.last + 1 {
                    self.last = id;
                } else if id <= self.last && replayed {
                    self.again += 1;
                } else if self.wrong.is_none() {
                    self.wrong = Some(format!("{} and then {frame}", self.last));
                }
            }
            _ => {}
        }
    }
}

/// Somebody who writes rows 1, 2, 3 … one after the other, whatever happens to the server.
pub struct Writer {
    written: watch::Receiver<i64>,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Writer {
    pub fn start(url: String, pause: Duration) -> Self {
        let (sender, written) = watch::channel(0);
        let (stop, mut stopped) = watch::channel(false);
        #[expect(clippy::disallowed_methods, reason = "the test waits for it")]
        let task = tokio::spawn(async move {
            let mut sql = None;
            while !*stopped.borrow() {
                let next = *sender.borrow() + 1;
                let client: &tokio_postgres::Client = match &sql {
                    Some(client) => client,
                    None => {
                        let Ok((client, connection)) =
                            tokio_postgres::connect(&url, tokio_postgres::NoTls).await
                        else {
                            sleep(Duration::from_millis(20)).await;
                            continue;
                        };
                        tokio::spawn(connection);
                        sql.insert(client)
                    }
                };
                // It may be there although its answer was lost.
                let insert = "insert into public.n values ($1) on conflict do nothing";
                match client.execute(insert, &[&next]).await {
                    Ok(_) => drop(sender.send_replace(next)),
                    Err(_) => sql = None,
                }
                let _ = timeout(pause, stopped.changed()).await;
            }
        });
        Self { written, stop, task }
    }

    pub async fn until(&mut self, row: i64) {
        let wait = self.written.wait_for(|written| *written >= row);
        timeout(PATIENCE, wait).await.expect("rows are written").unwrap();
    }

    /// Waits for so many more rows.
    pub async fn more(&mut self, rows: i64) {
        let written = *self.written.borrow();
        self.until(written + rows).await;
    }

    /// Ends, and gives the last row.
    pub async fn stop(self) -> i64 {
        self.stop.send_replace(true);
        self.task.await.unwrap();
        *self.written.borrow()
    }
}

/// A place that stays.
pub fn at(url: String) -> (Arc<watch::Sender<String>>, Place) {
    let (sender, place) = watch::channel(url);
    (Arc::new(sender), place)
}
