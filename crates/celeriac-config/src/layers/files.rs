//! The layers as they are found in a folder and in the environment of this process.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::source::{Misconfigured, Problem};
use super::variables::Known;
use super::{Configuration, File, Texts, dotenv, resolve};

const FILE: &str = "celeriac.toml";
const DOTENV: &str = ".env";
/// The variable that names the environment: `celeriac.<APP_ENV>.toml` counts over `celeriac.toml`.
const APP_ENV: &str = "APP_ENV";

/// Reads all layers but the command line's: the files of a folder, or of the working directory, and
/// the environment. `options` are variables that stand for options of the worker.
///
/// # Errors
/// When a file is there that can't be read, and as [`resolve`].
pub fn read(folder: Option<&Path>, options: Vec<Known>) -> Result<Configuration, Misconfigured> {
    // What is no UTF-8 is no value of the configuration.
    let exported: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let dotenv = file(folder, DOTENV)?;
    let environments_file = match environment(&exported, dotenv.as_ref()) {
        Some(name) => file(folder, &format!("celeriac.{name}.toml"))?,
        None => None,
    };
    let mut known = Known::of_celery();
    known.extend(options);
    resolve(&Texts {
        file: file(folder, FILE)?,
        environments_file,
        dotenv,
        exported,
        known: &known,
    })
}

/// The name of the environment, if that may be part of a file's name.
fn environment(exported: &BTreeMap<String, String>, dotenv: Option<&File>) -> Option<String> {
    let name = exported.get(APP_ENV).cloned();
    let of_file = || {
        let file = dotenv?;
        // What can't be read in it is told with all other problems.
        let variables = dotenv::parse(&file.name, &file.text).ok()?;
        let variable = variables.into_iter().rfind(|it| it.name == APP_ENV);
        variable.map(|it| it.value)
    };
    let name = name.or_else(of_file);
    name.filter(|name| !name.is_empty() && !name.contains(['/', '\0']))
}

/// A file's text; `None` where there is no such file.
fn file(folder: Option<&Path>, name: &str) -> Result<Option<File>, Problem> {
    let path = folder.map_or_else(|| name.into(), |folder| folder.join(name));
    // A folder `.env` is where many have their virtual environment.
    if name == DOTENV && path.is_dir() {
        return Ok(None);
    }
    let name = path.display().to_string().into();
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(Some(File { name, text })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            let hint = "let the user that the command runs as read it, or move it away";
            let problem = Problem::new(name, format!("it can't be read: {error}"));
            Err(problem.with_hint(Some(hint.to_owned())))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        folder
    }

    #[test]
    fn files_are_found_in_a_folder() {
        let folder = folder(&[
            ("celeriac.toml", "app = 'one'\n[celery]\ntimezone = 'UTC'"),
            ("celeriac.test.toml", "app = 'two'"),
            (".env", "APP_ENV=other\nAPP_ENV=test"),
        ]);
        let found = read(Some(folder.path()), Vec::new()).unwrap();
        assert_eq!(found.text(&["app"]), Some("two"));
        assert_eq!(found.settings()["timezone"], "UTC");
    }

    #[test]
    fn a_file_that_can_not_be_read_is_named() {
        let folder = folder(&[]);
        std::fs::create_dir(folder.path().join(".env")).unwrap();
        assert!(read(Some(folder.path()), Vec::new()).is_ok());
        std::fs::create_dir(folder.path().join("celeriac.toml")).unwrap();
        let told = read(Some(folder.path()), Vec::new())
            .unwrap_err()
            .to_string();
        let file = folder.path().join("celeriac.toml");
        let expected = format!("{}: it can't be read: ", file.display());
        assert!(told.starts_with(&expected), "{told}");
    }

    #[test]
    fn the_environment_is_part_of_a_files_name_or_nothing() {
        for (name, expected) in [("test", Some("test")), ("", None), ("../x", None)] {
            let exported = [(APP_ENV.to_owned(), name.to_owned())].into();
            assert_eq!(environment(&exported, None).as_deref(), expected, "{name}");
        }
    }
}
