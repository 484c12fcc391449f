//! Calls what it is told to: the other side of interop tests, and an example of the client.
//!
//! Reads one JSON object a line and writes one: `{"settings": {...}}` makes a client of them;
//! `{"call": {"signature": {...}, "args": [], "kwargs": {}, "options": {}}}` applies a signature, and
//! answers with the result as a tuple and with its value unless it has `"wait": null`. With
//! `"build"` in place of a signature the canvas is built here: `{"chain": […]}`, `{"group": […]}`,
//! `{"chord": [header, body]}`, `{"map": [task, it]}`, `{"starmap": [task, it]}`,
//! `{"chunks": [task, it, n]}`, nested in one another.

use std::time::Duration;

use celeriac_client::{Apply, Client, Config, Error, Signature, TaskError};
use celeriac_client::{chain, chord, chunks, group, map, starmap};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut output = tokio::io::stdout();
    let mut client = None;
    while let Some(line) = lines.next_line().await? {
        let answer = match answer(&mut client, &line).await {
            Ok(answer) => answer,
            Err(error) => described(&error),
        };
        output.write_all(format!("{answer}\n").as_bytes()).await?;
        output.flush().await?;
    }
    Ok(())
}

async fn answer(client: &mut Option<Client>, line: &str) -> Result<Value, Error> {
    let request: Value =
        serde_json::from_str(line).map_err(|error| Error::Invalid(error.to_string()))?;
    if let Some(settings) = request.get("settings").and_then(Value::as_object) {
        *client = Some(Client::new(Config::from_settings(settings)?)?);
        return Ok(json!({}));
    }
    let client = client
        .as_ref()
        .ok_or_else(|| Error::Invalid("settings come first".to_owned()))?;
    if let Some(ids) = request.get("revoke") {
        let ids: Vec<String> = read(ids)?;
        let terminate = request.get("terminate").and_then(Value::as_str);
        client.revoke(&ids, terminate).await?;
        return Ok(json!({}));
    }
    if let Some(id) = request.get("state").and_then(Value::as_str) {
        return Ok(json!({"state": client.result(id).state().await?}));
    }
    let call = &request["call"];
    let signature = match call.get("build") {
        Some(canvas) => build(canvas)?,
        None => read(&call["signature"])?,
    };
    let with = Apply {
        args: call.get("args").map_or(Ok(Vec::new()), read)?,
        kwargs: call.get("kwargs").map_or(Ok(Map::new()), read)?,
        options: call.get("options").map_or(Ok(Map::new()), read)?,
    };
    let result = client.apply(&signature, with).await?;
    let mut answer = json!({"result": result.as_tuple()});
    if let Some(seconds) = call.get("wait").and_then(Value::as_u64) {
        match result.wait::<Value>(Duration::from_secs(seconds)).await {
            Ok(value) => answer["value"] = value,
            Err(error) => answer["error"] = described(&error)["error"].clone(),
        }
    }
    Ok(answer)
}

/// The canvas that is described.
fn build(canvas: &Value) -> Result<Signature, Error> {
    let all = |list: &Value| -> Result<Vec<Signature>, Error> {
        let list = list.as_array().map_or(&[][..], Vec::as_slice);
        list.iter().map(build).collect()
    };
    let Some((kind, parts)) = canvas
        .as_object()
        .filter(|object| object.len() == 1)
        .and_then(|object| object.iter().next())
    else {
        return read(canvas);
    };
    match kind.as_str() {
        "chain" => chain(all(parts)?),
        "group" => group(all(parts)?),
        "chord" => chord(all(&parts[0])?, build(&parts[1])?),
        "map" => map(build(&parts[0])?, read::<Vec<Value>>(&parts[1])?),
        "starmap" => starmap(build(&parts[0])?, read::<Vec<Value>>(&parts[1])?),
        "chunks" => {
            let n: usize = read(&parts[2])?;
            chunks(build(&parts[0])?, read::<Vec<Value>>(&parts[1])?, n)
        }
        _ => read(canvas),
    }
}

fn read<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, Error> {
    serde_json::from_value(value.clone()).map_err(|error| Error::Invalid(error.to_string()))
}

fn described(error: &Error) -> Value {
    let kind = match error {
        Error::Task(TaskError::Failure { exception, .. }) => {
            return json!({"error": {"kind": "failure", "exception": exception}});
        }
        Error::Task(TaskError::Revoked { exception, .. }) => {
            return json!({"error": {"kind": "revoked", "exception": exception}});
        }
        Error::Broker(_) => "broker",
        Error::Backend(_) => "backend",
        Error::Timeout { .. } => "timeout",
        _ => "invalid",
    };
    json!({"error": {"kind": kind, "text": error.to_string()}})
}
