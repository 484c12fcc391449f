//! From a call's arguments to the command that is run. Pure but for the worker's environment, which
//! is handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use celeriac_native::arguments::{Arguments, Parameter, read};
use celeriac_native::error::Result;
use celeriac_protocol::Exception;
use serde_json::{Map, Value};

use crate::keeper::spec::{Identity, Spec};
use crate::options::{CommandOptions, Inherit};
use crate::template::{Error, Template};

/// What a task runs, as its options say.
#[derive(Debug, Clone)]
pub struct Call {
    task: String,
    kind: Kind,
    env: Vec<(String, Template)>,
    inherit: Inherit,
    cwd: Option<Template>,
    stdin: Option<Template>,
    identity: Option<Identity>,
    memory: Option<u64>,
    parameters: Vec<String>,
    defaults: Map<String, Value>,
}

#[derive(Debug, Clone)]
enum Kind {
    /// The words of `argv`.
    Declared(Vec<Template>),
    /// A script, and its arguments.
    Shell(String, Vec<Template>),
    /// What the caller names, among these.
    Sent {
        programs: Vec<PathBuf>,
        env: BTreeSet<String>,
        cwd: Vec<PathBuf>,
    },
}

/// The parameters of a command that the caller names.
const SENT: [Parameter<'static>; 4] = [
    Parameter {
        name: "argv",
        has_default: false,
    },
    Parameter {
        name: "env",
        has_default: true,
    },
    Parameter {
        name: "cwd",
        has_default: true,
    },
    Parameter {
        name: "stdin",
        has_default: true,
    },
];

