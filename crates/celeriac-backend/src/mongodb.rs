//! MongoDB: a document for each task and each group.
//!
//! Celery's counterpart: `celery.backends.mongodb`.

use std::fmt;

use async_trait::async_trait;
use celeriac_core::backend::{Backend, Chords, Error, ErrorKind, Meta, Settings, Stored};
use futures_util::TryStreamExt as _;
use jiff::{SignedDuration, Timestamp};
use mongodb::bson::{Binary, Bson, DateTime, Document, doc};
use mongodb::options::{ClientOptions, Credential, ServerAddress};
use mongodb::{Client, Collection, Database};
use serde_json::{Map, Value, json};
use tokio::sync::OnceCell;

use crate::options::{self, invalid};
use crate::polling::Polling;
use crate::retry::Retry;
use crate::{document, payload};

/// How many documents are written, or asked for, in one command.
const PER_COMMAND: usize = 500;
/// The number of the error that a document is there already.
const DUPLICATE: i32 = 11000;
/// Celery's default `maxPoolSize`.
const POOL: u32 = 10;

/// A database that keeps results.
pub struct MongoBackend {
    display: String,
    url: String,
    settings: Settings,
    names: Names,
    retry: Retry,
    polling: Polling,
    database: OnceCell<Database>,
}

/// What `mongodb_backend_settings` says.
#[derive(Debug, Clone)]
struct Names {
    database: Option<String>,
    tasks: String,
    groups: String,
}

impl MongoBackend {
    /// The backend that `url` names: `mongodb://user:password@host,host/database?options`.
    ///
    /// # Errors
    /// When the URL makes no sense.
    pub fn new(url: &str, settings: Settings) -> Result<Self, Error> {
        let given = options::object(&settings, "mongodb_backend_settings");
        let named = |name: &str| {
            given
                .and_then(|given| given.get(name))
                .and_then(Value::as_str)
                .map(str::to_owned)
        };
        let url = if url == "mongodb://" {
            "mongodb://localhost".to_owned()
        } else {
            url.to_owned()
        };
        Ok(Self {
            display: display(&url),
            names: Names {
                database: named("database"),
                tasks: named("taskmeta_collection").unwrap_or_else(|| "celery_taskmeta".to_owned()),
                groups: named("groupmeta_collection")
                    .unwrap_or_else(|| "celery_groupmeta".to_owned()),
            },
            url,
            retry: Retry::new(&settings),
            settings,
            polling: Polling::default(),
            database: OnceCell::new(),
        })
    }

    async fn database(&self) -> Result<&Database, Error> {
        self.database.get_or_try_init(|| self.connect()).await
    }

    async fn connect(&self) -> Result<Database, Error> {
        #[cfg(feature = "tls")]
        celeriac_net::install_tls_provider();
        let parsed = ClientOptions::parse(&self.url).await;
        let mut options = parsed.map_err(|error| invalid(&error))?;
        options
            .app_name
            .get_or_insert_with(|| "celeriac".to_owned());
        options.max_pool_size.get_or_insert(POOL);
        self.override_by_settings(&mut options);
        let name = self
            .names
            .database
            .clone()
            .or_else(|| options.default_database.clone())
            .unwrap_or_else(|| "celery".to_owned());
        let client = Client::with_options(options).map_err(|error| invalid(&error))?;
        let database = client.database(&name);
        for collection in [&self.names.tasks, &self.names.groups] {
            let made = database.run_command(doc! {
                "createIndexes": collection,
                "indexes": [{"key": {"date_done": 1}, "name": "date_done_1", "background": true}],
            });
            made.await.map_err(|error| backend_error(&error))?;
        }
        Ok(database)
    }

    /// `host`, `port`, `user` and `password` of `mongodb_backend_settings` win over the URL.
    fn override_by_settings(&self, options: &mut ClientOptions) {
        let Some(given) = options::object(&self.settings, "mongodb_backend_settings") else {
            return;
        };
        let text = |name: &str| given.get(name).and_then(Value::as_str).map(str::to_owned);
        let port = given.get("port").and_then(options::as_number);
        if given.contains_key("host") || port.is_some() {
            options.hosts = vec![ServerAddress::Tcp {
                host: text("host").unwrap_or_else(|| "localhost".to_owned()),
                port: port.map(|port| port as u16),
            }];
        }
        let (user, password) = (text("user"), text("password"));
        if user.is_some() || password.is_some() {
            let credential = options.credential.get_or_insert_with(Credential::default);
            credential.username = user.or_else(|| credential.username.take());
            credential.password = password.or_else(|| credential.password.take());
        }
    }

