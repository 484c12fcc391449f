//! What is said of a pool, and how it is written in an option.

use std::fmt;
use std::str::FromStr;

use super::kind::PoolKind;
use crate::layers::Problem;

/// What is said of a pool. What is not said is as the worker has it: its `--concurrency`,
/// `--time-limit`, and so on.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolSpec {
    /// Its name, by which logs and the remote control tell it apart.
    pub name: String,
    /// What runs its tasks.
    pub kind: PoolKind,
    /// How many tasks run at once: processes of a prefork pool; tasks in each process of others;
    /// tasks of a native one.
    pub concurrency: Option<u32>,
    /// Processes, where each runs many tasks at once: asyncio, gevent, threads. `None` is one.
    pub processes: Option<u32>,
    /// The queues that it alone serves. None where it takes those that are left.
    pub queues: Vec<String>,
    /// Most and fewest processes of a prefork pool that grows and shrinks.
    pub autoscale: Option<(u32, u32)>,
    /// Hard limit on the run time of tasks without one, in seconds.
    pub time_limit: Option<f64>,
    /// Soft limit on the run time of tasks without one, in seconds.
    pub soft_time_limit: Option<f64>,
    /// Tasks after which a process is replaced.
    pub max_tasks_per_child: Option<u64>,
    /// KiB of memory after which a process is replaced.
    pub max_memory_per_child: Option<u64>,
    /// A bound on what may wait here for a rate limit, for each process.
    pub prefetch_multiplier: Option<u32>,
}

impl PoolSpec {
    /// A pool of which nothing else is said.
    pub fn new(name: impl Into<String>, kind: PoolKind) -> Self {
        Self {
            name: name.into(),
            kind,
            concurrency: None,
            processes: None,
            queues: Vec::new(),
            autoscale: None,
            time_limit: None,
            soft_time_limit: None,
            max_tasks_per_child: None,
            max_memory_per_child: None,
            prefetch_multiplier: None,
        }
    }

    /// What is said of it that makes no sense, if anything is: the message and the remedy.
    pub(super) fn nonsense(&self) -> Option<(String, String)> {
        let Self { name, kind, .. } = self;
        let wrong =
            |what: String, hint: &str| Some((format!("pool {name}: {what}"), hint.to_owned()));
        if !is_name(name) {
            let hint = "write letters, digits, _ and -";
            return wrong("this is no name of a pool".to_owned(), hint);
        }
        if self.concurrency == Some(0) || self.processes == Some(0) {
            return wrong("it could run nothing".to_owned(), "write a number above 0");
        }
        if *kind == PoolKind::Solo && self.concurrency.is_some_and(|number| number > 1) {
            return wrong(
                "a solo pool runs one task at a time".to_owned(),
                "leave its concurrency out, or write prefork or threads",
            );
        }
        if self.processes.is_some() && !kind.has_slots() {
            return wrong(
                format!("a {kind} pool has no number of processes beside its concurrency"),
                "write prefork:N, solo or native:N; N*M is for asyncio, gevent and threads",
            );
        }
        if self.autoscale.is_some() && *kind != PoolKind::Prefork {
            return wrong(
                format!("a {kind} pool does not grow and shrink"),
                "leave autoscale out, or write prefork",
            );
        }
        if self.autoscale.is_some_and(|(max, _)| max == 0) {
            return wrong(
                "it could run nothing".to_owned(),
                "write autoscale = [MAX, MIN]",
            );
        }
        let limits = [self.time_limit, self.soft_time_limit];
        if limits.into_iter().flatten().any(|limit| limit < 0.0) {
            return wrong(
                "a time limit is below 0".to_owned(),
                "write a number of seconds",
            );
        }
        None
    }
}

/// Whether a word of `--pool` declares a pool with a name, rather than the kind of the only one.
pub fn is_named(word: &str) -> bool {
    word.contains('=')
}

fn is_name(name: &str) -> bool {
    let mut letters = name.chars();
    !name.is_empty()
        && letters.all(|letter| letter.is_ascii_alphanumeric() || "_-".contains(letter))
}

impl fmt::Display for PoolSpec {
    /// As `--pool` has it: `NAME=KIND[:N[*M]][@QUEUE,…]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.kind)?;
        match (self.concurrency, self.processes) {
            (Some(number), None) => write!(f, ":{number}")?,
            (Some(number), Some(processes)) => write!(f, ":{number}*{processes}")?,
            (None, Some(processes)) => write!(f, ":*{processes}")?,
            (None, None) => {}
        }
        if !self.queues.is_empty() {
            write!(f, "@{}", self.queues.join(","))?;
        }
        Ok(())
    }
}

impl FromStr for PoolSpec {
    type Err = Problem;

