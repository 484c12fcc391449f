//! Where a container's output goes: log files, the worker's log, and the tail for the result.

use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};

use celeriac_command::capture::Capture;
use celeriac_command::lines::Lines;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncSeekExt, AsyncWriteExt};

use crate::engine::LogOutput;

/// The longest line in the worker's log, in bytes.
const LINE: usize = 4096;

/// A log file.
#[derive(Debug)]
pub struct LogFile {
    path: PathBuf,
    file: File,
    /// Where this container's output begins.
    offset: u64,
    /// How much of it the file has.
    written: u64,
}

impl LogFile {
    /// Opens a file for a container's output, whose folders it makes. The output is to begin where
    /// the file does if this is the task's first attempt, and behind all else otherwise.
    pub async fn begin(path: &Path, anew: bool) -> io::Result<Self> {
        if let Some(folder) = path.parent() {
            tokio::fs::create_dir_all(folder).await?;
        }
        let mut options = OpenOptions::new();
        let file = options.create(true).append(true).open(path).await?;
        let length = file.metadata().await?.len();
        let offset = if anew { 0 } else { length };
        Ok(Self {
            path: path.to_owned(),
            file,
            offset,
            written: 0,
        })
    }

    /// Opens the file of a container that another worker has followed before; what that has written
    /// stays. The container's output begins at `offset`.
    pub async fn resume(path: &Path, offset: u64) -> io::Result<Self> {
        let begun = Self::begin(path, false).await?;
        Ok(Self {
            offset,
            written: begun.offset.saturating_sub(offset),
            ..begun
        })
    }

    /// Takes away all behind where the output begins: the container has written nothing yet.
    async fn cut(&mut self) -> io::Result<()> {
        self.written = 0;
        // Devices and pipes have no length.
        if self.file.metadata().await?.is_file() {
            self.file.set_len(self.offset).await?;
        }
        Ok(())
    }

    /// Where the container's output begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes what comes at `position` of the output; what the file has already is left out.
    async fn write(&mut self, position: u64, bytes: &[u8]) -> io::Result<()> {
        let known = self.written.saturating_sub(position);
        let new = usize::try_from(known).map_or(&[][..], |known| bytes.get(known..).unwrap_or(&[]));
        self.file.write_all(new).await?;
        self.written += new.len() as u64;
        Ok(())
    }

    /// Hands what was written to the kernel.
    async fn flush(&mut self) -> io::Result<()> {
        self.file.flush().await?;
        // Tells of an error of an earlier write, too.
        self.file.seek(SeekFrom::Current(0)).await?;
        Ok(())
    }
}

/// Takes a container's output.
#[derive(Debug)]
pub struct Output {
    out: Option<LogFile>,
    err: Option<LogFile>,
    out_position: u64,
    err_position: u64,
    tail: Capture,
    lines: Lines,
    error: Option<(PathBuf, io::Error)>,
}

impl Output {
    /// Without `err`, standard error goes where standard output does.
    pub fn new(out: Option<LogFile>, err: Option<LogFile>, tail: usize) -> Self {
        Self {
            out,
            err,
            out_position: 0,
            err_position: 0,
            tail: Capture::new(0, tail),
            lines: Lines::new(LINE),
            error: None,
        }
    }

    /// Where the container's output begins in the two files.
    pub fn offsets(&self) -> (u64, u64) {
        let offset = |file: &Option<LogFile>| file.as_ref().map_or(0, LogFile::offset);
        (offset(&self.out), offset(&self.err))
    }

    /// Takes away what the files have behind where the output begins. To be called when this task
    /// has the container, and before that starts.
    ///
    /// # Errors
    /// The file that can't be written.
    pub async fn cut(&mut self) -> Result<(), (PathBuf, io::Error)> {
        for open in [&mut self.out, &mut self.err].into_iter().flatten() {
            open.cut()
                .await
                .map_err(|error| (open.path.clone(), error))?;
        }
        Ok(())
    }

    /// The output comes again from its beginning.
    pub fn restart(&mut self, tail: usize) {
        self.out_position = 0;
        self.err_position = 0;
        self.tail = Capture::new(0, tail);
        self.lines = Lines::new(LINE);
    }

