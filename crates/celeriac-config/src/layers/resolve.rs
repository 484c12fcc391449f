//! From texts to values: all that is wrong with them is found at once.

use std::collections::BTreeMap;

use super::source::{Layer, Misconfigured, Problem, Source};
use super::{Configuration, Entry, Texts, dotenv, kind, schema, toml, variables};

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
        let slips = variables::slips(&layer, texts.known);
        configuration.warnings.extend(slips);
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
}