    /// Reads `NAME=KIND[:N[*M]][@QUEUE,…]`: `N` tasks at once, in each of `M` processes.
    fn from_str(word: &str) -> Result<Self, Problem> {
        let place = format!("--pool {word}");
        let wrong =
            |message: String, hint: String| Problem::new(&place, message).with_hint(Some(hint));
        let example = || "write NAME=KIND:N@QUEUE,QUEUE, such as io=gevent:512@mail,web".to_owned();
        let Some((name, rest)) = word.split_once('=') else {
            return Err(wrong("there is no = behind the name".to_owned(), example()));
        };
        let (rest, queues) = match rest.split_once('@') {
            Some((rest, queues)) => (rest, Some(queues)),
            None => (rest, None),
        };
        // A class may be named as `module:Class`.
        let (kind, size) = match rest.rsplit_once(':') {
            Some((kind, size)) if size.starts_with(|it: char| it.is_ascii_digit() || it == '*') => {
                (kind, Some(size))
            }
            Some((kind, "")) => (kind, Some("")),
            _ => (rest, None),
        };
        let kind = PoolKind::named(kind).map_err(|(message, hint)| wrong(message, hint))?;
        let mut spec = Self::new(name, kind);
        if let Some(size) = size {
            let (number, processes) = match size.split_once('*') {
                Some((number, processes)) => (number, Some(processes)),
                None => (size, None),
            };
            let number_of = |text: &str| {
                let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
                let number = text.parse().ok().filter(|_| is_number);
                number.ok_or_else(|| wrong(format!("{text:?} is no number"), example()))
            };
            if !(number.is_empty() && processes.is_some()) {
                spec.concurrency = Some(number_of(number)?);
            }
            spec.processes = processes.map(number_of).transpose()?;
        }
        if let Some(queues) = queues {
            spec.queues = queues
                .split(',')
                .map(|queue| queue.trim().to_owned())
                .filter(|queue| !queue.is_empty())
                .collect();
            if spec.queues.is_empty() {
                return Err(wrong("there is no queue behind @".to_owned(), example()));
            }
        }
        match spec.nonsense() {
            Some((message, hint)) => Err(wrong(message, hint)),
            None => Ok(spec),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn options_are_read() {
        let spec = |name: &str, kind, concurrency, processes, queues: &[&str]| PoolSpec {
            concurrency,
            processes,
            queues: queues.iter().map(|queue| (*queue).to_owned()).collect(),
            ..PoolSpec::new(name, kind)
        };
        for (word, expected) in [
            (
                "io=gevent:512@io_bound",
                spec("io", PoolKind::Gevent, Some(512), None, &["io_bound"]),
            ),
            (
                "cpu=prefork:4@celery, batch,",
                spec(
                    "cpu",
                    PoolKind::Prefork,
                    Some(4),
                    None,
                    &["celery", "batch"],
                ),
            ),
            (
                "web=asyncio:100*2",
                spec("web", PoolKind::Asyncio, Some(100), Some(2), &[]),
            ),
            (
                "a-1=processes",
                spec("a-1", PoolKind::Prefork, None, None, &[]),
            ),
            (
                "r=native:8@r",
                spec("r", PoolKind::Native, Some(8), None, &["r"]),
            ),
            (
                "s=solo@a:b@c=d",
                spec("s", PoolKind::Solo, None, None, &["a:b@c=d"]),
            ),
        ] {
            assert_eq!(word.parse(), Ok(expected), "{word}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (word, expected) in [
            ("io", "there is no = behind the name"),
            ("=gevent", "this is no name of a pool"),
            ("a b=gevent", "this is no name of a pool"),
            (
                "io=gevnet:5",
                "there is no kind of pool \"gevnet\" (write gevent)",
            ),
            ("io=eventlet", "eventlet pools are not available"),
            ("io=my.pool:Pool", "my.pool:Pool is a pool class"),
            ("io=gevent:", "\"\" is no number"),
            ("io=gevent:5x", "\"5x\" is no number"),
            ("io=gevent:5*", "\"\" is no number"),
            ("io=gevent:99999999999", "\"99999999999\" is no number"),
            ("io=gevent:0", "it could run nothing"),
            ("io=gevent:1*0", "it could run nothing"),
            (
                "io=prefork:2*2",
                "a prefork pool has no number of processes",
            ),
            ("io=solo:2", "a solo pool runs one task at a time"),
            ("io=gevent@", "there is no queue behind @"),
        ] {
            let problem = word.parse::<PoolSpec>().unwrap_err().to_string();
            assert!(
                problem.starts_with(&format!("--pool {word}: ")),
                "{problem}"
            );
            assert!(problem.contains(expected), "{problem}");
        }
    }

    prop_compose! {
        fn any_spec()(
            name in "[A-Za-z0-9_-]{1,8}",
            kind in proptest::sample::select(PoolKind::ALL.to_vec()),
            concurrency in proptest::option::of(1..u32::MAX),
            processes in proptest::option::of(1..u32::MAX),
            queues in proptest::collection::vec("[a-z0-9_.:@=*-]{1,6}", 0..4),
        ) -> PoolSpec {
            PoolSpec {
                concurrency: concurrency.filter(|_| kind != PoolKind::Solo),
                processes: processes.filter(|_| kind.has_slots()),
                queues,
                ..PoolSpec::new(name, kind)
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(spec in any_spec()) {
            prop_assert_eq!(spec.to_string().parse(), Ok(spec));
        }

        #[test]
        fn any_word_is_read_or_refused(word in "[a-z0-9=:*@, .é]{0,30}") {
            let read: Result<PoolSpec, _> = word.parse();
            if let Ok(spec) = read {
                prop_assert_eq!(spec.to_string().parse(), Ok(spec));
            }
        }
    }
}
