//! Real servers as child processes on free ports, with their data in a folder of their own. They
//! end with the test, and with the test process however it ends.

pub mod mariadb;
pub mod postgres;
pub mod rabbitmq;
pub mod redis;
pub mod sentinel;
mod unprivileged;

pub use self::mariadb::MariadbServer;
pub use self::postgres::PostgresServer;
pub use self::rabbitmq::RabbitMqServer;
pub use self::redis::RedisServer;
pub use self::sentinel::WatchedRedis;

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
    spawn_with(Command::new(program).args(arguments), |command| command)
}

/// Starts a command so that the kernel ends it with this process; `prepare` sets its environment.
pub(crate) fn spawn_with(
    command: &mut Command,
    prepare: impl FnOnce(&mut Command) -> &mut Command,
) -> Child {
    let program = command.get_program().to_os_string();
    prepare(
        Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&program)
            .args(command.get_args()),
    )
    .stdin(Stdio::null())
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .unwrap_or_else(|error| {
        panic!(
            "{} can't be started ({error}): is it installed?",
            program.display()
        );
    })
}

/// Sends `process` a signal by its name.
pub(crate) fn signal(process: &Child, name: &str) {
    let status = Command::new("kill")
        .args([format!("-{name}"), process.id().to_string()])
        .status()
        .unwrap();
    assert!(status.success(), "kill -{name} failed");
}
