use super::*;
use crate::wal::{Cell, Change, Column, Op, RowChange};
use chrono::DateTime;

const BYTES_MAX: u64 = 64 << 20;

fn batch(lsn: u64, first_index: u32, values: &[&str]) -> Batch {
    let columns = vec![Column::new("v".into(), 25, -1, true, "text".into())];
    let relation =
        Relation { oid: 7, schema: "public".into(), name: "t".into(), replica_identity: 'd', columns };
    let relation = Arc::new(relation);
    let change = |value: &&str| {
        let new = Some(vec![Cell::Text(Bytes::copy_from_slice(value.as_bytes()))]);
        let relation = relation.clone();
        Change::Row(RowChange { relation, op: Op::Insert, new, old: None, old_is_key_only: false })
    };
    Batch {
        xid: 1,
        commit_lsn: Lsn(lsn),
        end_lsn: Lsn(lsn + 8),
        committed_at: DateTime::from_timestamp(1_700_000_000, 0).unwrap(),
        first_index,
        changes: values.iter().map(change).collect(),
        last: true,
    }
}

fn opened(dir: &Path, source: &str) -> (Log, Appender) {
    open(dir, source, BYTES_MAX, Some(Duration::from_secs(600)), Clock::System).unwrap()
}

async fn put(appender: &mut Appender, batches: &[Batch]) {
    appender.append(batches, |_| true).await;
}

/// The values after `after`, or the end of the gap.
async fn read(log: &Log, mut after: u64) -> Result<Vec<String>, u64> {
    let mut all = Vec::new();
    loop {
        let entries = match log.read(after, u64::MAX).await {
            ReadOutcome::Missing(until) => return Err(until),
            ReadOutcome::Entries(entries) if entries.is_empty() => return Ok(all),
            ReadOutcome::Entries(entries) => entries,
        };
        after = entries.last().unwrap().number;
        for (_, row) in entries.iter().filter_map(|entry| entry.part.as_ref()).flat_map(|part| &part.rows) {
            let value = row.new.as_ref().and_then(|new| new[0].text()).unwrap();
            all.push(value.chars().take(3).collect());
        }
    }
}

#[tokio::test]
async fn replayed_changes_are_logged_once_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut appender) = opened(dir.path(), "one");
    let begun = log.begin();
    put(&mut appender, &[batch(10, 0, &["a", "b"]), batch(20, 0, &["c"])]).await;
    put(&mut appender, &[batch(20, 0, &["c", "d"]), batch(10, 0, &["a"])]).await;
    assert_eq!(read(&log, begun).await.unwrap(), ["a", "b", "c", "d"]);
    drop((log, appender));
    let (log, mut appender) = opened(dir.path(), "one");
    put(&mut appender, &[batch(20, 0, &["c", "d"]), batch(30, 0, &["e"])]).await;
    assert_eq!(read(&log, begun).await.unwrap(), ["a", "b", "c", "d", "e"]);
}

#[tokio::test]
async fn evicted_entries_are_read_from_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut appender) = opened(dir.path(), "one");
    let begun = log.begin();
    let large = |n: u64| format!("{n:03}{}", "x".repeat(4 << 20));
    for n in 0..12 {
        put(&mut appender, &[batch(10 + n, 0, &[&large(n)])]).await;
    }
    assert!(log.0.state.lock().memory.len() < 12, "the memory is bounded");
    let all: Vec<String> = (0..12).map(|n| format!("{n:03}")).collect();
    assert_eq!(read(&log, begun).await.unwrap(), all);
}

#[tokio::test]
async fn change_log_of_another_database_is_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut appender) = opened(dir.path(), "one");
    let begun = log.begin();
    put(&mut appender, &[batch(1_000, 0, &["a"])]).await;
    drop((log, appender));
    let (log, mut appender) = opened(dir.path(), "two");
    put(&mut appender, &[batch(10, 0, &["b"])]).await;
    let until = read(&log, begun).await.unwrap_err();
    assert_eq!(read(&log, until).await.unwrap(), ["b"]);
}

#[tokio::test]
async fn live_and_later_readers_find_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut appender) = opened(dir.path(), "one");
    let begun = log.begin();
    put(&mut appender, &[batch(10, 0, &["a"])]).await;
    let before = log.head();
    appender.gap().await;
    put(&mut appender, &[batch(5, 0, &["b"])]).await;
    let ReadOutcome::Entries(live) = log.read(before, u64::MAX).await else { panic!("it is in memory") };
    assert_eq!((live.len(), live[0].part.is_none()), (2, true));
    let until = live[0].number;
    drop((log, appender));
    let (log, _appender) = opened(dir.path(), "one");
    let ReadOutcome::Entries(first) = log.read(begun, u64::MAX).await else {
        panic!("what was before is there")
    };
    assert_eq!(first.len(), 1);
    assert_eq!(read(&log, first[0].number).await.unwrap_err(), until);
    assert_eq!(read(&log, until).await.unwrap(), ["b"]);
}

