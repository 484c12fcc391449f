//! Applying: what is to be done to have a call made, step by step. Nothing is done here.
//!
//! Celery's counterpart: the methods `apply_async` and `run` of the classes of `celery.canvas`.

use celeriac_core::backend::Chords;
use serde_json::{Map, Value, json};

use super::freeze::{Freeze, Freezer, Place, no_body, strip_header_links};
use super::node::{Header, Kind, Node, merge, one_or_many};
use super::steps::{self, Wanted, give, split_body};
use crate::error::Error;

type Options = Map<String, Value>;

/// What is to be done, in this order.
#[derive(Debug)]
pub(crate) enum Step {
    /// Send a call.
    Send(Call),
    /// Have a chord's parts counted.
    OpenChord { group_id: String, size: u64 },
    /// Keep a group, whose results are not plain.
    SaveGroup { group_id: String, members: Value },
}

/// A call as it is sent: the arguments of `Celery.send_task`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    /// The name that it is routed by, where that is another.
    pub(crate) route_name: Option<String>,
    pub(crate) args: Vec<Value>,
    pub(crate) kwargs: Map<String, Value>,
    /// With its `task_id`.
    pub(crate) options: Options,
}

/// Plans how calls are made.
pub(crate) struct Planner<'p> {
    pub(crate) freezer: Freezer<'p>,
    pub(crate) steps: Vec<Step>,
    /// What the result backend does with chords, or why there can be none.
    pub(crate) chords: Result<Chords, Error>,
    /// The queue that a task goes to, where its call names none.
    pub(crate) queue_of: &'p (dyn Fn(&str) -> String + Sync),
}

