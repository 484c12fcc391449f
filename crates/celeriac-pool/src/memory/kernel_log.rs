//! The kernel's log, where its out-of-memory killer names whom it ended.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

/// The longest record that the kernel hands out.
const RECORD_BYTES: usize = 8192;
/// Records that are looked at in one go.
const RECORDS_AT_ONCE: usize = 4096;

/// `/dev/kmsg`, from the moment when it was opened.
#[derive(Debug)]
pub struct KernelLog(File);

/// A process that the kernel ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Killed {
    /// Its number. That of the first process namespace: inside a container it is another.
    pub pid: u32,
    /// The line.
    pub line: String,
}

impl KernelLog {
    /// Opens the log at its end; `None` where this process may not read it.
    pub fn open(path: &Path) -> Option<Self> {
        let flags = OFlags::NONBLOCK.bits() as i32;
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// Whom the kernel has ended since this was last asked.
    pub fn kills(&mut self) -> Vec<Killed> {
        let mut buffer = [0; RECORD_BYTES];
        let mut found = Vec::new();
        for _ in 0..RECORDS_AT_ONCE {
            match self.0.read(&mut buffer) {
                Ok(length @ 1..) => {
                    found.extend(killed(&String::from_utf8_lossy(&buffer[..length])));
                }
                // What was overwritten before it was read is skipped.
                Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => break,
            }
        }
        found
    }
}

/// Reads a record: `priority,number,time,flags;text`.
fn killed(record: &str) -> Option<Killed> {
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    // Others than the kernel may write to its log, as themselves.
    let is_kernels = priority < 8;
    let line = text.lines().next()?;
    let (_, rest) = line.split_once("Killed process ")?;
    let digits = rest.split(|char: char| !char.is_ascii_digit()).next()?;
    let pid = digits.parse().ok()?;
    is_kernels.then(|| Killed {
        pid,
        line: line.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_read() {
        let global = "Out of memory: Killed process 4711 (celeriac:child) total-vm:8GB, UID:0";
        let group = "Memory cgroup out of memory: Killed process 12 (tesseract) total-vm:1kB";
        let old = "Killed process 9 (python) total-vm:1kB";
        let table = [
            (format!("3,100,5,-;{global}\n"), Some((4711, global))),
            (
                format!("3,100,5,-;{group}\n SUBSYSTEM=x\n"),
                Some((12, group)),
            ),
            (format!("3,100,5,-,caller=T1;{old}\n"), Some((9, old))),
            // Somebody wrote it there.
            (format!("11,100,5,-;{old}\n"), None),
            ("3,100,5,-;Killed process (python)\n".to_owned(), None),
            (
                "6,100,5,-;oom_reaper: reaped process 12 (x)\n".to_owned(),
                None,
            ),
            (
                "4,1,1,-;Out of memory: Kill process 9 (python) score 900\n".to_owned(),
                None,
            ),
            ("nonsense".to_owned(), None),
            (String::new(), None),
        ];
        for (record, expected) in table {
            let expected = expected.map(|(pid, line)| Killed {
                pid,
                line: line.to_owned(),
            });
            assert_eq!(killed(&record), expected, "{record}");
        }
    }

    #[test]
    fn a_log_is_read_from_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("kmsg");
        assert!(KernelLog::open(&path).is_none(), "not for this process");
        std::fs::write(&path, "3,1,1,-;Killed process 1 (old)\n").unwrap();
        let mut log = KernelLog::open(&path).unwrap();
        assert_eq!(log.kills(), []);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        std::io::Write::write_all(&mut file, b"3,2,2,-;Killed process 2 (new)\n").unwrap();
        assert_eq!(log.kills()[0].pid, 2);
        assert_eq!(log.kills(), []);
    }
}
