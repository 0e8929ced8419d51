//! A connection pooler between the daemon and PostgreSQL, which shares sessions among clients.
use crate::support;
use convoke::{
    db::{Config, Database, Error, Target},
    scope::Scope,
};
use secrecy::SecretString;
use std::time::Duration;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
};

/// The pooler's treatment of the startup parameter `options`; `PgBouncer` can be configured for either.
#[derive(Clone, Copy)]
enum Options {
    Refused,
    Ignored,
}

/// Starts a pooler in front of the test's server; returns its URL. Everything but `options` is forwarded.
async fn pooler(url: &str, options: Options) -> String {
    let target = Target::parse(url).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    #[expect(clippy::disallowed_methods, reason = "it ends with the test's runtime")]
    tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            tokio::spawn(pass(client, target.port, options));
        }
    });
    url.replace(&format!(":{}/", Target::parse(url).unwrap().port), &format!(":{port}/"))
}

async fn pass(mut client: TcpStream, port: u16, options: Options) -> std::io::Result<()> {
    let mut startup = message(&mut client).await?;
    if startup.len() == 4 {
        // A request for TLS.
        client.write_all(b"N").await?;
        startup = message(&mut client).await?;
    }
    if let Options::Refused = options {
        let error = b"SFATAL\0VFATAL\0C08P01\0Munsupported startup parameter: options\0\0";
        client.write_u8(b'E').await?;
        client.write_u32(u32::try_from(error.len()).unwrap() + 4).await?;
        return client.write_all(error).await;
    }
    let mut kept = startup[..4].to_vec();
    let words: Vec<&[u8]> = startup[4..].split(|byte| *byte == 0).collect();
    for pair in words.chunks_exact(2).filter(|pair| pair[0] != b"options" && !pair[0].is_empty()) {
        for word in pair {
            kept.extend_from_slice(word);
            kept.push(0);
        }
    }
    kept.push(0);
    let mut server = TcpStream::connect(("127.0.0.1", port)).await?;
    server.write_u32(u32::try_from(kept.len()).unwrap() + 4).await?;
    server.write_all(&kept).await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

async fn message(client: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let length = client.read_u32().await?;
    let mut body = vec![0; usize::try_from(length).unwrap() - 4];
    client.read_exact(&mut body).await?;
    Ok(body)
}

#[tokio::test]
async fn pooler_is_reported_with_a_remedy() {
    let database = support::empty_database().await;
    for (options, text_has) in
        [(Options::Refused, "refuses the settings"), (Options::Ignored, "drops the settings")]
    {
        let url = pooler(&database.url, options).await;
        let connect_timeout = Duration::from_secs(10);
        let config = Config { url: Some(SecretString::from(url)), connect_timeout, ..Config::default() };
        let error = Database::open(&config, &Scope::default()).await.unwrap_err();
        assert!(matches!(error, Error::Pooler { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains(text_has) && text.contains("address of PostgreSQL itself"), "{text}");
    }
}
