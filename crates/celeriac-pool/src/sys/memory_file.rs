//! Files that exist in memory alone: bodies too large for a message, and control pages.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{MemfdFlags, memfd_create};

/// A file of the given parts, to be read from its beginning.
///
/// # Errors
/// When memory or descriptors run out.
pub fn with_content(parts: &[&[u8]]) -> io::Result<File> {
    let mut file = File::from(memfd_create("celeriac", MemfdFlags::CLOEXEC)?);
    for part in parts {
        file.write_all(part)?;
    }
    file.rewind()?;
    Ok(file)
}

/// A page that a child reads while it is too busy to read messages.
#[derive(Debug)]
pub struct ControlPage {
    file: File,
}

impl ControlPage {
    /// A page of zeros.
    ///
    /// # Errors
    /// When memory or descriptors run out.
    pub fn new() -> io::Result<Self> {
        let file = File::from(memfd_create("celeriac-control", MemfdFlags::CLOEXEC)?);
        file.set_len(rustix::param::page_size() as u64)?;
        Ok(Self { file })
    }

    /// The page's file, for the child to map.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Names the job that the next soft-limit signal is meant for.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn set_soft_limit_target(&self, job: u64) -> io::Result<()> {
        self.file.write_all_at(&job.to_le_bytes(), 0)
    }
}
