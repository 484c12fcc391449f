//! The configuration in its layers: which value counts for each key, and where it comes from.
//!
//! ```text
//! Celery's defaults < the app's own settings
//!   < celeriac.toml < celeriac.<APP_ENV>.toml < .env < exported variables < the command line
//! ```
//!
//! The first two are Python's: settings that are given here are put over them in `app.conf`. What
//! stands below them is pure: texts come in, values with their sources go out. Tables are merged key
//! by key, from layer to layer; every other value replaces the one below it.

mod dotenv;
mod kind;
pub(crate) mod nearest;
mod schema;
mod secret;
pub mod setting;
mod source;
mod toml;
mod variables;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Map, Value};

pub use kind::Kind;
pub use schema::WORKER_OPTIONS;
pub use secret::{shown, without_passwords};
pub use source::{Layer, Misconfigured, Problem, Source};
pub use variables::Known;

/// Variables that `celery.app.utils.Settings` reads before its own values, and their settings.
const CELERY_VARIABLES: [(&str, &str); 4] = [
    ("CELERY_BROKER_URL", "broker_url"),
    ("CELERY_BROKER_READ_URL", "broker_read_url"),
    ("CELERY_BROKER_WRITE_URL", "broker_write_url"),
    ("CELERY_RESULT_BACKEND", "result_backend"),
];

/// A value in a layer.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The names that lead to it: section, key, and keys within its value.
    pub path: Vec<String>,
    /// The value. It is no table, unless an empty one.
    pub value: Value,
    /// Where it comes from.
    pub source: Source,
}

impl Entry {
    fn new(path: Vec<String>, value: Value, source: Source) -> Self {
        Self {
            path,
            value,
            source,
        }
    }

    /// Whether a later entry takes this one's place: it has the same path, or one is within the
    /// other.
    fn yields_to(&self, later: &Self) -> bool {
        let length = self.path.len().min(later.path.len());
        self.path[..length] == later.path[..length]
    }
}

impl std::fmt::Debug for Entry {
    /// Without the value, which may be a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Entry({} of {})", self.path.join("."), self.source)
    }
}

/// A file and its text.
#[derive(Clone)]
pub struct File {
    /// Its name, as it is shown.
    pub name: Arc<str>,
    /// What stands in it.
    pub text: String,
}

/// What a configuration is made of.
#[derive(Clone, Default)]
pub struct Texts<'k> {
    /// `celeriac.toml`
    pub file: Option<File>,
    /// `celeriac.<APP_ENV>.toml`
    pub environments_file: Option<File>,
    /// `.env`
    pub dotenv: Option<File>,
    /// The exported variables.
    pub exported: BTreeMap<String, String>,
    /// Variables that have names of their own, each over those before it.
    pub known: &'k [Known],
}

/// All values of all layers.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    /// From the lowest layer to the highest.
    entries: Vec<Entry>,
    /// Variables of `.env` that nobody exports.
    dotenv: Vec<dotenv::Variable>,
    /// What may be wrong.
    warnings: Vec<Problem>,
}

/// Reads all layers.
///
/// # Errors
/// With everything that can't be read, that has no such key, or is of another type.
pub fn resolve(texts: &Texts<'_>) -> Result<Configuration, Misconfigured> {
    let mut written = Vec::new();
    let mut problems = Vec::new();
    for (layer, file) in [
        (Layer::File, &texts.file),
        (Layer::EnvironmentsFile, &texts.environments_file),
    ] {
        let Some(file) = file else { continue };
        match toml::parse(layer, &file.name, &file.text) {
            Ok(entries) => written.extend(entries),
            Err(problem) => problems.push(problem),
        }
    }
    let dotenv = texts.dotenv.as_ref();
    let dotenv = dotenv.map_or(Ok(Vec::new()), |file| dotenv::parse(&file.name, &file.text));
    let mut dotenv = dotenv.unwrap_or_else(|problem| {
        problems.push(problem);
        Vec::new()
    });
    // Also a variable that is exported as empty is not for the file to set.
    let exported_empty = |name: &str| texts.exported.get(name).is_some_and(String::is_empty);
    dotenv.retain(|variable| !exported_empty(&variable.name));
    let mut configuration = Configuration::default();
    let mut seen = Written::default();
    for entry in written {
        configuration.take(entry, &mut seen, &mut problems);
    }
    let of_dotenv = dotenv
        .iter()
        .map(|it| (it.name.as_str(), it.value.as_str(), it.source.clone()));
    let exported = texts.exported.iter();
    let exported = exported.map(|(name, value)| (name.as_str(), &**value, Source::variable(name)));
    let layers: [Vec<_>; 2] = [of_dotenv.collect(), exported.collect()];
    for layer in layers {
        // Names are in capitals there.
        let names = configuration.pool_names();
        for entry in variables::by_section(&layer, &names) {
            configuration.take(entry, &mut seen, &mut problems);
        }
        configuration
            .entries
            .extend(variables::known(&layer, texts.known));
    }
    for variable in &dotenv {
        let is_ours = variable.name.starts_with("CELER");
        if variable.has_reference && is_ours {
            let problem = Problem::new(
                &variable.source,
                "${…} is not replaced by the value of another variable",
            );
            let hint = "write the value, or put it into single quotes to have it as it is";
            problems.push(problem.with_hint(Some(hint.to_owned())));
        }
    }
    dotenv.retain(|variable| !texts.exported.contains_key(&variable.name));
    configuration.dotenv = dotenv;
    if problems.is_empty() {
        Ok(configuration)
    } else {
        Err(Misconfigured(problems))
    }
}

