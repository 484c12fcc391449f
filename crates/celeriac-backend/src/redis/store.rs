//! Storing documents: many in one round trip, and never over a success.

use std::sync::LazyLock;

use celeriac_core::backend::{Error, ErrorKind, Settings, Stored};
use redis::{Script, cmd, pipe};

use super::RedisBackend;
use crate::{document, options};

static STORE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/store.lua")));

/// A script stops the server while it runs: so many documents are stored in one call.
const PER_CALL: usize = 200;
/// Redis holds no longer string.
const LARGEST: usize = 512 << 20;
/// How often a document that only its reader understands may change before it is replaced.
const ATTEMPTS: usize = 10;

/// How many seconds documents live; zero is for ever.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetimes {
    success: u64,
    failure: u64,
}

impl Lifetimes {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            success: options::whole_seconds(settings.expires),
            failure: options::whole_seconds(settings.failure_expires.or(settings.expires)),
        }
    }

    /// The seconds for a document of a task in this state.
    pub(super) fn of(self, status: &str) -> u64 {
        match status {
            "FAILURE" => self.failure,
            _ => self.success,
        }
    }
}

/// A document that is to be stored.
pub(super) struct Document {
    key: String,
    seconds: u64,
    text: Vec<u8>,
}

/// What was found in its place and may be replaced.
type Seen = Option<Vec<u8>>;

impl RedisBackend {
    pub(super) fn documents(&self, results: &[Stored]) -> Result<Vec<Document>, Error> {
        let written = results.iter().map(|stored| {
            let meta = &stored.meta;
            let text = document::encode(meta)?;
            if text.len() > LARGEST {
                return Err(Error::new(
                    ErrorKind::Refused,
                    format!("the result of task {} is larger than 512 MiB", meta.task_id),
                )
                .with_hint("keep large results elsewhere, and return where they are"));
            }
            Ok(Document {
                key: self.keys.task(&meta.task_id)?,
                seconds: match stored.expires {
                    Some(expires) => options::whole_seconds(Some(expires)),
                    None => self.lifetimes.of(&meta.status),
                },
                text,
            })
        });
        written.collect()
    }

    /// Stores documents, all in one go.
    pub(super) async fn store_all(&self, documents: &[Document]) -> Result<(), Error> {
        let mut left: Vec<(&Document, Seen)> = documents.iter().map(|one| (one, None)).collect();
        for _ in 0..ATTEMPTS {
            if left.is_empty() {
                return Ok(());
            }
            left = self.store_some(&left).await?;
        }
        Err(Error::new(
            ErrorKind::Connection,
            format!(
                "{} results are stored over by others all the time",
                left.len()
            ),
        ))
    }

    /// Stores documents, and answers with those in whose place stands something that is not JSON as
    /// Celery writes it, compressed perhaps, and no success.
    async fn store_some<'d>(
        &self,
        documents: &[(&'d Document, Seen)],
    ) -> Result<Vec<(&'d Document, Seen)>, Error> {
        let mut calls = pipe();
        for documents in documents.chunks(PER_CALL) {
            let call = calls.cmd("EVALSHA").arg(STORE.get_hash());
            call.arg(documents.len());
            for (document, _) in documents {
                call.arg(&document.key);
            }
            for (document, seen) in documents {
                call.arg(document.seconds)
                    .arg(seen.as_deref().unwrap_or_default())
                    .arg(&document.text);
            }
        }
        let unknown: Vec<Vec<redis::Value>> = self.link.call_all(&STORE, &calls).await?;
        let mut left = Vec::new();
        for (documents, unknown) in documents.chunks(PER_CALL).zip(unknown) {
            for pair in unknown.chunks_exact(2) {
                let [redis::Value::Int(at), redis::Value::BulkString(stored)] = pair else {
                    continue;
                };
                let Some((document, _)) = documents.get(*at as usize) else {
                    continue;
                };
                // What can't be read may be a success, and stays.
                if document::decode(stored)?.status != "SUCCESS" {
                    left.push((*document, Some(stored.clone())));
                }
            }
        }
        Ok(left)
    }

    /// Stores a document over whatever there is, and tells whoever waits.
    pub(super) async fn set_and_tell(
        &self,
        key: &str,
        document: &[u8],
        seconds: u64,
    ) -> Result<(), Error> {
        let mut both = pipe();
        both.atomic();
        if seconds > 0 {
            both.add_command(cmd("SETEX"))
                .arg(key)
                .arg(seconds)
                .arg(document);
        } else {
            both.add_command(cmd("SET")).arg(key).arg(document);
        }
        both.ignore().cmd("PUBLISH").arg(key).arg(document).ignore();
        self.link.call_all::<()>(&STORE, &both).await
    }
}
