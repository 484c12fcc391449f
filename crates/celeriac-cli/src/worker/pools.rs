//! The worker's pools, from the command line and the configuration.

use celeriac_config::pools::{self, ONLY, Plan, PoolKind, PoolSpec, is_named};
use celeriac_config::{Configuration, Description};
use serde_json::{Map, Value, json};

use crate::arguments::worker::WorkerArguments;
use crate::failure::Failure;

/// What `celery` exits with for a wrong command line.
const EX_USAGE: u8 = 2;

/// Finds out which pools there are, and puts into the app's options what they say of it.
pub(super) fn plan(
    configuration: &Configuration,
    arguments: &WorkerArguments,
    options: &mut Map<String, Value>,
) -> Result<Plan, Failure> {
    let named: Vec<String> = arguments
        .pools
        .iter()
        .filter(|word| is_named(word))
        .cloned()
        .collect();
    let declared = pools::declared(configuration, &named).map_err(|wrong| unusable(&wrong))?;
    let kind = arguments.pool();
    if let Some(pool) = declared.first()
        && kind != "prefork"
    {
        let text = format!(
            "--pool {kind} is the kind of an only pool, and {} has a name",
            pool.name
        );
        return Err(Failure::new(text)
            .with_hint(format!(
                "write --pool NAME={kind}, or take the other pools out"
            ))
            .with_status(EX_USAGE));
    }
    let list = |name: &str| -> Option<Vec<String>> {
        let names = options.get(name)?.as_array()?.iter();
        Some(names.filter_map(Value::as_str).map(str::to_owned).collect())
    };
    let given = list("queues").filter(|queues| !queues.is_empty());
    let excluded = list("exclude_queues").unwrap_or_default();
    let (plan, queues) =
        Plan::new(declared, given.as_deref(), &excluded).map_err(|wrong| unusable(&wrong))?;
    if !plan.declared().is_empty() {
        if let Some(only) = queues.only {
            options.insert("queues".to_owned(), json!(only));
        }
        options.insert("pool_queues".to_owned(), json!(queues.also));
    }
    if let [pool] = plan.declared() {
        options.extend(as_options(pool));
    }
    Ok(plan)
}

fn unusable(wrong: &impl std::fmt::Display) -> Failure {
    Failure::new(format!("The pools can't be used:\n{wrong}"))
        .with_hint("see `celeriac worker --help` and docs/configuration.md")
        .with_status(EX_USAGE)
}

/// An only pool as options of the worker.
fn as_options(pool: &PoolSpec) -> Map<String, Value> {
    let options = json!({
        "pool": pool.kind.name(),
        "concurrency": pool.concurrency.map(|number| number.to_string()),
        "autoscale": pool.autoscale,
        "time_limit": pool.time_limit,
        "soft_time_limit": pool.soft_time_limit,
        "max_tasks_per_child": pool.max_tasks_per_child,
        "max_memory_per_child": pool.max_memory_per_child,
        "prefetch_multiplier": pool.prefetch_multiplier,
    });
    let mut options = match options {
        Value::Object(options) => options,
        _ => Map::new(),
    };
    options.retain(|_, value| !value.is_null());
    options
}

/// The pools with their queues, once the app has told of these.
pub(super) fn assign(
    plan: Plan,
    arguments: &WorkerArguments,
    description: &Description,
) -> Result<Vec<PoolSpec>, Failure> {
    let consumed: Vec<String> = description
        .queues
        .iter()
        .map(|described| described.queue.name.clone())
        .collect();
    // What there is no such kind of was refused when the app was loaded.
    let kind = PoolKind::named(arguments.pool()).unwrap_or(PoolKind::Prefork);
    let only = PoolSpec {
        concurrency: u32::try_from(description.worker.concurrency).ok(),
        ..PoolSpec::new(ONLY, kind)
    };
    plan.assign(&consumed, only)
        .map_err(|wrong| unusable(&wrong))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::arguments::{self, Command};

    fn planned(line: &str) -> Result<(Plan, Map<String, Value>), String> {
        let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        let (arguments, user) = arguments::parse(&words, &[]).unwrap();
        let Command::Worker(worker) = arguments.command else {
            panic!("{line} is about no worker");
        };
        let mut options = worker.options(&user);
        let plan = plan(&Configuration::default(), &worker, &mut options);
        plan.map(|plan| (plan, options))
            .map_err(|failure| format!("{failure:?}"))
    }

    #[test]
    fn without_names_there_is_one_pool_as_celery_has_it() {
        let (plan, options) = planned("celeriac worker -P solo -P prefork -c 3 -Q a").unwrap();
        assert!(plan.declared().is_empty());
        assert_eq!(options["pool"], "prefork");
        assert_eq!(options["concurrency"], "3");
        assert_eq!(options["queues"], json!(["a"]));
        assert!(!options.contains_key("pool_queues"));
    }

    #[test]
    fn an_only_pool_with_a_name_is_as_the_options_say_it() {
        let (plan, options) = planned("celeriac worker -c 3 --pool cpu=prefork:4@a,b").unwrap();
        assert_eq!(plan.declared().len(), 1);
        assert_eq!(options["pool"], "prefork");
        assert_eq!(options["concurrency"], "4");
        assert_eq!(options["queues"], json!(["a", "b"]));
    }

    #[test]
    fn several_pools_are_planned() {
        let line = "celeriac worker --pool io=gevent:512@io_bound --pool cpu=prefork:4";
        let (plan, options) = planned(line).unwrap();
        let pools: Vec<_> = plan.declared().iter().map(ToString::to_string).collect();
        assert_eq!(pools, ["io=gevent:512@io_bound", "cpu=prefork:4"]);
        assert_eq!(options["pool_queues"], json!(["io_bound"]));
        assert!(!options.contains_key("queues"));
    }

    #[test]
    fn pools_that_can_not_be_are_refused() {
        for (line, expected) in [
            (
                "celeriac worker --pool a=gevnet",
                "there is no kind of pool",
            ),
            (
                "celeriac worker --pool a=solo@x --pool b=solo@x",
                "a queue has one pool",
            ),
            (
                "celeriac worker --pool a=solo@x -P gevent",
                "is the kind of an only pool",
            ),
            (
                "celeriac worker --pool a=solo@x -Q y",
                "queue y: no pool has it",
            ),
            (
                "celeriac worker --pool a=solo@x -X x",
                "its queue x is excluded",
            ),
        ] {
            let told = planned(line).unwrap_err();
            assert!(told.contains(expected), "{line}: {told}");
        }
    }
}