/// The value of a variable in a file of variables, if that can be read and has it.
pub fn variable_of(file: &File, name: &str) -> Option<String> {
    let variables = dotenv::parse(&file.name, &file.text).ok()?;
    let mut variables = variables.into_iter().rev();
    variables.find(|it| it.name == name).map(|it| it.value)
}

/// What each path of a layer was written as, to find what is given under two names.
type Written = BTreeMap<(Layer, Vec<String>), (Vec<String>, String)>;

impl Configuration {
    /// Takes a value in, or says why not.
    fn take(&mut self, entry: Entry, seen: &mut Written, problems: &mut Vec<Problem>) {
        let written = entry.path.join(".");
        let located = match schema::locate(&entry.path) {
            Ok(located) => located,
            Err(unknown) => {
                let problem = Problem::new(&entry.source, unknown.message);
                problems.push(problem.with_hint(unknown.hint));
                return;
            }
        };
        if let Some(doubt) = located.doubt {
            let problem = Problem::new(&entry.source, doubt.message).with_hint(doubt.hint);
            // A table of which nobody knows is one slip, however many values it has.
            if !self.warnings.iter().any(|it| it.message == problem.message) {
                self.warnings.push(problem);
            }
        }
        let is_within = located.path.len() > located.key;
        let is_of_kind = if is_within {
            located.kind.has_keys()
        } else {
            located.kind.admits(&entry.value)
        };
        if !is_of_kind {
            let key = entry.path.len() - (located.path.len() - located.key);
            let key = entry.path[..key].join(".");
            let found = if is_within {
                "a table"
            } else {
                kind::found(&entry.value)
            };
            let expected = located.kind.expected();
            let message = format!("{key} is {found}, and should be {expected}");
            problems.push(Problem::new(&entry.source, message));
            return;
        }
        let is_empty_section = located.path.len() == 1 && entry.value.is_object();
        if is_empty_section {
            return;
        }
        let place = (entry.source.layer, located.path.clone());
        let place = seen
            .entry(place)
            .or_insert_with(|| (entry.path.clone(), entry.source.to_string()));
        if place.0 != entry.path {
            let message = format!(
                "{written} is what {} is in {}: it is given twice",
                place.0.join("."),
                place.1
            );
            let problem = Problem::new(&entry.source, message);
            problems.push(problem.with_hint(Some("leave one of them out".to_owned())));
            return;
        }
        self.entries
            .push(Entry::new(located.path, entry.value, entry.source));
    }

    /// Puts a value of the command line over all others.
    pub fn give(&mut self, path: &[&str], value: Value, option: &str) {
        let path = path.iter().map(|name| (*name).to_owned()).collect();
        let entry = Entry::new(path, value, Source::option(option));
        self.entries.push(entry);
    }

    /// All values, from the lowest layer to the highest, each with the one that counts in its place,
    /// if it does not count itself.
    pub fn entries(&self) -> impl Iterator<Item = (&Entry, Option<&Entry>)> {
        self.entries.iter().enumerate().map(|(at, entry)| {
            let later = self.entries[at + 1..].iter();
            let over = later.rev().find(|later| entry.yields_to(later));
            (entry, over.or_else(|| self.below_its_setting(entry)))
        })
    }

