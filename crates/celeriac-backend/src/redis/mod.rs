//! Redis: a document for each task, told to whoever waits when it changes.
//!
//! Unlike Celery, which looks at what is stored before it stores, one script does both: the first
//! success stays, whoever stores at the same moment. Many results go in one round trip.
//!
//! Celery's counterpart: `celery.backends.redis`.

mod address;
mod chords;
mod error;
mod link;
mod store;
mod subscriptions;

use std::fmt;

use async_trait::async_trait;
use celeriac_core::backend::{Backend, ChordPart, Chords, Claimed, Error, Meta, Settings, Stored};
use redis::cmd;
use serde_json::Value;

use crate::document;
use crate::keys::Keys;
use crate::retry::Retry;
use address::Address;
use chords::ChordSettings;
use link::Link;
use store::Lifetimes;
use subscriptions::Subscriptions;

/// How many keys are named in one command.
const PER_COMMAND: usize = 1000;

/// One Redis server that keeps results, or the master of several.
pub struct RedisBackend {
    display: String,
    keys: Keys,
    lifetimes: Lifetimes,
    chords: ChordSettings,
    retry: Retry,
    link: Link,
    subscriptions: Subscriptions,
}

impl RedisBackend {
    /// The backend that `url` names; several URLs of sentinels with `;` between them name one.
    ///
    /// # Errors
    /// When the URL or an option makes no sense.
    pub fn new(url: &str, settings: &Settings) -> Result<Self, Error> {
        let Address { server, display } = Address::new(url, settings)?;
        let keys = Keys::new(settings);
        let retry = Retry::new(settings);
        Ok(Self {
            lifetimes: Lifetimes::new(settings),
            chords: ChordSettings::new(settings),
            link: Link::new(server.clone()),
            subscriptions: Subscriptions::new(server, display.clone(), keys.clone(), retry.clone()),
            display,
            keys,
            retry,
        })
    }

    /// Deletes keys.
    async fn delete(&self, keys: &[String]) -> Result<(), Error> {
        for keys in keys.chunks(PER_COMMAND) {
            let mut delete = cmd("DEL");
            delete.arg(keys);
            self.retry
                .run(&self.display, || self.link.query::<()>(&delete))
                .await?;
        }
        Ok(())
    }
}

impl fmt::Debug for RedisBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RedisBackend({})", self.display)
    }
}

#[async_trait]
impl Backend for RedisBackend {
    fn display_url(&self) -> String {
        self.display.clone()
    }

    fn chords(&self) -> Chords {
        Chords::Counted
    }

    async fn expect(&self, _id: &str) -> Result<(), Error> {
        // What comes early is found when somebody begins to wait.
        Ok(())
    }

    async fn store(&self, results: &[Stored]) -> Result<(), Error> {
        let documents = self.documents(results)?;
        self.retry
            .run(&self.display, || self.store_all(&documents))
            .await
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error> {
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(PER_COMMAND) {
            let keys: Result<Vec<String>, Error> =
                ids.iter().map(|id| self.keys.task(id)).collect();
            let mut get = cmd("MGET");
            get.arg(keys?);
            let stored: Vec<Option<Vec<u8>>> = self
                .retry
                .run(&self.display, || self.link.query(&get))
                .await?;
            for document in stored {
                found.push(document.as_deref().map(document::decode).transpose()?);
            }
        }
        Ok(found)
    }

    async fn changed(&self, id: &str, known: Option<&Meta>) -> Result<Meta, Error> {
        self.keys.task(id)?;
        let mut interest = self.subscriptions.enter(id);
        let mut listening = 0;
        loop {
            let news = interest.next().await;
            let found = if news.listening > listening {
                // What was stored before is not told.
                listening = news.listening;
                self.get(&[id.to_owned()]).await?.pop().flatten()
            } else {
                news.last.transpose()?.map(|meta| (*meta).clone())
            };
            match found {
                Some(meta) if known != Some(&meta) => return Ok(meta),
                _ => {}
            }
        }
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        let keys: Result<Vec<String>, Error> = ids.iter().map(|id| self.keys.task(id)).collect();
        self.delete(&keys?).await
    }

    async fn save_group(&self, group_id: &str, members: &Value) -> Result<(), Error> {
        let key = self.keys.group(group_id)?;
        let document = document::encode_group(members)?;
        let seconds = self.lifetimes.of("SUCCESS");
        self.retry
            .run(&self.display, || {
                self.set_and_tell(&key, &document, seconds)
            })
            .await
    }

    async fn group(&self, group_id: &str) -> Result<Option<Value>, Error> {
        let mut get = cmd("GET");
        get.arg(self.keys.group(group_id)?);
        let document: Option<Vec<u8>> = self
            .retry
            .run(&self.display, || self.link.query(&get))
            .await?;
        document.as_deref().map(document::decode_group).transpose()
    }

    async fn forget_group(&self, group_id: &str) -> Result<(), Error> {
        self.delete(&[self.keys.group(group_id)?]).await
    }

    async fn open_chord(&self, group_id: &str, size: u64) -> Result<(), Error> {
        self.open(group_id, size).await
    }

    async fn extend_chord(&self, group_id: &str, by: u64) -> Result<(), Error> {
        self.extend(group_id, by).await
    }

    async fn chord_part(&self, part: &ChordPart) -> Result<Option<Claimed>, Error> {
        self.count(part).await
    }

    async fn close_chord(&self, group_id: &str, claim: &Claimed) -> Result<(), Error> {
        self.finish(group_id, claim).await
    }

    async fn close(&self) -> Result<(), Error> {
        self.subscriptions.close();
        self.link.close().await;
        Ok(())
    }
}
