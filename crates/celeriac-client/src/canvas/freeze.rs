//! Freezing: calls get their ids before they are made, so that others can name them.
//!
//! Celery's counterpart: the methods `freeze` of the classes of `celery.canvas`.

use celeriac_protocol::Signature;
use serde_json::Value;

use super::node::{Header, Kind, Node};
use super::steps;
use crate::error::Error;

/// Names a result in [`Results`].
pub(crate) type Place = usize;

/// The results of calls that are not made yet, and how they belong together.
#[derive(Debug, Default)]
pub(crate) struct Results {
    all: Vec<Frozen>,
}

/// One of them: `AsyncResult`, or `GroupResult` where there are members.
#[derive(Debug)]
pub(crate) struct Frozen {
    pub(crate) id: String,
    pub(crate) parent: Option<Place>,
    pub(crate) members: Option<Vec<Place>>,
}

impl Results {
    pub(crate) fn add(&mut self, id: &str, members: Option<Vec<Place>>) -> Place {
        self.all.push(Frozen {
            id: id.to_owned(),
            parent: None,
            members,
        });
        self.all.len() - 1
    }

    pub(crate) fn get(&self, place: Place) -> &Frozen {
        &self.all[place]
    }

    pub(crate) fn set_parent(&mut self, place: Place, parent: Option<Place>) {
        self.all[place].parent = parent;
    }

    /// The result before which there is no other.
    pub(crate) fn first(&self, mut place: Place) -> Place {
        // Parents are never circular: a result gets one only while it has none, and only one that
        // was frozen for it.
        while let Some(parent) = self.all[place].parent {
            place = parent;
        }
        place
    }

    /// The result with this parent, at or before `place`.
    pub(crate) fn before(&self, place: Place, parent: Place) -> Option<Place> {
        let mut node = Some(place);
        while let Some(place) = node {
            if self.all[place].parent == Some(parent) {
                return Some(place);
            }
            node = self.all[place].parent;
        }
        None
    }

    /// `as_tuple()`.
    pub(crate) fn as_tuple(&self, place: Place) -> Value {
        let Frozen {
            id,
            parent,
            members,
        } = self.get(place);
        let parent = parent.map(|parent| self.as_tuple(parent));
        let members: Option<Vec<Value>> = members.as_ref().map(|members| {
            members
                .iter()
                .map(|member| self.as_tuple(*member))
                .collect()
        });
        serde_json::json!([[id, parent], members])
    }
}

/// What a call is told when it is frozen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Freeze {
    /// Its id, where it has none.
    pub(crate) id: Option<String>,
    /// Its group, where it has none.
    pub(crate) group_id: Option<String>,
    /// The body of its chord.
    pub(crate) chord: Option<Value>,
    /// What all began with.
    pub(crate) root_id: Option<String>,
    /// What has sent it.
    pub(crate) parent_id: Option<String>,
    /// Its place in its group.
    pub(crate) group_index: Option<u64>,
}

/// Freezes calls.
pub(crate) struct Freezer<'f> {
    pub(crate) results: Results,
    /// Where results are awaited, for backends that ask.
    pub(crate) reply_to: Option<String>,
    /// New ids.
    pub(crate) ids: &'f mut (dyn FnMut() -> String + Send),
}

