//! A result backend for a program in another language: JSON lines in, JSON lines out. The first line
//! says which backend it is, each further line asks something of it.
//!
//! `interop/test_result_backends.py` holds it against Celery's own backends.

use std::io::{BufRead as _, Write as _, stdin, stdout};
use std::sync::Arc;
use std::time::Duration;

use celeriac_backend::{document, open, open_beside};
use celeriac_core::Backend;
use celeriac_core::backend::{ChordPart, Claimed, Error, Meta, Settings, Stored};
use celeriac_testing::conformance::backend::{self as conformance, Fixture};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Which backend.
#[derive(Clone, Deserialize)]
struct Opened {
    url: String,
    /// For `rpc://`.
    broker: Option<String>,
    #[serde(default)]
    options: Map<String, Value>,
    #[serde(default)]
    extended: bool,
}

/// What is asked.
#[derive(Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
enum Asked {
    Store {
        documents: Vec<Value>,
        reply_to: Option<String>,
    },
    Get {
        ids: Vec<String>,
    },
    Changed {
        id: String,
        known: Option<Value>,
    },
    Expect {
        id: String,
    },
    ReplyTo,
    Forget {
        ids: Vec<String>,
    },
    SaveGroup {
        id: String,
        members: Value,
    },
    Group {
        id: String,
    },
    ForgetGroup {
        id: String,
    },
    OpenChord {
        id: String,
        size: u64,
    },
    ChordPart {
        id: String,
        task: String,
        index: Option<u64>,
        status: String,
        result: Value,
    },
    CloseChord {
        id: String,
    },
    Cleanup,
    /// Runs the suite of all backends against it.
    Conformance,
}

/// The backend, for the suite.
struct Whole(Opened);

impl Fixture for Whole {
    fn open(&self) -> Arc<dyn Backend> {
        backend(self.0.clone()).expect("a backend")
    }

    // MongoDB's dates have milliseconds.
    fn keeps_microseconds(&self) -> bool {
        !self.0.url.starts_with("mongodb")
    }

    fn keeps_extended(&self) -> bool {
        self.0.extended
    }

    // moto takes some hundred requests in a second.
    fn many(&self) -> usize {
        if self.0.url.starts_with("s3") {
            100
        } else {
            1234
        }
    }
}

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut lines = stdin().lock().lines();
    let mut next = || Some(lines.next()?.expect("a line"));
    let Some(first) = next() else { return };
    let opened: Opened = serde_json::from_str(&first).expect("a backend");
    let _context = runtime.enter();
    let backend = match backend(opened.clone()) {
        Ok(backend) => backend,
        Err(error) => return answer(&failed(&error)),
    };
    answer(&json!({"url": backend.display_url()}));
    let mut claim = None;
    while let Some(line) = next() {
        let asked: Asked = serde_json::from_str(&line).expect("a question");
        let done = match asked {
            Asked::Conformance => {
                runtime.block_on(conformance::run(&Whole(opened.clone())));
                Ok(Value::Null)
            }
            asked => runtime.block_on(ask(&*backend, asked, &mut claim)),
        };
        answer(&match done {
            Ok(value) => json!({ "answer": value }),
            Err(error) => failed(&error),
        });
    }
    drop(runtime.block_on(backend.close()));
}

fn backend(opened: Opened) -> Result<Arc<dyn Backend>, Error> {
    let settings = Settings {
        expires: Some(Duration::from_hours(24)),
        extended: opened.extended,
        options: opened.options,
        ..Settings::default()
    };
    match opened.broker {
        Some(broker) => {
            let broker = celeriac_broker::open(&broker, &celeriac_broker::Options::default());
            open_beside(&opened.url, settings, &broker.expect("a broker"))
        }
        None => open(&opened.url, settings),
    }
}

async fn ask(
    backend: &dyn Backend,
    asked: Asked,
    claim: &mut Option<Claimed>,
) -> Result<Value, Error> {
    Ok(match asked {
        Asked::Store {
            documents,
            reply_to,
        } => {
            let results: Result<Vec<Stored>, Error> = documents
                .into_iter()
                .map(|document| {
                    Ok(Stored {
                        meta: meta(&document)?,
                        reply_to: reply_to.clone(),
                        correlation_id: None,
                        expires: None,
                    })
                })
                .collect();
            backend.store(&results?).await?;
            Value::Null
        }
        Asked::Get { ids } => {
            let found = backend.get(&ids).await?;
            found.iter().map(|meta| shown(meta.as_ref())).collect()
        }
        Asked::Changed { id, known } => {
            let known = known.as_ref().map(meta).transpose()?;
            let changed = backend.changed(&id, known.as_ref()).await?;
            shown(Some(&changed))
        }
        Asked::Expect { id } => {
            backend.expect(&id).await?;
            Value::Null
        }
        Asked::ReplyTo => json!(backend.reply_to()),
        Asked::Forget { ids } => {
            backend.forget(&ids).await?;
            Value::Null
        }
        Asked::SaveGroup { id, members } => {
            backend.save_group(&id, &members).await?;
            Value::Null
        }
        Asked::Group { id } => json!(backend.group(&id).await?),
        Asked::ForgetGroup { id } => {
            backend.forget_group(&id).await?;
            Value::Null
        }
        Asked::OpenChord { id, size } => {
            backend.open_chord(&id, size).await?;
            Value::Null
        }
        Asked::ChordPart {
            id,
            task,
            index,
            status,
            result,
        } => {
            let part = ChordPart {
                group_id: id,
                task_id: task,
                group_index: index,
                status,
                result,
            };
            *claim = backend.chord_part(&part).await?;
            match claim.as_ref().map(|claim| &claim.results) {
                None => Value::Null,
                Some(Ok(results)) => json!({ "results": results }),
                Some(Err(exception)) => json!({ "exception": exception }),
            }
        }
        Asked::CloseChord { id } => {
            let claim = claim.take().expect("a claim");
            backend.close_chord(&id, &claim).await?;
            Value::Null
        }
        Asked::Cleanup | Asked::Conformance => {
            backend.cleanup().await?;
            Value::Null
        }
    })
}

fn meta(document: &Value) -> Result<Meta, Error> {
    document::decode(document.to_string().as_bytes())
}

fn shown(meta: Option<&Meta>) -> Value {
    let Some(meta) = meta else {
        return Value::Null;
    };
    let document = document::encode(meta).expect("JSON");
    serde_json::from_slice(&document).expect("JSON")
}

fn failed(error: &Error) -> Value {
    json!({"error": {
        "kind": format!("{:?}", error.kind),
        "message": error.message,
        "hint": error.hint,
    }})
}

fn answer(value: &Value) {
    let mut out = stdout().lock();
    writeln!(out, "{value}").expect("somebody reads");
    out.flush().expect("somebody reads");
}
