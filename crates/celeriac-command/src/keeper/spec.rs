//! What worker and keeper tell each other: lines of JSON over the keeper's standard input, which is
//! a socket.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The command that a keeper runs: the first line that the worker sends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Spec {
    /// The program and its arguments. A program without `/` is looked for on `PATH`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// The working directory; `None` for the worker's.
    pub cwd: Option<PathBuf>,
    /// What it reads from its standard input; `None` for `/dev/null`.
    pub stdin: Option<String>,
    /// As whom it runs, when not as the worker's own user.
    pub identity: Option<Identity>,
    /// How much memory each of its processes may have for itself, in bytes (`RLIMIT_DATA`).
    pub memory: Option<u64>,
}

/// A user and its groups.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The user's name, for the groups that it is in beside `gid`.
    pub name: Option<String>,
}

/// What the worker sends behind the [`Spec`]: a signal for the whole process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// SIGTERM.
    Terminate,
    /// SIGKILL, and for everything else that the command has started.
    Kill,
}

/// What the keeper tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The command runs, as the leader of its process group.
    Started(u32),
    /// It could not be started: why.
    Failed(String),
    /// It has ended, and everything that it had started is gone.
    Ended(Exit),
}

/// How a command has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}
