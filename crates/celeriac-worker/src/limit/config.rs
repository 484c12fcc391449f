//! The settings `celeriac_limits` and `celeriac_unique`.

use std::time::Duration;

use celeriac_core::limit::Rate;
use celeriac_protocol::RateLimit;
use serde_json::{Map, Value};

use super::arguments::Path;
use super::{Limit, Limits, Unique, Until};

const LIMITS: &str = "celeriac_limits";
const UNIQUE: &str = "celeriac_unique";
/// Before the name of a queue.
const QUEUE: &str = "queue:";
/// Between two attempts of a unique task.
const EXPIRES: Duration = Duration::from_hours(1);
/// The longest time that can be asked for.
const LONGEST: f64 = 366.0 * 86400.0;

/// Something in the settings makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Misconfigured {
    /// What is wrong, and where.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

/// What an operator may want to know although it is no error.
pub type Warnings = Vec<String>;

/// Reads both settings, each null where it is not set. `tasks` are those that the app has.
///
/// # Errors
/// When an option is unknown or makes no sense.
pub fn parse<'t>(
    limits: &Value,
    unique: &Value,
    tasks: &(impl Iterator<Item = &'t str> + Clone),
) -> Result<(Limits, Warnings), Misconfigured> {
    let mut found = Limits::default();
    let mut warnings = Vec::new();
    let mut look_for = |setting: &str, task: &str| {
        if !tasks.clone().any(|known| known == task) {
            let near = nearest(task, tasks.clone());
            let near = near.map_or_else(String::new, |near| format!(" Is {near} meant?"));
            warnings.push(format!(
                "{setting} names the task {task}, which this app does not have.{near}"
            ));
        }
    };
    for (name, options) in entries(LIMITS, limits)? {
        let limit = limit(
            &Place {
                setting: LIMITS,
                name,
            },
            options,
        )?;
        match name.strip_prefix(QUEUE) {
            Some(queue) => drop(found.queues.insert(queue.to_owned(), limit)),
            None => {
                look_for(LIMITS, name);
                found.tasks.insert(name.clone(), limit);
            }
        }
    }
    for (task, options) in entries(UNIQUE, unique)? {
        look_for(UNIQUE, task);
        let unique = self::unique(
            &Place {
                setting: UNIQUE,
                name: task,
            },
            options,
        )?;
        found.unique.insert(task.clone(), unique);
    }
    Ok((found, warnings))
}

/// Where in the settings something stands.
struct Place<'p> {
    setting: &'p str,
    name: &'p str,
}

impl Place<'_> {
    fn wrong(&self, what: &str, hint: &str) -> Misconfigured {
        Misconfigured {
            message: format!("{}[{:?}]: {what}", self.setting, self.name),
            hint: hint.to_owned(),
        }
    }

    /// The options, all of which have known names.
    fn options<'v>(
        &self,
        options: &'v Value,
        known: &[&str],
    ) -> Result<&'v Map<String, Value>, Misconfigured> {
        let Value::Object(options) = options else {
            let all = known.join(", ");
            return Err(self.wrong(
                &format!("{options} is no mapping"),
                &format!("write a dict of these options: {all}"),
            ));
        };
        for name in options.keys() {
            if !known.contains(&name.as_str()) {
                let hint = match nearest(name, known.iter().copied()) {
                    Some(near) => format!("write {near:?}"),
                    None => format!("the options are {}", known.join(", ")),
                };
                return Err(self.wrong(&format!("there is no option {name:?}"), &hint));
            }
        }
        Ok(options)
    }

    fn count(&self, name: &str, value: &Value) -> Result<u32, Misconfigured> {
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        count.filter(|count| *count > 0).ok_or_else(|| {
            let what = format!("{name} can't be {value}");
            self.wrong(&what, "write a whole number, 1 or more")
        })
    }

    fn seconds(&self, name: &str, value: &Value) -> Result<Duration, Misconfigured> {
        let seconds = value.as_f64().filter(|it| *it > 0.0 && *it <= LONGEST);
        seconds.map(Duration::from_secs_f64).ok_or_else(|| {
            let what = format!("{name} can't be {value}");
            self.wrong(
                &what,
                "write a number of seconds, more than 0 and up to a year",
            )
        })
    }

    fn key(&self, value: Option<&Value>) -> Result<Vec<Path>, Misconfigured> {
        let texts = match value {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(texts)) if !texts.is_empty() => &texts[..],
            Some(text) => std::slice::from_ref(text),
        };
        let paths = texts.iter().map(|text| {
            let path = match text {
                Value::String(text) => Path::parse(text),
                _ => Err("is no text".to_owned()),
            };
            path.map_err(|why| {
                self.wrong(
                    &format!("the key {text} {why}"),
                    "write where the argument stands: \"kwargs.user_id\" or \"args.0\", or a list \
                     of such",
                )
            })
        });
        paths.collect()
    }
}

