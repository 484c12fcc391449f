//! What TLS needs: whom to trust, and who one is.
//!
//! Python's counterpart: `ssl.SSLContext`.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use serde_json::Value;

/// What of the TLS options makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum InvalidTls {
    /// A file can't be read.
    #[error("{option} = {path:?} can't be read: {error}")]
    File {
        /// The option that names the file.
        option: &'static str,
        /// The file.
        path: String,
        /// What is wrong with it.
        error: String,
    },
    /// A key is given without its certificate.
    #[error("certfile and keyfile belong together: certfile is missing")]
    HalfCertificate,
    /// The parts do not fit together.
    #[error("{0}")]
    Refused(#[from] Error),
}

/// The options of a dictionary like `broker_use_ssl`, as py-amqp names them: `ca_certs`, `certfile`,
/// `keyfile` and `cert_reqs`. Without `ca_certs` the system's authorities are trusted.
///
/// # Errors
/// When a file can't be read or does not hold what it should.
pub fn client_config(options: Option<&Value>) -> Result<ClientConfig, InvalidTls> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?;
    let builder = if verifies(options) {
        builder.with_root_certificates(trusted(text(options, "ca_certs"))?)
    } else {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    };
    match (text(options, "certfile"), text(options, "keyfile")) {
        (None, None) => Ok(builder.with_no_client_auth()),
        (Some(certificates), key) => {
            // As in Python, one file may hold both.
            let key = key.unwrap_or(certificates);
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unreadable("keyfile", key, &error))?;
            let certificates = read_certificates("certfile", certificates)?;
            Ok(builder.with_client_auth_cert(certificates, key)?)
        }
        (None, Some(_)) => Err(InvalidTls::HalfCertificate),
    }
}

fn text<'o>(options: Option<&'o Value>, name: &str) -> Option<&'o str> {
    options?.get(name)?.as_str()
}

/// `cert_reqs` in any of its spellings: `CERT_NONE`, `none`, or Python's number 0.
fn verifies(options: Option<&Value>) -> bool {
    let requirement = match options.and_then(|options| options.get("cert_reqs")) {
        Some(Value::String(text)) => text.to_lowercase(),
        Some(other) => other.to_string(),
        None => return true,
    };
    !matches!(requirement.as_str(), "cert_none" | "none" | "0")
}

fn trusted(authorities: Option<&str>) -> Result<RootCertStore, InvalidTls> {
    let mut store = RootCertStore::empty();
    let certificates = match authorities {
        Some(path) => read_certificates("ca_certs", path)?,
        // Some of a system's certificates may be odd; the others are as good.
        None => rustls_native_certs::load_native_certs().certs,
    };
    store.add_parsable_certificates(certificates);
    Ok(store)
}

fn read_certificates(
    option: &'static str,
    path: &str,
) -> Result<Vec<CertificateDer<'static>>, InvalidTls> {
    CertificateDer::pem_file_iter(Path::new(path))
        .and_then(Iterator::collect)
        .map_err(|error| unreadable(option, path, &error))
}

fn unreadable(option: &'static str, path: &str, error: &dyn std::fmt::Display) -> InvalidTls {
    InvalidTls::File {
        option,
        path: path.to_owned(),
        error: error.to_string(),
    }
}

/// Trusts any certificate, as `CERT_NONE` asks for.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_makes_no_sense_is_named() {
        for (options, named) in [
            (json!({"ca_certs": "/nowhere.pem"}), "ca_certs"),
            (
                json!({"cert_reqs": 0, "keyfile": "x"}),
                "certfile and keyfile",
            ),
            (
                json!({"cert_reqs": "CERT_NONE", "keyfile": "/nowhere", "certfile": "/nowhere"}),
                "keyfile",
            ),
        ] {
            let error = client_config(Some(&options)).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
        client_config(Some(&json!({"cert_reqs": 0}))).unwrap();
    }

    #[test]
    fn certificates_are_verified_unless_that_is_off() {
        assert!(verifies(None));
        assert!(verifies(Some(&json!(true))));
        assert!(verifies(Some(&json!({"cert_reqs": 2}))));
        for off in [json!(0), json!("CERT_NONE"), json!("none")] {
            assert!(!verifies(Some(&json!({"cert_reqs": off}))));
        }
    }
}
