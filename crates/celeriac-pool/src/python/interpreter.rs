//! Which Python runs the app.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// No interpreter was found where one was said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct NoInterpreter {
    /// What is missing.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// Finds the interpreter: `--python`, `CELERIAC_PYTHON`, `VIRTUAL_ENV`, then `python3` on the path.
///
/// # Errors
/// When the one that is named does not exist, or none is on the path.
pub fn find(
    named: Option<&Path>,
    environment: impl Fn(&str) -> Option<OsString>,
) -> Result<PathBuf, NoInterpreter> {
    let variable = |name| environment(name).filter(|value| !value.is_empty());
    let path = variable("PATH").unwrap_or_default();
    if let Some(named) = named {
        return existing(named, &path, "--python");
    }
    if let Some(named) = variable("CELERIAC_PYTHON") {
        return existing(Path::new(&named), &path, "CELERIAC_PYTHON");
    }
    if let Some(folder) = variable("VIRTUAL_ENV") {
        let python = Path::new(&folder).join("bin").join("python");
        return existing(&python, &path, "VIRTUAL_ENV");
    }
    on_path(OsStr::new("python3"), &path).ok_or_else(|| NoInterpreter {
        message: "No Python interpreter was found: there is no python3 on PATH.".to_owned(),
        hint: "name the interpreter of your app with --python, CELERIAC_PYTHON or an activated \
               virtual environment"
            .to_owned(),
    })
}

/// The interpreter that `source` names, by a path or by the name of a program.
fn existing(named: &Path, path: &OsStr, source: &str) -> Result<PathBuf, NoInterpreter> {
    let is_name = named.components().count() == 1 && !named.starts_with("./");
    let found = if is_name {
        on_path(named.as_os_str(), path)
    } else {
        None
    };
    let found = found.or_else(|| is_executable(named).then(|| named.to_owned()));
    found.ok_or_else(|| NoInterpreter {
        message: format!("{source} names {}, which is no program.", named.display()),
        hint: "name the interpreter that has your app's packages, such as .venv/bin/python"
            .to_owned(),
    })
}

fn on_path(name: &OsStr, path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata()
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A folder with two programs that could be interpreters.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (file, mode) in [
            ("bin/python", 0o755),
            ("bin/python3", 0o755),
            ("bin/text", 0o644),
        ] {
            let file = folder.path().join(file);
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        folder
    }

    #[test]
    fn the_first_that_is_named_is_taken() {
        let folder = folder();
        let root = folder.path();
        let bin = root.join("bin");
        let found = |named: Option<&Path>, variables: &[(&str, &Path)]| {
            let variables: HashMap<&str, OsString> = variables
                .iter()
                .map(|(name, value)| (*name, value.as_os_str().to_owned()))
                .collect();
            find(named, |name| variables.get(name).cloned())
        };
        let (python, python3) = (bin.join("python"), bin.join("python3"));
        let all = [
            ("CELERIAC_PYTHON", &*python3),
            ("VIRTUAL_ENV", root),
            ("PATH", &*bin),
        ];
        assert_eq!(found(Some(&python), &all), Ok(python.clone()));
        assert_eq!(found(Some(Path::new("python")), &all), Ok(python.clone()));
        assert_eq!(found(None, &all), Ok(python3.clone()));
        assert_eq!(found(None, &all[1..]), Ok(python.clone()));
        assert_eq!(found(None, &all[2..]), Ok(python3.clone()));
        assert_eq!(
            found(None, &[("CELERIAC_PYTHON", Path::new("")), all[2]]),
            Ok(python3)
        );
    }

    #[test]
    fn what_is_missing_is_named_with_its_source() {
        let folder = folder();
        let none = |_: &str| None;
        let text = folder.path().join("bin/text");
        for named in [
            Path::new("/no/such/python"),
            Path::new("no-such-python"),
            &text,
        ] {
            let error = find(Some(named), none).unwrap_err();
            assert!(error.message.contains("--python"), "{error}");
            assert!(
                error.message.contains(&named.display().to_string()),
                "{error}"
            );
        }
        assert!(find(None, none).unwrap_err().message.contains("python3"));
    }
}
