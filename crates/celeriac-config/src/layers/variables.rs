//! Environment variables that are part of the configuration.

use super::Entry;
use super::kind::{Kind, leaves};
use super::nearest::nearest;
use super::schema;
use super::source::{Problem, Source};

/// What the names of variables begin with that name a section and a key:
/// `CELERIAC_CELERY__BROKER_URL`, `CELERIAC_POOLS__IO__CONCURRENCY`.
const PREFIX: &str = "CELERIAC_";
/// What stands between the names of a path.
const BETWEEN: &str = "__";

/// A variable with a name of its own, such as `CELERY_BROKER_URL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub variable: String,
    /// The section and the key that it stands for.
    pub path: Vec<String>,
}

impl Known {
    /// A variable that stands for an option of the worker.
    pub fn option(variable: &str, option: &str) -> Self {
        Self::new(variable, &[schema::WORKER, option])
    }

    /// Celery's variables, and celeriac's own that are no options of the worker.
    pub(super) fn of_celery() -> Vec<Self> {
        let of_setting = |variable, setting| Self::new(variable, &[schema::CELERY, setting]);
        vec![
            Self::new("CELERY_APP", &["app"]),
            Self::new("APP", &["app"]),
            Self::new("CELERIAC_PYTHON", &["python"]),
            of_setting("CELERY_BROKER_URL", "broker_url"),
            of_setting("CELERY_BROKER", "broker_url"),
            of_setting("BROKER_URL", "broker_url"),
            of_setting("CELERY_BROKER_READ_URL", "broker_read_url"),
            of_setting("CELERY_BROKER_WRITE_URL", "broker_write_url"),
            of_setting("CELERY_RESULT_BACKEND", "result_backend"),
            of_setting("RESULT_BACKEND", "result_backend"),
            of_setting("CELERIAC_REVOKE_STORE", "celeriac_revoke_store"),
        ]
    }

    fn new(variable: &str, path: &[&str]) -> Self {
        Self {
            variable: variable.to_owned(),
            path: path.iter().map(|name| (*name).to_owned()).collect(),
        }
    }
}

/// What the names of variables begin with among which slips are looked for.
const OURS: [&str; 2] = [PREFIX, "CELERY_WORKER_"];

/// Variables that nobody reads, and whose names nearly are those of others.
pub(super) fn slips(variables: &[(&str, &str, Source)], known: &[Known]) -> Vec<Problem> {
    let is_known = |name: &str| known.iter().any(|known| known.variable == name);
    let mut found = Vec::new();
    for (name, _, source) in variables {
        let Some(prefix) = OURS.iter().find(|prefix| name.starts_with(**prefix)) else {
            continue;
        };
        if is_known(name) || name.contains(BETWEEN) {
            continue;
        }
        // Names that begin alike are less alike than they seem.
        let known = known
            .iter()
            .filter_map(|it| it.variable.strip_prefix(prefix));
        let known: Vec<_> = known.map(str::to_lowercase).collect();
        let near = nearest(&name[prefix.len()..], known.iter().map(String::as_str));
        if let Some(near) = near {
            let hint = format!("write {prefix}{}", near.to_uppercase());
            let problem = Problem::new(source, "nothing reads this variable");
            found.push(problem.with_hint(Some(hint)));
        }
    }
    found
}

/// The values of variables that name a section and a key. `names` are sections and what was found
/// in them already: letters may be small there.
pub(super) fn by_section(
    variables: &[(&str, &str, Source)],
    names: &[(String, String)],
) -> Vec<Entry> {
    let mut found = Vec::new();
    for (name, text, source) in variables {
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        // An empty variable says nothing, as in Celery.
        if !rest.contains(BETWEEN) || text.is_empty() {
            continue;
        }
        let mut path: Vec<String> = rest.split(BETWEEN).map(str::to_lowercase).collect();
        let mut declared = names.iter();
        let declared = declared.find(|(section, name)| {
            path.len() > 2 && *section == path[0] && name.eq_ignore_ascii_case(&path[1])
        });
        if let Some((_, name)) = declared {
            path[1].clone_from(name);
        }
        // What is not known is refused with the others.
        let kind = schema::locate(&path).map_or(Kind::Any, |located| {
            if located.path.len() > located.key {
                Kind::Any
            } else {
                located.kind
            }
        });
        leaves(&path, kind.read(text), &mut |path, value| {
            found.push(Entry::new(path, value, source.clone()));
        });
    }
    found
}

/// The values of variables with names of their own, as they are: who reads them knows what they may
/// be.
pub(super) fn known<'v>(
    variables: &'v [(&str, &str, Source)],
    known: &'v [Known],
) -> impl Iterator<Item = Entry> + 'v {
    known.iter().filter_map(|known| {
        let mut variables = variables.iter();
        let given =
            |(name, text, _): &&(&str, &str, Source)| *name == known.variable && !text.is_empty();
        let (_, text, source) = variables.find(given)?;
        let value = (*text).into();
        Some(Entry::new(known.path.clone(), value, source.clone()))
    })
}