    /// Takes what comes next. A file that can't be written is given up: the container goes on.
    pub async fn take(&mut self, output: &LogOutput, line: impl FnMut(String)) {
        let (bytes, is_error) = match output {
            LogOutput::StdErr { message } => (message, true),
            LogOutput::StdOut { message }
            | LogOutput::Console { message }
            | LogOutput::StdIn { message } => (message, false),
        };
        self.tail.push(bytes);
        let (file, position) = if is_error && self.err.is_some() {
            (&mut self.err, &mut self.err_position)
        } else {
            (&mut self.out, &mut self.out_position)
        };
        if let Some(open) = file
            && let Err(error) = open.write(*position, bytes).await
        {
            self.error = Some((open.path.clone(), error));
            *file = None;
        }
        *position += bytes.len() as u64;
        self.lines.push(bytes, line);
    }

    /// The end of the output: what of it is in the result, whether that is not all, and which file
    /// could not be written.
    pub async fn finish(
        &mut self,
        line: impl FnOnce(String),
    ) -> Result<(String, bool), (PathBuf, io::Error)> {
        self.lines.finish(line);
        for open in [&mut self.out, &mut self.err].into_iter().flatten() {
            if let Err(error) = open.flush().await {
                self.error = Some((open.path.clone(), error));
            }
        }
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok((self.tail.text(), self.tail.is_truncated())),
        }
    }

    /// The last lines.
    pub fn last_lines(&self, count: usize) -> String {
        self.tail.last_lines(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn out(text: &'static str) -> LogOutput {
        LogOutput::StdOut {
            message: text.as_bytes().into(),
        }
    }

    fn err(text: &'static str) -> LogOutput {
        LogOutput::StdErr {
            message: text.as_bytes().into(),
        }
    }

    async fn take(file: LogFile, pieces: &[LogOutput]) -> String {
        let mut output = Output::new(Some(file), None, 100);
        for piece in pieces {
            output.take(piece, |_| ()).await;
        }
        output.finish(|_| ()).await.unwrap().0
    }

    #[tokio::test]
    async fn a_file_is_gone_on_with_where_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/log");
        let file = LogFile::begin(&path, true).await.unwrap();
        take(file, &[out("first\n")]).await;
        let file = LogFile::begin(&path, false).await.unwrap();
        let offset = file.offset();
        assert_eq!(offset, 6);
        take(file, &[out("one\n"), err("tw")]).await;
        let file = LogFile::resume(&path, offset).await.unwrap();
        let tail = take(file, &[out("on"), out("e\n"), err("two\nthree\n")]).await;
        assert_eq!(tail, "one\ntwo\nthree\n");
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "first\none\ntwo\nthree\n"
        );
        let mut file = LogFile::begin(&path, true).await.unwrap();
        file.cut().await.unwrap();
        take(file, &[out("anew\n")]).await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "anew\n");
    }

    #[tokio::test]
    async fn errors_have_a_file_of_their_own_if_asked_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name);
        let file = async |name| LogFile::begin(&path(name), true).await.ok();
        let mut output = Output::new(file("out").await, file("err").await, 3);
        let mut lines = Vec::new();
        for piece in [out("a\n"), err("b\n"), out("c\n")] {
            output.take(&piece, |line| lines.push(line)).await;
        }
        let (tail, truncated) = output.finish(|_| ()).await.unwrap();
        assert_eq!((tail.as_str(), truncated), ("\nc\n", true));
        assert_eq!(lines, ["a", "b", "c"]);
        assert_eq!(std::fs::read_to_string(path("out")).unwrap(), "a\nc\n");
        assert_eq!(std::fs::read_to_string(path("err")).unwrap(), "b\n");
    }

    #[tokio::test]
    async fn a_file_that_can_t_be_written_is_told_of() {
        let file = LogFile::begin(Path::new("/dev/full"), false).await.unwrap();
        let mut output = Output::new(Some(file), None, 10);
        output.take(&out("x"), |_| ()).await;
        let (path, _) = output.finish(|_| ()).await.unwrap_err();
        assert_eq!(path, Path::new("/dev/full"));
    }
}
