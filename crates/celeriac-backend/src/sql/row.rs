//! A row of `celery_taskmeta`, and what it says.
//!
//! Celery's counterparts: `celery.backends.database.models` and `DatabaseBackend._update_result`.

use std::collections::HashMap;

use celeriac_core::backend::{Error, Meta, Stored};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{document, payload};

/// The columns of a row but its number.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Row {
    pub(super) task_id: String,
    pub(super) status: String,
    pub(super) result: Option<Vec<u8>>,
    pub(super) date_done: Option<Timestamp>,
    pub(super) traceback: Option<String>,
    /// Null where there are none.
    pub(super) children: Option<Vec<u8>>,
    /// The columns that `result_extended` adds.
    pub(super) extended: Extended,
}

/// The columns that `result_extended` adds.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Extended {
    pub(super) name: Option<String>,
    pub(super) args: Option<Vec<u8>>,
    pub(super) kwargs: Option<Vec<u8>>,
    pub(super) worker: Option<String>,
    pub(super) retries: Option<i32>,
    pub(super) queue: Option<String>,
    pub(super) stamps: Option<Vec<u8>>,
}

/// The rows of results, one for each task: a statement can't write one twice. What comes last counts,
/// but for what comes after a success. In the order of the ids, so that two who write the same rows
/// don't wait for each other.
pub(super) fn rows(results: &[Stored], is_extended: bool) -> Result<Vec<Row>, Error> {
    let mut last: HashMap<&str, &Meta> = HashMap::new();
    for Stored { meta, .. } in results {
        let kept = last.entry(&meta.task_id).or_insert(meta);
        if kept.status != "SUCCESS" {
            *kept = meta;
        }
    }
    let mut metas: Vec<&Meta> = last.into_values().collect();
    metas.sort_by(|a, b| a.task_id.cmp(&b.task_id));
    metas
        .into_iter()
        .map(|meta| Row::write(meta, is_extended))
        .collect()
}

impl Row {
    fn write(meta: &Meta, is_extended: bool) -> Result<Self, Error> {
        let children = match &meta.children {
            Value::Array(children) if !children.is_empty() => {
                Some(document::dumps(&meta.children)?)
            }
            _ => None,
        };
        let extended = if is_extended {
            Extended::write(&meta.extended)?
        } else {
            Extended::default()
        };
        Ok(Self {
            task_id: meta.task_id.clone(),
            status: meta.status.clone(),
            result: Some(document::dumps(&meta.result)?),
            date_done: meta.date_done,
            traceback: meta.traceback.clone(),
            children,
            extended,
        })
    }

    pub(super) fn read(self) -> Result<Meta, Error> {
        let decode = |column: Option<Vec<u8>>| match column {
            Some(column) => payload::decode(&column),
            None => Ok(Value::Null),
        };
        Ok(Meta {
            task_id: self.task_id,
            status: self.status,
            result: decode(self.result)?,
            traceback: self.traceback,
            children: decode(self.children)?,
            date_done: self.date_done,
            group_id: None,
            parent_id: None,
            extended: self.extended.read()?,
        })
    }
}

impl Extended {
    fn write(members: &Map<String, Value>) -> Result<Self, Error> {
        let text = |name: &str| members.get(name).and_then(Value::as_str).map(str::to_owned);
        let encoded = |name: &str| members.get(name).map(document::dumps).transpose();
        let stamped = members.get("stamped_headers").and_then(Value::as_array);
        let stamps = match stamped {
            Some(headers) if !headers.is_empty() => {
                let stamps: Map<String, Value> = headers
                    .iter()
                    .filter_map(Value::as_str)
                    .filter_map(|name| Some((name.to_owned(), members.get(name)?.clone())))
                    .collect();
                let stamps = json!({"stamped_headers": headers, "stamps": stamps});
                Some(document::dumps(&stamps)?)
            }
            _ => None,
        };
        Ok(Self {
            name: text("name"),
            args: encoded("args")?,
            kwargs: encoded("kwargs")?,
            worker: text("worker"),
            retries: members
                .get("retries")
                .and_then(Value::as_i64)
                .map(|retries| retries as i32),
            queue: text("queue"),
            stamps,
        })
    }

    fn read(self) -> Result<Map<String, Value>, Error> {
        let mut members = Map::new();
        let mut add = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                members.insert(name.to_owned(), value);
            }
        };
        let decode = |column: Option<Vec<u8>>| {
            column
                .map(|column| payload::decode::<Value>(&column))
                .transpose()
        };
        add("name", self.name.map(Value::from));
        add("args", decode(self.args)?);
        add("kwargs", decode(self.kwargs)?);
        add("worker", self.worker.map(Value::from));
        add("retries", self.retries.map(Value::from));
        add("queue", self.queue.map(Value::from));
        if let Some(Value::Object(mut stamps)) = decode(self.stamps)? {
            add("stamped_headers", stamps.remove("stamped_headers"));
            if let Some(Value::Object(stamps)) = stamps.remove("stamps") {
                for (name, value) in stamps {
                    add(&name, Some(value));
                }
            }
        }
        Ok(members)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(id: &str, status: &str) -> Stored {
        Stored {
            meta: Meta {
                task_id: id.to_owned(),
                status: status.to_owned(),
                ..Meta::default()
            },
            reply_to: None,
            correlation_id: None,
            expires: None,
        }
    }

    #[test]
    fn each_task_has_one_row() {
        let results = [
            stored("b", "STARTED"),
            stored("a", "SUCCESS"),
            stored("b", "FAILURE"),
            stored("a", "FAILURE"),
        ];
        let rows = rows(&results, false).unwrap();
        let written: Vec<_> = rows
            .iter()
            .map(|row| (row.task_id.as_str(), row.status.as_str()))
            .collect();
        assert_eq!(written, [("a", "SUCCESS"), ("b", "FAILURE")]);
    }

    #[test]
    fn what_is_extended_comes_back() {
        let Value::Object(extended) = json!({
            "name": "t", "args": [1], "kwargs": {"a": "ü"}, "worker": "w@h", "retries": 1,
            "queue": "q", "stamped_headers": ["who"], "who": ["me"],
        }) else {
            unreachable!()
        };
        let meta = Meta {
            extended: extended.clone(),
            ..stored("a", "SUCCESS").meta
        };
        let row = Row::write(&meta, true).unwrap();
        assert_eq!(
            row.extended.stamps.as_deref(),
            Some(br#"{"stamped_headers": ["who"], "stamps": {"who": ["me"]}}"#.as_slice())
        );
        assert_eq!(row.read().unwrap().extended, extended);
        let plain = Row::write(&meta, false).unwrap();
        assert_eq!(plain.extended, Extended::default());
    }

    #[test]
    fn no_children_are_null() {
        let mut meta = stored("a", "SUCCESS").meta;
        for (children, column) in [
            (json!([]), None),
            (json!(null), None),
            (json!([1]), Some(b"[1]".to_vec())),
        ] {
            meta.children = children;
            assert_eq!(Row::write(&meta, false).unwrap().children, column);
        }
    }
}
