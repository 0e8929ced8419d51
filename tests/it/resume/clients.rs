//! Unmodified supabase-js and Python clients that are cut off, and whose daemon is started again.
use super::{Kept, token};
use crate::realtime::puppet::{NEW, OLD, Puppet};
use convoke::auth::Role;
use serde_json::json;
use std::net::SocketAddr;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A line to the daemon that can be cut; new ones are let through when it is whole.
struct Line {
    addr: SocketAddr,
    whole: watch::Sender<bool>,
    _task: tokio::task::JoinSet<()>,
}

impl Line {
    async fn to(daemon: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let whole = watch::Sender::new(true);
        let state = whole.subscribe();
        let accepting = async move {
            let mut lines = tokio::task::JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                let mut state = state.clone();
                lines.spawn(async move {
                    if !*state.borrow() {
                        return;
                    }
                    let Ok(mut server) = TcpStream::connect(daemon).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                        _ = state.wait_for(|whole| !whole) => {}
                    }
                });
            }
        };
        let mut task = tokio::task::JoinSet::new();
        task.spawn(accepting);
        Self { addr, whole, _task: task }
    }
}

async fn hears_to(client: &mut Puppet, numbers: std::ops::RangeInclusive<u64>, replayed: bool) {
    for n in numbers {
        let got = client.until("broadcast", |it| it["payload"]["n"] == n).await;
        assert_eq!(got["meta"]["replayed"] == true, replayed, "{got}");
        assert!(got["meta"]["id"].is_string(), "{got}");
    }
}

#[tokio::test]
async fn real_clients_get_what_was_said_while_they_were_cut_off_and_while_the_daemon_was_away() {
    let folder = tempfile::tempdir().unwrap();
    let kept = Kept::start(folder.path()).await;
    let line = Line::to(kept.channels.addr).await;
    let (http, key) = (format!("http://{}", line.addr), token(Role::Anon, None));
    let python = format!("ws://{}/realtime/v1", line.addr);
    let (mut new, mut old, mut python) = tokio::join!(
        Puppet::js_as(NEW, &http, &key, None, Some("new")),
        Puppet::js_as(OLD, &http, &key, None, Some("old")),
        Puppet::python_as(&python, &key, Some("python"))
    );
    let mut clients = [&mut new, &mut old, &mut python];
    for client in &mut clients {
        client.join("chat:den", json!({})).await;
        client.until("system", |it| it["message"].as_str().is_some_and(|m| m.contains("begins here"))).await;
    }
    let mut speaker = kept.speaker().await;
    for n in 1..=3 {
        speaker.say(n).await;
    }
    for client in &mut clients {
        hears_to(client, 1..=3, false).await;
    }
    line.whole.send_replace(false);
    for n in 4..=20 {
        speaker.say(n).await;
    }
    line.whole.send_replace(true);
    for client in &mut clients {
        hears_to(client, 4..=20, true).await;
    }
    line.whole.send_replace(false);
    for n in 21..=30 {
        speaker.say(n).await;
    }
    let kept = kept.again().await;
    let mut speaker = kept.speaker().await;
    for n in 31..=33 {
        speaker.say(n).await;
    }
    line.whole.send_replace(true);
    for client in &mut clients {
        hears_to(client, 21..=33, true).await;
    }
}
