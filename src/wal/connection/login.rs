//! Startup and authentication: SCRAM-SHA-256 (bound to the TLS channel where there is one), MD5, clear text.
use super::{Connection, refused, transport::Binding};
use crate::{
    db::{Target, session},
    wal::error::Error,
};

use postgres_protocol::{
    authentication::{
        md5_hash,
        sasl::{ChannelBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256},
    },
    message::{
        backend::{AuthenticationSaslBody, Message},
        frontend,
    },
};
use secrecy::ExposeSecret;
use tokio_postgres::fallible_iterator::FallibleIterator;

/// A walsender whose client is gone gives the slot and the leader's lock back after a time-out of the server's: one
/// while it streams, one before that.
const OWN_SETTINGS: [(&str, &str); 5] = [
    ("timezone", "UTC"),
    ("statement_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("idle_session_timeout", "15s"),
    ("wal_sender_timeout", "15s"),
];

/// How the walsender is named in `pg_stat_replication`.
pub(super) const APPLICATION_NAME: &str = "convoke wal";

impl Connection {
    pub(super) async fn log_in(&mut self, target: &Target, binding: Binding) -> Result<(), Error> {
        // The session renders values as text, so its settings decide what they look like.
        let own = OWN_SETTINGS.map(|(name, value)| (name, value.to_owned()));
        let options = session::options(target, &own);
        let parameters = [
            ("user", target.user.as_str()),
            ("database", &target.database),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", APPLICATION_NAME),
            ("options", &options),
        ];
        frontend::startup_message(parameters, &mut self.write)?;
        self.flush().await?;
        self.authenticate(target, binding).await?;
        loop {
            match self.message().await? {
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ParameterStatus(body) if body.name().is_ok_and(|name| name == "server_encoding") => {
                    body.value()?.clone_into(&mut self.server_encoding);
                }
                Message::ErrorResponse(body) => return Err(refused(&body)),
                _ => {}
            }
        }
    }

    async fn authenticate(&mut self, target: &Target, binding: Binding) -> Result<(), Error> {
        loop {
            match self.message().await? {
                Message::AuthenticationOk => return Ok(()),
                Message::AuthenticationCleartextPassword => {
                    frontend::password_message(password(target)?, &mut self.write)?;
                    self.flush().await?;
                }
                Message::AuthenticationMd5Password(body) => {
                    let hash = md5_hash(target.user.as_bytes(), password(target)?, body.salt());
                    frontend::password_message(hash.as_bytes(), &mut self.write)?;
                    self.flush().await?;
                }
                // What comes after it must be the server's proof that it knows the password too.
                Message::AuthenticationSasl(body) => return self.scram(target, &body, binding).await,
                Message::ErrorResponse(body) => return Err(refused(&body)),
                Message::NoticeResponse(_) => {}
                _ => {
                    let ways = "the server wants a way of authentication other than a password";
                    return Err(Error::Login(ways.into()));
                }
            }
        }
    }

    async fn scram(
        &mut self,
        target: &Target,
        body: &AuthenticationSaslBody,
        binding: Binding,
    ) -> Result<(), Error> {
        let (mut plain, mut plus) = (false, false);
        body.mechanisms().for_each(|name| {
            plain |= name == SCRAM_SHA_256;
            plus |= name == SCRAM_SHA_256_PLUS;
            Ok(())
        })?;
        let (mechanism, binding) = match binding {
            Binding::EndPoint(hash) if plus => {
                (SCRAM_SHA_256_PLUS, ChannelBinding::tls_server_end_point(hash))
            }
            // The flag says that the client supports channel binding, so that removing the server's offer is detected.
            Binding::EndPoint(_) if plain => (SCRAM_SHA_256, ChannelBinding::unrequested()),
            _ if plain => (SCRAM_SHA_256, ChannelBinding::unsupported()),
            _ => return Err(Error::Login("the server offers no SCRAM-SHA-256".into())),
        };
        let mut scram = ScramSha256::new(password(target)?, binding);
        frontend::sasl_initial_response(mechanism, scram.message(), &mut self.write)?;
        self.flush().await?;
        let bad = |e: std::io::Error| Error::Login(format!("SCRAM with the server failed: {e}"));
        match self.message().await? {
            Message::AuthenticationSaslContinue(body) => scram.update(body.data()).map_err(bad)?,
            Message::ErrorResponse(body) => return Err(refused(&body)),
            _ => return Err(Error::Login("the server broke off SCRAM".into())),
        }
        frontend::sasl_response(scram.message(), &mut self.write)?;
        self.flush().await?;
        match self.message().await? {
            Message::AuthenticationSaslFinal(body) => scram.finish(body.data()).map_err(bad)?,
            Message::ErrorResponse(body) => return Err(refused(&body)),
            _ => return Err(Error::Login("the server broke off SCRAM".into())),
        }
        match self.message().await? {
            Message::AuthenticationOk => Ok(()),
            Message::ErrorResponse(body) => Err(refused(&body)),
            _ => Err(Error::Login("the server did not end SCRAM".into())),
        }
    }
}

fn password(target: &Target) -> Result<&[u8], Error> {
    match &target.password {
        Some(password) => Ok(password.expose_secret().as_bytes()),
        None => Err(Error::Login("the server wants a password and database.url has none".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::BytesMut;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    /// What `server` sees when we log in at it.
    async fn log_in<F: Future<Output = ()>>(
        server: impl FnOnce(DuplexStream) -> F,
        url: &str,
    ) -> Result<(), Error> {
        let (ours, mut theirs) = duplex(4096);
        let mut connection = Connection {
            io: Box::new(ours),
            read: BytesMut::new(),
            write: BytesMut::new(),
            message_bytes_max: 1 << 16,
            server_encoding: String::new(),
            as_stored: false,
        };
        let target = Target::parse(url).unwrap();
        let server = async move {
            let length = theirs.read_u32().await.unwrap() as usize;
            let mut startup = vec![0; length - 4];
            theirs.read_exact(&mut startup).await.unwrap();
            assert!(String::from_utf8_lossy(&startup).contains("replication\0database\0"));
            server(theirs).await;
        };
        let (outcome, ()) = tokio::join!(connection.log_in(&target, Binding::Plain), server);
        outcome
    }

    async fn password_of(server: &mut DuplexStream) -> String {
        assert_eq!(server.read_u8().await.unwrap(), b'p');
        let length = server.read_u32().await.unwrap() as usize;
        let mut body = vec![0; length - 4];
        server.read_exact(&mut body).await.unwrap();
        String::from_utf8(body).unwrap()
    }

    const URL: &str = "postgres://user:secret@localhost/x";
    const WELCOME: &[u8] = b"R\0\0\0\x08\0\0\0\0Z\0\0\0\x05I";

    #[tokio::test]
    async fn old_servers_get_a_hash_or_the_password() {
        let md5 = async |mut server: DuplexStream| {
            server.write_all(b"R\0\0\0\x0c\0\0\0\x05salt").await.unwrap();
            let hash = md5_hash(b"user", b"secret", *b"salt");
            assert_eq!(password_of(&mut server).await, format!("{hash}\0"));
            server.write_all(WELCOME).await.unwrap();
        };
        log_in(md5, URL).await.unwrap();
        let clear = async |mut server: DuplexStream| {
            server.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
            assert_eq!(password_of(&mut server).await, "secret\0");
            server.write_all(WELCOME).await.unwrap();
        };
        log_in(clear, URL).await.unwrap();
        let asks = async |mut server: DuplexStream| {
            server.write_all(b"R\0\0\0\x08\0\0\0\x03").await.unwrap();
        };
        let refused = log_in(asks, "postgres://user@localhost/x").await.unwrap_err();
        assert!(refused.to_string().contains("has none"), "{refused}");
    }

    #[tokio::test]
    async fn a_server_that_proves_nothing_is_not_believed() {
        let liar = async |mut server: DuplexStream| {
            server.write_all(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0").await.unwrap();
            password_of(&mut server).await;
            server.write_all(WELCOME).await.unwrap();
        };
        assert!(matches!(log_in(liar, URL).await, Err(Error::Login(_))));
        let other_way = async |mut server: DuplexStream| {
            server.write_all(b"R\0\0\0\x08\0\0\0\x07").await.unwrap();
        };
        assert!(matches!(log_in(other_way, URL).await, Err(Error::Login(_))));
    }
}
