//! The kinds of pools.

use std::fmt;

use crate::layers::nearest::nearest;

/// What runs the tasks of a pool. Celery's counterpart: `celery.concurrency.ALIASES`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// A Python process for each task.
    Prefork,
    /// Python coroutines on an event loop, and other tasks in threads.
    Asyncio,
    /// A greenlet for each task.
    Gevent,
    /// A thread for each task.
    Threads,
    /// One task at a time in one Python process.
    Solo,
    /// Tasks in Rust, in the worker's own process.
    Native,
}

impl PoolKind {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Prefork,
        Self::Asyncio,
        Self::Gevent,
        Self::Threads,
        Self::Solo,
        Self::Native,
    ];

    /// Its name in options and settings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefork => "prefork",
            Self::Asyncio => "asyncio",
            Self::Gevent => "gevent",
            Self::Threads => "threads",
            Self::Solo => "solo",
            Self::Native => "native",
        }
    }

    /// The kind of this name; Celery's `processes` is `prefork`.
    ///
    /// # Errors
    /// What is wrong with the name, and what to write.
    pub fn named(name: &str) -> Result<Self, (String, String)> {
        let mut kinds = Self::ALL.into_iter();
        if let Some(kind) = kinds.find(|kind| kind.name() == name) {
            return Ok(kind);
        }
        match name {
            "processes" => Ok(Self::Prefork),
            "eventlet" => Err((
                "eventlet pools are not available: eventlet is no longer developed".to_owned(),
                "write gevent or asyncio, or run these tasks with `celery worker`".to_owned(),
            )),
            _ if name.contains(['.', ':']) => Err((
                format!("{name} is a pool class: it would replace what celeriac is"),
                format!("write one of {}", Self::all_names()),
            )),
            _ => Err((
                format!("there is no kind of pool {name:?}"),
                match nearest(name, Self::ALL.into_iter().map(Self::name)) {
                    Some(near) => format!("write {near}"),
                    None => format!("write one of {}", Self::all_names()),
                },
            )),
        }
    }

    /// Whether one of its processes runs many tasks at once.
    pub fn has_slots(self) -> bool {
        matches!(self, Self::Asyncio | Self::Gevent | Self::Threads)
    }

    fn all_names() -> String {
        Self::ALL.map(Self::name).join(", ")
    }
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_known_by_their_names() {
        for kind in PoolKind::ALL {
            assert_eq!(PoolKind::named(kind.name()), Ok(kind));
        }
        assert_eq!(PoolKind::named("processes"), Ok(PoolKind::Prefork));
        for (name, message, hint) in [
            (
                "gevnet",
                "there is no kind of pool \"gevnet\"",
                "write gevent",
            ),
            (
                "xy",
                "there is no kind of pool \"xy\"",
                "write one of prefork, ",
            ),
            (
                "eventlet",
                "eventlet pools are not available",
                "write gevent or asyncio",
            ),
            (
                "my.pools:Pool",
                "my.pools:Pool is a pool class",
                "write one of prefork, ",
            ),
        ] {
            let (found, remedy) = PoolKind::named(name).unwrap_err();
            assert!(found.starts_with(message), "{found}");
            assert!(remedy.starts_with(hint), "{remedy}");
        }
    }
}
