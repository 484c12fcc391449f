//! The file that holds the worker's process id, and keeps a second one from starting.
//!
//! Celery's counterpart: `celery.platforms.Pidfile`.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use nix::sys::signal::kill;
use nix::unistd::Pid;

/// A file that is removed with the value.
#[derive(Debug)]
pub(super) struct Pidfile(PathBuf);

/// Why the file is not ours.
#[derive(Debug)]
pub(super) enum Refused {
    /// A worker that runs has it.
    Running {
        /// Its process id.
        pid: i32,
    },
    /// It can't be written.
    Unwritable(io::Error),
}

impl Pidfile {
    /// Creates the file; `report` is told of a stale one that was removed.
    pub(super) fn create(path: &Path, report: impl Fn(&str)) -> Result<Self, Refused> {
        // Nobody else may take over the path should this process change its folder.
        let path = std::path::absolute(path).map_err(Refused::Unwritable)?;
        match std::fs::read_to_string(&path) {
            Ok(content) => match holder(&content) {
                Holder::Running(pid) => return Err(Refused::Running { pid }),
                Holder::Ourselves => remove(&path)?,
                Holder::Gone => {
                    report("Stale pidfile exists - Removing it.");
                    remove(&path)?;
                }
                Holder::Nobody => {
                    report("Broken pidfile found - Removing it.");
                    remove(&path)?;
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Refused::Unwritable(error)),
        }
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&path)
            .and_then(|mut file| {
                writeln!(file, "{}", std::process::id())?;
                file.sync_all()
            });
        written.map_err(Refused::Unwritable)?;
        Ok(Self(path))
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // What somebody removed before us is as gone.
        drop(std::fs::remove_file(&self.0));
    }
}

fn remove(path: &Path) -> Result<(), Refused> {
    std::fs::remove_file(path).map_err(Refused::Unwritable)
}

enum Holder {
    Running(i32),
    Ourselves,
    Gone,
    Nobody,
}

/// Who wrote this.
fn holder(content: &str) -> Holder {
    let Some(pid) = content
        .strip_suffix('\n')
        .and_then(|line| line.trim().parse::<i32>().ok())
    else {
        return Holder::Nobody;
    };
    if pid <= 0 {
        return Holder::Nobody;
    }
    // In a container a new worker often has the number of the one before.
    if u32::try_from(pid) == Ok(std::process::id()) {
        return Holder::Ourselves;
    }
    match kill(Pid::from_raw(pid), None) {
        Ok(()) => Holder::Running(pid),
        // Somebody else's process: the number was given out again.
        Err(_) => Holder::Gone,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn create(content: Option<&str>) -> (Result<String, i32>, String) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("worker.pid");
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let reported = RefCell::new(String::new());
        let created = Pidfile::create(&path, |text| reported.borrow_mut().push_str(text));
        let result = match created {
            Ok(file) => {
                let content = std::fs::read_to_string(&path).unwrap();
                drop(file);
                assert!(!path.exists());
                Ok(content)
            }
            Err(Refused::Running { pid }) => Err(pid),
            Err(refused) => panic!("{refused:?}"),
        };
        (result, reported.into_inner())
    }

    #[test]
    fn a_free_or_stale_file_is_taken() {
        let own = format!("{}\n", std::process::id());
        // Beyond the kernel's largest process id.
        for (content, report) in [
            (None, ""),
            (Some(own.as_str()), ""),
            (Some("4194305\n"), "Stale pidfile exists - Removing it."),
            (Some(""), "Broken pidfile found - Removing it."),
            (Some("12"), "Broken pidfile found - Removing it."),
            (Some("rubbish\n"), "Broken pidfile found - Removing it."),
            (Some("-1\n"), "Broken pidfile found - Removing it."),
        ] {
            assert_eq!(
                create(content),
                (Ok(own.clone()), report.to_owned()),
                "{content:?}"
            );
        }
    }

    #[test]
    fn the_file_of_a_running_process_is_left_alone() {
        assert_eq!(create(Some("1\n")).0, Err(1));
    }

    #[test]
    fn a_folder_that_is_missing_is_an_error() {
        let refused = Pidfile::create(Path::new("/no/such/folder/w.pid"), |_| {});
        assert!(matches!(refused, Err(Refused::Unwritable(_))));
    }
}
