//! Tests the log as a whole: what is written is found again, and what was changed is noticed.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    path::Path,
};

use futures::FutureExt;
use proptest::prelude::*;
use serde_json::json;

use super::*;

fn open(path: &Path) -> AuditLog {
    AuditLog::open(&AuditTarget::File(path.to_owned())).unwrap()
}

fn everybody() -> Extensions {
    let mut extensions = Extensions::new();
    extensions.insert(Caller::everybody());
    extensions
}

/// The lines of a log whose chain is whole.
fn lines(bytes: &[u8]) -> Result<(Vec<Value>, Head), Broken> {
    let mut lines = Vec::new();
    let head = read(bytes, |line, _| lines.push(line)).unwrap()?;
    Ok((lines, head))
}

fn kinds(path: &Path) -> Vec<String> {
    let (lines, _) = lines(&fs::read(path).unwrap()).unwrap();
    lines.iter().map(|line| line["kind"].as_str().unwrap().to_owned()).collect()
}

/// A log with this many acts.
async fn log_of(path: &Path, acts: usize) {
    let log = open(path);
    for at in 0..acts {
        let act = log.begin(&everybody(), "close", &format!("p{at}"), || json!({ "at": at })).await.unwrap();
        act.ended(Ok(json!({ "state": "closed" }))).await;
    }
}

#[tokio::test]
async fn an_act_is_in_the_log_before_it_takes_place_and_its_end_before_the_answer() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let log = open(&path);
    let act = log.begin(&everybody(), "create", "lunch", || json!({ "title": "a\nb \u{202e}" })).await.unwrap();
    let (read, _) = lines(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(
        (&read[0]["kind"], &read[0]["who"], &read[0]["poll"]),
        (&json!("intent"), &json!("anybody"), &json!("lunch"))
    );
    assert_eq!(read[0]["asked"]["title"], "a\nb \u{202e}");
    act.ended(Err(&Status::invalid_argument("closes_at is missing"))).await;
    log.refused(&Extensions::new(), "recount", None, &Status::permission_denied("no"));
    drop(log.begin(&everybody(), "close", "lunch", || Value::Null).await.unwrap());
    log.begin(&everybody(), "close", "lunch", || Value::Null).await.unwrap().ended(Ok(Value::Null)).await;
    let (read, head) = lines(&fs::read(&path).unwrap()).unwrap();
    let told = |at: usize, name: &str| read[at][name].as_str().unwrap_or_default().to_owned();
    assert_eq!((told(1, "kind"), told(1, "status")), ("outcome".into(), "INVALID_ARGUMENT".into()));
    assert_eq!((&read[1]["of"], told(1, "message")), (&json!(1), "closes_at is missing".into()));
    assert_eq!(
        (told(2, "kind"), told(2, "who"), told(2, "status")),
        ("refused".into(), "nobody".into(), "PERMISSION_DENIED".into())
    );
    // The caller left.
    assert_eq!((&read[4]["of"], told(4, "status")), (&json!(4), "UNKNOWN".into()));
    assert_eq!(head.lines, 7);
    assert_eq!(told(6, "status"), "OK");
}

#[tokio::test]
async fn whoever_leaves_before_the_line_is_written_has_done_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let log = open(&path);
    for _ in 0..50 {
        let extensions = everybody();
        let begin = log.begin(&extensions, "close", "p", || Value::Null);
        // The line is on its way, and may be written or not when the caller leaves.
        drop(begin.now_or_never());
    }
    drop(log);
    let (read, _) = lines(&fs::read(&path).unwrap()).unwrap();
    let of: BTreeSet<u64> = read.iter().filter_map(|line| line["of"].as_u64()).collect();
    let intents = read.iter().filter(|line| line["kind"] == "intent").map(|line| line["number"].as_u64().unwrap());
    let intents: BTreeSet<u64> = intents.collect();
    assert!(intents.len() == 50 && intents == of, "{read:#?}");
    assert!(read.iter().all(|line| line["kind"] == "intent" || line["status"] != "OK"));
}

