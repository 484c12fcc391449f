//! Where the sockets are.

use std::fs::File;
use std::io::{self, ErrorKind as Io};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use celeriac_core::broker::{Error, ErrorKind};
use celeriac_net::runtime_folder::{self, Refused};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

/// Who holds the lock does nothing that takes long.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_POLL: Duration = Duration::from_millis(5);

/// One broker's sockets, as the nodes of this user have made them.
#[derive(Debug, Clone)]
pub struct Place {
    bases: Vec<PathBuf>,
    name: String,
}

impl Place {
    /// The place for a broker, by the identity that the module describes.
    pub fn of(identity: &str) -> Self {
        let bases = runtime_folder::of(runtime_folder::user());
        Self {
            bases,
            name: identity.to_owned(),
        }
    }

    /// A place under a folder of one's own, for tests.
    pub fn under(base: impl Into<PathBuf>, identity: &str) -> Self {
        Self {
            bases: vec![base.into()],
            name: identity.to_owned(),
        }
    }

    /// The folders to look for nodes in, the one to listen in first.
    pub(super) fn folders(&self, control_exchange: &str) -> Vec<Folder> {
        let name = short_hash(&format!("{}#{control_exchange}", self.name));
        let mut folders: Vec<Folder> = Vec::new();
        for base in &self.bases {
            // Nodes know one another by the paths of their sockets: there is one way to write them.
            let base = match (base.parent().map(Path::canonicalize), base.file_name()) {
                (Some(Ok(parent)), Some(name)) => parent.join(name),
                _ => base.clone(),
            };
            if folders.iter().all(|folder| folder.base != base) {
                let path = base.join(&name);
                folders.push(Folder { base, path });
            }
        }
        folders
    }
}

/// Sixteen hex digits for a text: a path of a socket has little room.
fn short_hash(text: &str) -> String {
    let mut hash = Uuid::new_v5(&Uuid::NAMESPACE_URL, text.as_bytes())
        .simple()
        .to_string();
    hash.truncate(16);
    hash
}

/// A folder of sockets.
#[derive(Debug, Clone)]
pub(super) struct Folder {
    base: PathBuf,
    path: PathBuf,
}

/// A listening socket and its file.
pub(super) struct Listening {
    pub(super) listener: UnixListener,
    pub(super) path: PathBuf,
    /// Whether a node of the same name listens already.
    pub(super) is_namesake: bool,
}

/// What a socket's file leads to.
pub(super) enum Reached {
    /// Its node.
    Node(UnixStream),
    /// A node with no time for more connections.
    Busy,
    /// Nobody.
    Nobody,
}

