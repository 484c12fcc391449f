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

/// Bytes at the end of a control page into which a child writes its last words.
pub const LAST_WORDS_BYTES: usize = 8192;

/// A page that a child reads while it is too busy to read messages, and behind it the room for
/// what it may be too dead to send (see `prefork/last_words`).
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
        // Memory is only taken where something is written.
        file.set_len((rustix::param::page_size() + LAST_WORDS_BYTES) as u64)?;
        Ok(Self { file })
    }

    /// The page's file, for the child to map.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Names the job that the next soft-limit signal is meant for, and the limit: 0 for that of
    /// time, 1 for that of memory, 2 for that of a shutdown.
    ///
    /// # Errors
    /// When memory runs out.
    pub fn set_soft_limit_target(&self, job: u64, limit: u8) -> io::Result<()> {
        let mut target = [0; 9];
        target[..8].copy_from_slice(&job.to_le_bytes());
        target[8] = limit;
        self.file.write_all_at(&target, 0)
    }

    /// What the child wrote behind the page.
    ///
    /// # Errors
    /// When the child has cut the file.
    pub fn last_words(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; LAST_WORDS_BYTES];
        let start = rustix::param::page_size() as u64;
        self.file.read_exact_at(&mut bytes, start)?;
        Ok(bytes)
    }
}
