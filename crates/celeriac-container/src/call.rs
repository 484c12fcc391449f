//! From a call's arguments to the container that is run, with the rules of celery-docker's
//! `run_docker`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

use celeriac_command::options::Size;
use celeriac_native::arguments::{Arguments, Parameter, read};
use celeriac_native::error::Result;
use celeriac_protocol::Exception;
use nix::unistd::User;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::options::{ContainerOptions, Pull};
use crate::words::split;

/// A container to be run.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// The image.
    pub image: String,
    /// What runs in it.
    pub command: Vec<String>,
    /// The number of the user, `None` for the image's.
    pub user: Option<String>,
    /// The file for the output: all of it, unless there is one for the errors.
    pub logoutfile: Option<PathBuf>,
    /// The file for standard error.
    pub logerrfile: Option<PathBuf>,
    /// What is at `/input`.
    pub inputpath: Option<PathBuf>,
    /// What is at `/output`.
    pub outputpath: Option<PathBuf>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Processors.
    pub cpus: Option<f64>,
    /// Processes.
    pub pids_limit: u32,
    /// The network.
    pub network: Option<String>,
    /// Capabilities that it does not have.
    pub cap_drop: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub workdir: Option<String>,
    /// When the image is pulled.
    pub pull: Pull,
}

/// A line, or its words.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a string or a list of strings")]
enum Command {
    Line(String),
    Words(Vec<String>),
}

/// A user by name or number.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a name or a number")]
enum Who {
    Number(u32),
    Name(String),
}

const REQUIRED: usize = 2;

/// The parameters: celery-docker's own, and more.
const NAMES: [&str; 15] = [
    "image",
    "command",
    "user",
    "logoutfile",
    "logerrfile",
    "inputpath",
    "outputpath",
    "memory",
    "cpus",
    "pids_limit",
    "network",
    "cap_drop",
    "env",
    "workdir",
    "pull",
];

impl Call {
    /// Reads the arguments, and looks at the files that they name.
    ///
    /// # Errors
    /// A `TypeError` for arguments that the task does not take, a `ValueError` for paths and users
    /// that are none, a `PermissionError` for what the options don't allow.
    pub fn read(options: &ContainerOptions, arguments: Arguments) -> Result<Self> {
        let parameters: Vec<_> = NAMES
            .iter()
            .enumerate()
            .map(|(place, name)| Parameter {
                name,
                has_default: place >= REQUIRED,
            })
            .collect();
        let bound = arguments.bind(&options.name, &parameters)?;
        let mut given = Given {
            task: &options.name,
            values: bound,
        };
        let image: String = given.required("image")?;
        let command = match given.required("command")? {
            Command::Words(words) => words,
            Command::Line(line) => split(&line).map_err(value_error)?,
        };
        let user = given.take::<Who>("user")?.map(uid).transpose()?;
        let inputpath = given.take::<PathBuf>("inputpath")?;
        let outputpath = given.take::<PathBuf>("outputpath")?;
        let call = Self {
            user,
            logoutfile: given.take("logoutfile")?,
            logerrfile: given.take("logerrfile")?,
            memory: least(
                given.take::<Size>("memory")?.map(|size| size.0),
                options.memory.map(|size| size.0),
            ),
            cpus: least(given.take("cpus")?, options.cpus),
            pids_limit: given
                .take::<u32>("pids_limit")?
                .map_or(options.pids_limit, |asked| asked.min(options.pids_limit)),
            network: network(given.take("network")?, options.network.as_ref())?,
            cap_drop: {
                let mut dropped = options.cap_drop.clone();
                dropped.extend(given.take::<Vec<String>>("cap_drop")?.unwrap_or_default());
                dropped
            },
            env: {
                let mut env = given
                    .take::<BTreeMap<String, String>>("env")?
                    .unwrap_or_default();
                env.extend(options.env.clone());
                env
            },
            workdir: given.take("workdir")?.or_else(|| options.workdir.clone()),
            pull: given.take("pull")?.unwrap_or(options.pull),
            image,
            command,
            inputpath,
            outputpath,
        };
        call.check(options)?;
        Ok(call)
    }

