//! How to reach a server: broker URLs as kombu writes them, TLS, connections to Redis, and where
//! local sockets are.
//!
//! Not for: what is said over a connection (`celeriac-broker`), or when to connect again
//! (`celeriac-worker`).

pub mod runtime_folder;
#[cfg(feature = "tls")]
pub mod tls;
pub mod url;

#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "redis")]
pub mod sentinel;

pub use crate::url::ServerUrl;

/// Chooses the cryptography that TLS uses in this process. To be called once, before the first
/// connection.
#[cfg(feature = "tls")]
pub fn install_tls_provider() {
    // An error means that it was installed before, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default());
}