    async fn collection(&self, name: &str) -> Result<Collection<Document>, Error> {
        Ok(self.database().await?.collection(name))
    }

    /// Writes documents of different tasks in one go, unless a success is there.
    async fn write(&self, documents: &[Document]) -> Result<(), Error> {
        let mut left: Vec<&Document> = documents.iter().collect();
        // Two who write a document that was not there yet: one of them is told that it is. Once
        // more, and it is known for a success.
        for _ in 0..2 {
            left = self.write_some(&left).await?;
            if left.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Answers with those that are there, and may be a success.
    async fn write_some<'d>(&self, documents: &[&'d Document]) -> Result<Vec<&'d Document>, Error> {
        let updates: Vec<Document> = documents
            .iter()
            .map(|&document| {
                let id = document.get("_id").cloned().unwrap_or(Bson::Null);
                doc! {
                    "q": {"_id": id, "status": {"$ne": "SUCCESS"}},
                    "u": document.clone(),
                    "upsert": true,
                }
            })
            .collect();
        let command = doc! {"update": &self.names.tasks, "updates": updates, "ordered": false};
        let database = self.database().await?;
        let answer = database
            .run_command(command)
            .await
            .map_err(|error| backend_error(&error))?;
        let mut left = Vec::new();
        for error in answer.get_array("writeErrors").into_iter().flatten() {
            let Some(error) = error.as_document() else {
                continue;
            };
            let number = |name: &str| match error.get(name) {
                Some(Bson::Int32(number)) => Some(*number),
                Some(Bson::Int64(number)) => Some(*number as i32),
                Some(Bson::Double(number)) => Some(*number as i32),
                _ => None,
            };
            if number("code") != Some(DUPLICATE) {
                let text = error.get_str("errmsg").unwrap_or("a write failed");
                return Err(Error::new(ErrorKind::Refused, format!("MongoDB: {text}")));
            }
            let document = number("index").and_then(|at| documents.get(at as usize));
            left.extend(document.copied());
        }
        Ok(left)
    }

    async fn delete(&self, name: &str, filter: Document) -> Result<(), Error> {
        self.retry
            .run(&self.display, || async {
                let collection = self.collection(name).await?;
                let deleted = collection.delete_many(filter.clone()).await;
                deleted.map(drop).map_err(|error| backend_error(&error))
            })
            .await
    }

    async fn find(&self, name: &str, ids: &[String]) -> Result<Vec<Document>, Error> {
        self.retry
            .run(&self.display, || async {
                let collection = self.collection(name).await?;
                let found = collection.find(doc! {"_id": {"$in": ids}}).await;
                let found = found.map_err(|error| backend_error(&error))?;
                found
                    .try_collect()
                    .await
                    .map_err(|error| backend_error(&error))
            })
            .await
    }
}

/// The URL without its password.
fn display(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return "mongodb://".to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let path = path.split('?').next().unwrap_or_default();
    match authority.rsplit_once('@') {
        Some((login, hosts)) => {
            let user = login.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}:**@{hosts}{path}")
        }
        None => format!("{scheme}://{authority}{path}"),
    }
}

fn backend_error(error: &mongodb::error::Error) -> Error {
    use mongodb::error::ErrorKind as Kind;

    let message = format!("MongoDB: {error}");
    match &*error.kind {
        Kind::Authentication { .. } => Error::new(ErrorKind::Configuration, message)
            .with_hint("check the user and password in result_backend"),
        Kind::InvalidArgument { .. } | Kind::DnsResolve { .. } | Kind::InvalidTlsConfig { .. } => {
            Error::new(ErrorKind::Configuration, message)
        }
        Kind::Io(_) | Kind::ServerSelection { .. } | Kind::ConnectionPoolCleared { .. } => {
            Error::new(ErrorKind::Connection, message)
        }
        _ if error.contains_label(mongodb::error::RETRYABLE_WRITE_ERROR) => {
            Error::new(ErrorKind::Connection, message)
        }
        _ => Error::new(ErrorKind::Refused, message),
    }
}

