//! HTTP requests and websocket frames that no client library sends: each is refused or read in exactly one way, and
//! what follows it on the connection is never taken for something else.
use super::connect::raw;
use crate::{
    realtime::{Server, quick},
    support::PATIENCE,
};
use convoke::api;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Ends the head of a request; the path is one that answers without a body of its own.
const NEXT: &str = "GET /api/ping?smuggled HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// The statuses of all answers to these bytes. The client sends no more, and leaves its side open: the server drops a
/// request whose client has closed. It ends the connection itself after the last answer, or when a limit has passed.
async fn statuses(server: &Server, bytes: &[u8]) -> Vec<u16> {
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    // The server may have closed it before it has read all.
    let _closed = socket.write_all(bytes).await;
    let mut answer = Vec::new();
    let _reset = timeout(PATIENCE, socket.read_to_end(&mut answer)).await.expect("the connection stays open");
    let text = String::from_utf8_lossy(&answer).into_owned();
    let heads = text.split("HTTP/1.1 ").skip(1).chain(text.split("HTTP/1.0 ").skip(1));
    heads.map(|rest| rest[..3].parse().unwrap()).collect()
}

fn server() -> impl Future<Output = Server> {
    let short = Duration::from_millis(300);
    let edge = api::Config { head_timeout: short, body_idle_timeout: short, ..api::Config::default() };
    async move { Server::limited(&edge, quick()).await }
}

/// The second request of each pair is inside the body of the first for a reader that takes the framing for something
/// else: then there would be an answer more, or one of another request.
#[tokio::test]
async fn no_framing_is_read_in_two_ways() {
    let server = server().await;
    let key = server.anon();
    let smuggled = NEXT.len();
    for headers in [
        "content-length: 0\r\ncontent-length: 5\r\n".to_owned(),
        format!("content-length: 0, {smuggled}\r\n"),
        format!("content-length: {smuggled}, 0\r\n"),
        "content-length: +0\r\n".to_owned(),
        "content-length: -0\r\n".to_owned(),
        "content-length: 0x0\r\n".to_owned(),
        "content-length: 0 0\r\n".to_owned(),
        "content-length: \r\n".to_owned(),
        "content-length: 18446744073709551616\r\n".to_owned(),
        "content-length : 0\r\n".to_owned(),
        "content-length\t: 0\r\n".to_owned(),
        " content-length: 0\r\n".to_owned(),
        "x: y\r\n content-length: 0\r\n".to_owned(),
        "transfer-encoding: xchunked\r\n".to_owned(),
        "transfer-encoding: chunked, identity\r\n".to_owned(),
        "transfer-encoding: gzip, chunked, gzip\r\n".to_owned(),
        "transfer-encoding: chunked chunked\r\n".to_owned(),
        "transfer-encoding: \"chunked\"\r\n".to_owned(),
        "transfer-encoding : chunked\r\n".to_owned(),
        "transfer-encoding: identity\r\ncontent-length: 0\r\n".to_owned(),
        "transfer-encoding: chu\0nked\r\n".to_owned(),
        "x\0: y\r\ncontent-length: 0\r\n".to_owned(),
        "x: y\rcontent-length: 0\r\n".to_owned(),
        "ｘ: y\r\ncontent-length: 0\r\n".to_owned(),
        ": y\r\n".to_owned(),
        "content-length: 0\r\nx y\r\n".to_owned(),
    ] {
        let head = format!("POST /api/broadcast HTTP/1.1\r\nhost: x\r\napikey: {key}\r\n{headers}\r\n{NEXT}");
        let found = statuses(&server, head.as_bytes()).await;
        assert!(found.len() <= 1 && found.iter().all(|status| *status >= 400), "{headers:?}: {found:?}");
    }
    // Both framings: only one of them counts, and nothing more is read from the connection.
    for headers in [
        format!("content-length: {smuggled}\r\ntransfer-encoding: chunked\r\n"),
        "transfer-encoding: chunked\r\ncontent-length: 0\r\n".to_owned(),
    ] {
        let head = format!(
            "POST /api/broadcast HTTP/1.1\r\nhost: x\r\napikey: {key}\r\n{headers}\r\n0\r\n\r\n{NEXT}"
        );
        let found = statuses(&server, head.as_bytes()).await;
        assert!(found.len() <= 1 && found.iter().all(|status| *status >= 400), "{headers:?}: {found:?}");
    }
}

