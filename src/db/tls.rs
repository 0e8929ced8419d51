//! TLS configuration for the four values of `sslmode`, with rustls and ring.
//!
//! Like in libpq, `prefer` and `require` encrypt without verifying the certificate; only `verify-full` proves
//! the server's identity.
use super::{Error, target::TlsMode};
use crate::files;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use std::{io, path::Path, sync::Arc};

/// Most bytes of a file of certificates; the certificates of a whole system have 250 KB.
const CERTIFICATES_BYTES_MAX: u64 = 4 << 20;

/// Returns the configuration for `mode`. `root` is a PEM file of certificates to trust instead of the
/// system's.
pub(super) fn client_config(mode: TlsMode, root: Option<&Path>) -> Result<Arc<ClientConfig>, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Unfit(format!("TLS cannot be set up: {e}")))?;
    let config = if mode == TlsMode::VerifyFull {
        builder.with_root_certificates(roots(root)?).with_no_client_auth()
    } else {
        let verifier = Arc::new(AnyCertificate(provider));
        builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
    };
    Ok(Arc::new(config))
}

fn roots(file: Option<&Path>) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    let Some(path) = file else {
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(store);
    };
    let unreadable =
        |source: io::Error| Error::File { doing: "read the certificates of", path: path.to_owned(), source };
    let invalid = |e: &dyn std::error::Error| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
    let pem = files::read_named(path, CERTIFICATES_BYTES_MAX).map_err(unreadable)?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|e| unreadable(invalid(&e)))?;
        store.add(certificate).map_err(|e| unreadable(invalid(&e)))?;
    }
    if store.is_empty() {
        return Err(unreadable(io::Error::new(io::ErrorKind::InvalidData, "no certificate in it")));
    }
    Ok(store)
}

/// Accepts any certificate, but still verifies that the server has its private key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
