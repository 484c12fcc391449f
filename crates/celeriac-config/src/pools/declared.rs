//! The pools that options and files declare.

use std::fmt;

use serde_json::{Map, Value};

use super::kind::PoolKind;
use super::spec::PoolSpec;
use crate::layers::{Configuration, Misconfigured, Problem};

/// The pools of `[pools.*]` and of `--pool NAME=KIND…`, which count over them name by name: what an
/// option does not say is as the file has it.
///
/// # Errors
/// When one of them makes no sense, or two have the same name or the same queue.
pub fn declared(
    configuration: &Configuration,
    words: &[String],
) -> Result<Vec<PoolSpec>, Misconfigured> {
    let mut problems = Vec::new();
    let mut pools: Vec<PoolSpec> = Vec::new();
    for word in words {
        match word.parse::<PoolSpec>() {
            Ok(spec) if pools.iter().any(|pool| pool.name == spec.name) => {
                let message = format!("there is another pool {}", spec.name);
                let hint = "give each pool a name of its own";
                problems.push(problem(
                    format!("--pool {word}"),
                    (message, hint.to_owned()),
                ));
            }
            Ok(spec) => pools.push(spec),
            Err(wrong) => problems.push(wrong),
        }
    }
    for (name, table) in configuration.pools() {
        let Value::Object(table) = table else {
            continue;
        };
        let place = configuration.place_of_pool(&name);
        let place = place.map_or_else(|| name.clone(), ToString::to_string);
        let option = pools.iter_mut().find(|pool| pool.name == name);
        match of_table(&name, &table, option.as_deref()) {
            Ok(spec) => match option {
                Some(pool) => *pool = spec,
                None => pools.push(spec),
            },
            Err(wrong) => problems.push(problem(place, wrong)),
        }
    }
    // Whether they share a queue is looked at when each is well.
    if problems.is_empty() {
        problems.extend(shared_queue(&pools));
    }
    if problems.is_empty() {
        Ok(pools)
    } else {
        Err(Misconfigured(problems))
    }
}

fn problem(place: impl fmt::Display, (message, hint): (String, String)) -> Problem {
    Problem::new(place, message).with_hint(Some(hint))
}

/// A pool of a file, whose values are of the right kinds, below an option.
fn of_table(
    name: &str,
    table: &Map<String, Value>,
    option: Option<&PoolSpec>,
) -> Result<PoolSpec, (String, String)> {
    let kind = match (option, table.get("pool").and_then(Value::as_str)) {
        (Some(option), _) => option.kind,
        (None, Some(kind)) => PoolKind::named(kind)
            .map_err(|(message, hint)| (format!("pool {name}: {message}"), hint))?,
        (None, None) => {
            let hint = "write pool = \"prefork\", or another kind".to_owned();
            return Err((
                format!("pool {name}: it is not said of which kind it is"),
                hint,
            ));
        }
    };
    let whole = |key: &str| -> Result<Option<u64>, (String, String)> {
        table.get(key).map_or(Ok(None), |value| {
            value.as_u64().map(Some).ok_or_else(|| {
                let hint = "write a whole number, 0 or more".to_owned();
                (format!("pool {name}: {key} is below 0"), hint)
            })
        })
    };
    let small = |key: &str| -> Result<Option<u32>, (String, String)> {
        whole(key)?.map(u32::try_from).transpose().map_err(|_| {
            let hint = "write a smaller number".to_owned();
            (format!("pool {name}: {key} is too large"), hint)
        })
    };
    let mut spec = PoolSpec {
        concurrency: small("concurrency")?,
        processes: small("processes")?,
        queues: queues(table.get("queues")),
        autoscale: table
            .get("autoscale")
            .map(|value| autoscale(name, value))
            .transpose()?,
        time_limit: table.get("time_limit").and_then(Value::as_f64),
        soft_time_limit: table.get("soft_time_limit").and_then(Value::as_f64),
        max_tasks_per_child: whole("max_tasks_per_child")?,
        max_memory_per_child: whole("max_memory_per_child")?,
        prefetch_multiplier: small("prefetch_multiplier")?,
        ..PoolSpec::new(name, kind)
    };
    if let Some(option) = option {
        // A number of processes in the file goes with the number of tasks in it.
        if option.concurrency.is_some() {
            spec.concurrency = option.concurrency;
            spec.processes = option.processes;
            spec.autoscale = None;
        } else if option.processes.is_some() {
            spec.processes = option.processes;
        }
        if !option.queues.is_empty() {
            spec.queues.clone_from(&option.queues);
        }
    }
    match spec.nonsense() {
        Some(wrong) => Err(wrong),
        None => Ok(spec),
    }
}

/// A list of names, or one text with commas between them, each once.
fn queues(value: Option<&Value>) -> Vec<String> {
    let listed: Vec<&str> = match value {
        Some(Value::String(text)) => text.split(',').collect(),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let mut queues: Vec<String> = Vec::new();
    for queue in listed.into_iter().map(str::trim) {
        if !queue.is_empty() && !queues.iter().any(|it| it == queue) {
            queues.push(queue.to_owned());
        }
    }
    queues
}

/// Two numbers, one, or text such as `10,3`: the larger one is the most.
fn autoscale(name: &str, value: &Value) -> Result<(u32, u32), (String, String)> {
    let numbers: Option<Vec<u32>> = match value {
        Value::Array(items) => items.iter().map(number).collect(),
        Value::String(text) => text
            .split(',')
            .map(|part| part.trim().parse().ok())
            .collect(),
        other => number(other).map(|number| vec![number]),
    };
    match numbers.as_deref() {
        Some([max]) => Ok((*max, 0)),
        Some([a, b]) => Ok((*a.max(b), *a.min(b))),
        _ => Err((
            format!("pool {name}: autoscale can't be read"),
            "write autoscale = [MAX, MIN]".to_owned(),
        )),
    }
}

fn number(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok())
}

