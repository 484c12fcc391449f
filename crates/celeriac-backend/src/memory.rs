//! Results in this process's memory, for tests: whoever opens the same URL shares them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use celeriac_core::backend::{Backend, ChordPart, Chords, Claimed, Error, Meta, Settings, Stored};
use serde_json::Value;
use tokio::time::{Duration, Instant};

use crate::awaited::Awaited;
use crate::{chord, document};

/// All stores of this process, by their URLs.
static STORES: LazyLock<Mutex<HashMap<String, Arc<MemoryBackend>>>> = LazyLock::new(Mutex::default);

/// One store.
pub struct MemoryBackend {
    url: String,
    settings: Settings,
    kept: Mutex<Kept>,
    awaited: Arc<Awaited>,
}

/// What is kept, each with the moment at which it expires.
#[derive(Default)]
struct Kept {
    tasks: HashMap<String, (Meta, Option<Instant>)>,
    groups: HashMap<String, (Value, Option<Instant>)>,
    chords: HashMap<String, Chord>,
}

/// The parts of a chord.
#[derive(Default)]
struct Chord {
    size: Option<u64>,
    /// Parts that were added later.
    extra: u64,
    /// By their place in the header and their task.
    parts: BTreeMap<(u64, String), Vec<u8>>,
    is_claimed: bool,
}

impl MemoryBackend {
    /// The store that `url` names, made with these settings if nobody has opened it before.
    pub fn open(url: &str, settings: Settings) -> Arc<Self> {
        // Nothing panics while it is held.
        let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
        let made = || {
            Arc::new(Self {
                url: url.to_owned(),
                settings,
                kept: Mutex::default(),
                awaited: Arc::default(),
            })
        };
        Arc::clone(stores.entry(url.to_owned()).or_insert_with(made))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nothing panics while it is held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expiry(&self, status: &str) -> Option<Instant> {
        let span = match status {
            "FAILURE" => self.settings.failure_expires.or(self.settings.expires),
            _ => self.settings.expires,
        };
        span.filter(|span| *span > Duration::ZERO)
            .map(|span| Instant::now() + span)
    }
}

fn is_there(expiry: Option<Instant>) -> bool {
    expiry.is_none_or(|at| at > Instant::now())
}

impl fmt::Debug for MemoryBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryBackend({})", self.url)
    }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn display_url(&self) -> String {
        self.url.clone()
    }

    fn chords(&self) -> Chords {
        Chords::Counted
    }

    async fn expect(&self, _id: &str) -> Result<(), Error> {
        Ok(())
    }

    async fn store(&self, results: &[Stored]) -> Result<(), Error> {
        for Stored { meta, .. } in results {
            // As it would come back from any other backend.
            let meta = document::decode(&document::encode(meta)?)?;
            let expiry = self.expiry(&meta.status);
            {
                let mut kept = self.kept();
                let before = kept.tasks.get(&meta.task_id);
                if before.is_some_and(|(old, at)| old.status == "SUCCESS" && is_there(*at)) {
                    continue;
                }
                kept.tasks
                    .insert(meta.task_id.clone(), (meta.clone(), expiry));
            }
            self.awaited.tell(&meta.task_id.clone(), Ok(meta));
        }
        Ok(())
    }

    async fn get(&self, ids: &[String]) -> Result<Vec<Option<Meta>>, Error> {
        let kept = self.kept();
        let found = ids.iter().map(|id| {
            let (meta, expiry) = kept.tasks.get(id)?;
            is_there(*expiry).then(|| meta.clone())
        });
        Ok(found.collect())
    }

    async fn changed(&self, id: &str, known: Option<&Meta>) -> Result<Meta, Error> {
        let mut interest = self.awaited.enter(id);
        loop {
            let found = self.get(&[id.to_owned()]).await?.pop().flatten();
            match found {
                Some(meta) if known != Some(&meta) => return Ok(meta),
                _ => drop(interest.next().await),
            }
        }
    }

    async fn forget(&self, ids: &[String]) -> Result<(), Error> {
        let mut kept = self.kept();
        for id in ids {
            kept.tasks.remove(id);
        }
        Ok(())
    }

    async fn save_group(&self, group_id: &str, members: &Value) -> Result<(), Error> {
        let expiry = self.expiry("SUCCESS");
        self.kept()
            .groups
            .insert(group_id.to_owned(), (members.clone(), expiry));
        Ok(())
    }

    async fn group(&self, group_id: &str) -> Result<Option<Value>, Error> {
        let kept = self.kept();
        let group = kept.groups.get(group_id);
        Ok(group.and_then(|(members, expiry)| is_there(*expiry).then(|| members.clone())))
    }

    async fn forget_group(&self, group_id: &str) -> Result<(), Error> {
        self.kept().groups.remove(group_id);
        Ok(())
    }

    async fn open_chord(&self, group_id: &str, size: u64) -> Result<(), Error> {
        let mut kept = self.kept();
        let chord = kept.chords.entry(group_id.to_owned()).or_default();
        chord.size = Some(size);
        chord.is_claimed = false;
        Ok(())
    }

    async fn extend_chord(&self, group_id: &str, by: u64) -> Result<(), Error> {
        let mut kept = self.kept();
        let chord = kept.chords.entry(group_id.to_owned()).or_default();
        chord.extra += by;
        Ok(())
    }

    async fn chord_part(&self, part: &ChordPart) -> Result<Option<Claimed>, Error> {
        let encoded = chord::encode(part)?;
        let parts: Vec<Vec<u8>> = {
            let mut kept = self.kept();
            let chord = kept.chords.entry(part.group_id.clone()).or_default();
            let place = (part.group_index.unwrap_or(u64::MAX), part.task_id.clone());
            chord.parts.entry(place).or_insert(encoded);
            let size = chord.size.map(|size| size + chord.extra);
            if chord.is_claimed || size != Some(chord.parts.len() as u64) {
                return Ok(None);
            }
            chord.is_claimed = true;
            chord.parts.values().cloned().collect()
        };
        let results = match self.group(&part.group_id).await? {
            Some(members) => chord::join(self, &members, self.settings.chord_join_timeout).await,
            None => chord::unpack(&parts)?,
        };
        Ok(Some(Claimed {
            results,
            token: String::new(),
        }))
    }

    async fn close_chord(&self, group_id: &str, _claim: &Claimed) -> Result<(), Error> {
        // It stays claimed, so that a late copy of a part opens none.
        if let Some(chord) = self.kept().chords.get_mut(group_id) {
            chord.parts.clear();
            chord.extra = 0;
        }
        Ok(())
    }

    async fn cleanup(&self) -> Result<(), Error> {
        let mut kept = self.kept();
        kept.tasks.retain(|_, (_, expiry)| is_there(*expiry));
        kept.groups.retain(|_, (_, expiry)| is_there(*expiry));
        Ok(())
    }
}
