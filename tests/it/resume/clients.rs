//! Unmodified supabase-js and Python clients across a cut connection and a restarted daemon.
use super::{HistoryServer, token};
use crate::realtime::client_process::{ClientProcess, NEW, OLD};
use convoke::auth::Role;
use serde_json::json;
use std::net::SocketAddr;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// A proxy to the daemon whose connections can be cut; while it is cut it accepts no new ones.
struct ProxyLink {
    addr: SocketAddr,
    whole: watch::Sender<bool>,
    _task: tokio::task::JoinSet<()>,
}

impl ProxyLink {
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

async fn expect_range(client: &mut ClientProcess, numbers: std::ops::RangeInclusive<u64>, replayed: bool) {
    for n in numbers {
        let got = client.until("broadcast", |it| it["payload"]["n"] == n).await;
        assert_eq!(got["meta"]["replayed"] == true, replayed, "{got}");
        assert!(got["meta"]["id"].is_string(), "{got}");
    }
}

#[tokio::test]
async fn real_clients_resume_after_a_cut_and_a_daemon_restart() {
    let folder = tempfile::tempdir().unwrap();
    let server = HistoryServer::start(folder.path()).await;
    let link = ProxyLink::to(server.channels.addr).await;
    let (http, key) = (format!("http://{}", link.addr), token(Role::Anon, None));
    let python = format!("ws://{}/realtime/v1", link.addr);
    let (mut new, mut old, mut python) = tokio::join!(
        ClientProcess::js_as(NEW, &http, &key, None, Some("new")),
        ClientProcess::js_as(OLD, &http, &key, None, Some("old")),
        ClientProcess::python_as(&python, &key, Some("python"))
    );
    let mut clients = [&mut new, &mut old, &mut python];
    for client in &mut clients {
        client.join("chat:den", json!({})).await;
        client.until("system", |it| it["message"].as_str().is_some_and(|m| m.contains("begins here"))).await;
    }
    let mut publisher = server.publisher().await;
    for n in 1..=3 {
        publisher.publish(n).await;
    }
    for client in &mut clients {
        expect_range(client, 1..=3, false).await;
    }
    link.whole.send_replace(false);
    for n in 4..=20 {
        publisher.publish(n).await;
    }
    link.whole.send_replace(true);
    for client in &mut clients {
        expect_range(client, 4..=20, true).await;
    }
    link.whole.send_replace(false);
    for n in 21..=30 {
        publisher.publish(n).await;
    }
    let server = server.restart().await;
    let mut publisher = server.publisher().await;
    for n in 31..=33 {
        publisher.publish(n).await;
    }
    link.whole.send_replace(true);
    for client in &mut clients {
        expect_range(client, 21..=33, true).await;
    }
}
