//! S3 and what speaks its protocol: an object for each document.
//!
//! Unlike Celery, which looks and then writes, a document is written on the condition that what was
//! looked at is still there, so that the first success stays.
//!
//! Celery's counterpart: `celery.backends.s3`.

use std::fmt;

use async_trait::async_trait;
use celeriac_core::backend::{Backend, Chords, Error, ErrorKind, Meta, Settings, Stored};
use futures_util::FutureExt as _;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{ObjectStore as _, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion};
use serde_json::Value;

use crate::document;
use crate::keys::Keys;
use crate::options::{self, invalid};
use crate::polling::Polling;
use crate::retry::Retry;

/// How many requests are under way at once.
const AT_ONCE: usize = 32;
/// How often an object may change before it is replaced.
const ATTEMPTS: usize = 10;
const REGION: &str = "us-east-1";

/// A bucket that keeps results.
pub struct S3Backend {
    store: AmazonS3,
    bucket: String,
    /// What stands before each key (`s3_base_path`).
    base: String,
    keys: Keys,
    retry: Retry,
    polling: Polling,
}

/// What is stored under a key, and which version of it.
type Found = Option<(Vec<u8>, UpdateVersion)>;

impl S3Backend {
    /// The bucket of the settings `s3_bucket`, `s3_base_path`, `s3_endpoint_url`, `s3_region`,
    /// `s3_access_key_id` and `s3_secret_access_key`. Without keys, those of the environment
    /// (`AWS_ACCESS_KEY_ID`, …) or of the machine.
    ///
    /// # Errors
    /// When a setting is missing or makes no sense.
    pub fn new(settings: &Settings) -> Result<Self, Error> {
        let text = |name: &str| options::text(settings, name);
        let bucket = text("s3_bucket").ok_or_else(|| {
            invalid(&"s3_bucket is missing").with_hint("name the bucket that keeps results")
        })?;
        let mut builder = AmazonS3Builder::from_env()
            .with_bucket_name(bucket)
            // Trying again is decided below.
            .with_retry(object_store::RetryConfig {
                max_retries: 0,
                ..object_store::RetryConfig::default()
            });
        if let Some(region) = text("s3_region") {
            builder = builder.with_region(region);
        } else if std::env::var_os("AWS_REGION").is_none()
            && std::env::var_os("AWS_DEFAULT_REGION").is_none()
        {
            builder = builder.with_region(REGION);
        }
        if let Some(endpoint) = text("s3_endpoint_url") {
            builder = builder
                .with_endpoint(endpoint.trim_end_matches('/'))
                .with_allow_http(endpoint.starts_with("http://"));
        }
        if let Some(id) = text("s3_access_key_id") {
            builder = builder.with_access_key_id(id);
        }
        if let Some(secret) = text("s3_secret_access_key") {
            builder = builder.with_secret_access_key(secret);
        }
        #[cfg(feature = "tls")]
        celeriac_net::install_tls_provider();
        Ok(Self {
            store: builder.build().map_err(|error| invalid(&error))?,
            bucket: bucket.to_owned(),
            base: text("s3_base_path").unwrap_or_default().to_owned(),
            keys: Keys::new(settings),
            retry: Retry::new(settings),
            polling: Polling::default(),
        })
    }

    fn path(&self, key: &str) -> Result<Path, Error> {
        Path::parse(format!("{}{key}", self.base)).map_err(|error| {
            Error::new(
                ErrorKind::Refused,
                format!("the id or s3_base_path can't name an object: {error}"),
            )
        })
    }

    async fn read(&self, path: &Path) -> Result<Found, Error> {
        let found = match self.store.get(path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(backend_error(&error)),
        };
        let version = UpdateVersion {
            e_tag: found.meta.e_tag.clone(),
            version: found.meta.version.clone(),
        };
        let document = found.bytes().await.map_err(|error| backend_error(&error))?;
        Ok(Some((document.to_vec(), version)))
    }

    /// Writes a document unless a success is there.
    async fn write(&self, meta: &Meta) -> Result<(), Error> {
        let path = self.path(&self.keys.task(&meta.task_id)?)?;
        let document = document::encode(meta)?;
        for _ in 0..ATTEMPTS {
            let mode = match self.read(&path).await? {
                Some((before, _)) if document::decode(&before)?.status == "SUCCESS" => {
                    return Ok(());
                }
                Some((_, version)) => PutMode::Update(version),
                None => PutMode::Create,
            };
            let options = PutOptions::from(mode);
            let put = self.store.put_opts(&path, document.clone().into(), options);
            match put.await {
                Ok(_) => return Ok(()),
                // Somebody else was faster.
                Err(
                    object_store::Error::Precondition { .. }
                    | object_store::Error::AlreadyExists { .. },
                ) => {}
                // A server that knows no conditions: as Celery does it.
                Err(object_store::Error::NotImplemented { .. }) => {
                    let put = self.store.put(&path, document.into()).await;
                    return put.map(drop).map_err(|error| backend_error(&error));
                }
                Err(error) => return Err(backend_error(&error)),
            }
        }
        Err(Error::new(
            ErrorKind::Connection,
            format!("the result {path} is stored over by others all the time"),
        ))
    }

