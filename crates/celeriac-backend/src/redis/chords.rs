//! Chords: the parts in a sorted set, counted by a script that Celery's workers run as well.

use std::sync::LazyLock;

use celeriac_core::backend::{ChordPart, Claimed, Error, Settings};
use redis::{Cmd, FromRedisValue, Script, cmd, pipe};
use std::time::Duration;

use super::RedisBackend;
use crate::{chord, options};

static PART: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/chord_part.lua")));
static EXTEND: LazyLock<Script> =
    LazyLock::new(|| Script::new(include_str!("lua/chord_extend.lua")));
static CLOSE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lua/chord_close.lua")));

/// How long the body may take to be sent: what Celery allows for with its default
/// `task_publish_retry_policy` and `broker_connection_timeout`.
const PUBLISHING: u64 = 21;
/// The least time for which a mark says that a chord is done.
const DONE: u64 = 300;
/// The claim's time where `result_chord_join_timeout` says nothing.
const JOIN: Duration = Duration::from_secs(5);

/// What the settings say of chords, in whole seconds; zero is for ever.
#[derive(Debug, Clone)]
pub(super) struct ChordSettings {
    /// How long the parts live.
    parts: u64,
    /// How long the document of their group lives.
    group: u64,
    /// How long a claim lasts while the results are fetched.
    claim: u64,
    join_timeout: Duration,
    /// The option `result_chord_ordered`.
    is_ordered: bool,
}

impl ChordSettings {
    pub(super) fn new(settings: &Settings) -> Self {
        let expires = options::whole_seconds(settings.expires);
        let parts = options::whole_seconds(settings.chord_expires.or(settings.expires));
        let join_timeout = Some(settings.chord_join_timeout)
            .filter(|timeout| !timeout.is_zero())
            .unwrap_or(JOIN);
        Self {
            parts,
            group: if parts == 0 || expires == 0 {
                0
            } else {
                parts.max(expires)
            },
            claim: ((join_timeout.as_secs_f64() * 2.0) as u64).max(5),
            join_timeout,
            is_ordered: settings
                .options
                .get("result_chord_ordered")
                .is_none_or(|on| on.as_bool() != Some(false)),
        }
    }
}

impl RedisBackend {
    fn chord_key(&self, group_id: &str, suffix: &str) -> Result<String, Error> {
        Ok(format!("{}.{suffix}", self.keys.group(group_id)?))
    }

    async fn call<T: FromRedisValue>(&self, script: &Script, call: &Cmd) -> Result<T, Error> {
        let mut calls = pipe();
        calls.add_command(call.clone());
        let (answer,) = self
            .retry
            .run(&self.display, || self.link.call_all(script, &calls))
            .await?;
        Ok(answer)
    }

    pub(super) async fn open(&self, group_id: &str, size: u64) -> Result<(), Error> {
        // The same chord may be applied again.
        self.delete(&[self.chord_key(group_id, "c")?]).await?;
        let mut set = cmd("SET");
        set.arg(self.chord_key(group_id, "s")?).arg(size);
        if self.chords.parts > 0 {
            set.arg("EX").arg(self.chords.parts);
        }
        self.retry
            .run(&self.display, || self.link.query(&set))
            .await
    }

    pub(super) async fn extend(&self, group_id: &str, by: u64) -> Result<(), Error> {
        let mut add = cmd("INCRBY");
        add.arg(self.chord_key(group_id, "t")?).arg(by);
        // Not tried again: a second time would count it twice.
        self.link.query::<()>(&add).await
    }

    pub(super) async fn count(&self, part: &ChordPart) -> Result<Option<Claimed>, Error> {
        let group = &part.group_id;
        let token = uuid::Uuid::new_v4().simple().to_string();
        let place = part
            .group_index
            .map_or_else(|| "+inf".to_owned(), |index| index.to_string());
        let settings = &self.chords;
        let mut count = cmd("EVALSHA");
        count.arg(PART.get_hash()).arg(6);
        for suffix in ["j", "t", "s", "d"] {
            count.arg(self.chord_key(group, suffix)?);
        }
        count
            .arg(self.keys.group(group)?)
            .arg(self.chord_key(group, "c")?)
            .arg(&part.task_id)
            .arg(chord::encode(part)?)
            .arg(u8::from(settings.is_ordered))
            .arg(place)
            .arg(settings.parts)
            .arg(settings.group)
            .arg(settings.claim)
            .arg(&token);
        let claimed: i64 = self.call(&PART, &count).await?;
        if claimed != 1 {
            return Ok(None);
        }
        let results = match celeriac_core::Backend::group(self, group).await? {
            Some(members) => chord::join(self, &members, settings.join_timeout).await,
            None => chord::unpack(&self.parts(group).await?)?,
        };
        if results.is_ok() && !self.hold(group, &token).await? {
            tracing::warn!(
                target: "celeriac.backend",
                "Chord callback for {group:?} not published: another worker has claimed it meanwhile"
            );
            return Ok(None);
        }
        Ok(Some(Claimed { results, token }))
    }

    /// The parts as they are stored, in order.
    async fn parts(&self, group: &str) -> Result<Vec<Vec<u8>>, Error> {
        let command = if self.chords.is_ordered {
            "ZRANGE"
        } else {
            "LRANGE"
        };
        let mut range = cmd(command);
        range.arg(self.chord_key(group, "j")?).arg(0).arg(-1);
        self.retry
            .run(&self.display, || self.link.query(&range))
            .await
    }

    /// Holds on to a claim for as long as the body may take to be sent.
    async fn hold(&self, group: &str, token: &str) -> Result<bool, Error> {
        let mut extend = cmd("EVALSHA");
        extend
            .arg(EXTEND.get_hash())
            .arg(2)
            .arg(self.chord_key(group, "c")?)
            .arg(self.chord_key(group, "s")?)
            .arg(token)
            .arg(PUBLISHING.max(self.chords.claim));
        self.call(&EXTEND, &extend).await
    }

    pub(super) async fn finish(&self, group_id: &str, claim: &Claimed) -> Result<(), Error> {
        if claim.results.is_err() {
            // A late copy of a part is not to fail it again; the parts stay, as in Celery.
            return self.delete(&[self.chord_key(group_id, "s")?]).await;
        }
        let mut close = cmd("EVALSHA");
        close.arg(CLOSE.get_hash()).arg(5);
        for suffix in ["c", "j", "t", "s", "d"] {
            close.arg(self.chord_key(group_id, suffix)?);
        }
        close.arg(&claim.token).arg(DONE.max(2 * self.chords.claim));
        let is_closed: bool = self.call(&CLOSE, &close).await?;
        if !is_closed {
            tracing::warn!(
                target: "celeriac.backend",
                "Chord callback claim for {group_id:?} was lost before cleanup; chord data was left \
                 for expiry"
            );
        }
        Ok(())
    }
}