impl Planner<'_> {
    /// Plans to make a call with arguments before its own and options over its own; answers with
    /// its result.
    ///
    /// # Errors
    /// When the call makes no sense.
    pub(crate) fn apply(
        &mut self,
        node: Node,
        args: Vec<Value>,
        kwargs: Map<String, Value>,
        mut options: Options,
    ) -> Result<Place, Error> {
        options.retain(|_, value| !value.is_null());
        match node.kind {
            Kind::Task if node.signature.subtask_type.as_deref() == Some("chunks") => {
                let group = chunks(node)?;
                self.group(group, args, kwargs, options)
            }
            Kind::Task => Ok(self.task(node, args, kwargs, options)),
            Kind::Chain(_) => self.chain(node, args, kwargs, options),
            Kind::Group(_) => self.group(node, args, kwargs, options),
            Kind::Chord(..) => self.chord(node, args, kwargs, options),
        }
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "as its siblings, which keep them"
    )]
    fn task(
        &mut self,
        mut node: Node,
        args: Vec<Value>,
        kwargs: Map<String, Value>,
        options: Options,
    ) -> Place {
        give(&mut node, &args, &kwargs);
        let signature = node.signature;
        let mut options = merge(&signature.options, options);
        let given = options.remove("route_name");
        let inner = signature
            .subtask_type
            .as_ref()
            .and_then(|_| signature.kwargs.get("task")?.get("task"));
        let route_name = given.as_ref().or(inner).and_then(Value::as_str);
        let route_name = route_name.map(str::to_owned);
        let id = match options.get("task_id").and_then(Value::as_str) {
            Some(id) => id.to_owned(),
            None => self.freezer.id(),
        };
        options.insert("task_id".to_owned(), id.clone().into());
        self.steps.push(Step::Send(Call {
            name: signature.task,
            route_name,
            args: signature.args,
            kwargs: signature.kwargs,
            options,
        }));
        self.freezer.results.add(&id, None)
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "as its siblings, which keep them"
    )]
    fn chain(
        &mut self,
        chain: Node,
        mut args: Vec<Value>,
        kwargs: Map<String, Value>,
        options: Options,
    ) -> Result<Place, Error> {
        let Node {
            mut signature,
            kind,
        } = chain;
        let Kind::Chain(tasks) = kind else {
            return Err(no_body());
        };
        let mut all = signature.options;
        all.extend(options);
        let text = |value: Option<Value>| value.and_then(|value| value.as_str().map(str::to_owned));
        let link = one_or_many(all.remove("link").as_ref());
        let link_error = one_or_many(all.remove("link_error").as_ref());
        // Celery's chain takes it, and has no use for it.
        all.remove("parent_id");
        let wanted = Wanted {
            root_id: text(all.remove("root_id")),
            last_task_id: text(all.remove("task_id")),
            group_id: text(all.remove("group_id")),
            chord: all.remove("chord").filter(|chord| !chord.is_null()),
            group_index: all.remove("group_index").and_then(|index| index.as_u64()),
            link_error: link_error
                .into_iter()
                .map(Node::from_value)
                .collect::<Result<_, _>>()?,
        };
        if signature.immutable {
            args = signature.args;
        } else {
            args.append(&mut signature.args);
        }
        if tasks.iter().any(may_be_chord) {
            self.check_chords_of(&tasks)?;
        }
        let prepared = steps::to_send(&mut self.freezer, &tasks, &args, &kwargs, wanted)?;
        let mut tasks = prepared.tasks;
        if !link.is_empty()
            && let Some(last) = tasks.first_mut()
        {
            last.extend("link", link);
        }
        let Some(first) = tasks.pop() else {
            return Err(no_body());
        };
        let is_only = tasks.is_empty();
        let rest = tasks.into_iter().map(Node::into_value);
        let mut rest_of_chain = one_or_many(all.get("chain"));
        rest_of_chain.extend(rest);
        all.insert("chain".to_owned(), Value::Array(rest_of_chain));
        let applied = self.apply(first, Vec::new(), Map::new(), all)?;
        if is_only {
            return Ok(applied);
        }
        prepared.results.first().copied().ok_or_else(no_body)
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "as its siblings, which keep them"
    )]
    fn group(
        &mut self,
        group: Node,
        args: Vec<Value>,
        kwargs: Map<String, Value>,
        options: Options,
    ) -> Result<Place, Error> {
        let has = |name: &str| options.contains_key(name);
        if has("link") || has("link_error") {
            return Err(Error::Invalid(
                "a group has no end of its own to be linked to: use a chord, or link its tasks"
                    .to_owned(),
            ));
        }
        let mut group = group;
        let Kind::Group(tasks) = &mut group.kind else {
            return Err(no_body());
        };
        if tasks.is_empty() {
            return self.freezer.freeze(&mut group, Freeze::default());
        }
        let mut options = merge(&group.signature.options, options);
        let group_id = match options.remove("task_id") {
            Some(Value::String(id)) => id,
            _ => self.freezer.id(),
        };
        options.insert("group_id".to_owned(), group_id.clone().into());
        let root_id = options.get("root_id").and_then(Value::as_str);
        let root_id = root_id.map(str::to_owned);
        let mut prepared = Vec::with_capacity(tasks.len());
        let tasks = std::mem::take(tasks);
        self.prepare_group(tasks, &group_id, root_id.as_ref(), &mut prepared)?;

        let chord = options.remove("chord").filter(|chord| !chord.is_null());
        options.remove("group_index");
        // The result of a member's own is no child of the task that sends the group.
        options.insert("add_to_parent".to_owned(), false.into());
        let mut size = 0;
        let count = prepared.len();
        let mut members = Vec::with_capacity(count);
        for (index, (task, result)) in prepared.into_iter().enumerate() {
            let own = task.option("chord").filter(|chord| !chord.is_null());
            let chord = chord.as_ref().or(own).cloned();
            size += task.parts();
            let mut options = options.clone();
            if let Some(chord) = chord {
                if index + 1 == count && matches!(self.chords, Ok(Chords::Counted)) {
                    let group_id = group_id.clone();
                    self.steps.push(Step::OpenChord { group_id, size });
                }
                options.insert("chord".to_owned(), chord);
            }
            self.apply(task, args.clone(), kwargs.clone(), options)?;
            members.push(result);
        }
        // A group of one that ends with a group has that one's results.
        if let [only] = members[..]
            && self.freezer.results.get(only).members.is_some()
        {
            return Ok(only);
        }
        Ok(self.freezer.results.add(&group_id, Some(members)))
    }

    /// The calls of a group and of the groups within it (`group._prepared`).
    fn prepare_group(
        &mut self,
        tasks: Vec<Node>,
        group_id: &str,
        root_id: Option<&String>,
        prepared: &mut Vec<(Node, Place)>,
    ) -> Result<(), Error> {
        for (index, mut task) in (0..).zip(tasks) {
            match task.kind {
                Kind::Group(inner) => self.prepare_group(inner, group_id, root_id, prepared)?,
                _ if task.is_empty_chain() => {}
                _ => {
                    let with = Freeze {
                        group_id: Some(group_id.to_owned()),
                        root_id: root_id.cloned(),
                        group_index: Some(index),
                        ..Freeze::default()
                    };
                    let result = self.freezer.freeze(&mut task, with)?;
                    prepared.push((task, result));
                }
            }
        }
        Ok(())
    }

    fn chord(
        &mut self,
        chord: Node,
        mut args: Vec<Value>,
        mut kwargs: Map<String, Value>,
        mut options: Options,
    ) -> Result<Place, Error> {
        let Node {
            mut signature,
            kind,
        } = chord;
        let Kind::Chord(mut header, body) = kind else {
            return Err(no_body());
        };
        if signature.immutable {
            args = signature.args;
        } else {
            args.append(&mut signature.args);
        }
        let mut body = match kwargs.remove("body").filter(|body| !body.is_null()) {
            Some(body) => Node::from_value(body)?,
            None => *body.ok_or_else(no_body)?,
        };
        let mut all_kwargs = match signature.kwargs.remove("kwargs") {
            Some(Value::Object(kwargs)) => kwargs,
            _ => Map::new(),
        };
        all_kwargs.extend(kwargs);
        // A delay is the header's: the body is called when that has ended.
        let mut delay = Map::new();
        for name in ["countdown", "eta"] {
            let given = options.remove(name);
            let own = signature.options.remove(name);
            if let Some(value) = given.or(own).filter(|value| !value.is_null()) {
                delay.insert(name.to_owned(), value);
            }
        }
        let given_id = options.remove("task_id");
        let mut callbacks = Map::new();
        for name in ["link", "link_error"] {
            if let Some(value) = options.remove(name) {
                callbacks.insert(name.to_owned(), value);
            }
        }
        body.signature.options = merge(&body.signature.options, for_body(&options));
        let own_id = signature.options.remove("task_id");
        let group = header
            .group
            .get_or_insert_with(|| Node::group(Vec::new()).signature);
        let group_id = match group.id().or(own_id.as_ref().and_then(Value::as_str)) {
            Some(id) => id.to_owned(),
            None => self.freezer.id(),
        };
        group
            .options
            .insert("task_id".to_owned(), group_id.clone().into());

        let mut all = signature.options;
        all.extend(options);
        all.extend(callbacks);
        let root_id = body.signature.option("root_id").map(str::to_owned);
        let interval = all.remove("interval").unwrap_or_default();
        let max_retries = all.remove("max_retries").unwrap_or_default();
        add_callbacks(&mut body, &mut all)?;
        body.signature.options.extend(for_body(&all));
        if let Kind::Chain(tasks) = &mut body.kind {
            *tasks = split_chords(std::mem::take(tasks))?;
        }
        let task_id = given_id.or(own_id);
        let task_id = task_id.as_ref().and_then(Value::as_str).map(str::to_owned);
        let with = Freeze {
            id: task_id,
            group_id: Some(group_id.clone()),
            root_id: root_id.clone(),
            ..Freeze::default()
        };
        let body_result = self.freezer.freeze(&mut body, with)?;
        strip_header_links(&mut body);
        all.remove("chain");
        all.remove("chord");

        let with = Freeze {
            group_id: Some(group_id.clone()),
            chord: Some(body.to_value()),
            root_id,
            ..Freeze::default()
        };
        let (_, members) = self.freezer.freeze_header(&mut header, &with)?;
        if header.tasks.is_empty() {
            let header_result = self.freezer.results.add(&group_id, Some(members));
            self.apply(body, vec![json!([])], Map::new(), Map::new())?;
            self.freezer
                .results
                .set_parent(body_result, Some(header_result));
            return Ok(body_result);
        }
        self.prepare_chord(&group_id, &members, &body, &[interval, max_retries])?;
        let Header { tasks, group } = header;
        let header = Node {
            signature: group.unwrap_or_default(),
            kind: Kind::Group(tasks),
        };
        all.extend(delay);
        all.insert("task_id".to_owned(), group_id.into());
        let header_result = self.apply(header, args, all_kwargs, all)?;
        self.freezer
            .results
            .set_parent(body_result, Some(header_result));
        Ok(body_result)
    }

    /// What has to be done before a chord's header is sent (`Backend.apply_chord`).
    fn prepare_chord(
        &mut self,
        group_id: &str,
        members: &[Place],
        body: &Node,
        retries: &[Value; 2],
    ) -> Result<(), Error> {
        let results = &self.freezer.results;
        let tuples: Vec<Value> = members.iter().map(|one| results.as_tuple(*one)).collect();
        match self.chords.clone()? {
            Chords::Counted => {
                let is_plain = |one: &Place| results.get(*one).members.is_none();
                if !members.iter().all(is_plain) {
                    self.steps.push(Step::SaveGroup {
                        group_id: group_id.to_owned(),
                        members: json!([[group_id, null], tuples]),
                    });
                }
            }
            Chords::Unlocked => self.unlock(group_id, tuples, body, retries),
            Chords::None => return Err(chords_unsupported("this result backend")),
        }
        Ok(())
    }

    /// Has a task look whether the header has ended (`fallback_chord_unlock`).
    fn unlock(&mut self, group_id: &str, tuples: Vec<Value>, body: &Node, retries: &[Value; 2]) {
        let [interval, max_retries] = retries;
        let mut kwargs = Map::new();
        kwargs.insert("interval".to_owned(), interval.clone());
        kwargs.insert("max_retries".to_owned(), max_retries.clone());
        kwargs.insert("result".to_owned(), tuples.into());
        let mut options = Map::new();
        let queue = match body.signature.option("queue") {
            Some(queue) => queue.to_owned(),
            None => (self.queue_of)(&body.signature.task),
        };
        options.insert("queue".to_owned(), queue.into());
        options.insert("countdown".to_owned(), 1.into());
        options.insert("ignore_result".to_owned(), true.into());
        let priority = body.option("priority").cloned();
        options.insert("priority".to_owned(), priority.unwrap_or_else(|| 0.into()));
        let stamps = one_or_many(body.option("stamped_headers"));
        for name in ["exchange", "exchange_type", "routing_key", "headers"] {
            let is_stamp = stamps.iter().any(|stamp| stamp.as_str() == Some(name));
            if let Some(value) = body.option(name).filter(|_| !is_stamp) {
                options.insert(name.to_owned(), value.clone());
            }
        }
        let kind = options.get("exchange_type").cloned();
        let kind = kind.unwrap_or_else(|| "direct".into());
        kwargs.insert("_chord_unlock_exchange_type".to_owned(), kind);
        options.insert("task_id".to_owned(), self.freezer.id().into());
        self.steps.push(Step::Send(Call {
            name: "celery.chord_unlock".to_owned(),
            route_name: None,
            args: vec![group_id.into(), body.to_value()],
            kwargs,
            options,
        }));
    }

    /// Says at once that there can be no chord, and not when its turn comes.
    fn check_chords_of(&self, tasks: &[Node]) -> Result<(), Error> {
        let is_chord = |task: &Node| matches!(task.kind, Kind::Chord(..));
        let last = tasks.len().saturating_sub(1);
        let upgraded = tasks[..last]
            .iter()
            .any(|task| matches!(&task.kind, Kind::Group(tasks) if tasks.len() > 1));
        if tasks.iter().any(is_chord) || upgraded {
            match self.chords.clone()? {
                Chords::None => return Err(chords_unsupported("this result backend")),
                Chords::Counted | Chords::Unlocked => {}
            }
        }
        Ok(())
    }
}