#[tokio::test]
async fn full_disk_stops_no_delivery_and_leaves_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut appender) = opened(dir.path(), "one");
    let begun = log.begin();
    put(&mut appender, &[batch(10, 0, &["a"])]).await;
    // A record that is too large has the effect of a full disk.
    let huge = "h".repeat(RECORD_BYTES_MAX + 1);
    put(&mut appender, &[batch(20, 0, &[&huge])]).await;
    assert!(*log.degraded().borrow());
    assert_eq!(read(&log, begun).await.unwrap(), ["a", "hhh"], "who listens has it");
    log.set_delivered(log.head());
    put(&mut appender, &[batch(30, 0, &["c"])]).await;
    assert!(!*log.degraded().borrow());
    drop((log, appender));
    let (log, _appender) = opened(dir.path(), "one");
    let ReadOutcome::Entries(first) = log.read(begun, u64::MAX).await else {
        panic!("what was before is there")
    };
    assert_eq!(first.len(), 1);
    let until = read(&log, first[0].number).await.unwrap_err();
    assert_eq!(read(&log, until).await.unwrap(), ["c"]);
}

/// A disk that hangs: another thread holds the lock of the files, like a write that does not return.
#[tokio::test]
async fn disk_that_hangs_delays_an_append_by_its_limit_and_leaves_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut appender) = opened(dir.path(), "one");
    let begun = log.begin();
    let disk = appender.disk.clone();
    let (hangs, is_hanging) = tokio::sync::oneshot::channel();
    let (answer, answers) = std::sync::mpsc::channel::<()>();
    let hanging = std::thread::spawn(move || {
        let _held = disk.lock();
        hangs.send(()).unwrap();
        let _ = answers.recv();
    });
    is_hanging.await.unwrap();
    // The first append waits for its timeout. The others do not wait for a disk that already hangs.
    let limit = APPEND_WITHIN * 3;
    for (lsn, value) in [(10, "a"), (20, "b"), (30, "c"), (40, "d")] {
        timeout(limit, put(&mut appender, &[batch(lsn, 0, &[value])])).await.unwrap();
    }
    assert!(*log.degraded().borrow());
    assert_eq!(
        read(&log, begun).await.unwrap(),
        ["a", "b", "c", "d"],
        "subscribers receive them from memory"
    );
    answer.send(()).unwrap();
    hanging.join().unwrap();
    while appender.hanging.as_ref().is_some_and(|thread| !thread.is_finished()) {
        tokio::task::yield_now().await;
    }
    put(&mut appender, &[batch(50, 0, &["e"])]).await;
    assert!(!*log.degraded().borrow());
    let head = log.head();
    drop((log, appender));
    let (log, _appender) = opened(dir.path(), "one");
    let mut after = begun;
    let mut values = Vec::new();
    let mut gaps = 0;
    while after < head {
        match log.read(after, u64::MAX).await {
            ReadOutcome::Missing(until) => (gaps, after) = (gaps + 1, until),
            ReadOutcome::Entries(entries) => {
                let Some(last) = entries.last() else { break };
                after = last.number;
                let rows = entries.iter().filter_map(|entry| entry.part.as_ref()).flat_map(|part| &part.rows);
                values.extend(rows.map(|(_, row)| row.new.as_ref().unwrap()[0].text().unwrap().to_owned()));
            }
        }
    }
    assert!(gaps > 0, "the appends that the disk did not take are a gap");
    assert_eq!(values.last().map(String::as_str), Some("e"));
    assert!(!values.iter().any(|value| ["b", "c", "d"].contains(&value.as_str())), "{values:?}");
}

#[tokio::test]
async fn change_log_keeps_nothing_while_no_client_can_resume() {
    let dir = tempfile::tempdir().unwrap();
    let (log, mut appender) = open(dir.path(), "one", BYTES_MAX, None, Clock::System).unwrap();
    let head = log.head();
    put(&mut appender, &[batch(10, 0, &["a"])]).await;
    assert_eq!(log.head(), head);
    let begun = log.begin();
    put(&mut appender, &[batch(20, 0, &["b"])]).await;
    assert_eq!(read(&log, begun).await.unwrap(), ["b"]);
    log.end();
    put(&mut appender, &[batch(30, 0, &["c"])]).await;
    assert_eq!(read(&log, begun).await.unwrap(), ["b"]);
    drop((log, appender));
    let (log, _appender) = opened(dir.path(), "one");
    assert!(read(&log, begun).await.is_err(), "what a life did not keep for others is not whole for them");
}