fn date(at: Timestamp) -> Bson {
    Bson::DateTime(DateTime::from_millis(at.as_millisecond()))
}

/// The document of a task. The result is JSON within it, all else is native.
fn write(meta: &Meta) -> Result<Document, Error> {
    let mut document = doc! {
        "status": &meta.status,
        "result": text(&meta.result)?,
        "traceback": meta.traceback.clone(),
        "children": native(&meta.children),
        "date_done": meta.date_done.map_or(Bson::Null, date),
    };
    if let Some(group_id) = &meta.group_id {
        document.insert("group_id", group_id);
    }
    if let Some(parent_id) = &meta.parent_id {
        document.insert("parent_id", parent_id);
    }
    for (name, value) in &meta.extended {
        document
            .entry(name.clone())
            .or_insert_with(|| native(value));
    }
    document.insert("_id", &meta.task_id);
    Ok(document)
}

fn text(value: &Value) -> Result<String, Error> {
    let bytes = document::dumps(value)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn read(mut document: Document) -> Result<Meta, Error> {
    let result = decode(document.remove("result"))?;
    let done = match document.remove("date_done") {
        Some(Bson::DateTime(at)) => Timestamp::from_millisecond(at.timestamp_millis()).ok(),
        _ => None,
    };
    let id = document.remove("_id").unwrap_or(Bson::Null);
    let mut members = Map::new();
    for (name, value) in document {
        members.insert(name, plain(value));
    }
    members.insert("task_id".to_owned(), plain(id));
    let mut meta = document::from_members(members)?;
    meta.result = result;
    meta.date_done = done;
    Ok(meta)
}

/// What the serializer has written: text, or bytes where it was compressed.
fn decode(stored: Option<Bson>) -> Result<Value, Error> {
    match stored {
        Some(Bson::String(text)) => payload::decode(text.as_bytes()),
        Some(Bson::Binary(Binary { bytes, .. })) => payload::decode(&bytes),
        None | Some(Bson::Null) => Ok(Value::Null),
        // The serializer `bson` leaves it as it is.
        Some(other) => Ok(plain(other)),
    }
}

/// A JSON value as BSON. Integers beyond 64 bits with a sign become floats: there are no others.
fn native(value: &Value) -> Bson {
    match value {
        Value::Null => Bson::Null,
        Value::Bool(value) => Bson::Boolean(*value),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(number), _) => i32::try_from(number).map_or(Bson::Int64(number), Bson::Int32),
            (None, Some(number)) => Bson::Double(number),
            (None, None) => Bson::Null,
        },
        Value::String(text) => Bson::String(text.clone()),
        Value::Array(items) => Bson::Array(items.iter().map(native).collect()),
        Value::Object(members) => Bson::Document(
            members
                .iter()
                .map(|(name, value)| (name.clone(), native(value)))
                .collect(),
        ),
    }
}

/// BSON as a JSON value.
fn plain(value: Bson) -> Value {
    match value {
        Bson::Double(number) => json!(number),
        Bson::String(text) => Value::String(text),
        Bson::Array(items) => items.into_iter().map(plain).collect(),
        Bson::Document(members) => Value::Object(
            members
                .into_iter()
                .map(|(name, value)| (name, plain(value)))
                .collect(),
        ),
        Bson::Boolean(value) => Value::Bool(value),
        Bson::Int32(number) => json!(number),
        Bson::Int64(number) => json!(number),
        Bson::DateTime(at) => match Timestamp::from_millisecond(at.timestamp_millis()) {
            Ok(at) => Value::String(document::date(at)),
            Err(_) => Value::Null,
        },
        Bson::Null | Bson::Undefined => Value::Null,
        // What no serializer of Celery's makes, as it is shown.
        other => Value::String(other.to_string()),
    }
}

impl fmt::Debug for MongoBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MongoBackend({})", self.display)
    }
}

#[async_trait]
impl Backend for MongoBackend {
    fn display_url(&self) -> String {
        self.display.clone()
    }

    fn chords(&self) -> Chords {
        Chords::Unlocked
    }