#[tokio::test]
async fn many_acts_at_once_give_one_chain() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let log = open(&path);
    let acts = (0..300).map(|at| {
        let log = log.clone();
        tokio::spawn(async move {
            let poll = format!("p{at}");
            let act = log.begin(&everybody(), "create", &poll, || Value::Null).await.unwrap();
            tokio::task::yield_now().await;
            act.ended(Ok(Value::Null)).await;
        })
    });
    futures::future::try_join_all(acts).await.unwrap();
    let (read, head) = lines(&fs::read(&path).unwrap()).unwrap();
    assert_eq!(head.lines, 600);
    let mut open = BTreeSet::new();
    for line in read {
        match line["of"].as_u64() {
            None => assert!(open.insert(line["number"].as_u64().unwrap())),
            Some(of) => assert!(open.remove(&of), "the end of an act before its beginning"),
        }
    }
    assert!(open.is_empty());
}

#[tokio::test]
async fn one_process_writes_and_the_next_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let log = open(&path);
    let second = AuditLog::open(&AuditTarget::File(path.clone())).unwrap_err();
    assert!(matches!(second, OpenError::Locked(_)) && second.to_string().contains("another process"), "{second}");
    drop(log);
    log_of(&path, 2).await;
    log_of(&path, 1).await;
    assert_eq!(kinds(&path), ["intent", "outcome", "intent", "outcome", "intent", "outcome"]);

    let foreign = directory.path().join("notes.txt");
    fs::write(&foreign, "milk\nbread\n").unwrap();
    let refused = AuditLog::open(&AuditTarget::File(foreign.clone())).unwrap_err();
    assert!(matches!(refused, OpenError::NoLog { .. }), "{refused}");
    assert_eq!(fs::read_to_string(foreign).unwrap(), "milk\nbread\n");
    assert!(AuditLog::open(&AuditTarget::File("/no/such/directory/log".into())).is_err());
}

#[tokio::test]
async fn a_torn_line_is_removed_and_the_log_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    log_of(&path, 2).await;
    let whole = fs::read(&path).unwrap();
    let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
    for length in (last + 1..whole.len()).chain([1, 5, 20]) {
        fs::write(&path, &whole[..length]).unwrap();
        assert!(lines(&whole[..length]).is_err(), "{length}");
        log_of(&path, 1).await;
        let read = lines(&fs::read(&path).unwrap()).unwrap().0;
        let kept = if length > last { 3 } else { 0 };
        let torn = if kept == 0 { length } else { length - last };
        assert_eq!((&read[kept]["kind"], &read[kept]["bytes"]), (&json!("repaired"), &json!(torn)), "{length}");
        assert_eq!(read.len(), kept + 3);
    }
}

#[tokio::test]
async fn what_cannot_be_written_does_not_take_place() {
    let log = AuditLog::open(&AuditTarget::File("/dev/full".into())).unwrap();
    for _ in 0..3 {
        let refused = log.begin(&everybody(), "close", "p", || Value::Null).await.unwrap_err();
        let status = Status::from(refused);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("the audit log of the server cannot be written"), "{status}");
    }
    // Nobody waits for a line about those who were refused.
    for _ in 0..1_000 {
        log.refused(&everybody(), "close", None, &Status::permission_denied("no"));
    }
}

#[tokio::test]
async fn a_flood_of_refusals_is_counted_and_does_not_fill_the_disk() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let log = open(&path);
    for _ in 0..10_000 {
        log.refused(&Extensions::new(), "create", None, &Status::unauthenticated("no"));
    }
    drop(log);
    log_of(&path, 1).await;
    let (read, _) = lines(&fs::read(&path).unwrap()).unwrap();
    let own = read.iter().filter(|line| line["kind"] == "refused").count() as u64;
    assert!((1..200).contains(&own), "{own}");
}

#[tokio::test]
async fn refusals_without_a_line_are_mentioned() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let log = open(&path);
    for _ in 0..500 {
        log.refused(&Extensions::new(), "create", None, &Status::unauthenticated("no"));
    }
    log.begin(&everybody(), "close", "p", || Value::Null).await.unwrap().ended(Ok(Value::Null)).await;
    let (read, _) = lines(&fs::read(&path).unwrap()).unwrap();
    let own = read.iter().filter(|line| line["kind"] == "refused").count() as u64;
    let left_out: u64 = read.iter().filter_map(|line| line["refusals"].as_u64()).sum();
    assert_eq!(own + left_out, 500);
}

