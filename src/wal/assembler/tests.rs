//! The assembler against transactions made by hand, by chance and by damage.
use super::*;
use crate::wal::{Cell, Op};
use bytes::BufMut;
use proptest::prelude::*;

const TABLE: u32 = 77;

fn assembler(memory_bytes_max: usize, dir: &std::path::Path) -> Assembler {
    Assembler::new(Lsn(0), memory_bytes_max, dir.to_owned(), "test", Counter::default())
}

fn tagged(tag: u8, block: Option<u32>, body: impl FnOnce(&mut Vec<u8>)) -> Bytes {
    let mut out = vec![tag];
    if let Some(xid) = block {
        out.put_u32(xid);
    }
    body(&mut out);
    out.into()
}

fn begin(xid: u32) -> Bytes {
    tagged(b'B', None, |out| {
        out.put_u64(0);
        out.put_u64(0);
        out.put_u32(xid);
    })
}

fn put_commit(out: &mut Vec<u8>, lsn: u64) {
    out.put_u8(0);
    out.put_u64(lsn);
    out.put_u64(lsn + 8);
    out.put_i64(0);
}

fn commit(lsn: u64) -> Bytes {
    tagged(b'C', None, |out| put_commit(out, lsn))
}

fn stream_commit(xid: u32, lsn: u64) -> Bytes {
    tagged(b'c', Some(xid), |out| put_commit(out, lsn))
}

fn stream_start(xid: u32) -> Bytes {
    tagged(b'S', Some(xid), |out| out.put_u8(1))
}

fn stream_stop() -> Bytes {
    Bytes::from_static(b"E")
}

fn stream_abort(xid: u32, subxid: u32) -> Bytes {
    tagged(b'A', Some(xid), |out| out.put_u32(subxid))
}

fn relation(block: Option<u32>) -> Bytes {
    tagged(b'R', block, |out| {
        out.put_u32(TABLE);
        out.put_slice(b"public\0items\0d");
        out.put_u16(1);
        out.put_u8(1);
        out.put_slice(b"id\0");
        out.put_u32(23);
        out.put_i32(-1);
    })
}

fn insert(block: Option<u32>, id: u32) -> Bytes {
    tagged(b'I', block, |out| {
        out.put_u32(TABLE);
        out.put_u8(b'N');
        out.put_u16(1);
        let text = id.to_string();
        out.put_u8(b't');
        out.put_u32(u32::try_from(text.len()).unwrap());
        out.put_slice(text.as_bytes());
    })
}

fn ids(batch: &Batch) -> Vec<u32> {
    let id = |change: &Change| match change {
        Change::Row(row) => {
            assert_eq!(row.op, Op::Insert);
            row.cell("id").and_then(Cell::text).unwrap().parse().unwrap()
        }
        other => panic!("{other:?}"),
    };
    batch.changes.iter().map(id).collect()
}

/// Everything that comes out: (xid, ids), batches of a transaction joined.
fn run(assembler: &mut Assembler, messages: impl IntoIterator<Item = Bytes>) -> Vec<(u32, Vec<u32>)> {
    let mut out = Vec::new();
    let mut parts: Vec<u32> = Vec::new();
    for message in messages {
        assembler.push(message).unwrap();
        while let Some(batch) = assembler.pop().unwrap() {
            assert_eq!(batch.first_index as usize, parts.len());
            parts.extend(ids(&batch));
            if batch.last {
                out.push((batch.xid, std::mem::take(&mut parts)));
            }
        }
    }
    assert!(parts.is_empty(), "a transaction without an end");
    out
}

#[test]
fn streamed_transactions_come_whole_at_their_commit_without_rolled_back_savepoints() {
    let dir = tempfile::tempdir().unwrap();
    for memory in [usize::MAX, 100, 0] {
        let mut assembler = assembler(memory, dir.path());
        let out = run(
            &mut assembler,
            [
                stream_start(10),
                relation(Some(10)),
                insert(Some(10), 1),
                insert(Some(11), 2),
                insert(Some(12), 3),
                stream_stop(),
                begin(20),
                relation(None),
                insert(None, 100),
                commit(500),
                stream_abort(10, 11),
                stream_start(30),
                relation(Some(30)),
                insert(Some(30), 999),
                stream_stop(),
                stream_start(10),
                insert(Some(13), 4),
                stream_stop(),
                stream_abort(30, 30),
                stream_commit(10, 600),
            ],
        );
        assert_eq!(out, [(20, vec![100]), (10, vec![1, 3, 4])], "memory {memory}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "memory {memory}");
        assert_eq!(assembler.memory_bytes, 0);
        assert!(assembler.is_between_transactions());
    }
}

#[test]
fn a_replayed_transaction_is_left_out_but_its_tables_are_known() {
    let mut assembler = Assembler::new(Lsn(108), 1 << 20, "/nowhere".into(), "test", Counter::default());
    let first = [begin(1), relation(None), insert(None, 1), commit(100)];
    assert_eq!(run(&mut assembler, first), []);
    let second = [begin(2), insert(None, 2), commit(200)];
    assert_eq!(run(&mut assembler, second), [(2, vec![2])]);
}

#[test]
fn a_big_transaction_comes_in_parts_and_an_empty_one_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let count = u32::try_from(BATCH_CHANGES_MAX * 2).unwrap();
    let mut assembler = assembler(10_000, dir.path());
    let rows = (0..count).map(|id| insert(None, id));
    let messages = [begin(1), commit(50), begin(2), relation(None)].into_iter().chain(rows);
    let out = run(&mut assembler, messages.chain([commit(100)]));
    assert_eq!(out, [(2, (0..count).collect())]);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn leftovers_of_an_earlier_life_are_removed_and_other_files_kept() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["test-12.spill", "test2-12.spill", "note.txt"] {
        std::fs::write(dir.path().join(name), "x").unwrap();
    }
    assembler(0, dir.path()).clean().unwrap();
    let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|f| f.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["note.txt", "test2-12.spill"]);
}

