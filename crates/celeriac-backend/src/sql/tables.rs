//! The names of the tables.
//!
//! Celery's counterparts: `database_table_names` and `database_table_schemas`.

use celeriac_core::backend::Settings;
use serde_json::Value;

use crate::options;

/// The tables, as they are named without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tables {
    /// Of tasks.
    pub(super) task: Table,
    /// Of groups.
    pub(super) group: Table,
    /// Whether there are the columns that `result_extended` adds.
    pub(super) is_extended: bool,
    /// Whether the tables are made if they are missing (`database_create_tables_at_setup`).
    pub(super) are_made: bool,
}

/// One table, its sequence and its index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) schema: Option<String>,
    pub(super) name: String,
    /// Where a database has sequences.
    pub(super) sequence: &'static str,
    /// The index of the column `date_done`, which has its name whatever the table's is.
    pub(super) index: &'static str,
}

/// The columns of a task's row, in the order in which statements name them, but for the number.
pub(super) const COLUMNS: [&str; 6] = [
    "task_id",
    "status",
    "result",
    "date_done",
    "traceback",
    "children",
];
/// The further columns with `result_extended`.
pub(super) const EXTENDED: [&str; 7] = [
    "name", "args", "kwargs", "worker", "retries", "queue", "stamps",
];

impl Tables {
    pub(super) fn new(settings: &Settings) -> Self {
        let named = |setting: &str, which: &str| {
            options::object(settings, setting)
                .and_then(|names| names.get(which))
                .and_then(Value::as_str)
                .filter(|name| !name.is_empty())
                .map(str::to_owned)
        };
        let table = |which: &str, default: &str, sequence, index| Table {
            schema: named("database_table_schemas", which),
            name: named("database_table_names", which).unwrap_or_else(|| default.to_owned()),
            sequence,
            index,
        };
        Self {
            task: table(
                "task",
                "celery_taskmeta",
                "task_id_sequence",
                "ix_celery_taskmeta_date_done",
            ),
            group: table(
                "group",
                "celery_tasksetmeta",
                "taskset_id_sequence",
                "ix_celery_tasksetmeta_date_done",
            ),
            is_extended: settings.extended,
            are_made: settings
                .options
                .get("database_create_tables_at_setup")
                .is_none_or(|on| on.as_bool() != Some(false)),
        }
    }

    /// The columns of a task's row but its number.
    pub(super) fn columns(&self) -> Vec<&'static str> {
        let extended = if self.is_extended { &EXTENDED[..] } else { &[] };
        COLUMNS.iter().chain(extended).copied().collect()
    }
}

impl Table {
    /// The table's name with its schema, each as `quote` writes an identifier.
    pub(super) fn quoted(&self, quote: fn(&str) -> String) -> String {
        self.within(&self.name, quote)
    }

    /// Something that stands in the table's schema.
    pub(super) fn within(&self, name: &str, quote: fn(&str) -> String) -> String {
        match &self.schema {
            Some(schema) => format!("{}.{}", quote(schema), quote(name)),
            None => quote(name),
        }
    }
}

/// The types of columns in one database, as SQLAlchemy calls them.
pub(super) struct Types {
    pub(super) blob: &'static str,
    pub(super) date: &'static str,
}

/// The definitions of a task's columns but the number, one on each line.
pub(super) fn task_columns(types: &Types, is_extended: bool) -> String {
    let Types { blob, date } = types;
    let mut columns = format!(
        "task_id VARCHAR(155), status VARCHAR(50), result {blob}, date_done {date}, \
         traceback TEXT, children {blob}"
    );
    if is_extended {
        let extended = format!(
            ", name VARCHAR(155), args {blob}, kwargs {blob}, worker VARCHAR(155), \
             retries INTEGER, queue VARCHAR(155), stamps {blob}"
        );
        columns += &extended;
    }
    columns
}

/// The type of a column that an older version of Celery did not make, which may be added.
pub(super) fn added_type(column: &str, types: &Types) -> &'static str {
    match column {
        "name" | "worker" | "queue" => "VARCHAR(155)",
        "retries" => "INTEGER",
        _ => types.blob,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_of_the_settings() {
        let mut settings = Settings::default();
        let tables = Tables::new(&settings);
        assert_eq!(tables.task.name, "celery_taskmeta");
        assert_eq!(tables.group.name, "celery_tasksetmeta");
        assert_eq!(tables.columns().len(), 6);
        let Value::Object(options) = json!({
            "database_table_names": {"task": "My tasks"},
            "database_table_schemas": {"task": "s", "group": null},
        }) else {
            unreachable!()
        };
        settings.options = options;
        settings.extended = true;
        let tables = Tables::new(&settings);
        let quote = |name: &str| format!("<{name}>");
        assert_eq!(tables.task.quoted(quote), "<s>.<My tasks>");
        assert_eq!(tables.group.quoted(quote), "<celery_tasksetmeta>");
        assert_eq!(tables.columns().len(), 13);
    }
}