    /// Writes the states of one task, one after the other.
    async fn write_all(&self, states: Vec<&Meta>) -> Result<(), Error> {
        for meta in states {
            self.retry
                .run(&self.display_url(), || self.write(meta))
                .await?;
        }
        Ok(())
    }

    async fn find(&self, id: &str) -> Result<Option<Meta>, Error> {
        let path = self.path(&self.keys.task(id)?)?;
        let found = self
            .retry
            .run(&self.display_url(), || self.read(&path))
            .await?;
        found
            .map(|(stored, _)| document::decode(&stored))
            .transpose()
    }

    async fn forget_one(&self, id: &str) -> Result<(), Error> {
        self.delete(&self.keys.task(id)?).await
    }

    async fn delete(&self, key: &str) -> Result<(), Error> {
        let path = self.path(key)?;
        self.retry
            .run(&self.display_url(), || async {
                match self.store.delete(&path).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                    Err(error) => Err(backend_error(&error)),
                }
            })
            .await
    }
}

fn backend_error(error: &object_store::Error) -> Error {
    // The library's own words, and the causes below them.
    let mut message = format!("S3: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(below) = cause {
        let text = below.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = below.source();
    }
    match error {
        object_store::Error::PermissionDenied { .. }
        | object_store::Error::Unauthenticated { .. } => {
            Error::new(ErrorKind::Configuration, message).with_hint(
                "check s3_access_key_id and s3_secret_access_key, and what they are allowed to do",
            )
        }
        _ if message.contains("NoSuchBucket") => Error::new(ErrorKind::Configuration, message)
            .with_hint("s3_bucket names a bucket that does not exist"),
        object_store::Error::Generic { .. } => Error::new(ErrorKind::Connection, message),
        _ => Error::new(ErrorKind::Refused, message),
    }
}

impl fmt::Debug for S3Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3Backend({})", self.bucket)
    }
}

#[async_trait]
impl Backend for S3Backend {
    fn display_url(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.base)
    }

    fn chords(&self) -> Chords {
        Chords::Unlocked
    }

    async fn expect(&self, _id: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn store(&self, results: &[Stored]) -> Result<(), Error> {
        // States of one task in their order, tasks beside each other.
        let mut tasks: Vec<Vec<&Meta>> = Vec::new();
        let mut places = std::collections::HashMap::new();
        for Stored { meta, .. } in results {
            let place = *places.entry(&meta.task_id).or_insert(tasks.len());
            match tasks.get_mut(place) {
                Some(states) => states.push(meta),
                None => tasks.push(vec![meta]),
            }
        }
        let requests: Vec<_> = tasks
            .into_iter()
            .map(|states| self.write_all(states).boxed())
            .collect();
        stream::iter(requests)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error> {
        let requests: Vec<_> = ids.iter().map(|id| self.find(id).boxed()).collect();
        stream::iter(requests).buffered(AT_ONCE).try_collect().await
    }

    async fn changed(&self, id: &str, known: Option<&Meta>) -> Result<Meta, Error> {
        self.polling.changed(self, id, known).await
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        let requests: Vec<_> = ids.iter().map(|id| self.forget_one(id).boxed()).collect();
        stream::iter(requests)
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn save_group(&self, group_id: &str, members: &Value) -> Result<(), Error> {
        let path = self.path(&self.keys.group(group_id)?)?;
        let document = document::encode_group(members)?;
        self.retry
            .run(&self.display_url(), || async {
                let put = self.store.put(&path, document.clone().into()).await;
                put.map(drop).map_err(|error| backend_error(&error))
            })
            .await
    }

    async fn group(&self, group_id: &str) -> Result<Option<Value>, Error> {
        let path = self.path(&self.keys.group(group_id)?)?;
        let found = self
            .retry
            .run(&self.display_url(), || self.read(&path))
            .await?;
        found
            .map(|(stored, _)| document::decode_group(&stored))
            .transpose()
    }

    async fn forget_group(&self, group_id: &str) -> Result<(), Error> {
        self.delete(&self.keys.group(group_id)?).await
    }
}
