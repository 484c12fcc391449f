//! Commands as tasks: results, failures, output, and cancellation.

#![expect(clippy::unwrap_used, reason = "a test fails where it can't go on")]

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use celeriac_command::process::Keeper;
use celeriac_command::{CommandOptions, command, command_with};
use celeriac_core::journal::{Level, Record};
use celeriac_native::cancellation::{Canceller, cancellation};
use celeriac_native::context::{Request, Worker};
use celeriac_native::error::{Ending, Result};
use celeriac_native::{Arguments, Cause, Context, Error, Task};
use celeriac_protocol::Signature;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_mins(1);

/// A worker that keeps what is logged.
#[derive(Default)]
struct Log(Mutex<Vec<Record>>);

#[async_trait]
impl Worker for Log {
    async fn update_state(&self, _: &Request, state: &str, _: Value) -> Result<()> {
        panic!("a command stores no state: {state}");
    }

    async fn send(&self, _: &Request, signature: Signature) -> Result<String> {
        panic!("a command sends nothing: {signature:?}");
    }

    fn writes(&self, _: Level) -> bool {
        true
    }

    fn write(&self, record: Record) {
        self.0.lock().unwrap().push(record);
    }
}

impl Log {
    fn lines(&self) -> Vec<String> {
        let records = self.0.lock().unwrap();
        records
            .iter()
            .map(|record| record.message.clone())
            .collect()
    }
}

/// A call that can be begun.
struct Call {
    task: Arc<dyn Task>,
    context: Context,
    canceller: Canceller,
    log: Arc<Log>,
}

fn call(options: Value) -> Call {
    let mut options: CommandOptions = serde_json::from_value(options).unwrap();
    "task".clone_into(&mut options.name);
    let keeper = Keeper::at(env!("CARGO_BIN_EXE_celeriac-keeper"));
    let task = command_with(keeper, options).unwrap();
    let request = Request {
        id: "id-1".to_owned(),
        task: "task".to_owned(),
        ..Request::default()
    };
    let (canceller, cancellation) = cancellation();
    let log = Arc::new(Log::default());
    Call {
        task,
        context: Context::new(Arc::new(request), cancellation, log.clone()),
        canceller,
        log,
    }
}

impl Call {
    async fn run(&self, kwargs: Value) -> Result<Value> {
        let arguments = Arguments {
            kwargs: serde_json::from_value(kwargs).unwrap(),
            ..Arguments::default()
        };
        let run = self.task.run(self.context.clone(), arguments);
        tokio::time::timeout(DEADLINE, run).await.unwrap()
    }

