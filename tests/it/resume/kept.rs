//! What comes back to whoever comes back.
use super::{Kept, Speaker, hear, join, message, prove, token};
use convoke::auth::Role;
use serde_json::{Value, json};

async fn say(speaker: &mut Speaker, numbers: std::ops::RangeInclusive<u32>) {
    for n in numbers {
        speaker.say(n).await;
    }
}

#[tokio::test]
async fn a_client_that_comes_back_gets_what_it_missed_in_order_and_then_what_is_live() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let mut speaker = kept.speaker().await;
    speaker.say(0).await;
    let (mut socket, told) = kept.joined("c").await;
    assert_eq!((&told["status"], &told["meta"]["gap"]["reason"]), (&json!("ok"), &json!("unknown")));
    say(&mut speaker, 1..=3).await;
    for n in 1..=3 {
        assert_eq!(hear(&mut socket).await, (n, false), "nothing from before it was here");
    }
    prove(&mut socket).await;
    drop(socket);
    say(&mut speaker, 4..=300).await;
    let (mut socket, told) = kept.joined("c").await;
    assert_eq!((&told["status"], &told["meta"]["gap"]), (&json!("ok"), &Value::Null));
    say(&mut speaker, 301..=302).await;
    for n in 4..=300 {
        assert_eq!(hear(&mut socket).await, (n, true));
    }
    for n in 301..=302 {
        assert_eq!(hear(&mut socket).await.0, n);
    }
    // A restart, and a client that comes back before anybody speaks.
    prove(&mut socket).await;
    drop(socket);
    say(&mut speaker, 303..=305).await;
    let kept = kept.again().await;
    let mut speaker = kept.speaker().await;
    let (mut socket, told) = kept.joined("c").await;
    assert_eq!(told["meta"]["gap"], Value::Null);
    speaker.say(306).await;
    for n in 303..=305 {
        assert_eq!(hear(&mut socket).await, (n, true));
    }
    // It was said while the rest was replayed, perhaps; what comes later is live.
    assert_eq!(hear(&mut socket).await.0, 306);
    let mut n = 307;
    loop {
        speaker.say(n).await;
        let (heard, replayed) = hear(&mut socket).await;
        assert_eq!(heard, u64::from(n));
        if !replayed {
            break;
        }
        n += 1;
    }
    assert_eq!(socket.so_far().await, []);
}

#[tokio::test]
async fn what_no_heartbeat_proved_comes_again_and_what_one_proved_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let mut speaker = kept.speaker().await;
    let (mut socket, _) = kept.joined("c").await;
    speaker.say(1).await;
    assert_eq!(hear(&mut socket).await, (1, false));
    prove(&mut socket).await;
    speaker.say(2).await;
    assert_eq!(hear(&mut socket).await, (2, false));
    // One heartbeat alone says nothing about what came before its own reply.
    assert_eq!(socket.so_far().await, []);
    drop(socket);
    let (mut socket, _) = kept.joined("c").await;
    assert_eq!(hear(&mut socket).await, (2, true));
    assert_eq!(socket.so_far().await, []);
}

#[tokio::test]
async fn bytes_json_and_text_come_back_to_both_serializers_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let mut speaker = kept.speaker().await;
    let mut old = kept.socket("old", "1.0.0").await;
    let mut new = kept.socket("new", "2.0.0").await;
    for socket in [&mut old, &mut new] {
        join(socket, "chat:den", json!({})).await;
    }
    drop((old, new));
    let push = |encoding: u8, data: &[u8]| {
        let mut frame = vec![3, 0, 0, 17, 3, 0, encoding];
        frame.extend(b"realtime:chat:denraw");
        frame.extend(data);
        frame
    };
    speaker.0.message(push(0, b"\xff\x00")).await;
    speaker.0.message(push(1, b"[1, 2]")).await;
    assert_eq!(speaker.0.next().await.payload["status"], "ok");
    assert_eq!(speaker.0.next().await.payload["status"], "ok");
    let odd = json!({"type": "broadcast", "event": "m", "payload": {"n": 3}, "more": [null], "meta": {"id": "own"}});
    speaker.0.ask("chat:den", "broadcast", odd).await.ok();
    speaker.say(4).await;

    let mut new = kept.socket("new", "2.0.0").await;
    join(&mut new, "chat:den", json!({})).await;
    for (encoding, data) in [(0, &b"\xff\x00"[..]), (1, b"[1, 2]")] {
        let frame = new.binary().await;
        let [4, 17, 3, meta, got, ..] = frame[..] else { panic!("{frame:?}") };
        let rest = &frame[5 + 20..];
        let (meta, rest) = rest.split_at(meta.into());
        let meta: Value = serde_json::from_slice(meta).unwrap();
        assert_eq!((got, rest, &meta["replayed"]), (encoding, data, &json!(true)));
    }
    let got = new.next().await;
    assert_eq!(got.payload["meta"], json!({"id": "own", "replayed": true}));
    assert_eq!((&got.payload["more"], &got.payload["payload"]), (&json!([null]), &json!({"n": 3})));
    assert_eq!(hear(&mut new).await, (4, true));

    let mut old = kept.socket("old", "1.0.0").await;
    join(&mut old, "chat:den", json!({})).await;
    let got = old.next().await.payload;
    assert_eq!(
        (&got["event"], &got["payload"], &got["meta"]["replayed"]),
        (&json!("raw"), &json!([1, 2]), &json!(true))
    );
    assert_eq!(old.next().await.payload["payload"]["n"], 3);
    assert_eq!(hear(&mut old).await, (4, true));
}

