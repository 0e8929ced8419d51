//! What stands between a daemon and its server, and lets nothing through when it is told to.
use convoke::db::Target;
use std::io;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Forwards to the server. What is done to the connections that there are does not concern those made after it.
pub struct Proxy {
    /// The server's address, by way of this.
    pub url: String,
    done: watch::Sender<Done>,
}

#[derive(Clone, Copy)]
enum Done {
    Nothing,
    Cut,
    Frozen,
}

impl Proxy {
    pub async fn start(url: &str) -> Self {
        let target = Target::parse(url).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url = url.replace(&format!(":{}/", target.port), &format!(":{port}/"));
        let done = watch::Sender::new(Done::Nothing);
        let doing = done.clone();
        let server = ("127.0.0.1", target.port);
        #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
        tokio::spawn(async move {
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let mut doing = doing.subscribe();
                tokio::spawn(async move {
                    // A server that is away is a closed connection.
                    let Ok(mut upstream) = TcpStream::connect(server).await else { return };
                    let Ok(replicates) = greet(&mut client, &mut upstream).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut upstream) => {}
                        done = doing.changed() => {
                            let frozen = matches!(*doing.borrow(), Done::Frozen);
                            if done.is_ok() && frozen && replicates {
                                // Both sockets stay open and nothing moves.
                                std::future::pending::<()>().await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, done }
    }

    /// Closes every connection.
    pub fn cut(&self) {
        self.done.send_replace(Done::Cut);
    }

    /// Nothing moves on the replication connections that there are, and both sides believe in them; the others are
    /// closed.
    pub fn freeze(&self) {
        self.done.send_replace(Done::Frozen);
    }
}

/// Passes the first words on; whether a replication connection begins with them.
async fn greet(client: &mut TcpStream, upstream: &mut TcpStream) -> io::Result<bool> {
    const TLS: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let mut first = vec![0; 4096];
    loop {
        let size = client.read(&mut first).await?;
        let said = &first[..size];
        upstream.write_all(said).await?;
        if said != TLS {
            return Ok(said.windows(12).any(|it| it == b"replication\0"));
        }
        let mut answer = [0];
        upstream.read_exact(&mut answer).await?;
        client.write_all(&answer).await?;
    }
}