impl Call {
    /// Reads the options' templates. `identity` is whom the command runs as.
    ///
    /// # Errors
    /// When a template can't be read.
    pub fn new(options: &CommandOptions, identity: Option<Identity>) -> Result<Self, Error> {
        let parse = |words: &[String]| {
            let words = words.iter().map(|word| Template::parse(word));
            words.collect::<Result<Vec<_>, _>>()
        };
        let kind = match options.argv.as_slice() {
            [] => Kind::Sent {
                programs: options.programs.clone(),
                env: options.caller_env.iter().cloned().collect(),
                cwd: options.caller_cwd.clone(),
            },
            [script, arguments @ ..] if options.shell => {
                Kind::Shell(script.clone(), parse(arguments)?)
            }
            words => Kind::Declared(parse(words)?),
        };
        let optional = |text: &Option<String>| text.as_deref().map(Template::parse).transpose();
        let env = options
            .env
            .iter()
            .map(|(name, value)| Ok((name.clone(), Template::parse(value)?)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut call = Self {
            task: options.name.clone(),
            kind,
            env,
            inherit: options.inherit_env.clone(),
            cwd: optional(&options.cwd)?,
            stdin: optional(&options.stdin)?,
            identity,
            memory: options.memory.map(|size| size.0),
            parameters: Vec::new(),
            defaults: options.defaults.clone(),
        };
        call.parameters = call.placeholders();
        Ok(call)
    }

    /// The names of the call's arguments, in the order of their first appearance.
    pub fn parameters(&self) -> &[String] {
        &self.parameters
    }

    fn placeholders(&self) -> Vec<String> {
        let words = match &self.kind {
            Kind::Declared(words) | Kind::Shell(_, words) => words.as_slice(),
            Kind::Sent { .. } => &[],
        };
        let templates = words
            .iter()
            .chain(&self.stdin)
            .chain(&self.cwd)
            .chain(self.env.iter().map(|(_, value)| value));
        let mut names: Vec<String> = Vec::new();
        for name in templates.flat_map(Template::names) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    /// The command of a call with these arguments, for a worker with this environment.
    ///
    /// # Errors
    /// In Python's words when the arguments are not those that the command takes.
    pub fn spec(
        &self,
        arguments: Arguments,
        worker: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Spec> {
        let mut env: BTreeMap<String, String> = worker
            .into_iter()
            .filter(|(name, _)| match &self.inherit {
                Inherit::All(all) => *all,
                Inherit::Names(names) => names.contains(name),
            })
            .collect();
        if let Kind::Sent {
            programs,
            env: settable,
            cwd,
        } = &self.kind
        {
            let mut spec = self.sent(arguments, programs, settable, cwd)?;
            let none = Map::new();
            for (name, value) in &self.env {
                env.insert(name.clone(), value.text(&none)?);
            }
            env.append(&mut spec.env);
            return Ok(Spec { env, ..spec });
        }
        let given = self.bind(arguments)?;
        for (name, value) in &self.env {
            env.insert(name.clone(), value.text(&given)?);
        }
        let words = |words: &[Template]| {
            let mut argv = Vec::new();
            for word in words {
                argv.append(&mut word.words(&given)?);
            }
            Ok::<_, Exception>(argv)
        };
        let argv = match &self.kind {
            Kind::Shell(script, arguments) => {
                let mut argv = ["/bin/sh", "-c", script, &self.task]
                    .map(str::to_owned)
                    .to_vec();
                argv.append(&mut words(arguments)?);
                argv
            }
            Kind::Declared(templates) => words(templates)?,
            Kind::Sent { .. } => Vec::new(),
        };
        let text = |template: &Option<Template>| {
            let text = template.as_ref().map(|template| template.text(&given));
            text.transpose()
        };
        Ok(Spec {
            argv,
            env,
            cwd: text(&self.cwd)?.map(PathBuf::from),
            stdin: text(&self.stdin)?,
            identity: self.identity.clone(),
            memory: self.memory,
        })
    }

    /// The arguments by name.
    fn bind(&self, arguments: Arguments) -> Result<Map<String, Value>> {
        let parameters: Vec<_> = self
            .parameters
            .iter()
            .map(|name| Parameter {
                name,
                has_default: self.defaults.contains_key(name),
            })
            .collect();
        let bound = arguments.bind(&self.task, &parameters)?;
        let given = self.parameters.iter().zip(bound).map(|(name, value)| {
            let value = value.or_else(|| self.defaults.get(name).cloned());
            (name.clone(), value.unwrap_or_default())
        });
        Ok(given.collect())
    }

    /// A command that the caller names.
    fn sent(
        &self,
        arguments: Arguments,
        programs: &[PathBuf],
        settable: &BTreeSet<String>,
        folders: &[PathBuf],
    ) -> Result<Spec> {
        let refused = |text: String| Exception::builtin("PermissionError", text);
        if programs.is_empty() {
            let text = format!(
                "this worker runs no commands that callers name; whoever runs it may allow \
                 programs: `programs = [\"/path/of/one\"]` below `[commands.\"{}\"]` in \
                 celeriac.toml",
                self.task
            );
            return Err(refused(text).into());
        }
        let mut bound = arguments.bind(&self.task, &SENT)?.into_iter();
        let mut next = || bound.next().flatten().filter(|value| !value.is_null());
        let argv = next().unwrap_or_default();
        let mut argv: Vec<String> = read(&self.task, "argv", argv)?;
        let env = next().map(|value| read(&self.task, "env", value));
        let env: BTreeMap<String, String> = env.transpose()?.unwrap_or_default();
        let cwd = next().map(|value| read(&self.task, "cwd", value));
        let cwd: Option<PathBuf> = cwd.transpose()?;
        let stdin = next().map(|value| read(&self.task, "stdin", value));
        let stdin: Option<String> = stdin.transpose()?;
        let Some(program) = argv.first_mut() else {
            return Err(Exception::builtin("ValueError", "argv is empty").into());
        };
        let allowed = programs.iter().find(|allowed| {
            allowed.as_os_str() == program.as_str()
                || allowed
                    .file_name()
                    .is_some_and(|name| name == program.as_str())
        });
        let Some(allowed) = allowed else {
            let text =
                format!("the program `{program}` is not among those that this worker allows");
            return Err(refused(text).into());
        };
        *program = allowed.to_string_lossy().into_owned();
        if let Some(name) = env.keys().find(|name| !settable.contains(*name)) {
            let text = format!("the variable `{name}` is not among those that callers may set");
            return Err(refused(text).into());
        }
        if let Some(cwd) = &cwd
            && !folders.iter().any(|folder| is_within(cwd, folder))
        {
            let text = format!(
                "the folder {} is not among those that callers may use",
                cwd.display()
            );
            return Err(refused(text).into());
        }
        let words = argv.iter().chain(env.values()).map(String::as_str);
        if words.into_iter().any(|word| word.contains('\0')) {
            let text = "argv or env has a null character, which no command can be given";
            return Err(Exception::builtin("ValueError", text).into());
        }
        Ok(Spec {
            argv,
            env,
            cwd,
            stdin,
            identity: self.identity.clone(),
            memory: self.memory,
        })
    }
}

/// Whether a path is a folder or below it, as it is written.
fn is_within(path: &Path, folder: &Path) -> bool {
    let climbs = path.components().any(|part| part == Component::ParentDir);
    path.is_absolute() && !climbs && path.starts_with(folder)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(options: Value, args: Value, kwargs: Value) -> std::result::Result<Spec, String> {
        let mut options: CommandOptions = serde_json::from_value(options).unwrap();
        options.name = "task".to_owned();
        let arguments = Arguments {
            args: serde_json::from_value(args).unwrap(),
            kwargs: serde_json::from_value(kwargs).unwrap(),
        };
        let worker = [("PATH", "/bin"), ("SECRET", "s")];
        let worker = worker.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Call::new(&options, None)
            .unwrap()
            .spec(arguments, worker)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_take_their_places() {
        let options = json!({
            "argv": ["convert", "{file}", "-w", "{width}", "{more...}"],
            "defaults": {"width": 100, "more": []},
            "env": {"FILE": "{file}"}, "inherit_env": ["PATH"],
            "stdin": "{text}", "cwd": "/srv/{file}",
        });
        let found = spec(options.clone(), json!(["a b"]), json!({"text": "t"})).unwrap();
        assert_eq!(found.argv, ["convert", "a b", "-w", "100"]);
        let env: Vec<_> = found.env.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(env, ["FILE=a b", "PATH=/bin"]);
        assert_eq!(found.stdin.as_deref(), Some("t"));
        assert_eq!(found.cwd, Some("/srv/a b".into()));
        let error = spec(options, json!([]), json!({"text": "t"})).unwrap_err();
        assert_eq!(
            error,
            "TypeError: task() missing 1 required positional argument: 'file'"
        );
    }

    #[test]
    fn a_shell_gets_arguments_as_its_own() {
        let options = json!({"argv": ["echo ${HOME} $1", "{word}"], "shell": true});
        let found = spec(options, json!(["; rm x"]), json!({})).unwrap();
        assert_eq!(
            found.argv,
            ["/bin/sh", "-c", "echo ${HOME} $1", "task", "; rm x"]
        );
    }

    #[test]
    fn callers_run_what_they_may() {
        let options = json!({
            "programs": ["/usr/bin/env", "/opt/x"], "caller_env": ["LANG"], "caller_cwd": ["/srv"],
            "env": {"A": "1"}, "inherit_env": false,
        });
        let call = |kwargs: Value| spec(options.clone(), json!([]), kwargs);
        let found = call(json!({"argv": ["env", "-0"], "env": {"LANG": "C"}, "cwd": "/srv/a"}));
        let found = found.unwrap();
        assert_eq!(found.argv, ["/usr/bin/env", "-0"]);
        assert_eq!(found.env.len(), 2);
        for (kwargs, expected) in [
            (json!({"argv": ["sh"]}), "PermissionError: the program `sh`"),
            (
                json!({"argv": ["/bin/env"]}),
                "PermissionError: the program `/bin/env`",
            ),
            (
                json!({"argv": ["env"], "env": {"LD_PRELOAD": "x"}}),
                "PermissionError: the variable `LD_PRELOAD`",
            ),
            (
                json!({"argv": ["env"], "cwd": "/srv/../etc"}),
                "PermissionError: the folder",
            ),
            (
                json!({"argv": ["env"], "cwd": "/srvx"}),
                "PermissionError: the folder",
            ),
            (json!({"argv": []}), "ValueError: argv is empty"),
            (json!({"argv": "env"}), "TypeError: task() argument 'argv'"),
            (json!({}), "TypeError: task() missing 1 required"),
        ] {
            let error = call(kwargs).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn nothing_is_run_for_callers_unless_allowed() {
        let error = spec(json!({}), json!([]), json!({"argv": ["true"]})).unwrap_err();
        assert!(
            error.starts_with("PermissionError: this worker runs no commands"),
            "{error}"
        );
    }
}
