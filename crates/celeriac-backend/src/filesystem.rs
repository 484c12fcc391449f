//! Files: one for each document, in one folder that workers and clients share.
//!
//! Unlike Celery, which writes into a file that others may read at that moment, a document is written
//! beside it and takes its place.
//!
//! Celery's counterpart: `celery.backends.filesystem`.

use std::fmt;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use celeriac_core::backend::{Backend, Chords, Error, ErrorKind, Meta, Settings, Stored};
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::document;
use crate::keys::Keys;
use crate::options::invalid;
use crate::polling::Polling;
use crate::retry::Retry;

/// A folder that keeps results.
pub struct FilesystemBackend {
    folder: Arc<Folder>,
    settings: Settings,
    retry: Retry,
    polling: Polling,
}

struct Folder {
    path: PathBuf,
    keys: Keys,
}

impl FilesystemBackend {
    /// The folder that `url` names: `file:///var/celery/results`.
    ///
    /// # Errors
    /// When the URL names no folder.
    pub fn new(url: &str, settings: Settings) -> Result<Self, Error> {
        let path = url
            .strip_prefix("file://localhost/")
            .map(|rest| format!("/{rest}"))
            .or_else(|| url.strip_prefix("file://").map(str::to_owned))
            .filter(|path| !path.is_empty())
            .ok_or_else(|| {
                invalid(&"a folder is missing").with_hint("file:///path/of/the/folder")
            })?;
        Ok(Self {
            folder: Arc::new(Folder {
                path: PathBuf::from(path),
                keys: Keys::new(&settings),
            }),
            retry: Retry::new(&settings),
            settings,
            polling: Polling::default(),
        })
    }

    /// Does something with the folder where it may block.
    async fn run<T: Send + 'static>(
        &self,
        work: impl Fn(&Folder) -> Result<T, Error> + Send + Sync + Clone + 'static,
    ) -> Result<T, Error> {
        self.retry
            .run(&self.display_url(), || {
                let (folder, work) = (Arc::clone(&self.folder), work.clone());
                async move {
                    let done = tokio::task::spawn_blocking(move || work(&folder)).await;
                    done.unwrap_or_else(|error| {
                        Err(Error::new(ErrorKind::Refused, error.to_string()))
                    })
                }
            })
            .await
    }
}

impl fmt::Debug for FilesystemBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilesystemBackend({})", self.folder.path.display())
    }
}

#[async_trait]
impl Backend for FilesystemBackend {
    fn display_url(&self) -> String {
        format!("file://{}", self.folder.path.display())
    }

    fn chords(&self) -> Chords {
        Chords::Unlocked
    }

    async fn expect(&self, _id: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn store(&self, results: &[Stored]) -> Result<(), Error> {
        let results: Arc<[Stored]> = results.into();
        self.run(move |folder| {
            // celeriac's workers wait for each other; Celery's look and then write.
            let _lock = folder.lock()?;
            for Stored { meta, .. } in &*results {
                let key = folder.keys.task(&meta.task_id)?;
                let before = folder.read(&key)?;
                let before = before.as_deref().map(document::decode).transpose()?;
                if before.is_none_or(|before| before.status != "SUCCESS") {
                    folder.write(&key, &document::encode(meta)?)?;
                }
            }
            Ok(())
        })
        .await
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error> {
        let ids: Arc<[String]> = ids.into();
        self.run(move |folder| {
            let found = ids.iter().map(|id| {
                let stored = folder.read(&folder.keys.task(id)?)?;
                stored.as_deref().map(document::decode).transpose()
            });
            found.collect()
        })
        .await
    }

    async fn changed(&self, id: &str, known: Option<&Meta>) -> Result<Meta, Error> {
        self.polling.changed(self, id, known).await
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        let ids: Arc<[String]> = ids.into();
        self.run(move |folder| {
            ids.iter()
                .try_for_each(|id| folder.delete(&folder.keys.task(id)?))
        })
        .await
    }

    async fn save_group(&self, group_id: &str, members: &Value) -> Result<(), Error> {
        let key = self.folder.keys.group(group_id)?;
        let document = document::encode_group(members)?;
        self.run(move |folder| folder.write(&key, &document)).await
    }

    async fn group(&self, group_id: &str) -> Result<Option<Value>, Error> {
        let key = self.folder.keys.group(group_id)?;
        let stored = self.run(move |folder| folder.read(&key)).await?;
        stored.as_deref().map(document::decode_group).transpose()
    }

    async fn forget_group(&self, group_id: &str) -> Result<(), Error> {
        let key = self.folder.keys.group(group_id)?;
        self.run(move |folder| folder.delete(&key)).await
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let Some(expires) = self.settings.expires.filter(|expires| !expires.is_zero()) else {
            return Ok(());
        };
        self.run(move |folder| {
            let now = SystemTime::from(jiff::Timestamp::now());
            let Some(before) = now.checked_sub(expires) else {
                return Ok(());
            };
            folder.cleanup(before)
        })
        .await
    }
}

impl Folder {
    /// The file of a key. An id that names another folder is none.
    fn file(&self, key: &str) -> Result<PathBuf, Error> {
        if key.contains(['/', '\0']) {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("an id with a slash can't name a file: {key:?}"),
            ));
        }
        Ok(self.path.join(key))
    }

    fn lock(&self) -> Result<std::fs::File, Error> {
        let folder = std::fs::File::open(&self.path).map_err(|error| self.trouble(&error))?;
        flock(&folder, FlockOperation::LockExclusive)
            .map_err(|error| self.trouble(&error.into()))?;
        Ok(folder)
    }

    fn read(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
        match std::fs::read(self.file(key)?) {
            Ok(document) => Ok(Some(document)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.trouble(&error)),
        }
    }

    fn write(&self, key: &str, document: &[u8]) -> Result<(), Error> {
        let file = self.file(key)?;
        let beside = self
            .path
            .join(format!(".celeriac-{}", uuid::Uuid::new_v4().simple()));
        let written = write_beside(&beside, document)
            .and_then(|()| std::fs::rename(&beside, &file))
            .map_err(|error| self.trouble(&error));
        if written.is_err() {
            drop(std::fs::remove_file(&beside));
        }
        written
    }

    fn delete(&self, key: &str) -> Result<(), Error> {
        match std::fs::remove_file(self.file(key)?) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.trouble(&error)),
            _ => Ok(()),
        }
    }

    /// Deletes what was written before a moment.
    fn cleanup(&self, before: SystemTime) -> Result<(), Error> {
        let files = std::fs::read_dir(&self.path).map_err(|error| self.trouble(&error))?;
        for file in files.filter_map(Result::ok) {
            let name = file.file_name();
            let name = name.to_string_lossy();
            let is_ours = name.starts_with(".celeriac-")
                || self
                    .keys
                    .prefixes()
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
            let written = file.metadata().and_then(|data| data.modified());
            // Whoever else cleans up may be faster.
            if is_ours && written.is_ok_and(|at| at < before) {
                drop(std::fs::remove_file(file.path()));
            }
        }
        Ok(())
    }

    fn trouble(&self, error: &io::Error) -> Error {
        let kind = match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Configuration,
            _ => ErrorKind::Connection,
        };
        Error::new(kind, format!("results in {}: {error}", self.path.display())).with_hint(
            "the folder of result_backend must exist and be writable, with room on its disk",
        )
    }
}

/// Writes a file that a power cut after it was renamed does not empty.
fn write_beside(path: &Path, document: &[u8]) -> io::Result<()> {
    let mut file = std::fs::File::create(path)?;
    file.write_all(document)?;
    file.sync_data()
}
