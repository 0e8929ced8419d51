//! Servers that are absent, broken or not realtime servers.
use super::{client, subscribed, until};
use crate::realtime::{Server, quick};
use crate::support::PATIENCE;
use convoke::client::{Backoff, Client, Connection, Error, Status};
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The error that a client gets from a server that treats each connection like this.
async fn found<F: Future<Output = ()> + Send + 'static>(deal: fn(TcpStream) -> F) -> Error {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let serve = async move {
        while let Ok((socket, _)) = listener.accept().await {
            deal(socket).await;
        }
    };
    let ask = async {
        let client = Client::builder(&url, "hush").unwrap().timeout(Duration::from_millis(500)).start();
        let error = client.channel("den").subscribe().await.unwrap_err();
        let text = error.to_string();
        assert!(!text.contains("hush") && text.lines().count() == 1, "{text}");
        error
    };
    tokio::select! {
        () = serve => unreachable!(),
        error = ask => error,
    }
}

async fn request(socket: &mut TcpStream) -> String {
    let mut got = vec![0; 4096];
    let size = socket.read(&mut got).await.unwrap_or_default();
    String::from_utf8_lossy(&got[..size]).into_owned()
}

#[tokio::test]
async fn every_kind_of_server_failure_has_its_own_error() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let client = Client::new(&format!("http://{closed}"), "key").unwrap();
    let error = client.channel("den").subscribe().await.unwrap_err();
    assert!(matches!(&error, Error::Connect { why, .. } if why.contains("refused")), "{error}");
    assert!(error.is_temporary());

    let silent = found(|socket| async move {
        tokio::time::sleep(PATIENCE).await;
        drop(socket);
    });
    assert!(matches!(silent.await, Error::Connect { .. }));
    let rude = found(|socket| async move { drop(socket) });
    assert!(matches!(rude.await, Error::Connect { .. }));
    let foreign = found(|mut socket| async move {
        let _ = socket.write_all(b"220 mail.example.com ESMTP\r\n\xff\xfe\r\n\r\n").await;
    });
    assert!(matches!(foreign.await, Error::Connect { .. }));
    let plain = found(|mut socket| async move {
        request(&mut socket).await;
        let _ = socket.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 5\r\n\r\nnope\n").await;
    });
    assert!(matches!(plain.await, Error::Handshake { status: 404, .. }));
    let liar = found(|mut socket| async move {
        request(&mut socket).await;
        let _ = socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-accept: lie\r\n\r\n").await;
    });
    assert!(matches!(liar.await, Error::Connect { .. }));
    let endless = found(|mut socket| async move {
        request(&mut socket).await;
        let _ = socket.write_all(b"HTTP/1.1 101 ").await;
        while socket.write_all(&[b'x'; 8192]).await.is_ok() {}
    });
    assert!(matches!(endless.await, Error::Connect { .. }));
}

#[tokio::test]
async fn wrong_key_or_path_reports_the_server_message() {
    let server = Server::start().await;
    let url = format!("http://{}", server.addr);
    let bad = Client::new(&url, "abc").unwrap().channel("den").subscribe().await.unwrap_err();
    let why = "the server refused the connection with status 401: The token provided is not a valid JWT";
    assert_eq!(bad.to_string(), why);
    let lost = Client::new(&format!("{url}/nowhere"), &server.anon()).unwrap();
    let lost = lost.channel("den").subscribe().await.unwrap_err();
    assert!(matches!(lost, Error::Handshake { status: 404, .. }), "{lost}");
    let bad = client(&server).token("potato").start().channel("den").subscribe().await.unwrap_err();
    let why = "channel den was refused: MalformedJWT: The token provided is not a valid JWT";
    assert_eq!(bad.to_string(), why);
    server.stop().await;
}

#[tokio::test]
async fn channel_started_before_its_server_connects_later() {
    let addr = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    // All test servers share a secret, so a token of one is valid on another.
    let other = Server::start().await;
    let backoff = Backoff::new([Duration::from_millis(50)]);
    let client = Client::builder(&format!("http://{addr}"), &other.anon()).unwrap().backoff(backoff).start();
    let channel = client.channel("den").build();
    channel.start().await.unwrap();
    until(&channel, |status| matches!(status, Status::Failed(Error::Connect { .. }))).await;
    let mut connection = client.connection();
    connection.wait_for(|connection| matches!(connection, Connection::Waiting { .. })).await.unwrap();
    let server = Server::on(addr, quick()).await;
    until(&channel, subscribed).await;
    client.close().await.unwrap();
    assert!(matches!(*connection.borrow(), Connection::Closed));
    assert!(matches!(channel.broadcast("e", 1).await, Err(Error::Closed)));
    assert!(matches!(client.channel("x").subscribe().await, Err(Error::Closed)));
    assert!(matches!(*channel.status().borrow(), Status::Closed(_)));
    server.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn channels_over_the_limit_are_refused_and_others_stay() {
    let server = Server::with(convoke::gateway::Config { channels_max: 3, ..quick() }).await;
    let client = client(&server).start();
    let mut channels = Vec::new();
    for n in 0..3 {
        channels.push(client.channel(&format!("den-{n}")).acknowledged().subscribe().await.unwrap());
    }
    let refused = client.channel("den-3").subscribe().await.unwrap_err();
    assert_eq!(refused.to_string(), "channel den-3 was refused: ChannelRateLimitReached: Too many channels");
    channels[0].broadcast("e", 1).await.unwrap();
    channels.pop();
    client.channel("den-3").subscribe().await.unwrap();
    server.stop().await;
}