    async fn logged(&self, line: &str) {
        let logged = async {
            while !self.log.lines().iter().any(|logged| logged == line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(DEADLINE, logged).await.unwrap();
    }
}

fn is_retried(error: &Error) -> bool {
    matches!(error.ending(), Ending::Retry(_))
}

#[tokio::test]
async fn a_command_s_end_is_the_result() {
    let call = call(json!({"argv": ["printf", "%s\\n", "{words...}"]}));
    let result = call
        .run(json!({"words": ["one two", "$(three)"]}))
        .await
        .unwrap();
    assert_eq!(result["exit_code"], 0);
    assert_eq!(result["stdout"], "one two\n$(three)\n");
    assert_eq!(result["stderr"], "");
    assert_eq!(result["truncated"], false);
    assert!(result["runtime"].as_f64().unwrap() > 0.0);
    assert_eq!(call.log.lines(), ["one two", "$(three)"]);
}

#[tokio::test]
async fn exit_codes_are_judged() {
    let script = "echo out; echo bad news >&2; exit $1";
    let call = call(json!({
        "argv": [script, "{code}"], "shell": true, "success_codes": [0, 2], "retry_codes": [75],
    }));
    let run = async |code: u32| call.run(json!({"code": code})).await;
    assert_eq!(run(2).await.unwrap()["exit_code"], 2);
    let error = run(3).await.unwrap_err();
    assert!(!is_retried(&error));
    let exception = error.exception();
    assert_eq!(exception.exc_type, "CommandFailed");
    assert_eq!(exception.exc_module.as_deref(), Some("celeriac.exceptions"));
    assert_eq!(exception.message(), "exit code 3\nbad news");
    let error = run(75).await.unwrap_err();
    assert!(is_retried(&error));
    assert_eq!(error.exception().message(), "exit code 75\nbad news");
}

#[tokio::test]
async fn a_command_that_dies_or_does_not_start_fails() {
    let dies = call(json!({"argv": ["kill -SEGV $$"], "shell": true}));
    let error = dies.run(json!({})).await.unwrap_err();
    assert_eq!(error.exception().message(), "signal 11 (SIGSEGV)");
    let missing = call(json!({"argv": ["/nonexistent"]}));
    let error = missing.run(json!({})).await.unwrap_err().exception();
    assert_eq!(error.exc_type, "CommandFailed");
    assert!(
        error.message().contains("/nonexistent: No such file"),
        "{error}"
    );
}

#[tokio::test]
async fn much_output_is_bounded_but_in_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let name = format!("{}/logs/{{task_id}}.out", folder.path().display());
    let call = call(json!({
        "argv": ["head -c 20000000 /dev/zero | tr '\\0' x; echo end"], "shell": true,
        "stdout_file": name, "output_head": 10, "output_tail": "1K", "log": "off",
    }));
    let result = call.run(json!({})).await.unwrap();
    assert_eq!(result["truncated"], true);
    let shown = result["stdout"].as_str().unwrap();
    assert!(
        shown.starts_with("xxxxxxxxxx\n[19998970 bytes left out]\n"),
        "{shown}"
    );
    assert!(shown.ends_with("xend\n") && shown.len() < 1200, "{shown}");
    let written = std::fs::metadata(folder.path().join("logs/id-1.out")).unwrap();
    assert_eq!(written.len(), 20_000_004);
    assert!(call.log.lines().is_empty());
}

#[tokio::test]
async fn output_that_is_no_text_is_shown_all_the_same() {
    let call = call(json!({"argv": ["printf", "\\377\\000ok\\n"]}));
    let result = call.run(json!({})).await.unwrap();
    assert_eq!(result["stdout"], "\u{fffd}\0ok\n");
}

#[tokio::test]
async fn a_file_that_can_t_be_written_fails_the_task() {
    let call = call(json!({"argv": ["true"], "stdout_file": "/proc/nonexistent/file"}));
    let error = call.run(json!({})).await.unwrap_err().exception();
    assert_eq!(error.exc_type, "OSError");
    assert!(
        error.message().starts_with("/proc/nonexistent/file: "),
        "{error}"
    );
}

#[tokio::test]
async fn a_revoked_command_may_end_by_itself_and_is_killed_otherwise() {
    let kind = call(json!({
        "argv": ["trap 'echo bye; exit 0' TERM; echo on; while :; do sleep 0.01; done"],
        "shell": true, "grace": 60,
    }));
    let (result, ()) = tokio::join!(kind.run(json!({})), async {
        kind.logged("on").await;
        kind.canceller.cancel(Cause::Revoked);
    });
    assert_eq!(result.unwrap()["stdout"], "on\nbye\n");

    let stubborn = call(json!({
        "argv": ["trap '' TERM; echo on; while :; do sleep 0.01; done"], "shell": true,
        "grace": 0.05,
    }));
    let (result, ()) = tokio::join!(stubborn.run(json!({})), async {
        stubborn.logged("on").await;
        stubborn.canceller.cancel(Cause::Revoked);
    });
    let error = result.unwrap_err().exception();
    assert_eq!(error.message(), "signal 9 (SIGKILL)\non");
}

#[tokio::test]
async fn a_soft_time_limit_is_python_s_exception() {
    let call = call(json!({"argv": ["echo on; exec sleep 1000"], "shell": true}));
    let (result, ()) = tokio::join!(call.run(json!({})), async {
        call.logged("on").await;
        call.canceller
            .cancel(Cause::SoftTimeLimit(Duration::from_secs(1)));
    });
    assert_eq!(
        result.unwrap_err().exception().exc_type,
        "SoftTimeLimitExceeded"
    );
}

#[tokio::test]
async fn a_dropped_call_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pid");
    let call = call(json!({
        "argv": ["echo $$ >$1.new; mv $1.new $1; exec sleep 1000", file], "shell": true,
    }));
    let written = async {
        while !file.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = call.run(json!({})) => panic!("{result:?}"),
        () = written => {}
    }
    let pid = std::fs::read_to_string(&file).unwrap();
    let stat = Path::new("/proc").join(pid.trim());
    let gone = async {
        while stat.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.unwrap();
}

#[tokio::test]
async fn callers_run_what_the_worker_allows() {
    let allowing = call(json!({"programs": ["/bin/cat"]}));
    let result = allowing
        .run(json!({"argv": ["cat", "-"], "stdin": "text"}))
        .await
        .unwrap();
    assert_eq!(result["stdout"], "text");
    let error = allowing
        .run(json!({"argv": ["/bin/sh"]}))
        .await
        .unwrap_err();
    assert_eq!(error.exception().exc_type, "PermissionError");
    let off = call(json!({}));
    let error = off.run(json!({"argv": ["cat"]})).await.unwrap_err();
    assert!(
        error
            .exception()
            .message()
            .contains("runs no commands that callers name")
    );
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for (options, expected) in [
        (
            json!({"argv": ["a"], "programs": ["/b"]}),
            "command task: `programs`",
        ),
        (
            json!({"programs": ["/b"], "shell": true}),
            "command task: `shell`",
        ),
        (json!({"argv": ["{"]}), "command task: `{` has a brace"),
        (
            json!({"argv": ["a"], "defaults": {"b": 1}}),
            "command task: there is a default for `b`",
        ),
        (
            json!({"argv": ["a"], "stdout_file": "{b}"}),
            "command task: the file name `{b}`",
        ),
        (
            json!({"argv": ["a"], "user": "no such user"}),
            "command task: there is no user",
        ),
    ] {
        let mut options: CommandOptions = serde_json::from_value(options).unwrap();
        "task".clone_into(&mut options.name);
        let error = command_with(Keeper::at("/x"), options)
            .err()
            .unwrap()
            .to_string();
        assert!(error.starts_with(expected), "{error}");
    }
    let error = command(CommandOptions::default()).err().unwrap();
    assert!(error.to_string().contains("has not called"), "{error}");
}
