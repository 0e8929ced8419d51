use super::*;
use proptest::prelude::*;

const ROOMY: LogLimits = LogLimits { bytes_max: 1 << 20, span_max: 1_000_000 };

fn open(dir: &Path, limits: LogLimits) -> (Opened, Vec<(u64, RecordLocation, Vec<u8>)>) {
    let mut found = Vec::new();
    let opened = Log::open(dir, limits, |number, location, payload| {
        found.push((number, location, payload.to_vec()));
    });
    (opened.unwrap(), found)
}

fn record(number: u64, payload: &[u8]) -> Record {
    Record { number, payload: Bytes::copy_from_slice(payload) }
}

#[test]
fn appended_records_are_found_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let (Opened { mut log, floor, last, whole }, found) = open(folder.path(), ROOMY);
    assert_eq!((floor, last, whole, found.len()), (0, 0, true, 0));
    let mut locations = log.append(&[record(5, b"five"), record(9, b"")]).unwrap();
    locations.extend(log.append(&[record(10, b"ten")]).unwrap());
    let read = |log: &Log, location: RecordLocation| {
        log.reader(location.segment).unwrap().read(location.offset, location.size).unwrap()
    };
    assert_eq!(read(&log, locations[0]), (5, Bytes::from_static(b"five")));
    assert_eq!(read(&log, locations[2]), (10, Bytes::from_static(b"ten")));
    drop(log);
    let (opened, found) = open(folder.path(), ROOMY);
    assert_eq!((opened.last, opened.whole), (10, true), "a kill loses nothing");
    let expected = [(5, &b"five"[..]), (9, b""), (10, b"ten")];
    let expected = expected
        .iter()
        .zip(&locations)
        .map(|((number, payload), location)| (*number, *location, payload.to_vec()));
    assert_eq!(found, expected.collect::<Vec<_>>());
}

#[test]
fn cut_record_at_the_end_is_dropped_and_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path(), ROOMY).0.log;
    log.append(&[record(1, b"one")]).unwrap();
    log.append(&[record(2, b"two")]).unwrap();
    drop(log);
    let path = segment::path_of(folder.path(), 1);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    let (mut opened, found) = open(folder.path(), ROOMY);
    assert_eq!((opened.last, opened.whole, found.len()), (1, true, 1));
    opened.log.append(&[record(3, b"three")]).unwrap();
    drop(opened);
    let (opened, found) = open(folder.path(), ROOMY);
    assert_eq!((opened.last, opened.whole, found.len()), (3, true, 2));
}

#[test]
fn damage_in_the_middle_makes_the_log_incomplete() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path(), ROOMY).0.log;
    log.append(&[record(1, b"one"), record(2, b"two"), record(3, b"three")]).unwrap();
    drop(log);
    let path = segment::path_of(folder.path(), 1);
    let mut bytes = fs::read(&path).unwrap();
    bytes[50] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(!open(folder.path(), ROOMY).0.whole);
}

#[test]
fn log_stays_incomplete_after_another_boot_or_a_loss_until_repaired() {
    let folder = tempfile::tempdir().unwrap();
    let mark = folder.path().join("whole");
    let mut log = open(folder.path(), ROOMY).0.log;
    log.append(&[record(1, b"one")]).unwrap();
    drop(log);
    fs::write(&mark, "open some other boot").unwrap();
    let opened = open(folder.path(), ROOMY).0;
    assert!(!opened.whole, "the machine crashed before the log was closed");
    opened.log.mark_incomplete().unwrap();
    opened.log.close().unwrap();
    let opened = open(folder.path(), ROOMY).0;
    assert!(!opened.whole, "closing does not clear a loss");
    opened.log.mark_incomplete().unwrap();
    opened.log.clear_incomplete().unwrap();
    opened.log.close().unwrap();
    assert_eq!(fs::read_to_string(&mark).unwrap(), "closed");
    assert!(open(folder.path(), ROOMY).0.whole);
}

#[test]
fn old_segments_are_deleted_by_bytes_and_age_and_raise_the_floor() {
    let folder = tempfile::tempdir().unwrap();
    let limits = LogLimits { bytes_max: 1600, span_max: 1_000_000 };
    let mut log = open(folder.path(), limits).0.log;
    for number in 1..=100 {
        log.append(&[record(number, &[7; 40])]).unwrap();
        log.trim(number).unwrap();
        assert!(log.bytes() <= 1600 + 72);
    }
    drop(log);
    let (Opened { mut log, floor, last, whole }, found) = open(folder.path(), limits);
    assert!(whole && last == 100 && floor > 50, "{floor}");
    assert_eq!(found.first().unwrap().0, floor + 1, "nothing is missing above the floor");
    log.append(&[record(2_000_000, b"much later")]).unwrap();
    assert!(log.trim(2_000_000).unwrap().is_some());
    drop(log);
    let (opened, found) = open(folder.path(), limits);
    assert_eq!((opened.floor, found.len()), (100, 1));
}

#[test]
fn full_disk_appends_nothing_and_recovers_when_space_returns() {
    let folder = tempfile::tempdir().unwrap();
    let mut log = open(folder.path(), ROOMY).0.log;
    let next = segment::path_of(folder.path(), 1);
    std::os::unix::fs::symlink("/dev/full", &next).unwrap();
    let error = log.append(&[record(1, b"one")]).unwrap_err();
    assert!(error.to_string().contains("cannot be written"), "{error}");
    assert!(!next.exists(), "a segment that could not be created is removed");
    log.append(&[record(2, b"two")]).unwrap();
    drop(log);
    assert_eq!(open(folder.path(), ROOMY).1.len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_cut_of_the_last_file_leaves_a_prefix(sizes in proptest::collection::vec(0usize..60, 1..30), cut in 0usize..2000) {
        let folder = tempfile::tempdir().unwrap();
        let mut log = open(folder.path(), ROOMY).0.log;
        for (number, size) in (1..).zip(&sizes) {
            log.append(&[record(number, &vec![3; *size])]).unwrap();
        }
        drop(log);
        let path = segment::path_of(folder.path(), 1);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len().saturating_sub(cut)]).unwrap();
        let (opened, found) = open(folder.path(), ROOMY);
        prop_assert!(opened.whole);
        let numbers: Vec<u64> = found.iter().map(|it| it.0).collect();
        prop_assert_eq!(&numbers, &(1..=numbers.len() as u64).collect::<Vec<_>>());
        let lost: usize = sizes[numbers.len()..].iter().map(|size| size + 16).sum();
        prop_assert!(lost < cut + 80, "only cut records are lost");
    }
}