#[tokio::test]
async fn chunks_of_odd_sizes_end_the_connection() {
    let server = server().await;
    let key = server.anon();
    for body in [
        "g\r\n",
        "-1\r\n",
        "0x1\r\na\r\n",
        "FFFFFFFFFFFFFFFFF\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "1;\n\r\na\r\n0\r\n\r\n",
        "1\na\n0\n\n",
        "1 \r\r\na\r\n0\r\n\r\n",
        "\r\n0\r\n\r\n",
    ] {
        let head = "POST /api/broadcast HTTP/1.1\r\nhost: x\r\ncontent-type: application/json";
        let request = format!("{head}\r\napikey: {key}\r\ntransfer-encoding: chunked\r\n\r\n{body}{NEXT}");
        let found = statuses(&server, request.as_bytes()).await;
        assert!(found.len() <= 1 && found.iter().all(|status| *status >= 400), "{body:?}: {found:?}");
    }
    // Extensions without an end are no way around the limits of heads and bodies.
    let request = format!(
        "POST /api/broadcast HTTP/1.1\r\nhost: x\r\napikey: {key}\r\ntransfer-encoding: chunked\r\n\r\n1;{}",
        "x".repeat(1 << 20)
    );
    let found = statuses(&server, request.as_bytes()).await;
    assert!(found.iter().all(|status| *status >= 400), "{found:?}");
}

#[tokio::test]
async fn request_lines_of_odd_forms_reach_no_other_route() {
    let server = server().await;
    let close = "host: x\r\nconnection: close\r\n";
    for (line, expected) in [
        ("GET /api/ping HTTP/1.1", Some(200)),
        ("GET http://elsewhere/api/ping HTTP/1.1", Some(200)),
        ("GET /api/ping HTTP/1.0", Some(200)),
        ("GET /api/ping#x HTTP/1.1", None),
        ("GET //api/ping HTTP/1.1", Some(404)),
        ("GET /api//ping HTTP/1.1", Some(404)),
        ("GET /x/../api/ping HTTP/1.1", Some(404)),
        ("GET /api/./ping HTTP/1.1", Some(404)),
        ("GET /api/%70ing HTTP/1.1", None),
        ("GET /api/ping%00 HTTP/1.1", Some(404)),
        ("GET /api\\ping HTTP/1.1", None),
        ("GET /API/PING HTTP/1.1", Some(404)),
    ] {
        let found = statuses(&server, format!("{line}\r\n{close}\r\n").as_bytes()).await;
        match expected {
            Some(status) => assert_eq!(found, [status], "{line:?}"),
            None => assert!(found.len() <= 1 && found.iter().all(|it| *it < 500), "{line:?}: {found:?}"),
        }
    }
}

#[tokio::test]
async fn requests_that_come_together_are_answered_in_their_order() {
    let server = Server::start().await;
    let one = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let paths = (0..300).map(|n| if n % 3 == 0 { one("/nothing") } else { one("/api/ping") });
    let bytes = paths.collect::<String>() + NEXT;
    let found = statuses(&server, bytes.as_bytes()).await;
    let expected: Vec<u16> = (0..300).map(|n| if n % 3 == 0 { 404 } else { 200 }).chain([200]).collect();
    assert_eq!(found, expected);
}

