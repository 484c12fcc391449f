//! An engine without containers: it keeps what it is told, and answers as Docker does.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// A container that does nothing.
#[derive(Clone, Default)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) labels: HashMap<String, String>,
    pub(crate) state: String,
    /// What it is told to be, as JSON.
    pub(crate) body: Value,
}

/// What it knows and does.
#[derive(Default)]
pub(crate) struct State {
    /// Method and path of each request, without the version.
    pub(crate) requests: Vec<String>,
    /// Containers by id.
    pub(crate) containers: HashMap<String, Container>,
    /// The last container that was made, even if it is gone.
    pub(crate) made: Option<Container>,
    /// Images that are there.
    pub(crate) images: Vec<String>,
    /// The lines of an answer to a pull.
    pub(crate) pull: Vec<Value>,
    /// What each following request for output gets: pieces of stream 1 or 2, and whether the
    /// container has ended with that.
    pub(crate) logs: VecDeque<(Vec<(u8, &'static str)>, bool)>,
    /// The code that containers end with.
    pub(crate) exit_code: i64,
    /// How many more requests for a container find its name taken by one that is on its way out.
    pub(crate) conflicts: u32,
}

/// The engine; it ends with its runtime.
#[derive(Clone, Default)]
pub(crate) struct Stub(Arc<Mutex<State>>);

impl Stub {
    /// Serves at a socket.
    pub(crate) fn serve(path: &Path) -> Self {
        let stub = Self::default();
        let listener = UnixListener::bind(path).unwrap();
        let served = stub.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(served.clone().answer(stream));
            }
        });
        stub
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }

    /// Requests that change something.
    pub(crate) fn changes(&self) -> Vec<String> {
        self.with(|state| {
            let changes = state.requests.iter().filter(|it| !it.starts_with("GET"));
            changes.cloned().collect()
        })
    }

    async fn answer(self, mut stream: UnixStream) {
        let mut read = Vec::new();
        let head = loop {
            if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
                return;
            }
            if let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let text = String::from_utf8(read[..head].to_vec()).unwrap();
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse::<usize>().unwrap())
        });
        while read.len() < head + length.unwrap_or(0) {
            stream.read_buf(&mut read).await.unwrap();
        }
        let mut words = text.split(' ');
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        let target = match target.strip_prefix("/v1.") {
            Some(versioned) => versioned.split_once('/').unwrap().1,
            None => target.trim_start_matches('/'),
        };
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let body = serde_json::from_slice(&read[head..]).unwrap_or_default();
        let (status, content) = self.with(|state| state.act(method, path, query, body));
        let head = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let _ = stream.write_all(&content).await;
    }
}

impl State {
    fn act(&mut self, method: &str, path: &str, query: &str, body: Value) -> (u16, Vec<u8>) {
        self.requests.push(format!("{method} {path}"));
        let json = |status, value: Value| (status, value.to_string().into_bytes());
        let wrong = |status, text: &str| json(status, json!({"message": text}));
        let parts: Vec<_> = path.split('/').collect();
        match (method, parts.as_slice()) {
            ("GET", ["version"]) => {
                json(200, json!({"ApiVersion": "1.41", "MinAPIVersion": "1.12"}))
            }
            ("GET", ["images", image, "json"]) => {
                if self.images.iter().any(|it| it == image) {
                    json(200, json!({"Id": image}))
                } else {
                    wrong(404, "no such image")
                }
            }
            ("POST", ["images", "create"]) => {
                let lines = self.pull.iter().map(|line| format!("{line}\n"));
                (200, lines.collect::<String>().into_bytes())
            }
            ("GET", ["containers", "json"]) => {
                let found = self.containers.iter().filter(|(_, it)| {
                    let id = it.labels.get("celeriac.task-id");
                    id.is_some_and(|id| query.contains(&format!("celeriac.task-id%3D{id}%22")))
                });
                let shown =
                    found.map(|(id, it)| json!({"Id": id, "Labels": it.labels, "State": it.state}));
                json(200, shown.collect())
            }
            ("POST", ["containers", "create"]) => {
                if self.conflicts > 0 {
                    self.conflicts -= 1;
                    return wrong(409, "the name is in use");
                }
                let name = query
                    .split('&')
                    .find_map(|it| it.strip_prefix("name="))
                    .unwrap();
                if self.containers.values().any(|it| it.name == name) {
                    return wrong(409, "the name is in use");
                }
                let id = format!("c{}", self.requests.len());
                let made = Container {
                    name: name.to_owned(),
                    labels: serde_json::from_value(body["Labels"].clone()).unwrap(),
                    state: "created".to_owned(),
                    body,
                };
                self.made = Some(made.clone());
                self.containers.insert(id.clone(), made);
                json(201, json!({"Id": id, "Warnings": []}))
            }
            (_, ["containers", id, rest @ ..]) => {
                let id = self
                    .containers
                    .iter()
                    .find(|(known, it)| known == id || it.name == *id);
                let Some(id) = id.map(|(id, _)| id.clone()) else {
                    return wrong(404, "no such container");
                };
                self.act_on(&id, method, rest)
            }
            other => panic!("nobody asks an engine for {other:?}"),
        }
    }

    fn act_on(&mut self, id: &str, method: &str, rest: &[&str]) -> (u16, Vec<u8>) {
        let container = self.containers.get_mut(id).unwrap();
        match (method, rest) {
            ("POST", ["start"]) => {
                "running".clone_into(&mut container.state);
                (204, Vec::new())
            }
            ("POST", ["stop"]) => {
                "exited".clone_into(&mut container.state);
                (204, Vec::new())
            }
            ("GET", ["logs"]) => {
                let (pieces, has_ended) = self.logs.pop_front().unwrap_or_default();
                if has_ended {
                    "exited".clone_into(&mut container.state);
                }
                let frame = |&(stream, text): &(u8, &str)| {
                    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
                    [&[stream, 0, 0, 0], &length[..], text.as_bytes()].concat()
                };
                (200, pieces.iter().flat_map(frame).collect())
            }
            ("GET", ["json"]) => {
                let state = json!({
                    "Running": container.state == "running", "ExitCode": self.exit_code,
                });
                let shown =
                    json!({"Id": id, "State": state, "Config": {"Labels": container.labels}});
                (200, shown.to_string().into_bytes())
            }
            ("DELETE", []) => {
                self.containers.remove(id);
                (204, Vec::new())
            }
            other => panic!("nobody asks an engine for {other:?}"),
        }
    }
}
