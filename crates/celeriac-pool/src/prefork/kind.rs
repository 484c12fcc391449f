//! The kinds of pools whose tasks are Python's.

use std::fmt;
use std::str::FromStr;

use super::machine::Shape;

/// What a child does with its jobs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum PoolKind {
    /// A process for each task: `celery.concurrency.prefork`.
    #[default]
    Prefork,
    /// One process and one task at a time: `celery.concurrency.solo`.
    Solo,
    /// A thread for each task: `celery.concurrency.thread`.
    Threads,
    /// A greenlet for each task: `celery.concurrency.gevent`.
    Gevent,
    /// An event loop: coroutines run on it, other tasks in threads. Celery has none.
    Asyncio,
}

/// A name that is no pool's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoSuchPool(pub String);

impl fmt::Display for NoSuchPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "there is no pool {:?}; there are prefork (processes), solo, threads, gevent and asyncio",
            self.0
        )
    }
}

impl std::error::Error for NoSuchPool {}

impl FromStr for PoolKind {
    type Err = NoSuchPool;

    /// By the names of `celery worker --pool`.
    fn from_str(name: &str) -> Result<Self, NoSuchPool> {
        Ok(match name {
            "prefork" | "processes" => Self::Prefork,
            "solo" => Self::Solo,
            "threads" => Self::Threads,
            "gevent" => Self::Gevent,
            "asyncio" => Self::Asyncio,
            _ => return Err(NoSuchPool(name.to_owned())),
        })
    }
}

impl fmt::Display for PoolKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl PoolKind {
    /// Its name, as in the banner.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prefork => "prefork",
            Self::Solo => "solo",
            Self::Threads => "threads",
            Self::Gevent => "gevent",
            Self::Asyncio => "asyncio",
        }
    }

    /// The class that `inspect stats` names: Celery's where Celery has this pool.
    pub fn implementation(self) -> &'static str {
        match self {
            Self::Prefork => "celery.concurrency.prefork:TaskPool",
            Self::Solo => "celery.concurrency.solo:TaskPool",
            Self::Threads => "celery.concurrency.thread:TaskPool",
            Self::Gevent => "celery.concurrency.gevent:TaskPool",
            Self::Asyncio => "celeriac.host.pools:AsyncioPool",
        }
    }

    /// How its jobs are spread over `processes` children.
    pub fn shape(self, processes: usize) -> Shape {
        match self {
            Self::Prefork | Self::Solo => Shape::OneEach,
            Self::Threads | Self::Gevent | Self::Asyncio => Shape::Shared {
                processes: processes.max(1),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_known_by_celerys_names() {
        for kind in [
            PoolKind::Prefork,
            PoolKind::Solo,
            PoolKind::Threads,
            PoolKind::Gevent,
            PoolKind::Asyncio,
        ] {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        assert_eq!("processes".parse(), Ok(PoolKind::Prefork));
        let unknown = "eventlet".parse::<PoolKind>().unwrap_err();
        assert!(unknown.to_string().contains("\"eventlet\""), "{unknown}");
    }

    #[test]
    fn a_shared_pool_has_a_process() {
        assert_eq!(PoolKind::Gevent.shape(0), Shape::Shared { processes: 1 });
        assert_eq!(PoolKind::Asyncio.shape(2), Shape::Shared { processes: 2 });
        assert_eq!(PoolKind::Solo.shape(2), Shape::OneEach);
    }
}
