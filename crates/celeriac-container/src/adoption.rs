//! What becomes of a container that is there already when its task begins: the worker that ran the
//! task before was killed, or the message came twice. Pure.

use std::collections::HashMap;

/// The label with the task's id.
pub const TASK_ID: &str = "celeriac.task-id";
/// The label with the node name of the worker that made the container.
pub const NODE: &str = "celeriac.node";
/// The label with the number of retries before the attempt that the container is of.
pub const RETRIES: &str = "celeriac.retries";
/// The label with where in the log file the container's output begins, in bytes.
pub const OUT_OFFSET: &str = "celeriac.out-offset";
/// As [`OUT_OFFSET`], for the file of standard error.
pub const ERR_OFFSET: &str = "celeriac.err-offset";

/// A container of this task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its id.
    pub id: String,
    /// Its labels.
    pub labels: HashMap<String, String>,
    /// What it is doing.
    pub state: State,
}

/// What a container is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It was never started.
    Created,
    /// It runs, or has ended.
    Begun,
    /// The engine is getting rid of it.
    Going,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Make one.
    Create,
    /// Get rid of what is left of an earlier attempt, and make one.
    Replace(String),
    /// Go on with it.
    Adopt {
        /// The container.
        id: String,
        /// Whether it has yet to be started.
        start: bool,
        /// Where its output begins in the log file.
        out_offset: u64,
        /// Where its errors begin in their file.
        err_offset: u64,
    },
}

/// What to do at the beginning of the attempt after `retries` retries, with this container there.
pub fn decide(found: Option<&Found>, retries: u32) -> Decision {
    let Some(found) = found else {
        return Decision::Create;
    };
    let number = |label| {
        found
            .labels
            .get(label)
            .and_then(|text| text.parse::<u64>().ok())
    };
    let is_earlier = number(RETRIES).is_none_or(|made| made < u64::from(retries));
    if is_earlier || found.state == State::Going {
        return Decision::Replace(found.id.clone());
    }
    Decision::Adopt {
        id: found.id.clone(),
        start: found.state == State::Created,
        out_offset: number(OUT_OFFSET).unwrap_or(0),
        err_offset: number(ERR_OFFSET).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(retries: &str, state: State) -> Found {
        let labels = [(RETRIES, retries), (OUT_OFFSET, "7")];
        Found {
            id: "c1".to_owned(),
            labels: labels.map(|(a, b)| (a.to_owned(), b.to_owned())).into(),
            state,
        }
    }

    #[test]
    fn a_container_of_this_attempt_is_adopted() {
        let adopt = |start| Decision::Adopt {
            id: "c1".to_owned(),
            start,
            out_offset: 7,
            err_offset: 0,
        };
        let replace = Decision::Replace("c1".to_owned());
        assert_eq!(decide(None, 0), Decision::Create);
        for (retries, state, now, expected) in [
            ("0", State::Begun, 0, adopt(false)),
            ("0", State::Created, 0, adopt(true)),
            ("1", State::Begun, 1, adopt(false)),
            // A copy of the message of the attempt before came late: the newer one goes on.
            ("1", State::Begun, 0, adopt(false)),
            ("0", State::Begun, 1, replace.clone()),
            ("0", State::Going, 0, replace.clone()),
            ("", State::Begun, 0, replace),
        ] {
            let found = found(retries, state);
            assert_eq!(decide(Some(&found), now), expected, "{found:?} {now}");
        }
    }
}
