//! The task at a real Docker engine, which these tests start themselves. Where none can run they
//! say so, and fail if `CELERIAC_DOCKER` is `required`.

#![expect(clippy::unwrap_used, reason = "a test fails where it can't go on")]

mod harness;

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use celeriac_native::Cause;
use celeriac_native::error::{Ending, Error, When};
use harness::{Call, until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A Docker engine with an image `busybox`.
struct Docker {
    engine: Child,
    folder: TempDir,
}

impl Docker {
    /// Starts one; `None` where that can't be.
    async fn start() -> Option<Self> {
        match Self::try_start().await {
            Ok(docker) => Some(docker),
            Err(why) => {
                let text = format!("NO DOCKER ENGINE, NOTHING OF CONTAINERS IS TESTED: {why}");
                assert_ne!(
                    std::env::var("CELERIAC_DOCKER").as_deref(),
                    Ok("required"),
                    "{text}"
                );
                // Not by `eprintln!`, which the test runner keeps for failures.
                writeln!(std::io::stderr(), "{text}").unwrap();
                None
            }
        }
    }

    async fn try_start() -> Result<Self, String> {
        let busybox = Path::new("/bin/busybox");
        if !busybox.exists() {
            return Err("busybox-static is not installed".to_owned());
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("daemon.json"), "{}").unwrap();
        let log = File::create(at("log")).unwrap();
        let mut command = Command::new("dockerd");
        command
            .arg("--config-file")
            .arg(at("daemon.json"))
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg(format!("--host=unix://{}", at("docker.sock").display()))
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        let engine = command
            .spawn()
            .map_err(|error| format!("dockerd: {error}"))?;
        let mut docker = Self { engine, folder };
        until(|| docker.answers() || docker.engine.try_wait().unwrap().is_some()).await;
        if docker.engine.try_wait().unwrap().is_some() {
            return Err(fs::read_to_string(docker.at("log")).unwrap());
        }
        docker.import(busybox);
        Ok(docker)
    }

    fn import(&self, busybox: &Path) {
        let root = self.at("root");
        fs::create_dir_all(root.join("bin")).unwrap();
        fs::copy(busybox, root.join("bin/busybox")).unwrap();
        for name in [
            "cat", "dd", "echo", "false", "head", "id", "md5sum", "sh", "sleep", "tr", "true",
        ] {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        let script = format!(
            "tar -C '{}' -c . | docker -H unix://{} import - busybox:latest",
            root.display(),
            self.socket().display()
        );
        let done = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.at("docker.sock")
    }

    fn call(&self, options: Value, id: &str, retries: u32) -> Call {
        Call::new(self.socket().to_str().unwrap(), options, id, retries)
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let done = Command::new("docker")
            .arg("-H")
            .arg(format!("unix://{}", self.socket().display()))
            .args(arguments)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        String::from_utf8(done.stdout).unwrap()
    }

    fn answers(&self) -> bool {
        let done = Command::new("docker")
            .arg("-H")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("version")
            .output();
        done.is_ok_and(|done| done.status.success())
    }

    fn containers(&self) -> String {
        self.docker(&["ps", "-a", "-q"])
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // In order, so that it unmounts what it has mounted and ends what it has started.
        let engine = nix::unistd::Pid::from_raw(self.engine.id() as i32);
        let _ = nix::sys::signal::kill(engine, nix::sys::signal::Signal::SIGTERM);
        let _ = self.engine.wait();
    }
}

fn retry(error: &Error) -> (String, Duration) {
    match error.ending() {
        Ending::Retry(retry) => match retry.when {
            Some(When::After(wait)) => (error.exception().message(), wait),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// One engine for all: it takes seconds to start and to end.
#[tokio::test]
async fn containers_run_and_end() {
    let Some(docker) = Docker::start().await else {
        return;
    };
    celery_docker_s_own_test(&docker).await;
    failures(&docker).await;
    much_output(&docker).await;
    revoked(&docker).await;
    abandoned(&docker).await;
    adopted(&docker).await;
    limited(&docker).await;
}

async fn celery_docker_s_own_test(docker: &Docker) {
    let (input, output) = (docker.at("input"), docker.at("output"));
    let log = docker.at("new/folder/log");
    fs::write(&input, "hello world").unwrap();
    fs::create_dir(&output).unwrap();
    let result = docker
        .call(json!({}), "own-test", 0)
        .run(json!({
            "image": "busybox", "inputpath": input, "outputpath": output, "logoutfile": log,
            "command": ["sh", "-c", "md5sum /input > /output/output.txt && echo Done"],
        }))
        .await
        .unwrap();
    assert_eq!(
        result,
        json!({"id": "own-test", "output": "Done\n", "truncated": false})
    );
    assert_eq!(fs::read_to_string(log).unwrap(), "Done\n");
    let written = fs::read_to_string(output.join("output.txt")).unwrap();
    assert_eq!(written, "5eb63bbbe01eeed093cb22bb8f5acdc3  /input\n");
    let read_only = docker
        .call(json!({}), "read-only", 0)
        .run(json!({"image": "busybox", "inputpath": input, "command": "sh -c 'echo x >/input'"}))
        .await;
    assert!(
        retry(&read_only.unwrap_err())
            .0
            .contains("Read-only file system")
    );
    assert_eq!(docker.containers(), "");
}

async fn failures(docker: &Docker) {
    let log = docker.at("failure.log");
    let kwargs = json!({
        "image": "busybox", "command": "sh -c 'echo out; echo err >&2; exit 3'", "logoutfile": log,
    });
    let error = docker
        .call(json!({}), "failure", 0)
        .run(kwargs.clone())
        .await
        .unwrap_err();
    let (text, wait) = retry(&error);
    assert_eq!(wait, Duration::from_secs(10));
    assert!(
        text.contains("in image 'busybox' returned non-zero exit status 3: "),
        "{text}"
    );
    let mut lines: Vec<_> = fs::read_to_string(&log)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect();
    lines.sort();
    assert_eq!(lines, ["err", "out"]);
    let error = docker
        .call(json!({}), "failure", 1)
        .run(kwargs)
        .await
        .unwrap_err();
    assert!((20..40).contains(&retry(&error).1.as_secs()));
    assert_eq!(fs::read_to_string(&log).unwrap().lines().count(), 4);
    for (kwargs, expected) in [
        (
            json!({"image": "busybox", "command": "nonexistent"}),
            "executable file not found",
        ),
        (
            json!({"image": "nothing", "command": "x", "pull": "never"}),
            "may not pull it",
        ),
    ] {
        let error = docker
            .call(json!({}), "not-retried", 0)
            .run(kwargs)
            .await
            .unwrap_err();
        assert!(matches!(error.ending(), Ending::Failure(_)), "{error:?}");
        assert!(error.exception().message().contains(expected), "{error}");
    }
    assert_eq!(docker.containers(), "");
}

async fn much_output(docker: &Docker) {
    let log = docker.at("much.log");
    let command = "head -c 100000000 /dev/zero | tr '\\0' x; echo end";
    let result = docker
        .call(json!({"output_tail": "1K"}), "much", 0)
        .run(json!({"image": "busybox", "command": ["sh", "-c", command], "logoutfile": log}))
        .await
        .unwrap();
    assert_eq!(result["truncated"], true);
    assert_eq!(result["output"].as_str().unwrap().len(), 1024);
    assert!(result["output"].as_str().unwrap().ends_with("xend\n"));
    assert_eq!(fs::metadata(log).unwrap().len(), 100_000_004);
    assert_eq!(docker.containers(), "");
}

async fn revoked(docker: &Docker) {
    for (id, cause, exception) in [
        ("revoked", Cause::Revoked, "EngineError"),
        (
            "soft",
            Cause::SoftTimeLimit(Duration::from_secs(1)),
            "SoftTimeLimitExceeded",
        ),
    ] {
        let log = docker.at(id);
        let call = docker.call(json!({"grace": 30}), id, 0);
        let script = "trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 1; done";
        let (result, ()) = tokio::join!(
            call.run(
                json!({"image": "busybox", "command": ["sh", "-c", script], "logoutfile": log})
            ),
            async {
                until(|| fs::read_to_string(&log).is_ok_and(|text| text == "on\n")).await;
                call.canceller.cancel(cause);
            }
        );
        assert_eq!(result.unwrap_err().exception().exc_type, exception);
        // It is gone by the time that the task's end is known, and had its time to end by itself.
        assert_eq!(docker.containers(), "");
        assert_eq!(fs::read_to_string(&log).unwrap(), "on\nbye\n");
    }
}

async fn abandoned(docker: &Docker) {
    let log = docker.at("abandoned");
    let call = docker.call(json!({}), "abandoned", 0);
    tokio::select! {
        result = call.run(json!({
            "image": "busybox", "command": "sh -c 'echo on; sleep 1000'", "logoutfile": log,
        })) => panic!("{result:?}"),
        () = until(|| fs::read_to_string(&log).is_ok_and(|text| text == "on\n")) => {}
    }
    until(|| docker.containers().is_empty()).await;
}

/// A worker that is killed takes no leave of its containers: what is left undone here is just what
/// it would leave.
async fn adopted(docker: &Docker) {
    let log = docker.at("adopted");
    let go = docker.at("output/go");
    let script =
        "echo one; echo run >>/output/runs; while [ ! -e /output/go ]; do sleep 1; done; echo two";
    let kwargs = json!({
        "image": "busybox", "command": ["sh", "-c", script], "logoutfile": log,
        "outputpath": docker.at("output"),
    });
    let killed = docker.call(json!({}), "adopted", 0);
    let mut run = Box::pin(killed.run(kwargs.clone()));
    tokio::select! {
        result = &mut run => panic!("{result:?}"),
        () = until(|| fs::read_to_string(&log).is_ok_and(|text| text == "one\n")) => {}
    }
    std::mem::forget(run);
    fs::write(go, "").unwrap();
    let next = docker.call(json!({}), "adopted", 0);
    let result = next.run(kwargs).await.unwrap();
    let told = next.told.records.lock().unwrap()[0].message.clone();
    assert!(
        told.ends_with("is there already: going on with it"),
        "{told}"
    );
    assert_eq!(result["output"], "one\ntwo\n");
    assert_eq!(fs::read_to_string(&log).unwrap(), "one\ntwo\n");
    assert_eq!(
        fs::read_to_string(docker.at("output/runs")).unwrap(),
        "run\n"
    );
    assert_eq!(docker.containers(), "");
}

async fn limited(docker: &Docker) {
    let call = docker.call(json!({"memory": "32M"}), "limited", 0);
    let log = docker.at("limited");
    let started = call.run(json!({
        "image": "busybox", "command": "sh -c 'echo on; sleep 1000'", "logoutfile": log,
        "user": "1234", "network": "none", "cpus": 0.5,
    }));
    let looked = async {
        until(|| fs::read_to_string(&log).is_ok_and(|text| text == "on\n")).await;
        let found = docker.docker(&["inspect", "run-limited"]);
        let found: Value = serde_json::from_str(&found).unwrap();
        call.canceller
            .cancel(Cause::TimeLimit(Duration::from_secs(1)));
        found[0].clone()
    };
    let (result, found) = tokio::join!(started, looked);
    assert!(result.is_err());
    let limits = &found["HostConfig"];
    assert_eq!(limits["Memory"], 32 << 20);
    assert_eq!(limits["NanoCpus"], 500_000_000);
    assert_eq!(limits["PidsLimit"], 4096);
    assert_eq!(limits["NetworkMode"], "none");
    assert_eq!(limits["SecurityOpt"], json!(["no-new-privileges"]));
    assert!(
        limits["CapDrop"]
            .as_array()
            .unwrap()
            .contains(&"NET_RAW".into())
    );
    assert_eq!(found["Config"]["User"], "1234");
    assert_eq!(found["Config"]["Labels"]["celeriac.task-id"], "limited");
    assert_eq!(found["Config"]["Labels"]["celeriac.node"], "celery@test");
    assert_eq!(docker.containers(), "");
}
