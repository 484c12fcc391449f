//! Commands under their keeper: what they are given, how they end, and that nothing outlives them.

#![expect(clippy::unwrap_used, reason = "a test fails where it can't go on")]

use std::path::Path;
use std::time::Duration;

use celeriac_command::keeper::spec::{Exit, Order, Spec};
use celeriac_command::process::{Error, Keeper};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

const DEADLINE: Duration = Duration::from_secs(30);

fn keeper() -> Keeper {
    Keeper::at(env!("CARGO_BIN_EXE_celeriac-keeper"))
}

fn shell(script: &str) -> Spec {
    Spec {
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: [("PATH".to_owned(), "/usr/bin:/bin".to_owned())].into(),
        ..Spec::default()
    }
}

async fn all(mut output: Receiver) -> String {
    let mut text = String::new();
    output.read_to_string(&mut text).await.unwrap();
    text
}

async fn run(spec: &Spec) -> (Result<Exit, Error>, String, String) {
    let (mut running, stdout, stderr) = keeper().start(spec).await.unwrap();
    let all = async { tokio::join!(running.ended(), all(stdout), all(stderr)) };
    tokio::time::timeout(DEADLINE, all).await.unwrap()
}

/// Waits until a process is gone, or a zombie that somebody else is to collect.
async fn gone(pid: &str) {
    let stat = Path::new("/proc").join(pid.trim()).join("stat");
    let is_gone = async {
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, is_gone).await.unwrap();
}

/// The first line of an output, which goes on.
async fn first_line(output: &mut Receiver) -> String {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(output.read_u8().await.unwrap());
    }
    String::from_utf8(line).unwrap()
}

#[tokio::test]
async fn a_command_is_given_what_it_is_to_have() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = shell("cat; echo $WORD; pwd; echo no >&2; ls /proc/self/fd | wc -l; exit 3");
    spec.env.insert("WORD".to_owned(), "word".to_owned());
    spec.stdin = Some("text\n".to_owned());
    spec.cwd = Some(folder.path().to_owned());
    let (exit, stdout, stderr) = run(&spec).await;
    assert_eq!(exit.unwrap(), Exit::Code(3));
    // It has the files that any child of this process has, and none of the keeper's.
    let direct = std::process::Command::new("/bin/sh")
        .args(["-c", "ls /proc/self/fd | wc -l"])
        .output()
        .unwrap();
    let files = String::from_utf8(direct.stdout).unwrap();
    let expected = format!("text\nword\n{}\n{files}", folder.path().display());
    assert_eq!(stdout, expected);
    assert_eq!(stderr, "no\n");
}

#[tokio::test]
async fn a_signal_is_told() {
    assert_eq!(run(&shell("kill -9 $$")).await.0.unwrap(), Exit::Signal(9));
}

#[tokio::test]
async fn what_can_t_be_started_says_why() {
    let nothing = Spec {
        argv: vec!["/nonexistent".to_owned()],
        ..Spec::default()
    };
    let error = run(&nothing).await.0.unwrap_err();
    assert_eq!(
        error.to_string(),
        "/nonexistent: No such file or directory (os error 2)"
    );
    let mut nowhere = shell("true");
    nowhere.cwd = Some("/nonexistent".into());
    let error = run(&nowhere).await.0.unwrap_err();
    assert!(
        error.to_string().contains("working directory /nonexistent"),
        "{error}"
    );
}

#[tokio::test]
async fn memory_is_limited() {
    let mut spec = shell("x=x; while :; do x=$x$x; done");
    spec.memory = Some(64 << 20);
    let (exit, ..) = run(&spec).await;
    assert_ne!(exit.unwrap(), Exit::Code(0));
}

#[tokio::test]
async fn what_a_command_leaves_behind_ends_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = shell(
        "setsid sh -c 'echo $$ >pid; exec sleep 1000' & sleep 1000 & echo $!
         until [ -s pid ]; do sleep 0.01; done; cat pid",
    );
    spec.cwd = Some(folder.path().to_owned());
    let (exit, stdout, _) = run(&spec).await;
    assert_eq!(stdout.lines().count(), 2);
    assert_eq!(exit.unwrap(), Exit::Code(0));
    for pid in stdout.lines() {
        gone(pid).await;
    }
}

#[tokio::test]
async fn sigterm_lets_a_command_end_by_itself() {
    let (mut running, mut stdout, _stderr) = keeper()
        .start(&shell(
            "trap 'echo bye; exit 5' TERM; echo on; while :; do sleep 0.01; done",
        ))
        .await
        .unwrap();
    first_line(&mut stdout).await;
    running.signal(Order::Terminate).await.unwrap();
    let exit = tokio::time::timeout(DEADLINE, running.ended())
        .await
        .unwrap();
    assert_eq!(exit.unwrap(), Exit::Code(5));
    assert_eq!(first_line(&mut stdout).await, "bye\n");
}

#[tokio::test]
async fn sigkill_ends_a_command_that_will_not() {
    let (mut running, mut stdout, _stderr) = keeper()
        .start(&shell(
            "trap '' TERM; setsid sleep 1000 & echo $!; sleep 1000; sleep 1000",
        ))
        .await
        .unwrap();
    let daemon = first_line(&mut stdout).await;
    running.signal(Order::Terminate).await.unwrap();
    running.signal(Order::Kill).await.unwrap();
    let exit = tokio::time::timeout(DEADLINE, running.ended())
        .await
        .unwrap();
    assert_eq!(exit.unwrap(), Exit::Signal(9));
    gone(&daemon).await;
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_any_more_is_killed() {
    let (running, mut stdout, _stderr) = keeper()
        .start(&shell("trap '' TERM; echo $$; sleep 1000; sleep 1000"))
        .await
        .unwrap();
    let pid = first_line(&mut stdout).await;
    drop(running);
    gone(&pid).await;
}

#[tokio::test]
async fn a_command_does_not_outlive_its_keeper() {
    let (mut running, mut stdout, _stderr) = keeper()
        .start(&shell("echo $PPID $$; sleep 1000; sleep 1000"))
        .await
        .unwrap();
    let line = first_line(&mut stdout).await;
    let (keeper, pid) = line.split_once(' ').unwrap();
    let keeper = nix::unistd::Pid::from_raw(keeper.parse().unwrap());
    nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL).unwrap();
    let ended = tokio::time::timeout(DEADLINE, running.ended())
        .await
        .unwrap();
    assert!(matches!(ended, Err(Error::KeeperLost)), "{ended:?}");
    gone(pid).await;
}