    fn check(&self, options: &ContainerOptions) -> Result<(), Exception> {
        let is_allowed = options
            .images
            .iter()
            .any(|allowed| match allowed.strip_suffix('*') {
                Some(beginning) => self.image.starts_with(beginning),
                None => *allowed == self.image,
            });
        if !options.images.is_empty() && !is_allowed {
            let text = format!(
                "the image {} is not among those that are allowed",
                self.image
            );
            return Err(Exception::builtin("PermissionError", text));
        }
        let paths = [
            &self.inputpath,
            &self.outputpath,
            &self.logoutfile,
            &self.logerrfile,
        ];
        for path in paths.into_iter().flatten() {
            if !options.paths.is_empty() && !options.paths.iter().any(|root| is_within(path, root))
            {
                let text = format!("{} is in no folder that is allowed", path.display());
                return Err(Exception::builtin("PermissionError", text));
            }
        }
        if let Some(path) = &self.inputpath {
            if !path.is_absolute() {
                return Err(value_error("inputpath must be an absolute path"));
            }
            if !path.exists() {
                return Err(value_error(format!(
                    "inputpath {} does not exist",
                    path.display()
                )));
            }
        }
        if let Some(path) = &self.outputpath {
            if !path.is_absolute() {
                return Err(value_error("outputpath must be an absolute path"));
            }
            if !path.is_dir() {
                let text = format!("outputpath {} is no existing directory", path.display());
                return Err(value_error(text));
            }
        }
        if let (Some(input), Some(output)) = (&self.inputpath, &self.outputpath)
            && (input == output || fs::canonicalize(input).ok() == fs::canonicalize(output).ok())
        {
            return Err(value_error("inputpath and outputpath must be different"));
        }
        if let (Some(out), Some(err)) = (&self.logoutfile, &self.logerrfile)
            && out == err
        {
            return Err(value_error(
                "logoutfile and logerrfile must be different; without logerrfile, logoutfile has both",
            ));
        }
        Ok(())
    }
}

/// Arguments by name, in the order of [`NAMES`].
struct Given<'a> {
    task: &'a str,
    values: Vec<Option<Value>>,
}

impl Given<'_> {
    /// An argument, unless it was left out or is None.
    fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>> {
        let place = NAMES.iter().position(|known| *known == name);
        let value = place.and_then(|place| self.values[place].take());
        match value.filter(|value| !value.is_null()) {
            Some(value) => Ok(Some(read(self.task, name, value)?)),
            None => Ok(None),
        }
    }

    fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T> {
        match self.take(name)? {
            Some(value) => Ok(value),
            None => Err(value_error(format!("{name} is None")).into()),
        }
    }
}

fn value_error(text: impl std::fmt::Display) -> Exception {
    Exception::builtin("ValueError", format!("{text}"))
}

/// A user's number on this machine.
fn uid(who: Who) -> Result<String, Exception> {
    match who {
        Who::Number(number) => Ok(number.to_string()),
        Who::Name(name) if !name.is_empty() && name.bytes().all(|it| it.is_ascii_digit()) => {
            Ok(name)
        }
        Who::Name(name) => match User::from_name(&name) {
            Ok(Some(user)) => Ok(user.uid.to_string()),
            _ => Err(value_error(format!(
                "there is no user {name} on this machine"
            ))),
        },
    }
}

/// The network: the one that is configured, or none.
fn network(asked: Option<String>, own: Option<&String>) -> Result<Option<String>, Exception> {
    match asked {
        Some(asked) if asked == "none" || Some(&asked) == own => Ok(Some(asked)),
        Some(asked) => {
            let text = format!("the network {asked} is not allowed: callers may ask for `none`");
            Err(Exception::builtin("PermissionError", text))
        }
        None => Ok(own.cloned()),
    }
}

/// The lesser of what is asked for and what is allowed.
fn least<T: PartialOrd>(asked: Option<T>, allowed: Option<T>) -> Option<T> {
    match (asked, allowed) {
        (Some(asked), Some(allowed)) if asked < allowed => Some(asked),
        (asked, None) => asked,
        (_, allowed) => allowed,
    }
}

