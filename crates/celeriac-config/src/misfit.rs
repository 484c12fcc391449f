//! What an app says of itself, and what of it makes no sense.

use serde::de::DeserializeOwned;

/// Why what the app says can't be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misfit(String);

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Misfit {}

/// Reads what the app says, as JSON.
///
/// # Errors
/// With the name of the setting that has a value of another type, or of what else does not fit. The
/// rest of what the app says is not shown: passwords are in it.
pub fn read<T: DeserializeOwned>(json: &[u8]) -> Result<T, Misfit> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let reason = error.into_inner().to_string();
        // The place in a line that nobody sees.
        let reason = reason.split(" at line ").next().unwrap_or_default();
        Misfit(match path.split_once("settings.") {
            Some((_, setting)) => format!("the setting {setting} can't be used: {reason}"),
            None => format!("the app says something unexpected of itself: {path}: {reason}"),
        })
    })
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Answer {
        Ready(Box<Said>),
    }

    #[derive(Debug, Deserialize)]
    struct Said {
        #[expect(dead_code, reason = "it is only read")]
        url: String,
        settings: Settings,
    }

    #[derive(Debug, Deserialize)]
    struct Settings {
        celeriac_max_deaths: Option<f64>,
    }

    #[test]
    fn what_does_not_fit_is_named_and_the_rest_not_shown() {
        let of = |json: &str| match read::<Answer>(json.as_bytes()) {
            Ok(Answer::Ready(said)) => format!("{:?}", said.settings.celeriac_max_deaths),
            Err(misfit) => misfit.to_string(),
        };
        for (json, expected) in [
            (
                r#"{"ready": {"url": "secret", "settings": {"celeriac_max_deaths": 3}}}"#,
                "Some(3.0)",
            ),
            (
                r#"{"ready": {"url": "secret", "settings": {"celeriac_max_deaths": "3"}}}"#,
                "the setting celeriac_max_deaths can't be used: invalid type: string \"3\", \
                 expected f64",
            ),
            (
                r#"{"ready": {"url": null, "settings": {}}}"#,
                "the app says something unexpected of itself: ready.url: invalid type: null, \
                 expected a string",
            ),
        ] {
            assert_eq!(of(json), expected);
        }
    }
}
