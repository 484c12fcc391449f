//! What counts, among the values of all layers.

use serde_json::{Map, Value};

use super::dotenv::Variable;
use super::source::{Layer, Problem, Source};
use super::{Entry, kind, schema};

/// Variables that Python reads before `app.conf` (`celery.app.utils.Settings`,
/// `celeriac.host.revocations`), and the settings that they stand for.
const PYTHONS_VARIABLES: [(&str, &str); 5] = [
    ("CELERIAC_REVOKE_STORE", "celeriac_revoke_store"),
    ("CELERY_BROKER_URL", "broker_url"),
    ("CELERY_BROKER_READ_URL", "broker_read_url"),
    ("CELERY_BROKER_WRITE_URL", "broker_write_url"),
    ("CELERY_RESULT_BACKEND", "result_backend"),
];

/// All values of all layers.
#[derive(Debug, Clone, Default)]
pub struct Configuration {
    /// From the lowest layer to the highest.
    pub(super) entries: Vec<Entry>,
    /// Variables of `.env` that nobody exports.
    pub(super) dotenv: Vec<Variable>,
    /// What may be wrong.
    pub(super) warnings: Vec<Problem>,
}

impl Configuration {
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

    /// All settings that count, by their names: for an app that is not Python's.
    pub fn all_settings(&self) -> Map<String, Value> {
        self.table(&[schema::CELERY])
    }

    /// The settings to put over a Python app's own, by their names.
    pub fn settings(&self) -> Map<String, Value> {
        let mut settings = self.all_settings();
        for (setting, ..) in self.urls() {
            settings.remove(setting);
        }
        settings
    }

    /// Variables that Python reads before the settings that they stand for, and what counts for
    /// these: whatever is in `app.conf` would not count.
    pub fn pythons_variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.urls().map(|(_, variable, url)| (variable, url))
    }

    fn urls(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        PYTHONS_VARIABLES.iter().filter_map(|(variable, setting)| {
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

    /// What may be wrong: keys of `[celery]` and variables that nobody knows.
    pub fn warnings(&self) -> &[Problem] {
        &self.warnings
    }

    /// Whether no layer says anything.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn pool_names(&self) -> Vec<(String, String)> {
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
