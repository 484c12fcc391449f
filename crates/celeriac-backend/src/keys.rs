//! The keys under which key/value stores keep results.
//!
//! Celery's counterpart: `celery.backends.base.BaseKeyValueStoreBackend`.

use celeriac_core::backend::{Error, ErrorKind, Settings};

use crate::options;

/// How keys begin.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    task: String,
    group: String,
}

impl Keys {
    /// Celery's keys, behind the option `global_keyprefix` if there is one.
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut prefix = options::text(settings, "global_keyprefix")
            .unwrap_or_default()
            .to_owned();
        if !prefix.is_empty() && !prefix.ends_with([':', '_', '-', '.']) {
            prefix.push('_');
        }
        Self {
            task: format!("{prefix}celery-task-meta-"),
            group: format!("{prefix}celery-taskset-meta-"),
        }
    }

    /// The key of a task's document.
    ///
    /// # Errors
    /// When the id is empty, which is no key in Celery either.
    pub(crate) fn task(&self, id: &str) -> Result<String, Error> {
        Ok(format!("{}{}", self.task, named(id, "task")?))
    }

    /// The key of a group's document.
    ///
    /// # Errors
    /// When the id is empty.
    pub(crate) fn group(&self, id: &str) -> Result<String, Error> {
        Ok(format!("{}{}", self.group, named(id, "group")?))
    }

    /// The beginnings of all keys.
    #[cfg(feature = "filesystem")]
    pub(crate) fn prefixes(&self) -> [&str; 2] {
        [&self.task, &self.group]
    }

    /// The id of the task whose key this is.
    pub(crate) fn task_of<'k>(&self, key: &'k str) -> Option<&'k str> {
        key.strip_prefix(&self.task)
    }
}

fn named<'i>(id: &'i str, of: &str) -> Result<&'i str, Error> {
    if id.is_empty() {
        return Err(Error::new(
            ErrorKind::Refused,
            format!("the id of a {of} is empty"),
        ));
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_celerys() {
        for (prefix, begins) in [
            ("", ""),
            ("app", "app_"),
            ("app:", "app:"),
            ("app-", "app-"),
            ("app.", "app."),
        ] {
            let mut settings = Settings::default();
            settings
                .options
                .insert("global_keyprefix".to_owned(), prefix.into());
            let keys = Keys::new(&settings);
            let task = keys.task("a").unwrap();
            assert_eq!(task, format!("{begins}celery-task-meta-a"));
            assert_eq!(keys.task_of(&task), Some("a"));
            assert_eq!(
                keys.group("g").unwrap(),
                format!("{begins}celery-taskset-meta-g")
            );
        }
        assert!(Keys::new(&Settings::default()).task("").is_err());
    }
}
