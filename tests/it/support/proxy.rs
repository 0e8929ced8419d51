//! A proxy between a daemon and its server that can cut or freeze connections.
use convoke::db::Target;
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Forwards connections to the server. `cut` and `freeze` affect existing connections, not later ones.
pub struct Proxy {
    /// The server's address through the proxy.
    pub url: String,
    fault: watch::Sender<Fault>,
}

#[derive(Clone, Copy)]
enum Fault {
    None,
    Cut,
    Frozen,
}

impl Proxy {
    pub async fn start(url: &str) -> Self {
        let target = Target::parse(url).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = url.replace(&format!(":{}/", target.port), &format!(":{port}/"));
        let fault = watch::Sender::new(Fault::None);
        let faults = fault.clone();
        let server = ("127.0.0.1", target.port);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut faults = faults.subscribe();
                tokio::spawn(async move {
                    // An unavailable server appears as a closed connection.
                    let Ok(mut upstream) = TcpStream::connect(server).await else { return };
                    let Ok(replicates) = greet(&mut client, &mut upstream).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut upstream) => {}
                        fault = faults.changed() => {
                            let frozen = matches!(*faults.borrow(), Fault::Frozen);
                            if fault.is_ok() && frozen && replicates {
                                // Keeps both sockets open and forwards nothing.
                                std::future::pending::<()>().await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, fault }
    }

    /// Closes every connection.
    pub fn cut(&self) {
        self.fault.send_replace(Fault::Cut);
    }

    /// Stops forwarding on existing replication connections and keeps them open on both sides. Closes all
    /// other connections.
    pub fn freeze(&self) {
        self.fault.send_replace(Fault::Frozen);
    }
}

/// Forwards the start of a connection; returns whether it is a replication connection.
async fn greet(client: &mut TcpStream, upstream: &mut TcpStream) -> io::Result<bool> {
    const TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let mut first = vec![0; 4096];
    loop {
        let size = client.read(&mut first).await?;
        let sent = &first[..size];
        upstream.write_all(sent).await?;
        if sent != TLS {
            return Ok(sent.windows(12).any(|it| it == b"replication\0"));
        }
        let mut answer = [0];
        upstream.read_exact(&mut answer).await?;
        client.write_all(&answer).await?;
    }
}