impl Folder {
    /// The sockets, in order.
    pub(super) fn sockets(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(&self.path) else {
            return Vec::new();
        };
        let mut sockets: Vec<PathBuf> = entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "sock")
            })
            .collect();
        sockets.sort();
        sockets
    }

    /// Listens for a node, and removes what dead nodes have left.
    pub(super) async fn listen(&self, node: &str) -> Result<Listening, Error> {
        let lock = self.lock().await?;
        self.remove_dead(&lock).await;
        let name = short_hash(node);
        let mut path = self.path.join(format!("{name}.sock"));
        let mut count = 1;
        let taken = self.sockets();
        while taken.contains(&path) {
            count += 1;
            path = self.path.join(format!("{name}.{count}.sock"));
        }
        let listener = UnixListener::bind(&path).map_err(|error| {
            let error = refused(&path, &error);
            if path.as_os_str().len() > 107 {
                return error.with_hint("set XDG_RUNTIME_DIR to a folder with a shorter path");
            }
            error
        })?;
        Ok(Listening {
            listener,
            path,
            is_namesake: count > 1,
        })
    }

    /// Removes the sockets of nodes that are gone.
    pub(super) async fn clean(&self) {
        if let Ok(lock) = self.lock().await {
            self.remove_dead(&lock).await;
        }
    }

    /// Removes a node's own socket, and the folder with the last one.
    pub(super) async fn leave(&self, own: &Path) -> Result<(), Error> {
        let lock = self.lock().await?;
        std::fs::remove_file(own).map_err(|error| refused(own, &error))?;
        self.remove_dead(&lock).await;
        if self.sockets().is_empty() {
            // Whoever waits for the lock finds that it is another's, and begins anew.
            drop(std::fs::remove_file(self.path.join("lock")));
            drop(std::fs::remove_dir(&self.path));
        }
        Ok(())
    }

    async fn remove_dead(&self, _lock: &File) {
        for socket in self.sockets() {
            if matches!(reach(&socket).await, Reached::Nobody) {
                drop(std::fs::remove_file(socket));
            }
        }
    }

    /// Makes the folder where it is missing, and keeps others from changing it.
    async fn lock(&self) -> Result<File, Error> {
        let path = self.path.join("lock");
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            own(&self.base)?;
            own(&self.path)?;
            let failed = |error: &io::Error| refused(&path, error);
            match File::create(&path) {
                // It was removed at this moment.
                Err(error) if error.kind() == Io::NotFound => {}
                Err(error) => return Err(failed(&error)),
                Ok(file) => match file.try_lock() {
                    Ok(()) if is_at(&file, &path) => return Ok(file),
                    Ok(()) | Err(std::fs::TryLockError::WouldBlock) => {}
                    Err(std::fs::TryLockError::Error(error)) => return Err(failed(&error)),
                },
            }
            if Instant::now() >= deadline {
                return Err(failed(&Io::TimedOut.into()));
            }
            sleep(LOCK_POLL).await;
        }
    }
}

/// Connects to a socket.
pub(super) async fn reach(socket: &Path) -> Reached {
    match UnixStream::connect(socket).await {
        Ok(stream) => Reached::Node(stream),
        Err(error) if matches!(error.kind(), Io::ConnectionRefused | Io::NotFound) => {
            Reached::Nobody
        }
        Err(_) => Reached::Busy,
    }
}

/// Whether the open file is the one at `path` still.
fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Makes a folder that nobody else can enter, or proves that it is one.
fn own(path: &Path) -> Result<(), Error> {
    runtime_folder::own(path).map_err(|error| match error {
        Refused::Unusable { path, error } => refused(&path, &error),
        Refused::Shared(_) => Error::new(ErrorKind::Configuration, error.to_string())
            .with_hint("remove it, or set XDG_RUNTIME_DIR to a folder of this user"),
    })
}

fn refused(path: &Path, error: &io::Error) -> Error {
    Error::new(
        ErrorKind::Configuration,
        format!("remote control: {}: {error}", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What Python's `uuid.uuid5(uuid.NAMESPACE_URL, text).hex[:16]` answers.
    #[test]
    fn names_are_pythons() {
        let broker = short_hash("sqlite:///var/lib/q.db#celery");
        assert_eq!(broker, "ef06e161c4e45c91");
        assert_eq!(short_hash("w1@hôst"), "e2bdac2a6a7d5746");
    }

    #[test]
    fn a_folder_that_others_can_enter_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("celeriac");
        own(&base).unwrap();
        own(&base).unwrap();
        assert_eq!(base.metadata().unwrap().mode() & 0o777, 0o700);
        std::fs::set_permissions(&base, PermissionsExt::from_mode(0o755)).unwrap();
        let error = own(&base).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Configuration, "{error}");

        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        own(&link).unwrap_err();
    }

    #[tokio::test]
    async fn a_dead_nodes_socket_is_taken_over_and_a_live_ones_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::under(folder.path().join("c"), "x");
        let folder = place.folders("celery").remove(0);
        let first = folder.listen("n").await.unwrap();
        let second = folder.listen("n").await.unwrap();
        assert_eq!((first.is_namesake, second.is_namesake), (false, true));
        assert_eq!(folder.sockets().len(), 2);
        drop(first.listener);
        let third = folder.listen("n").await.unwrap();
        assert_eq!((third.path, third.is_namesake), (first.path, false));
        drop(third.listener);
        folder.leave(&second.path).await.unwrap();
        assert!(!folder.path.exists(), "the last one removes the folder");
    }
}