fn may_be_chord(task: &Node) -> bool {
    matches!(task.kind, Kind::Chord(..) | Kind::Group(_))
}

/// That a result backend has no chords.
pub(crate) fn chords_unsupported(backend: &str) -> Error {
    Error::Invalid(format!(
        "{backend} does not support chords, which a group that is followed by a task is as well: \
         set result_backend to Redis, to a database, or to another that does"
    ))
}

/// Options of a chord that its body has as well: what has sent the chord has not sent the body.
fn for_body(options: &Options) -> Options {
    let mut options = options.clone();
    options.remove("parent_id");
    options
}

/// Moves callbacks and errbacks of a chord to its body (`_add_body_callbacks`).
fn add_callbacks(body: &mut Node, options: &mut Options) -> Result<(), Error> {
    for callback in one_or_many(options.remove("link").as_ref()) {
        if body.is_empty_group() {
            body.append("link", callback);
        } else {
            body.link(Node::from_value(callback)?);
        }
    }
    for errback in one_or_many(options.remove("link_error").as_ref()) {
        if matches!(body.kind, Kind::Group(_)) {
            link_error_to_tasks(body, &errback, true)?;
        } else {
            body.append("link_error", errback);
        }
    }
    Ok(())
}

/// Links an errback to the tasks of a body that is a group (`_link_error_to_body_tasks`).
fn link_error_to_tasks(node: &mut Node, errback: &Value, runs_alone: bool) -> Result<(), Error> {
    let has_own = runs_alone && node.option("link_error").is_some_and(|own| !own.is_null());
    match &mut node.kind {
        Kind::Group(_) if has_own => node.append("link_error", errback.clone()),
        Kind::Group(tasks) => {
            for task in tasks {
                link_error_to_tasks(task, errback, false)?;
            }
        }
        Kind::Chord(_, body) => {
            if let Some(body) = body {
                link_error_to_tasks(body, errback, true)?;
            }
        }
        Kind::Task | Kind::Chain(_) => node.link_error(&Node::from_value(errback.clone())?),
    }
    Ok(())
}