impl Freezer<'_> {
    pub(crate) fn id(&mut self) -> String {
        (self.ids)()
    }

    /// Freezes a call and what it is made of; answers with its result.
    ///
    /// # Errors
    /// When there is nothing to call: an empty chain, or a chord without a body.
    pub(crate) fn freeze(&mut self, node: &mut Node, with: Freeze) -> Result<Place, Error> {
        match &mut node.kind {
            Kind::Task => Ok(self.freeze_task(&mut node.signature, with)),
            Kind::Group(tasks) => {
                let (id, members) = self.freeze_group(&mut node.signature, tasks, &with)?;
                Ok(self.results.add(&id, Some(members)))
            }
            Kind::Chain(_) => steps::freeze(self, node, with),
            Kind::Chord(header, body) => {
                let Some(body) = body else {
                    return Err(no_body());
                };
                // The header holds the body, which is frozen first therefore; the results are the same.
                let body_result = self.freeze(
                    body,
                    Freeze {
                        id: with.id,
                        group_id: with.group_id,
                        chord: with.chord,
                        root_id: with.root_id.clone(),
                        parent_id: None,
                        group_index: with.group_index,
                    },
                )?;
                let with = Freeze {
                    chord: Some(body.to_value()),
                    root_id: with.root_id,
                    parent_id: with.parent_id,
                    ..Freeze::default()
                };
                let (id, members) = self.freeze_header(header, &with)?;
                let header_result = self.results.add(&id, Some(members));
                node.set("task_id", id);
                let first = self.results.first(body_result);
                self.results.set_parent(first, Some(header_result));
                Ok(body_result)
            }
        }
    }

    /// Freezes the calls of a chord's header, which is a group from then on.
    pub(crate) fn freeze_header(
        &mut self,
        header: &mut Header,
        with: &Freeze,
    ) -> Result<(String, Vec<Place>), Error> {
        let group = header
            .group
            .get_or_insert_with(|| Node::group(Vec::new()).signature);
        self.freeze_group(group, &mut header.tasks, with)
    }

    fn freeze_task(&mut self, signature: &mut Signature, with: Freeze) -> Place {
        let id = match signature.id() {
            Some(id) => id.to_owned(),
            None => {
                let id = with.id.unwrap_or_else(|| self.id());
                signature
                    .options
                    .insert("task_id".to_owned(), id.clone().into());
                id
            }
        };
        let options = &mut signature.options;
        let mut set = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                options.insert(name.to_owned(), value);
            }
        };
        set("root_id", with.root_id.map(Value::from));
        set("parent_id", with.parent_id.map(Value::from));
        set("chord", with.chord);
        set("group_index", with.group_index.map(Value::from));
        if let Some(reply_to) = &self.reply_to
            && !options.contains_key("reply_to")
        {
            options.insert("reply_to".to_owned(), reply_to.clone().into());
        }
        if let Some(group_id) = with.group_id
            && !options.contains_key("group_id")
        {
            options.insert("group_id".to_owned(), group_id.into());
        }
        self.results.add(&id, None)
    }

    /// Freezes the calls of a group; groups within it become part of it. Answers with its id and
    /// their results.
    pub(crate) fn freeze_group(
        &mut self,
        signature: &mut Signature,
        tasks: &mut Vec<Node>,
        with: &Freeze,
    ) -> Result<(String, Vec<Place>), Error> {
        let id = match signature.id() {
            Some(id) => id.to_owned(),
            None => self.id(),
        };
        let options = &mut signature.options;
        options.insert("task_id".to_owned(), id.clone().into());
        if let Some(group_id) = &with.group_id {
            options.insert("group_id".to_owned(), group_id.clone().into());
        }
        if let Some(chord) = &with.chord {
            options.insert("chord".to_owned(), chord.clone());
        }
        if let Some(index) = with.group_index {
            options.insert("group_index".to_owned(), index.into());
        }
        let mut default = |name: &str, value: &Option<String>| {
            let entry = options.entry(name);
            let value = entry.or_insert_with(|| value.clone().into());
            value.as_str().map(str::to_owned)
        };
        let root_id = default("root_id", &with.root_id);
        let parent_id = default("parent_id", &with.parent_id);
        let mut members = Vec::with_capacity(tasks.len());
        *tasks = flattened(std::mem::take(tasks));
        for (index, task) in (0..).zip(tasks) {
            let with = Freeze {
                id: None,
                group_id: with.group_id.clone(),
                chord: with.chord.clone(),
                root_id: root_id.clone(),
                parent_id: parent_id.clone(),
                group_index: Some(index),
            };
            members.push(self.freeze(task, with)?);
        }
        Ok((id, members))
    }
}

/// The calls of a group and of the groups within it, without those that call nothing. Those of an
/// inner group come in the reverse order, as Celery has them.
fn flattened(tasks: Vec<Node>) -> Vec<Node> {
    let mut stack: Vec<Node> = tasks.into_iter().rev().collect();
    let mut all = Vec::with_capacity(stack.len());
    while let Some(node) = stack.pop() {
        match node.kind {
            Kind::Group(tasks) => stack.extend(tasks),
            _ if node.is_empty_chain() => {}
            _ => all.push(node),
        }
    }
    all
}

pub(crate) fn no_body() -> Error {
    Error::Invalid("the chord has no body: give it a task to call with the results".to_owned())
}

/// Removes the body from the calls of headers: a chord that is sent holds it once already, and its
/// header gets it when it is sent (`_strip_chord_header_links`).
pub(crate) fn strip_header_links(node: &mut Node) {
    match &mut node.kind {
        Kind::Task => {}
        Kind::Chain(tasks) | Kind::Group(tasks) => tasks.iter_mut().for_each(strip_header_links),
        Kind::Chord(header, body) => {
            if let Some(group) = &mut header.group {
                group.options.remove("chord");
            }
            header.tasks.iter_mut().for_each(clear_chord);
            header.tasks.iter_mut().for_each(strip_header_links);
            if let Some(body) = body {
                strip_header_links(body);
            }
        }
    }
}

/// Removes the body from the calls that would report to it (`_clear_chord_option`).
fn clear_chord(node: &mut Node) {
    node.signature.options.remove("chord");
    match &mut node.kind {
        Kind::Task => {}
        Kind::Group(tasks) => tasks.iter_mut().for_each(clear_chord),
        Kind::Chain(tasks) => {
            if let Some(last) = tasks.last_mut() {
                clear_chord(last);
            }
        }
        Kind::Chord(_, body) => {
            if let Some(body) = body {
                clear_chord(body);
            }
        }
    }
}
