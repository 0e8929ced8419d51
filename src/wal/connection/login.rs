//! Startup and authentication: SCRAM-SHA-256 (bound to the TLS channel where there is one), MD5, clear text.
use super::{Connection, refused, transport::Binding};
use crate::{db::Target, wal::error::Error};

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

/// The session renders values as text, so its settings decide what they look like. A walsender whose
/// client is gone gives the slot and the leader's lock back after its own time-out.
const SETTINGS: &str = "-c datestyle=ISO -c intervalstyle=postgres -c extra_float_digits=3 \
    -c timezone=UTC -c bytea_output=hex -c statement_timeout=0 -c lock_timeout=0 \
    -c idle_session_timeout=0 -c wal_sender_timeout=15s";

/// How the walsender is named in `pg_stat_replication`.
pub(super) const APPLICATION_NAME: &str = "convoke wal";

impl Connection {
    pub(super) async fn log_in(&mut self, target: &Target, binding: Binding) -> Result<(), Error> {
        let options = [target.options().unwrap_or_default(), SETTINGS].join(" ");
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
            // It says that we could have, so that nobody can take the offer out unnoticed.
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
