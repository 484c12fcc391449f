//! Running in the background.
//!
//! The command that the operator typed starts a second process in a session of its own, and stays
//! until that one has loaded the app and taken its pidfile: what goes wrong until then is seen in
//! the terminal, and in the exit status. Celery's counterpart: `celery.platforms.detached`.

use std::io::{self, Read as _};
use std::process::{Command, ExitCode, Stdio};

/// What the second process says when it has started.
const STARTED: u8 = b'+';

/// Starts this program again in the background, and waits until it has started.
///
/// # Errors
/// When it can't be started.
pub(super) fn start_in_background() -> io::Result<ExitCode> {
    let (mut news, their_end) = io::pipe()?;
    let mut arguments = std::env::args_os();
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(arguments.next().is_some().then_some("--detached"))
        .args(arguments);
    let mut child = command.stdin(Stdio::from(their_end)).spawn()?;
    // Its copy of the other end must go, or the end of the child would not be seen.
    drop(command);
    let mut said = [0];
    if matches!(news.read(&mut said), Ok(1)) && said[0] == STARTED {
        return Ok(ExitCode::SUCCESS);
    }
    let status = child.wait()?;
    Ok(ExitCode::from(
        status
            .code()
            .and_then(|code| u8::try_from(code).ok())
            .unwrap_or(1),
    ))
}

/// Leaves the terminal's session, in the process that was started in the background.
pub(super) fn leave_session() {
    // It can't fail but for a process that leads its group already, which is as good.
    let _ = nix::unistd::setsid();
}

/// Says that the start is done, and leaves the terminal alone from then on.
///
/// # Errors
/// When there is no null device.
pub(super) fn started() -> io::Result<()> {
    // Nobody listens after a restart.
    let _ = nix::unistd::write(io::stdin(), &[STARTED]);
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    Ok(())
}
