//! `celeriac report`: Celery's own, and what is configured where.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;

use celeriac_config::Configuration;
use celeriac_config::layers::{shown, without_passwords};
use celeriac_config::slips::OwnSettings;
use serde::Deserialize;

use crate::arguments::Global;
use crate::celery;
use crate::console;
use crate::failure::Failure;

/// The command that `celeriac.host.client` adds to Celery's.
const COMMAND: &str = "celeriac-report";
/// The layer of the app's own settings.
const APP: &str = "the app";
/// How much of one of the app's own values is shown, in characters.
const LONGEST: usize = 200;

/// What an app tells of its own configuration.
#[derive(Debug, Default, Deserialize)]
struct Told {
    /// Values by the names of their settings, as Python writes them, secrets masked.
    settings: BTreeMap<String, String>,
    #[serde(flatten)]
    own: OwnSettings,
}

/// Shows Celery's report, and each configured value with its source. Where Celery has none, because
/// there is no interpreter or the app can't be loaded, the configuration is shown all the same.
pub(crate) fn run(global: &Global) -> Result<ExitCode, Failure> {
    let asked = celery::ask(global, COMMAND).and_then(|(said, answer)| {
        let told = celeriac_config::read(answer.as_bytes()).map_err(|misfit| {
            Failure::new(format!("The app's configuration is not known: {misfit}"))
        })?;
        Ok((said, told))
    });
    let (said, told, failure) = match asked {
        Ok((said, told)) => (said, told, None),
        Err(failure) => (String::new(), Told::default(), Some(failure)),
    };
    let configuration = &global.configuration;
    console::print(&format!("{said}{}", section(configuration, &told)));
    match failure {
        None => Ok(ExitCode::SUCCESS),
        Some(failure) => Err(failure),
    }
}

/// A line for each value of each layer, by their keys, the one that counts first.
fn section(configuration: &Configuration, told: &Told) -> String {
    let mut lines: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for (entry, over) in configuration.entries() {
        let key = key(&entry.path);
        let value = shown(&entry.path, &entry.value);
        let source = match over {
            Some(over) => format!("{}, overridden by {}", entry.source, over.source),
            None => entry.source.to_string(),
        };
        if let ([section, name, ..], None) = (&entry.path[..], over)
            && section == "celery"
        {
            names.insert(name, entry.source.to_string());
        }
        let line = format!("{key} = {value}  [{source}]");
        lines.entry(key).or_default().insert(0, line);
    }
    for (name, value) in &told.settings {
        let key = format!("celery.{name}");
        let value = without_passwords(&shortened(value));
        let source = match names.get(&**name) {
            Some(over) => format!("{APP}, overridden by {over}"),
            None => APP.to_owned(),
        };
        let line = format!("{key} = {value}  [{source}]");
        lines.entry(key).or_default().push(line);
    }
    let mut text = "configuration ->\n".to_owned();
    for line in lines.values().flatten() {
        // Writing to a `String` can't fail.
        let _ = writeln!(text, "  {line}");
    }
    if lines.is_empty() {
        text.push_str("  nothing is configured\n");
    }
    let doubts = configuration.warnings().iter().map(ToString::to_string);
    for doubt in doubts.chain(told.own.slips()) {
        let _ = writeln!(text, "warning -> {doubt}");
    }
    text
}

/// A path as TOML writes it.
fn key(path: &[String]) -> String {
    let is_bare = |name: &str| {
        let mut letters = name.chars();
        !name.is_empty() && letters.all(|it| it.is_ascii_alphanumeric() || "_-".contains(it))
    };
    let names = path.iter().map(|name| {
        if is_bare(name) {
            name.clone()
        } else {
            format!("{name:?}")
        }
    });
    names.collect::<Vec<_>>().join(".")
}

fn shortened(value: &str) -> String {
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &value[..end]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use celeriac_config::layers::{File, Texts, resolve};

    use super::*;

    fn configured(text: &str, variables: &[(&str, &str)]) -> Configuration {
        let exported = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let texts = Texts {
            file: Some(File {
                name: "celeriac.toml".into(),
                text: text.to_owned(),
            }),
            exported: exported.collect(),
            ..Texts::default()
        };
        resolve(&texts).unwrap()
    }

    #[test]
    fn each_value_is_shown_with_its_source_and_what_it_overrides() {
        let text = "[celery]\nbroker_url = 'redis://:pw@h'\nredis_password = 'pw'\n\
                    task_routes.'a.b'.queue = 'c'\nworker_concurency = 3";
        let variables = [("CELERIAC_CELERY__BROKER_URL", "amqp://u:pw@h")];
        let configuration = configured(text, &variables);
        let told = Told {
            settings: [("broker_url", "'memory://'"), ("task_serializer", "'json'")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            own: OwnSettings {
                prefix: String::new(),
                unknown: vec!["task_anotations".to_owned()],
            },
        };
        assert_eq!(
            section(&configuration, &told),
            "configuration ->\n  \
             celery.broker_url = \"amqp://u:**@h\"  [environment (CELERIAC_CELERY__BROKER_URL)]\n  \
             celery.broker_url = \"redis://:**@h\"  [celeriac.toml:2, overridden by environment \
             (CELERIAC_CELERY__BROKER_URL)]\n  \
             celery.broker_url = 'memory://'  [the app, overridden by environment \
             (CELERIAC_CELERY__BROKER_URL)]\n  \
             celery.redis_password = \"********\"  [celeriac.toml:3]\n  \
             celery.task_routes.\"a.b\".queue = \"c\"  [celeriac.toml:4]\n  \
             celery.task_serializer = 'json'  [the app]\n  \
             celery.worker_concurency = 3  [celeriac.toml:5]\n\
             warning -> celeriac.toml:5: there is no setting worker_concurency (write \
             worker_concurrency)\n\
             warning -> The app's configuration has task_anotations, of which Celery takes no \
             notice: is task_annotations meant?\n"
        );
    }

    #[test]
    fn where_nothing_is_configured_that_is_said() {
        let text = section(&Configuration::default(), &Told::default());
        assert_eq!(text, "configuration ->\n  nothing is configured\n");
    }
}