#[tokio::test]
async fn no_line_is_longer_than_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    let log = open(&path);
    // Each of these characters takes six bytes in JSON.
    let large = "\u{1}".repeat(1 << 20);
    let act = log.begin(&everybody(), "create", &large, || json!({ "title": large })).await.unwrap();
    act.ended(Err(&Status::invalid_argument(&large))).await;
    log.refused(&everybody(), "create", Some(&large), &Status::permission_denied(&large));
    drop(log);
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.split(|byte| *byte == b'\n').all(|line| line.len() < LINE_BYTES_MAX));
    let (read, _) = lines(&bytes).unwrap();
    assert_eq!((read.len(), &read[0]["asked"]["left_out_bytes"]), (3, &json!(6 * (1 << 20) + 12)));
    // The next start finds the end of a line of the greatest length.
    open(&path);
}

/// What somebody does to a log.
#[derive(Clone, Debug)]
enum Change {
    Byte { at: usize, to: u8 },
    Insert { at: usize, byte: u8 },
    RemoveBytes { at: usize, count: usize },
    RemoveLine(usize),
    RepeatLine { line: usize, at: usize },
    Swap(usize, usize),
    Cut(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let at = || any::<usize>();
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, to)| Change::Byte { at, to }),
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Insert { at, byte }),
        (at(), 1_usize..2_000).prop_map(|(at, count)| Change::RemoveBytes { at, count }),
        at().prop_map(Change::RemoveLine),
        (at(), at()).prop_map(|(line, at)| Change::RepeatLine { line, at }),
        (at(), at()).prop_map(|(one, two)| Change::Swap(one, two)),
        at().prop_map(Change::Cut),
    ]
}

fn changed(log: &[u8], change: &Change) -> Vec<u8> {
    let mut bytes = log.to_vec();
    let mut lines: Vec<Vec<u8>> = log.split_inclusive(|byte| *byte == b'\n').map(<[u8]>::to_vec).collect();
    let (length, count) = (bytes.len(), lines.len());
    match *change {
        Change::Byte { at, to } => bytes[at % length] = to,
        Change::Insert { at, byte } => bytes.insert(at % (length + 1), byte),
        Change::RemoveBytes { at, count } => {
            let at = at % length;
            bytes.drain(at..(at + count).min(length));
        }
        Change::Cut(at) => bytes.truncate(at % length),
        Change::RemoveLine(line) => {
            lines.remove(line % count);
            bytes = lines.concat();
        }
        Change::RepeatLine { line, at } => {
            let line = lines[line % count].clone();
            lines.insert(at % (count + 1), line);
            bytes = lines.concat();
        }
        Change::Swap(one, two) => {
            lines.swap(one % count, two % count);
            bytes = lines.concat();
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4_000))]

    /// Whatever is changed is noticed: the chain breaks, or, if whole lines at the end are missing, the noted head is.
    #[test]
    fn every_change_is_found(change in change()) {
        static LOG: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("audit.log");
            tokio::runtime::Runtime::new().unwrap().block_on(log_of(&path, 10));
            fs::read(path).unwrap()
        });
        let (before, head) = lines(&LOG).unwrap();
        let after = changed(&LOG, &change);
        prop_assume!(after != *LOG);
        if let Ok((left, new)) = lines(&after) {
            prop_assert!(left.len() < before.len() && before[..left.len()] == left[..], "{change:?}");
            prop_assert!(LOG.starts_with(&after) && new.hash != head.hash, "{change:?}");
        }
    }
}

/// Every single byte, in every position.
#[tokio::test]
async fn no_byte_can_be_changed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    log_of(&path, 1).await;
    let log = fs::read(&path).unwrap();
    for at in 0..log.len() {
        for flip in [1, 0x20, 0x80] {
            let mut bytes = log.clone();
            bytes[at] ^= flip;
            assert!(lines(&bytes).is_err(), "byte {at} ^ {flip}");
        }
    }
}

#[tokio::test]
async fn half_a_write_is_taken_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("audit.log");
    log_of(&path, 1).await;
    let (Sink::File(_), chain, 0) = file::open(&path).unwrap() else { panic!("no file") };
    // A writer that died in the middle of a line, behind the lines that it had synced.
    OpenOptions::new()
        .append(true)
        .open(&path)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"{\"nu"))
        .unwrap();
    let (_, again, cut) = file::open(&path).unwrap();
    assert_eq!((again, cut), (chain, 4));
}
