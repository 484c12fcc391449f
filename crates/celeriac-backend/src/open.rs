//! From a URL to a result backend.

use std::sync::Arc;

use celeriac_core::Broker;
use celeriac_core::backend::{Backend, Error, ErrorKind, Settings};

use crate::options::invalid;

/// The result backend that `url` names, where `rpc://` goes over `broker`. Connects to nothing yet.
///
/// # Errors
/// As [`open`], and when no messages can be sent to the broker.
pub fn open_beside(
    url: &str,
    settings: Settings,
    broker: &Arc<dyn Broker>,
) -> Result<Arc<dyn Backend>, Error> {
    if !url.starts_with("rpc:") {
        return open(url, settings);
    }
    #[cfg(feature = "rpc")]
    {
        let publisher = broker.publisher().map_err(|error| invalid(&error))?;
        Ok(Arc::new(crate::rpc::RpcBackend::new(
            Arc::clone(broker),
            publisher,
            &settings,
        )))
    }
    #[cfg(not(feature = "rpc"))]
    {
        let _ = broker;
        Err(invalid(&"this build of celeriac has no rpc://"))
    }
}

/// The result backend that `url` names (the setting `result_backend`). Connects to nothing yet.
///
/// # Errors
/// When the backend is unknown or not part of this build, or the URL or an option makes no sense.
pub fn open(url: &str, settings: Settings) -> Result<Arc<dyn Backend>, Error> {
    let scheme = url.split(':').next().unwrap_or_default();
    match scheme {
        "memory" => Ok(crate::memory::MemoryBackend::open(url, settings)),
        #[cfg(feature = "redis")]
        "redis" | "rediss" | "redis+socket" | "socket" | "sentinel" => {
            Ok(Arc::new(crate::redis::RedisBackend::new(url, &settings)?))
        }
        #[cfg(any(feature = "mysql", feature = "postgres", feature = "sqlite"))]
        _ if scheme == "db" || scheme.starts_with("db+") => {
            Ok(Arc::new(crate::sql::SqlBackend::new(url, settings)?))
        }
        #[cfg(feature = "filesystem")]
        "file" => Ok(Arc::new(crate::filesystem::FilesystemBackend::new(
            url, settings,
        )?)),
        #[cfg(feature = "mongodb")]
        "mongodb" | "mongodb+srv" => {
            Ok(Arc::new(crate::mongodb::MongoBackend::new(url, settings)?))
        }
        #[cfg(feature = "s3")]
        "s3" => Ok(Arc::new(crate::s3::S3Backend::new(&settings)?)),
        "rpc" => Err(invalid(&"rpc:// needs a broker")),
        _ => Err(Error::new(
            ErrorKind::Configuration,
            format!("result_backend: {scheme:?} is not available"),
        )
        .with_hint(format!(
            "this build of celeriac knows {}",
            AVAILABLE.join(", ")
        ))),
    }
}

/// The backends of this build, as an error names them.
const AVAILABLE: &[&str] = &[
    #[cfg(feature = "redis")]
    "redis://, rediss://, redis+socket://, sentinel://",
    #[cfg(feature = "sqlite")]
    "db+sqlite://",
    #[cfg(feature = "postgres")]
    "db+postgresql://",
    #[cfg(feature = "mysql")]
    "db+mysql://, db+mariadb://",
    #[cfg(feature = "filesystem")]
    "file://",
    #[cfg(feature = "mongodb")]
    "mongodb://, mongodb+srv://",
    #[cfg(feature = "s3")]
    "s3://",
    #[cfg(feature = "rpc")]
    "rpc://",
    "memory://",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_backend_is_refused_without_its_password() {
        let error = open("nosuch://user:secret@host/", Settings::default()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Configuration);
        assert!(error.message.contains("nosuch"), "{error}");
        assert!(!format!("{error:?}").contains("secret"));
    }
}
