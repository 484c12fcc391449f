//! Slips in an app's own configuration: names that Celery takes no notice of, and which nearly are
//! those of settings.

use serde::Deserialize;

use crate::layers::nearest::nearest_of;
use crate::layers::setting::{self, SETTINGS};

/// How alike a name of the app's own must be to that of a setting to be taken for it.
const LIKENESS: f64 = 0.93;
/// What the names of old settings begin with, beside that of their sections.
const OLD: [&str; 3] = ["celery_", "celeryd_", "celerybeat_"];

/// What an app's own configuration has that is no setting.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct OwnSettings {
    /// What the names of its settings begin with, such as `CELERY_` (`namespace="CELERY"`); or
    /// nothing.
    pub prefix: String,
    /// Names that Celery does not know. An app may have settings of its own, and its configuration
    /// may be a module with much else in it.
    pub unknown: Vec<String>,
}

impl OwnSettings {
    /// Sentences about names that are likely to be slips, with those that are meant.
    pub fn slips(&self) -> Vec<String> {
        self.unknown
            .iter()
            .filter_map(|name| {
                let meant = self.meant(name)?;
                Some(format!(
                    "The app's configuration has {name}, of which Celery takes no notice: is {meant} \
                     meant?"
                ))
            })
            .collect()
    }

    /// The name of a setting, as it would stand there, that somebody meant by another one.
    fn meant(&self, name: &str) -> Option<String> {
        if setting::find(name).is_some() {
            // One of celeriac's own.
            return None;
        }
        let lower = name.to_lowercase();
        if !self.prefix.is_empty() {
            let rest = lower.strip_prefix(&self.prefix.to_lowercase())?;
            if setting::find(rest).is_some() {
                return None;
            }
            let meant = of_new(rest).or_else(|| of_old(&lower))?;
            return Some(format!("{}{}", self.prefix, meant.to_uppercase()));
        }
        // New names are small; capitals are for the old ones.
        if name != lower {
            let bare = OLD.iter().find_map(|old| lower.strip_prefix(old));
            let same = [Some(&*lower), bare].into_iter().flatten();
            let same = same.filter_map(setting::find).map(|it| it.name).next();
            return same.or_else(|| of_old(&lower)).map(in_both_ways);
        }
        of_new(name).map(str::to_owned)
    }
}

fn of_new(name: &str) -> Option<&'static str> {
    nearest_of(name, SETTINGS.iter().map(|setting| setting.name), LIKENESS)
}

/// The new name of the setting whose old name is most like this one.
fn of_old(lower: &str) -> Option<&'static str> {
    let old: Vec<_> = SETTINGS.iter().map(|it| it.old.to_lowercase()).collect();
    let named = old.iter().map(String::as_str).filter(|old| !old.is_empty());
    let near = nearest_of(lower, named, LIKENESS)?;
    setting::find_old(&near.to_uppercase()).map(|setting| setting.name)
}

fn in_both_ways(name: &str) -> String {
    match setting::find(name).map(|setting| setting.old) {
        Some(old) if !old.is_empty() => format!("{name} (or {old}, as before Celery 4)"),
        _ => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_told_with_what_is_meant() {
        for (prefix, name, expected) in [
            ("", "worker_concurency", Some("worker_concurrency")),
            ("", "task_anotations", Some("task_annotations")),
            (
                "",
                "CELERY_TASK_ANNOTATIONS",
                Some("task_annotations (or CELERY_ANNOTATIONS, as before Celery 4)"),
            ),
            (
                "",
                "TASK_ROUTES",
                Some("task_routes (or CELERY_ROUTES, as before Celery 4)"),
            ),
            (
                "",
                "CELERYD_CONCURENCY",
                Some("worker_concurrency (or CELERYD_CONCURRENCY, as before Celery 4)"),
            ),
            (
                "CELERY_",
                "CELERY_WORKER_CONCURENCY",
                Some("CELERY_WORKER_CONCURRENCY"),
            ),
            (
                "CELERY_",
                "CELERY_ANNOTATION",
                Some("CELERY_TASK_ANNOTATIONS"),
            ),
            // What is no slip:
            ("", "celeriac_max_deaths", None),
            ("CELERY_", "CELERY_CELERIAC_MAX_DEATHS", None),
            ("CELERY_", "DATABASES", None),
            ("CELERY_", "SECRET_KEY", None),
            ("", "celery_docker_store_tasks_hours", None),
            ("", "tenant", None),
            ("", "os", None),
            ("", "Queue", None),
            ("", "BASE_DIR", None),
        ] {
            let own = OwnSettings {
                prefix: prefix.to_owned(),
                unknown: vec![name.to_owned()],
            };
            assert_eq!(own.meant(name).as_deref(), expected, "{prefix} {name}");
            assert_eq!(own.slips().len(), usize::from(expected.is_some()));
        }
    }
}