fn entries<'v>(
    setting: &str,
    value: &'v Value,
) -> Result<impl Iterator<Item = (&'v String, &'v Value)>, Misconfigured> {
    match value {
        Value::Null => Ok(None.into_iter().flatten()),
        Value::Object(entries) => Ok(Some(entries).into_iter().flatten()),
        other => Err(Misconfigured {
            message: format!("{setting} can't be {other}"),
            hint: "write a dict from names of tasks to dicts of options".to_owned(),
        }),
    }
}

fn limit(place: &Place<'_>, options: &Value) -> Result<Limit, Misconfigured> {
    let options = place.options(options, &["rate", "burst", "concurrency", "key"])?;
    let given = |name| options.get(name).filter(|value| !value.is_null());
    let burst = given("burst").map(|burst| place.count("burst", burst));
    let burst = burst.transpose()?;
    let slots = given("concurrency").map(|count| place.count("concurrency", count));
    let slots = slots.transpose()?;
    let rate = given("rate").map(|rate| {
        let text = match rate {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let limit = RateLimit::parse(&text).ok().flatten();
        let interval = limit.map(RateLimit::interval).filter(|it| !it.is_zero());
        let interval = interval.ok_or_else(|| {
            let what = format!("the rate can't be {rate}");
            place.wrong(
                &what,
                "write a number and a unit, such as 10/s, 100/m or 5/h",
            )
        })?;
        Ok(Rate {
            interval,
            burst: burst.unwrap_or(1),
        })
    });
    let rate = rate.transpose()?;
    if rate.is_none() && burst.is_some() {
        return Err(place.wrong("there is a burst, and no rate", "add a rate, such as 20/s"));
    }
    if rate.is_none() && slots.is_none() {
        let hint = "add a rate, such as 20/s, or a concurrency, such as 10";
        return Err(place.wrong("it limits nothing", hint));
    }
    let key = place.key(options.get("key"))?;
    Ok(Limit { rate, slots, key })
}

fn unique(place: &Place<'_>, options: &Value) -> Result<Unique, Misconfigured> {
    let options = place.options(options, &["until", "expires", "window", "key"])?;
    let given = |name| options.get(name).filter(|value| !value.is_null());
    let expires = given("expires").map(|expires| place.seconds("expires", expires));
    let expires = expires.transpose()?;
    let until = match (given("until"), given("window")) {
        (Some(_), Some(_)) => {
            return Err(place.wrong(
                "there are until and window",
                "leave one of them: a window ends by time alone",
            ));
        }
        (None, Some(window)) => Until::Window(place.seconds("window", window)?),
        (Some(Value::String(until)), None) if until == "start" => Until::Start,
        (Some(Value::String(until)), None) if until == "done" => {
            Until::Done(expires.unwrap_or(EXPIRES))
        }
        (None, None) => Until::Done(expires.unwrap_or(EXPIRES)),
        (Some(until), None) => {
            let what = format!("until can't be {until}");
            return Err(place.wrong(&what, "write \"start\" or \"done\""));
        }
    };
    if expires.is_some() && !matches!(until, Until::Done(_)) {
        return Err(place.wrong(
            "expires is for tasks that are unique until they are done",
            "leave it out, or write until=\"done\"",
        ));
    }
    let key = place.key(options.get("key"))?;
    Ok(Unique { until, key })
}

/// The name that somebody may have meant.
fn nearest<'n>(meant: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let near = names.map(|name| (strsim::jaro_winkler(meant, name), name));
    let nearest = near.max_by(|(one, _), (other, _)| one.total_cmp(other));
    nearest
        .filter(|(near, _)| *near > 0.8)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(limits: &Value, unique: &Value) -> Result<(Limits, Warnings), Misconfigured> {
        parse(limits, unique, &["proj.fetch", "proj.sync"].into_iter())
    }

    #[test]
    fn all_that_can_be_said_is_understood() {
        let limits = json!({
            "proj.fetch": {"rate": "20/s", "burst": 5, "concurrency": 10, "key": "kwargs.user_id"},
            "queue:scrape": {"rate": 0.5, "key": ["args.0", "kwargs.a.b"]},
        });
        let unique = json!({
            "proj.fetch": {"until": "start"},
            "proj.sync": {"window": 60, "key": ["args.0"]},
        });
        let (found, warnings) = read(&limits, &unique).unwrap();
        assert_eq!(warnings, [""; 0]);
        let fetch = &found.tasks["proj.fetch"];
        let rate = Rate {
            interval: Duration::from_millis(50),
            burst: 5,
        };
        assert_eq!((fetch.rate, fetch.slots), (Some(rate), Some(10)));
        assert_eq!(fetch.key, [Path::parse("kwargs.user_id").unwrap()]);
        let scrape = &found.queues["scrape"];
        let interval = scrape.rate.map(|rate| rate.interval);
        assert_eq!(
            (interval, scrape.key.len()),
            (Some(Duration::from_secs(2)), 2)
        );
        assert_eq!(found.unique["proj.fetch"].until, Until::Start);
        let minute = Duration::from_mins(1);
        assert_eq!(found.unique["proj.sync"].until, Until::Window(minute));
        for unique in [json!({}), json!({"until": "done", "expires": 3600})] {
            let (found, _) = read(&Value::Null, &json!({"proj.sync": unique})).unwrap();
            assert_eq!(found.unique["proj.sync"].until, Until::Done(EXPIRES));
        }
        assert!(read(&Value::Null, &Value::Null).unwrap().0.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_a_remedy() {
        for (limits, words, remedy) in [
            (json!([]), "celeriac_limits can't be []", "write a dict"),
            (
                json!({"t": 5}),
                "5 is no mapping",
                "rate, burst, concurrency, key",
            ),
            (
                json!({"t": {"rates": "5/s"}}),
                "no option \"rates\"",
                "write \"rate\"",
            ),
            (
                json!({"t": {"xyz": 5}}),
                "no option \"xyz\"",
                "the options are rate",
            ),
            (
                json!({"t": {"rate": "5/q"}}),
                "the rate can't be \"5/q\"",
                "10/s",
            ),
            (json!({"t": {"rate": "0/s"}}), "the rate can't be", "10/s"),
            (json!({"t": {"rate": -1}}), "the rate can't be -1", "10/s"),
            (
                json!({"t": {"concurrency": 0}}),
                "concurrency can't be 0",
                "1 or more",
            ),
            (
                json!({"t": {"concurrency": 1.5}}),
                "concurrency can't be 1.5",
                "1 or more",
            ),
            (json!({"t": {"burst": 5}}), "there is a burst", "add a rate"),
            (
                json!({"t": {"key": "args.0"}}),
                "it limits nothing",
                "add a rate",
            ),
            (
                json!({"t": {"rate": 1, "key": "user"}}),
                "the key \"user\" does not",
                "kwargs.user_id",
            ),
            (
                json!({"t": {"rate": 1, "key": [5]}}),
                "the key 5 is no text",
                "kwargs.user_id",
            ),
        ] {
            let wrong = read(&limits, &Value::Null).unwrap_err();
            assert!(wrong.message.contains(words), "{limits}: {}", wrong.message);
            assert!(wrong.hint.contains(remedy), "{limits}: {}", wrong.hint);
        }
        for (unique, words, remedy) in [
            (
                json!({"until": "end"}),
                "until can't be \"end\"",
                "\"done\"",
            ),
            (
                json!({"until": "done", "window": 5}),
                "until and window",
                "leave one",
            ),
            (json!({"window": 0}), "window can't be 0", "seconds"),
            (
                json!({"window": 5, "expires": 5}),
                "expires is for",
                "leave it out",
            ),
            (
                json!({"untill": "done"}),
                "no option \"untill\"",
                "write \"until\"",
            ),
        ] {
            let wrong = read(&Value::Null, &json!({"t": unique})).unwrap_err();
            assert!(wrong.message.contains(words), "{unique}: {}", wrong.message);
            assert!(wrong.hint.contains(remedy), "{unique}: {}", wrong.hint);
        }
    }

    #[test]
    fn a_task_that_the_app_does_not_have_is_told_of() {
        let limits = json!({"proj.fetsh": {"rate": 1}, "queue:any": {"rate": 1}});
        let (_, warnings) = read(&limits, &json!({"other": {}})).unwrap();
        assert_eq!(
            warnings,
            [
                "celeriac_limits names the task proj.fetsh, which this app does not have. Is \
                 proj.fetch meant?",
                "celeriac_unique names the task other, which this app does not have."
            ]
        );
    }
}
