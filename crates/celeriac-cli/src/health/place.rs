//! The sockets over which workers tell how they are: one for each, in a folder of their user's.

use std::io;
use std::path::{Path, PathBuf};

use celeriac_net::runtime_folder;

use super::node;

/// The folder for these sockets, below the user's.
const FOLDER: &str = "health";
/// What the kernel takes as a socket's path.
const MAX_PATH: usize = 107;

/// A worker's socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) path: PathBuf,
    /// What the node's name becomes in the file's.
    pub(super) node: String,
    /// The worker's process.
    pub(super) pid: u32,
}

/// Makes the folder for a worker's socket, in the first of the user's folders that can be used, and
/// gives the socket's path.
///
/// # Errors
/// Why none can be used.
pub(super) fn for_worker(node: &str, pid: u32) -> io::Result<PathBuf> {
    let mut refused = String::new();
    for base in runtime_folder::of(runtime_folder::user()) {
        let folder = base.join(FOLDER);
        let path = folder.join(format!("{}.{pid}.sock", node::hash(node)));
        if path.as_os_str().len() > MAX_PATH {
            refused = format!("the path {} is too long for a socket", path.display());
            continue;
        }
        match runtime_folder::own(&base).and_then(|()| runtime_folder::own(&folder)) {
            Ok(()) => return Ok(path),
            Err(error) => refused = error.to_string(),
        }
    }
    Err(io::Error::other(refused))
}

/// The sockets of a user's workers, those that have ended among them.
pub(super) fn sockets(user: u32) -> Vec<Socket> {
    let mut sockets = Vec::new();
    for base in runtime_folder::of(user) {
        // What somebody else has put there says nothing about this user's workers.
        let folder = base.join(FOLDER);
        let is_alone = |path: &Path| runtime_folder::is_alone(path, user).unwrap_or(false);
        if is_alone(&base) && is_alone(&folder) {
            sockets.extend(within(&folder));
        }
    }
    sockets.sort_by_key(|socket| socket.pid);
    sockets.dedup_by(|one, other| one.path == other.path);
    sockets
}

/// The sockets in a folder.
pub(super) fn within(folder: &Path) -> Vec<Socket> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let (node, pid) = name.strip_suffix(".sock")?.split_once('.')?;
            Some(Socket {
                path: entry.path(),
                node: node.to_owned(),
                pid: pid.parse().ok()?,
            })
        })
        .collect()
}
