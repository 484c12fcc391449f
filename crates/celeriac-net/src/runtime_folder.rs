//! Where the sockets of a user's own processes are.

use std::fs::DirBuilder;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Why a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It can't be made or looked at.
    #[error("{}: {error}", path.display())]
    Unusable {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others can enter or change it. Removing it helps, or another `XDG_RUNTIME_DIR`.
    #[error("the folder {} for local sockets is not this user's alone", .0.display())]
    Shared(PathBuf),
}

/// The effective user of this process.
pub fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The folders for a user's sockets, the preferred one first. They need not exist.
pub fn of(user: u32) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let usual = PathBuf::from(format!("/run/user/{user}"));
    for parent in runtime.into_iter().chain([usual]) {
        let is_own = std::fs::symlink_metadata(&parent)
            .is_ok_and(|found| found.is_dir() && found.uid() == user);
        if is_own && parent.is_absolute() {
            folders.push(parent.join("celeriac"));
        }
    }
    folders.push(PathBuf::from(format!("/tmp/celeriac-{user}")));
    folders
}

/// Makes a folder that nobody else can enter, or proves that it is one.
///
/// # Errors
/// When it is neither.
pub fn own(path: &Path) -> Result<(), Refused> {
    let unusable = |error| Refused::Unusable {
        path: path.to_owned(),
        error,
    };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(unusable(error)),
    }
    if is_alone(path, user()).map_err(unusable)? {
        return Ok(());
    }
    Err(Refused::Shared(path.to_owned()))
}

/// Whether a folder belongs to a user whom nobody else can follow into it.
///
/// # Errors
/// When it can't be looked at.
pub fn is_alone(path: &Path, user: u32) -> io::Result<bool> {
    let found = std::fs::symlink_metadata(path)?;
    Ok(found.is_dir() && found.uid() == user && found.mode() & 0o777 == 0o700)
}
