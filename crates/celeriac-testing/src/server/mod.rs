//! Real servers as child processes on free ports, with their data in a folder of their own. They
//! end with the test, and with the test process however it ends.

pub mod redis;

pub use self::redis::RedisServer;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind(("127.0.0.1", 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Starts `program` so that the kernel ends it with this process.
pub(crate) fn spawn(program: &str, arguments: &[String]) -> Child {
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", program])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} can't be started ({error}): is it installed?"))
}
