//! What becomes of messages that are to come later, or never to run: settings of celeriac's own.

use std::time::Duration;

use celeriac_config::description::Settings;
use celeriac_core::dead_letter::Bounds;
use celeriac_worker::core::StoreOptions;

use crate::app_broker::Unusable;

/// How many processes or workers a task may kill.
const MAX_DEATHS: u32 = 3;
/// How long a task is kept that no worker knows.
const UNKNOWN_GRACE: Duration = Duration::from_mins(1);

/// What the worker's core must know.
pub(super) fn options(settings: &Settings) -> Result<StoreOptions, Unusable> {
    let deaths = number("celeriac_max_deaths", settings.celeriac_max_deaths)?;
    let grace = seconds(
        "celeriac_unknown_task_grace",
        settings.celeriac_unknown_task_grace,
    )?;
    let deaths = deaths.map_or(MAX_DEATHS, |deaths| deaths as u32);
    Ok(StoreOptions {
        max_deaths: Some(deaths).filter(|deaths| *deaths > 0),
        unknown_grace: grace.unwrap_or(UNKNOWN_GRACE),
    })
}

/// How many dead letters are kept, and for how long.
pub(super) fn bounds(settings: &Settings) -> Result<Bounds, Unusable> {
    let default = Bounds::default();
    let limit = number(
        "celeriac_dead_letter_limit",
        settings.celeriac_dead_letter_limit,
    )?;
    let expires = seconds(
        "celeriac_dead_letter_expires",
        settings.celeriac_dead_letter_expires,
    )?;
    Ok(Bounds {
        number: limit.map_or(default.number, |limit| limit as usize),
        age: expires.unwrap_or(default.age),
    })
}

fn number(name: &str, value: Option<f64>) -> Result<Option<u64>, Unusable> {
    match value {
        None => Ok(None),
        Some(value) if (0.0..=1e9).contains(&value) && value.fract() == 0.0 => {
            Ok(Some(value as u64))
        }
        Some(value) => Err(Unusable {
            message: format!("The setting {name} can't be {value}"),
            hint: Some("write a whole number, 0 or more".to_owned()),
        }),
    }
}

fn seconds(name: &str, value: Option<f64>) -> Result<Option<Duration>, Unusable> {
    let Some(value) = value else {
        return Ok(None);
    };
    Duration::try_from_secs_f64(value)
        .map(Some)
        .map_err(|_| Unusable {
            message: format!("The setting {name} can't be {value}"),
            hint: Some("write a number of seconds, 0 or more".to_owned()),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_and_bad_values() {
        let settings = Settings::default();
        let store = options(&settings).unwrap();
        assert_eq!(store.max_deaths, Some(3));
        assert_eq!(store.unknown_grace, Duration::from_mins(1));
        assert_eq!(bounds(&settings).unwrap(), Bounds::default());

        let any = Settings {
            celeriac_max_deaths: Some(0.0),
            celeriac_dead_letter_limit: Some(5.0),
            ..Settings::default()
        };
        assert_eq!(options(&any).unwrap().max_deaths, None);
        assert_eq!(bounds(&any).unwrap().number, 5);

        for bad in [-1.0, 1.5, f64::NAN] {
            let settings = Settings {
                celeriac_max_deaths: Some(bad),
                ..Settings::default()
            };
            let error = options(&settings).unwrap_err();
            assert!(error.message.contains("celeriac_max_deaths"));
        }
        let endless = Settings {
            celeriac_dead_letter_expires: Some(-5.0),
            ..Settings::default()
        };
        assert!(bounds(&endless).is_err());
    }
}