/// Two pools that name the same queue.
fn shared_queue(pools: &[PoolSpec]) -> Option<Problem> {
    for (at, pool) in pools.iter().enumerate() {
        for other in &pools[at + 1..] {
            if let Some(queue) = pool
                .queues
                .iter()
                .find(|queue| other.queues.contains(queue))
            {
                let message = format!("{} and {} both have it", pool.name, other.name);
                let hint = "a queue has one pool: take it from one of them".to_owned();
                return Some(problem(format!("queue {queue}"), (message, hint)));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::{File, Texts, resolve};

    fn configured(text: &str) -> Configuration {
        let file = File {
            name: "celeriac.toml".into(),
            text: text.to_owned(),
        };
        let texts = Texts {
            file: Some(file),
            ..Texts::default()
        };
        resolve(&texts).unwrap()
    }

    fn read(text: &str, words: &[&str]) -> Result<Vec<PoolSpec>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        declared(&configured(text), &words).map_err(|wrong| wrong.to_string())
    }

    const IO: &str = "[pools.io]\npool = 'gevent'\nconcurrency = 512\nprocesses = 2\n\
                      queues = ['mail', 'web', 'mail']\ntime_limit = 30\nsoft_time_limit = 2.5\n\
                      max_tasks_per_child = 100\nmax_memory_per_child = 200000\n\
                      prefetch_multiplier = 2\n";

    fn io() -> PoolSpec {
        PoolSpec {
            concurrency: Some(512),
            processes: Some(2),
            queues: vec!["mail".to_owned(), "web".to_owned()],
            time_limit: Some(30.0),
            soft_time_limit: Some(2.5),
            max_tasks_per_child: Some(100),
            max_memory_per_child: Some(200_000),
            prefetch_multiplier: Some(2),
            ..PoolSpec::new("io", PoolKind::Gevent)
        }
    }

    #[test]
    fn a_file_says_all_of_a_pool() {
        assert_eq!(read(IO, &[]), Ok(vec![io()]));
        assert_eq!(read("", &[]), Ok(vec![]));
        let cpu = read("[pools.cpu]\npool = 'prefork'\nautoscale = '3,10'", &[]).unwrap();
        assert_eq!(cpu[0].autoscale, Some((10, 3)));
    }

    #[test]
    fn options_count_over_the_file_by_name() {
        let of = |spec: PoolSpec| Ok(vec![spec]);
        let option = PoolSpec {
            concurrency: Some(8),
            processes: None,
            ..io()
        };
        assert_eq!(read(IO, &["io=gevent:8"]), of(option));
        let option = PoolSpec {
            kind: PoolKind::Threads,
            queues: vec!["a".to_owned()],
            ..io()
        };
        assert_eq!(read(IO, &["io=threads@a"]), of(option));
        let both = read(IO, &["cpu=prefork:4"]).unwrap();
        let names: Vec<_> = both.iter().map(|pool| &*pool.name).collect();
        assert_eq!(names, ["cpu", "io"]);
    }

    #[test]
    fn pools_that_make_no_sense_are_refused() {
        for (text, words, expected) in [
            (
                "[pools.a]\nconcurrency = 2",
                &[][..],
                "celeriac.toml:2: pool a: it is not said of which kind",
            ),
            (
                "[pools.a]",
                &[],
                "celeriac.toml:1: pool a: it is not said of which kind",
            ),
            ("[pools.a]\npool = 'gevnet'", &[], "(write gevent)"),
            (
                "[pools.a]\npool = 'eventlet'",
                &[],
                "eventlet pools are not available",
            ),
            (
                "[pools.a]\npool = 'gevent'\nconcurrency = -1",
                &[],
                "concurrency is below 0",
            ),
            (
                "[pools.a]\npool = 'gevent'\nconcurrency = 5000000000",
                &[],
                "concurrency is too large",
            ),
            (
                "[pools.a]\npool = 'gevent'\nautoscale = [3]",
                &[],
                "a gevent pool does not grow",
            ),
            (
                "[pools.a]\npool = 'prefork'\nautoscale = 'many'",
                &[],
                "autoscale can't be read",
            ),
            (
                "[pools.a]\npool = 'prefork'\ntime_limit = -1",
                &[],
                "a time limit is below 0",
            ),
            (
                "[pools.a]\npool = 'gevent'\nprocesses = 2",
                &["a=prefork"],
                "has no number of processes",
            ),
            (
                "",
                &["a=solo", "a=prefork"],
                "--pool a=prefork: there is another pool a",
            ),
            (
                "",
                &["a=solo@x,y", "b=prefork@z,y"],
                "queue y: a and b both have it",
            ),
            (
                "[pools.a]\npool = 'solo'\nqueues = 'x'",
                &["b=solo@x"],
                "queue x: b and a both have it",
            ),
        ] {
            let told = read(text, words).unwrap_err();
            assert!(told.contains(expected), "{text} {words:?}: {told}");
        }
    }
}