    async fn expect(&self, _id: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn store(&self, results: &[Stored]) -> Result<(), Error> {
        // States of one task don't go together: nobody says which of them comes first.
        let mut rounds: Vec<Vec<Document>> = Vec::new();
        let mut seen: std::collections::HashMap<&str, usize> = std::collections::HashMap::new();
        for Stored { meta, .. } in results {
            let round = seen.entry(&meta.task_id).or_insert(0);
            if rounds.len() == *round {
                rounds.push(Vec::new());
            }
            rounds[*round].push(write(meta)?);
            *round += 1;
        }
        for documents in rounds.iter().flat_map(|round| round.chunks(PER_COMMAND)) {
            self.retry
                .run(&self.display, || self.write(documents))
                .await?;
        }
        Ok(())
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error> {
        let mut found = std::collections::HashMap::new();
        for ids in ids.chunks(PER_COMMAND) {
            for document in self.find(&self.names.tasks, ids).await? {
                let meta = read(document)?;
                found.insert(meta.task_id.clone(), meta);
            }
        }
        Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
    }

    async fn changed(&self, id: &str, known: Option<&Meta>) -> Result<Meta, Error> {
        self.polling.changed(self, id, known).await
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        self.delete(&self.names.tasks, doc! {"_id": {"$in": ids}})
            .await
    }

    async fn save_group(&self, group_id: &str, members: &Value) -> Result<(), Error> {
        // Celery keeps the ids of the members here, and nothing below them.
        let ids = crate::chord::member_ids(members).ok_or_else(|| {
            Error::new(
                ErrorKind::Refused,
                format!("the members of group {group_id} are no tuple of a GroupResult"),
            )
        })?;
        let document = doc! {
            "_id": group_id,
            "result": text(&json!(ids))?,
            "date_done": date(Timestamp::now()),
        };
        self.retry
            .run(&self.display, || async {
                let collection = self.collection(&self.names.groups).await?;
                let saved = collection
                    .replace_one(doc! {"_id": group_id}, document.clone())
                    .upsert(true)
                    .await;
                saved.map(drop).map_err(|error| backend_error(&error))
            })
            .await
    }

    async fn group(&self, group_id: &str) -> Result<Option<Value>, Error> {
        let id = [group_id.to_owned()];
        let Some(mut document) = self.find(&self.names.groups, &id).await?.pop() else {
            return Ok(None);
        };
        let ids = decode(document.remove("result"))?;
        let members: Vec<Value> = ids
            .as_array()
            .into_iter()
            .flatten()
            .map(|id| json!([[id, null], null]))
            .collect();
        Ok(Some(json!([[group_id, null], members])))
    }

    async fn forget_group(&self, group_id: &str) -> Result<(), Error> {
        self.delete(&self.names.groups, doc! {"_id": group_id})
            .await
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let Some(expires) = self.settings.expires.filter(|expires| !expires.is_zero()) else {
            return Ok(());
        };
        let age = SignedDuration::try_from(expires).unwrap_or(SignedDuration::MAX);
        let Ok(before) = Timestamp::now().checked_sub(age) else {
            return Ok(());
        };
        for name in [&self.names.tasks, &self.names.groups] {
            let filter = doc! {"date_done": {"$lt": date(before)}};
            self.delete(name, filter).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_shown() {
        for (url, shown) in [
            (
                "mongodb://u:secret@a,b:27018/db?w=1",
                "mongodb://u:**@a,b:27018/db",
            ),
            ("mongodb+srv://u:sec%40ret@h/", "mongodb+srv://u:**@h/"),
            ("mongodb://h", "mongodb://h"),
            ("mongodb://h?tls=true", "mongodb://h"),
        ] {
            assert_eq!(display(url), shown);
        }
    }

    #[test]
    fn documents_come_back() {
        let meta = Meta {
            task_id: "a".to_owned(),
            status: "SUCCESS".to_owned(),
            result: json!({"n": u64::MAX, "s": "ü"}),
            children: json!([[["b", null], null]]),
            date_done: Some("2026-11-22T01:26:37.994Z".parse().unwrap()),
            group_id: Some("g".to_owned()),
            extended: Map::from_iter([("retries".to_owned(), json!(2))]),
            ..Meta::default()
        };
        let document = write(&meta).unwrap();
        assert_eq!(document.get_str("_id").ok(), Some("a"));
        assert_eq!(
            document.get_str("result").ok(),
            Some(r#"{"n": 18446744073709551615, "s": "\u00fc"}"#)
        );
        assert_eq!(read(document).unwrap(), meta);
    }
}