#[tokio::test]
async fn own_words_come_back_only_to_whoever_hears_itself() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let (mut socket, _) = kept.joined("c").await;
    socket.push("chat:den", "broadcast", message(1)).await;
    assert_eq!(socket.so_far().await, []);
    kept.channels.hub.settled().await;
    drop(socket);
    let (mut socket, told) = kept.joined("c").await;
    assert_eq!(told["meta"]["gap"], Value::Null);
    assert_eq!(socket.so_far().await, []);
    drop(socket);
    let mut socket = kept.socket("c", "2.0.0").await;
    join(&mut socket, "chat:den", json!({"broadcast": {"self": true}})).await;
    assert_eq!(hear(&mut socket).await, (1, true));
}

#[tokio::test]
async fn http_broadcasts_are_kept_when_they_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    drop(kept.joined("c").await);
    let body = json!({"messages": [{"topic": "chat:den", "event": "m", "payload": {"n": 1}}]});
    let post = crate::realtime::http().post(kept.http("/api/broadcast"));
    let answer = post.header("apikey", token(Role::Anon, None)).json(&body).send().await.unwrap();
    assert_eq!(answer.status(), 202);
    let kept = kept.again().await;
    let (mut socket, _) = kept.joined("c").await;
    assert_eq!(hear(&mut socket).await, (1, true));
}

#[tokio::test]
async fn whoever_leaves_begins_anew_and_whoever_gave_up_its_join_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let mut speaker = kept.speaker().await;
    let (mut socket, _) = kept.joined("c").await;
    let own = socket.refs.to_string();
    socket.push("chat:den", "phx_leave", json!({})).await;
    // The join_ref is not given, so it is not the leave of this join.
    assert_eq!(socket.so_far().await, []);
    socket.send(json!(own), json!("l"), "realtime:chat:den", "phx_leave", json!({})).await;
    socket.until("phx_close").await;
    speaker.say(1).await;
    let told = join(&mut socket, "chat:den", json!({})).await;
    let own = socket.refs.to_string();
    assert_eq!(told["meta"]["gap"], Value::Null, "nothing proves that it knew that it was in");
    assert_eq!(hear(&mut socket).await, (1, true));
    prove(&mut socket).await;
    socket.send(json!(own), json!("l"), "realtime:chat:den", "phx_leave", json!({})).await;
    socket.until("phx_close").await;
    speaker.say(2).await;
    let told = join(&mut socket, "chat:den", json!({})).await;
    assert_eq!(told["meta"]["gap"]["reason"], "unknown");
    assert_eq!(socket.so_far().await, []);
}

#[tokio::test]
async fn topics_without_a_history_and_clients_without_a_name_are_as_ever() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let mut socket = kept.socket("c", "2.0.0").await;
    socket.join("den", json!({})).await.ok();
    assert_eq!(socket.so_far().await, [], "no system message");
    let mut speaker = kept.speaker().await;
    speaker.0.join("den", json!({"broadcast": {"ack": true}})).await.ok();
    speaker.say_on("den", 1).await;
    assert_eq!(socket.next().await.payload, message(1), "no meta");
    let mut nameless = kept.speaker().await;
    assert_eq!(nameless.0.so_far().await, []);
    speaker.say(2).await;
    assert!(!hear(&mut nameless.0).await.1);
}