/// The steps of a body, each chord that goes on with a chain in steps of its own
/// (`_chain._unroll_chords`).
fn split_chords(tasks: Vec<Node>) -> Result<Vec<Node>, Error> {
    let mut pending: Vec<Node> = tasks.into_iter().rev().collect();
    let mut all = Vec::new();
    while let Some(mut task) = pending.pop() {
        match &mut task.kind {
            Kind::Chain(inner) => {
                *inner = split_chords(std::mem::take(inner))?;
                all.push(task);
            }
            Kind::Chord(_, Some(body)) if body.is_chain_led_by_task() => {
                pending.extend(split_body(task)?.into_iter().rev());
            }
            _ => all.push(task),
        }
    }
    Ok(all)
}

/// Chunks as the group that they are: one call of `celery.starmap` for each.
fn chunks(node: Node) -> Result<Node, Error> {
    let mut kwargs = node.signature.kwargs;
    let size = kwargs.get("n").and_then(Value::as_u64).filter(|n| *n > 0);
    let (Some(task), Some(Value::Array(it)), Some(size)) =
        (kwargs.remove("task"), kwargs.remove("it"), size)
    else {
        return Err(Error::Invalid(
            "chunks need a task, a list of arguments, and how many of them a chunk has".to_owned(),
        ));
    };
    let parts = it.chunks(usize::try_from(size).unwrap_or(usize::MAX));
    let starmaps = parts.map(|part| {
        let mut kwargs = Map::new();
        kwargs.insert("task".to_owned(), task.clone());
        kwargs.insert("it".to_owned(), part.to_vec().into());
        Node::task(celeriac_protocol::Signature {
            kwargs,
            subtask_type: Some("xstarmap".to_owned()),
            immutable: true,
            ..celeriac_protocol::Signature::new("celery.starmap")
        })
    });
    Ok(Node::group(starmaps.collect()))
}