/// Whether a path is a folder or below it, wherever links lead.
fn is_within(path: &Path, folder: &Path) -> bool {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    if climbs || !path.is_absolute() {
        return false;
    }
    let existing = path.ancestors().find(|parent| parent.exists());
    let real = existing.and_then(|existing| {
        let rest = path.strip_prefix(existing).ok()?;
        Some(fs::canonicalize(existing).ok()?.join(rest))
    });
    let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
    real.is_some_and(|real| real.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read_call(options: Value, kwargs: Value) -> std::result::Result<Call, String> {
        let options: ContainerOptions = serde_json::from_value(options).unwrap();
        let arguments = Arguments {
            args: Vec::new(),
            kwargs: serde_json::from_value(kwargs).unwrap(),
        };
        Call::read(&options, arguments).map_err(|error| error.to_string())
    }

    #[test]
    fn celery_docker_s_parameters_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let call = read_call(
            json!({}),
            json!({
                "image": "busybox", "command": "sh -c 'a b'", "user": "root",
                "outputpath": folder.path(), "inputpath": "/", "logoutfile": "/log",
            }),
        )
        .unwrap();
        assert_eq!(call.command, ["sh", "-c", "a b"]);
        assert_eq!(call.user.as_deref(), Some("0"));
        assert_eq!(call.outputpath.as_deref(), Some(folder.path()));
        let call = json!({"image": "i", "command": ["a b"], "user": "1234", "inputpath": null});
        let call = read_call(json!({}), call).unwrap();
        assert_eq!(
            (call.command, call.user),
            (vec!["a b".to_owned()], Some("1234".to_owned()))
        );
    }

    #[test]
    fn rules_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let options = json!({"images": ["i", "lab/*"], "paths": [folder.path()]});
        for (options, more, expected) in [
            (
                json!({}),
                json!({"inputpath": "x"}),
                "ValueError: inputpath must be an absolute",
            ),
            (
                json!({}),
                json!({"inputpath": "/nonexistent"}),
                "ValueError: inputpath /nonexi",
            ),
            (
                json!({}),
                json!({"outputpath": "x"}),
                "ValueError: outputpath must be an absolute",
            ),
            (
                json!({}),
                json!({"outputpath": file}),
                "ValueError: outputpath",
            ),
            (
                json!({}),
                json!({"inputpath": folder.path(), "outputpath": folder.path()}),
                "ValueError: inputpath and outputpath must be different",
            ),
            (
                json!({}),
                json!({"user": "no such user"}),
                "ValueError: there is no user",
            ),
            (
                json!({}),
                json!({"command": "'"}),
                "ValueError: No closing quotation",
            ),
            (
                json!({}),
                json!({"command": null}),
                "ValueError: command is None",
            ),
            (
                json!({}),
                json!({"command": 1}),
                "TypeError: tasks.run_docker() argument 'command'",
            ),
            (
                json!({}),
                json!({"x": 1}),
                "TypeError: tasks.run_docker() got an unexpected",
            ),
            (
                json!({}),
                json!({"network": "host"}),
                "PermissionError: the network host",
            ),
            (
                options.clone(),
                json!({"image": "other"}),
                "PermissionError: the image other",
            ),
            (
                options.clone(),
                json!({"inputpath": "/etc"}),
                "PermissionError: /etc is in no",
            ),
            (
                options,
                json!({"logoutfile": "log"}),
                "PermissionError: log is in no",
            ),
        ] {
            let mut kwargs = json!({"image": "i", "command": "c"});
            for (name, value) in more.as_object().unwrap() {
                kwargs[name] = value.clone();
            }
            let error = read_call(options, kwargs).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn callers_may_ask_for_less_only() {
        let options =
            json!({"memory": "1G", "pids_limit": 50, "cap_drop": ["A"], "env": {"X": "1"}});
        let ask = |more: Value| {
            let mut kwargs = json!({"image": "i", "command": "c"});
            for (name, value) in more.as_object().unwrap() {
                kwargs[name] = value.clone();
            }
            read_call(options.clone(), kwargs).unwrap()
        };
        let less = ask(json!({"memory": "64M", "cpus": 0.5, "pids_limit": 5, "cap_drop": ["B"]}));
        assert_eq!(
            (less.memory, less.cpus, less.pids_limit),
            (Some(64 << 20), Some(0.5), 5)
        );
        assert_eq!(less.cap_drop, ["A", "B"]);
        let more = ask(json!({"memory": "64G", "pids_limit": 500, "env": {"X": "2", "Y": "3"}}));
        assert_eq!((more.memory, more.pids_limit), (Some(1 << 30), 50));
        assert_eq!(more.env["X"], "1");
        assert_eq!(more.env["Y"], "3");
    }
}