    /// The values that count.
    fn effective(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.entries();
        entries.filter_map(|(entry, over)| over.is_none().then_some(entry))
    }

    /// The setting that counts in place of an option of the worker: on the command line an option
    /// is over its setting, but a higher layer is over a lower one.
    fn below_its_setting(&self, entry: &Entry) -> Option<&Entry> {
        let [section, option] = &entry.path[..] else {
            return None;
        };
        let mut pairs = schema::SETTINGS_BELOW_OPTIONS.iter();
        let (_, setting) = pairs.find(|(name, _)| section == schema::WORKER && option == name)?;
        let settings = self.entries.iter().rev();
        settings
            .filter(|it| it.path[..] == [schema::CELERY, *setting])
            .find(|it| it.source.layer > entry.source.layer)
    }

    /// The value that counts at a path, and where it comes from.
    pub fn get(&self, path: &[&str]) -> Option<&Entry> {
        self.effective().find(|entry| entry.path == path)
    }

    /// The text that counts at a path.
    pub fn text(&self, path: &[&str]) -> Option<&str> {
        self.get(path)?.value.as_str()
    }

    /// All that counts in a section, or in a table of it.
    pub fn table(&self, path: &[&str]) -> Map<String, Value> {
        let mut table = Map::new();
        for entry in self.effective() {
            if entry.path.len() > path.len() && entry.path[..path.len()] == *path {
                kind::put(&mut table, &entry.path[path.len()..], entry.value.clone());
            }
        }
        table
    }

    /// The settings to put over the app's own, by their names.
    pub fn settings(&self) -> Map<String, Value> {
        let mut settings = self.table(&[schema::CELERY]);
        for (setting, ..) in self.urls() {
            settings.remove(setting);
        }
        settings
    }

    /// Variables that Celery itself reads, each over the setting that it stands for, and what counts
    /// for it: whatever is in `app.conf` would not count.
    pub fn celery_variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.urls().map(|(_, variable, url)| (variable, url))
    }

    fn urls(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        CELERY_VARIABLES.iter().filter_map(|(variable, setting)| {
            let entry = self.get(&[schema::CELERY, setting])?;
            let is_variable = entry.source.layer >= Layer::Dotenv;
            let url = entry.value.as_str().filter(|_| is_variable)?;
            Some((*setting, *variable, url))
        })
    }

    /// The pools as they are declared, by their names.
    pub fn pools(&self) -> Map<String, Value> {
        self.table(&[schema::POOLS])
    }

    /// Where what is said of a pool stands first.
    pub fn place_of_pool(&self, name: &str) -> Option<&Source> {
        let mut entries = self.effective();
        let entry = entries.find(|it| it.path.len() > 1 && it.path[..2] == [schema::POOLS, name]);
        entry.map(|entry| &entry.source)
    }

    /// Tasks that run commands, by their names: tables that those know who run them.
    pub fn commands(&self) -> Map<String, Value> {
        self.table(&[schema::COMMANDS])
    }

    /// Tasks that run containers, by their names: tables that those know who run them.
    pub fn containers(&self) -> Map<String, Value> {
        self.table(&[schema::CONTAINERS])
    }

    /// The worker's options that are given below the command line, as it has them: their names,
    /// texts, and sources.
    pub fn worker_options(&self) -> Vec<(&str, String, &Source)> {
        let of_worker = self
            .effective()
            .filter(|entry| entry.path.len() == 2 && entry.path[0] == schema::WORKER);
        of_worker
            .map(|entry| (&*entry.path[1], as_word(&entry.value), &entry.source))
            .collect()
    }

    /// Variables of `.env` that nobody exports, for the app's environment. A value with `${…}` is
    /// left to the app's own reader of the file, which replaces that.
    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        let variables = self
            .dotenv
            .iter()
            .filter(|variable| !variable.has_reference);
        variables.map(|variable| (variable.name.as_str(), variable.value.as_str()))
    }

    /// What may be wrong: keys of `[celery]` that nobody knows.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Whether no layer says anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn pool_names(&self) -> Vec<(String, String)> {
        let named = self.entries.iter().filter(|entry| entry.path.len() > 1);
        named
            .map(|entry| (entry.path[0].clone(), entry.path[1].clone()))
            .collect()
    }
}

/// A value as a word of the command line.
fn as_word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let words: Vec<_> = items.iter().map(as_word).collect();
            words.join(",")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests;