#[test]
fn messages_without_a_place_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let wrong = [
        vec![commit(1)],
        vec![insert(None, 1)],
        vec![begin(1), begin(2)],
        vec![stream_stop()],
        vec![stream_start(1), stream_start(2)],
        vec![stream_commit(1, 1)],
        vec![begin(1), insert(None, 1), commit(1)],
        vec![Bytes::new()],
        vec![Bytes::from_static(b"?")],
    ];
    for messages in wrong {
        let mut assembler = assembler(1 << 20, dir.path());
        let refused = messages.iter().any(|m| assembler.push(m.clone()).is_err() || assembler.pop().is_err());
        assert!(refused, "{messages:?}");
    }
}

/// What a random transaction does.
#[derive(Clone, Debug)]
enum Step {
    Row { subxid: u32 },
    Abort { subxid: u32 },
    Pause,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4_u32).prop_map(|subxid| Step::Row { subxid }),
        1 => (1..4_u32).prop_map(|subxid| Step::Abort { subxid }),
        1 => Just(Step::Pause),
    ]
}

proptest! {
    #[test]
    fn streaming_and_spilling_never_change_what_comes_out(
        steps in prop::collection::vec(step(), 0..80),
        memory in prop_oneof![Just(0_usize), Just(200), Just(1 << 20)],
    ) {
        let top = 1000;
        let mut expected: Vec<(u32, u32)> = Vec::new();
        let mut messages = vec![stream_start(top), relation(Some(top))];
        let mut small = Vec::new();
        let mut aborted = HashSet::new();
        for (at, step) in steps.into_iter().enumerate() {
            let id = u32::try_from(at).unwrap();
            match step {
                // Postgres never uses a rolled back savepoint's id again.
                Step::Row { subxid } if !aborted.contains(&subxid) => {
                    messages.push(insert(Some(top + subxid), id));
                    expected.push((subxid, id));
                }
                Step::Row { .. } => {}
                Step::Abort { subxid } => {
                    aborted.insert(subxid);
                    messages.extend([stream_stop(), stream_abort(top, top + subxid), stream_start(top)]);
                    expected.retain(|(of, _)| *of != subxid);
                }
                Step::Pause => {
                    let lsn = 100 + u64::from(id) * 10;
                    messages.extend([stream_stop(), begin(id), relation(None), insert(None, id), commit(lsn)]);
                    messages.push(stream_start(top));
                    small.push((id, vec![id]));
                }
            }
        }
        messages.extend([stream_stop(), stream_commit(top, 100_000)]);
        if !expected.is_empty() {
            small.push((top, expected.into_iter().map(|(_, id)| id).collect()));
        }
        let dir = tempfile::tempdir().unwrap();
        prop_assert_eq!(run(&mut assembler(memory, dir.path()), messages), small);
    }

    #[test]
    fn arbitrary_bytes_are_an_error_and_never_a_panic(
        messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..20),
    ) {
        feed(messages.into_iter().map(Bytes::from));
    }

    #[test]
    fn damaged_transactions_are_an_error_and_never_a_panic(
        damage in prop::collection::vec((0..18_usize, any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut messages: Vec<Vec<u8>> = [
            begin(1), relation(None), insert(None, 1), insert(None, 2), commit(10),
            stream_start(5), relation(Some(5)), insert(Some(6), 3), stream_stop(),
            stream_abort(5, 6), stream_start(5), insert(Some(5), 4), stream_stop(), stream_commit(5, 30),
            begin(7), Bytes::from_static(b"T\0\0\0\x01\0\0\0\0\x4d"),
            Bytes::from_static(b"M\x01\0\0\0\0\0\0\0\x01p\0\0\0\0\x01x"), commit(50),
        ].iter().map(|message| message.to_vec()).collect();
        for (message, at, byte) in damage {
            let message = &mut messages[message];
            if byte % 7 == 0 {
                message.truncate(at.index(message.len().max(1)));
            } else if !message.is_empty() {
                let at = at.index(message.len());
                message[at] = byte;
            }
        }
        feed(messages.into_iter().map(Bytes::from));
    }
}

/// Pushes and pops until the first error; the JSON of every row is made too.
fn feed(messages: impl Iterator<Item = Bytes>) {
    let dir = tempfile::tempdir().unwrap();
    let mut assembler = assembler(100, dir.path());
    for message in messages {
        if assembler.push(message).is_err() {
            return;
        }
        while let Ok(Some(batch)) = assembler.pop() {
            for change in &batch.changes {
                if let Change::Row(row) = change {
                    let mut out = Vec::new();
                    row.write_new_json(&mut out);
                    row.write_old_json(&mut out);
                    let _ = (row.new_json(), row.old_json());
                }
            }
        }
    }
}
