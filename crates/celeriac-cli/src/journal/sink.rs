//! Where log lines go: standard error or a file.
//!
//! A line is written at once where that does not block. Where it would (a terminal that was
//! stopped, a full pipe), it waits in a bounded backlog that a thread writes: whoever reads slowly
//! holds up nobody's tasks. Celery's counterpart: `logging.handlers.WatchedFileHandler`.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Lines that wait at most. Beyond, they are counted and left out.
const BACKLOG: usize = 10_000;
/// A pipe that is ready takes at least so many bytes (`PIPE_BUF`).
const WRITTEN_AT_ONCE: usize = 4096;

/// A place for lines.
pub(super) struct Sink {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    output: Output,
    backlog: VecDeque<String>,
    left_out: u64,
    has_thread: bool,
    /// The thread has taken lines and is writing them.
    is_writing: bool,
}

enum Output {
    StandardError,
    File {
        path: PathBuf,
        file: File,
        identity: (u64, u64),
    },
}

impl Output {
    fn open(path: &Path) -> io::Result<Self> {
        // Appending keeps what others write, and goes on at the beginning of a file that was
        // copied and truncated.
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o666)
            .open(path)?;
        let data = file.metadata()?;
        Ok(Self::File {
            path: path.to_owned(),
            identity: (data.dev(), data.ino()),
            file,
        })
    }

    /// Opens the file anew when it was moved away.
    fn follow(&mut self) {
        if let Self::File { path, identity, .. } = self {
            let is_same =
                std::fs::metadata(&*path).is_ok_and(|data| (data.dev(), data.ino()) == *identity);
            if !is_same && let Ok(opened) = Self::open(&path.clone()) {
                *self = opened;
            }
        }
    }

    fn is_ready(&self) -> bool {
        match self {
            Self::File { .. } => true,
            Self::StandardError => {
                let stderr = io::stderr();
                let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
            }
        }
    }

    fn write(&mut self, text: &str) {
        // There is no better place to complain about a log that can't be written.
        drop(match self {
            Self::StandardError => io::stderr().write_all(text.as_bytes()),
            Self::File { file, .. } => file.write_all(text.as_bytes()),
        });
    }
}

impl Sink {
    /// Opens a file, or standard error where none is named.
    ///
    /// # Errors
    /// What the system says about the file.
    pub(super) fn open(file: Option<&str>) -> io::Result<Self> {
        let output = match file {
            Some(path) => Output::open(Path::new(path))?,
            None => Output::StandardError,
        };
        let state = State {
            output,
            backlog: VecDeque::new(),
            left_out: 0,
            has_thread: false,
            is_writing: false,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
        })
    }

    /// Writes a line, now or as soon as it can be.
    pub(super) fn write(&self, line: String) {
        let mut state = self.shared.state();
        let is_free = state.backlog.is_empty() && !state.is_writing;
        if is_free && line.len() <= WRITTEN_AT_ONCE && state.output.is_ready() {
            state.output.follow();
            state.output.write(&line);
            return;
        }
        if state.backlog.len() >= BACKLOG {
            state.left_out += 1;
            return;
        }
        state.backlog.push_back(line);
        if !std::mem::replace(&mut state.has_thread, true) {
            let shared = Arc::clone(&self.shared);
            let thread = std::thread::Builder::new().name("journal".to_owned());
            drop(thread.spawn(move || shared.write_backlog()));
        }
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what waits, for ever.
    fn write_backlog(&self) {
        loop {
            let mut state = self.state();
            state.is_writing = false;
            self.changed.notify_all();
            while state.backlog.is_empty() {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            let mut text: String = state.backlog.drain(..).collect();
            let left_out = std::mem::take(&mut state.left_out);
            if left_out > 0 {
                // Writing to a `String` can't fail.
                let _ = writeln!(text, "... {left_out} log lines were left out");
            }
            state.is_writing = true;
            match &mut state.output {
                // It may block, which must hold up nobody else.
                Output::StandardError => {
                    drop(state);
                    Output::StandardError.write(&text);
                }
                file @ Output::File { .. } => {
                    file.follow();
                    file.write(&text);
                }
            }
        }
    }

    /// Waits a moment for what is left to be written.
    fn flush(&self) {
        let state = self.state();
        let has_work = |state: &mut State| !state.backlog.is_empty() || state.is_writing;
        drop(
            self.changed
                .wait_timeout_while(state, std::time::Duration::from_secs(1), has_work),
        );
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.shared.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_appended_to_and_followed_when_it_is_rotated() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("w.log"), folder.path().join("w.log.1"));
        std::fs::write(&path, "before\n").unwrap();
        let sink = Sink::open(path.to_str()).unwrap();
        sink.write("one\n".to_owned());
        // logrotate's copytruncate.
        std::fs::copy(&path, &moved).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        sink.write("two\n".to_owned());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "before\none\n");
        // logrotate's create.
        std::fs::rename(&path, &moved).unwrap();
        sink.write("three\n".to_owned());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "two\n");
    }

    #[test]
    fn long_lines_come_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.log");
        let sink = Sink::open(path.to_str()).unwrap();
        let long = "x".repeat(3 * WRITTEN_AT_ONCE);
        for number in 0..20 {
            sink.write(format!("{number}\n"));
            sink.write(format!("{long}\n"));
        }
        drop(sink);
        let written = std::fs::read_to_string(&path).unwrap();
        let numbers: Vec<&str> = written
            .lines()
            .filter(|line| !line.starts_with('x'))
            .collect();
        let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        assert_eq!(numbers, expected);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error() {
        assert!(Sink::open(Some("/no/such/folder/w.log")).is_err());
    }
}