/// A topic in a path is what its percent-encoding says, once.
#[tokio::test]
async fn encoded_topics_are_decoded_once() {
    let server = Server::start().await;
    let mut ear = server.joined("a/b", serde_json::json!({})).await;
    let mut twice = server.joined("a%2Fb", serde_json::json!({})).await;
    let key = server.anon();
    let send = async |topic: &str| {
        let head = format!("POST /api/broadcast/{topic}/events/e HTTP/1.1\r\nhost: x\r\nconnection: close");
        let request = format!("{head}\r\napikey: {key}\r\ncontent-length: 0\r\n\r\n");
        statuses(&server, request.as_bytes()).await
    };
    assert_eq!(send("a%2Fb").await, [202]);
    assert_eq!(send("a%252Fb").await, [202]);
    assert_eq!((ear.binary().await[0], twice.binary().await[0]), (4, 4));
    assert!(ear.so_far().await.is_empty() && twice.so_far().await.is_empty(), "one each");
    for odd in ["a/b", "%", "%zz", "%ff", "%c0%af", "", "."] {
        let found = send(odd).await;
        assert!(
            found
                .iter()
                .all(|status| (400..500).contains(status) || (odd == "." || odd == "%" || odd == "%zz")),
            "{odd:?}: {found:?}"
        );
    }
}

fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    [&[first, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0], payload].concat()
}

/// Each series of frames ends the socket with a code, and no frame of it is read as a message.
#[tokio::test]
async fn frames_against_the_rules_end_the_socket() {
    let server = Server::start().await;
    let beat = frame(0x81, br#"[null,"1","phoenix","heartbeat",{}]"#);
    let long = |first: u8, size: u64| [&[first, 0xff][..], &size.to_be_bytes(), &[0; 4]].concat();
    for (what, bytes, code) in [
        ("a ping in parts", frame(0x09, b"x"), 1002),
        ("a ping too long", [&[0x89, 0xfe, 0, 126, 0, 0, 0, 0][..], &[b'x'; 126]].concat(), 1002),
        ("a part without a beginning", frame(0x80, b"x"), 1002),
        ("a beginning within a message", [frame(0x01, b"x"), frame(0x81, b"y")].concat(), 1002),
        ("a compressed message", frame(0xc1, b"\xaa\x56\x4a\x54\x02\x00"), 1002),
        ("a compressed part", [frame(0x01, b"x"), frame(0xc0, b"y")].concat(), 1002),
        ("reserved bits", frame(0xb1, b"x"), 1002),
        ("an unknown opcode", frame(0x83, b"x"), 1002),
        ("an unknown control frame", frame(0x8b, b"x"), 1002),
        ("no mask", vec![0x81, 2, b'{', b'}'], 1002),
        ("text that is not UTF-8", frame(0x81, b"\xed\xa0\x80"), 1007),
        ("text that is cut in a character", [frame(0x01, b"\xc3"), frame(0x80, b"(")].concat(), 1007),
        ("a size beyond everything", long(0x81, u64::MAX), 1002),
        ("a size beyond the limit", long(0x81, 1 << 40), 1009),
        ("a close of one byte", frame(0x88, b"x"), 1002),
        ("a close with a reserved code", frame(0x88, &1005_u16.to_be_bytes()), 1002),
        ("a close with code 0", frame(0x88, &[0, 0]), 1002),
        ("a close whose reason is not UTF-8", frame(0x88, &[3, 0xe8, 0xff]), 1007),
    ] {
        let answer = raw(&server, &[&bytes[..], &beat].concat()).await;
        let told = u16::from_be_bytes(answer.get(2..4).unwrap_or(&[0, 0]).try_into().unwrap());
        assert_eq!((answer.first(), told), (Some(&0x88), code), "{what}: {answer:?}");
        assert!(!String::from_utf8_lossy(&answer).contains("phx_reply"), "{what}");
    }
    // Parts without bytes are no message and no work without an end.
    let parts =
        [frame(0x01, b""), frame(0x00, b"").repeat(100_000), frame(0x80, b""), frame(0x88, b"")].concat();
    assert_eq!(raw(&server, &parts).await[0], 0x88);
}
