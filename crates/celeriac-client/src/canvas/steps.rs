//! The steps of a chain: what is called after what, and which of them become chords.
//!
//! Celery's counterpart: `celery.canvas._chain.prepare_steps`.

use serde_json::{Map, Value};

use super::freeze::{Freeze, Freezer, Place, no_body, strip_header_links};
use super::node::{Header, Kind, Node, merge};
use crate::error::Error;

/// A chain that is ready: its calls, the last one first, and their results.
pub(crate) struct Prepared {
    pub(crate) tasks: Vec<Node>,
    pub(crate) results: Vec<Place>,
    /// The steps as they were, frozen, the first one first.
    originals: Vec<Node>,
}

/// What a chain is told when it is prepared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Wanted {
    pub(crate) root_id: Option<String>,
    pub(crate) last_task_id: Option<String>,
    pub(crate) group_id: Option<String>,
    pub(crate) chord: Option<Value>,
    pub(crate) group_index: Option<u64>,
    pub(crate) link_error: Vec<Node>,
}

/// Freezes a chain as it is; answers with the result of its last call.
pub(crate) fn freeze(
    freezer: &mut Freezer<'_>,
    chain: &mut Node,
    with: Freeze,
) -> Result<Place, Error> {
    let Kind::Chain(tasks) = &mut chain.kind else {
        return freezer.freeze(chain, with);
    };
    let mut steps = Vec::new();
    flatten(tasks.clone(), false, &mut steps)?;
    if let Some(first) = steps.first_mut() {
        let mut args = chain.signature.args.clone();
        args.append(&mut first.signature.args);
        first.signature.args = args;
    }
    let wanted = Wanted {
        root_id: with.root_id,
        last_task_id: with.id,
        group_id: with.group_id,
        chord: with.chord,
        group_index: with.group_index,
        link_error: Vec::new(),
    };
    let prepared = prepare(freezer, steps, wanted)?;
    let result = prepared.results.first().copied();
    let mut originals = prepared.originals.into_iter();
    write_back(tasks, &mut originals);
    let result = result.ok_or_else(empty)?;
    let id = freezer.results.get(result).id.clone();
    chain.set("task_id", id);
    Ok(result)
}

/// Prepares a copy of a chain to be sent, the first call with arguments before its own.
pub(crate) fn to_send(
    freezer: &mut Freezer<'_>,
    tasks: &[Node],
    args: &[Value],
    kwargs: &Map<String, Value>,
    wanted: Wanted,
) -> Result<Prepared, Error> {
    let mut steps = Vec::new();
    flatten(tasks.to_vec(), true, &mut steps)?;
    if let Some(first) = steps.first_mut() {
        give(first, args, kwargs);
    }
    let mut prepared = prepare(freezer, steps, wanted)?;
    prepared.tasks.iter_mut().for_each(strip_header_links);
    if prepared.tasks.is_empty() {
        return Err(empty());
    }
    Ok(prepared)
}

/// Arguments before a call's own, unless it is immutable (`clone(args, kwargs)`).
pub(crate) fn give(node: &mut Node, args: &[Value], kwargs: &Map<String, Value>) {
    let signature = &mut node.signature;
    if signature.immutable {
        return;
    }
    let mut all = args.to_vec();
    all.append(&mut signature.args);
    signature.args = all;
    for (name, value) in kwargs {
        signature.kwargs.insert(name.clone(), value.clone());
    }
}

/// The calls of a chain in their order: chains within it are part of it, a group of one is that one,
/// and empty groups are left out where there is anything else.
fn flatten(tasks: Vec<Node>, splits_chords: bool, steps: &mut Vec<Node>) -> Result<(), Error> {
    let mut empty_group = None;
    flatten_into(tasks, splits_chords, steps, &mut empty_group)?;
    if steps.is_empty() {
        steps.extend(empty_group);
    }
    Ok(())
}

fn flatten_into(
    tasks: Vec<Node>,
    splits_chords: bool,
    steps: &mut Vec<Node>,
    empty_group: &mut Option<Node>,
) -> Result<(), Error> {
    for task in tasks {
        let task = task.unrolled();
        if task.is_empty_group() {
            *empty_group = Some(task);
            continue;
        }
        match task.kind {
            Kind::Chain(inner) => flatten_into(inner, splits_chords, steps, empty_group)?,
            Kind::Chord(_, Some(ref body)) if splits_chords && body.is_chain_led_by_task() => {
                flatten_into(split_body(task)?, splits_chords, steps, empty_group)?;
            }
            _ => steps.push(task),
        }
    }
    Ok(())
}

/// A chord and what its body goes on with, as steps of their own: each call of the header would hold
/// all of it otherwise (`_chord._unroll_body`).
pub(crate) fn split_body(chord: Node) -> Result<Vec<Node>, Error> {
    let Node { signature, kind } = chord;
    let Kind::Chord(header, Some(body)) = kind else {
        return Err(no_body());
    };
    let passed_on: Map<String, Value> = body
        .signature
        .options
        .iter()
        .filter(|(name, _)| !IS_THE_CHAINS.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let mut steps = body.unchained();
    let mut first = steps.remove(0);
    if !passed_on.is_empty() {
        first.signature.options = merge(&first.signature.options, passed_on);
    }
    let chord = Node {
        signature,
        kind: Kind::Chord(header, Some(Box::new(first))),
    };
    steps.insert(0, chord);
    Ok(steps)
}

/// Options that are a chain's own, not its first call's (`_CHAIN_RUN_OPTIONS`).
const IS_THE_CHAINS: [&str; 8] = [
    "chord",
    "group_id",
    "group_index",
    "link",
    "link_error",
    "parent_id",
    "root_id",
    "task_id",
];

#[expect(
    clippy::needless_pass_by_value,
    reason = "each step takes its part of it"
)]
fn prepare(freezer: &mut Freezer<'_>, steps: Vec<Node>, wanted: Wanted) -> Result<Prepared, Error> {
    let mut prepared = Prepared {
        tasks: Vec::with_capacity(steps.len()),
        results: Vec::with_capacity(steps.len()),
        originals: Vec::with_capacity(steps.len()),
    };
    let mut previous: Option<Place> = None;
    for (from_last, mut task) in steps.into_iter().rev().enumerate() {
        let is_followed = !prepared.tasks.is_empty();
        let mut has_next = is_followed;
        let mut was_group = None;
        if is_followed
            && matches!(task.kind, Kind::Group(_))
            && let Some(body) = prepared.tasks.pop()
        {
            let body_result = prepared.results.pop();
            was_group = Some(task.signature.clone());
            task = upgraded(task, body, wanted.root_id.as_deref());
            if let Some(body_result) = body_result {
                let id = freezer.results.get(body_result);
                if id.members.is_none() {
                    task.set("task_id", id.id.clone());
                }
                // What follows is linked to the body's result, and is to be to the chord's.
                let after = prepared.results.last();
                let linked = after.and_then(|after| freezer.results.before(*after, body_result));
                if let Some(linked) = linked {
                    freezer.results.set_parent(linked, None);
                    previous = Some(linked);
                }
            }
            has_next = !prepared.tasks.is_empty();
        }
        let with = if from_last == 0 {
            Freeze {
                id: wanted.last_task_id.clone(),
                group_id: wanted.group_id.clone(),
                chord: wanted.chord.clone(),
                root_id: wanted.root_id.clone(),
                parent_id: None,
                group_index: wanted.group_index,
            }
        } else {
            Freeze {
                root_id: wanted.root_id.clone(),
                ..Freeze::default()
            }
        };
        let result = freezer.freeze(&mut task, with)?;
        if has_next
            && let Some(previous) = previous
            && freezer.results.get(previous).parent.is_none()
        {
            freezer.results.set_parent(previous, Some(result));
        }
        prepared.originals.push(original(&task, was_group));
        for errback in &wanted.link_error {
            task.link_error(errback);
        }
        previous = Some(match task.kind {
            Kind::Chord(..) => freezer.results.first(result),
            _ => result,
        });
        prepared.tasks.push(task);
        prepared.results.push(result);
    }
    prepared.originals.reverse();
    Ok(prepared)
}

/// A group that is followed by a task is a chord.
fn upgraded(group: Node, body: Node, root_id: Option<&str>) -> Node {
    let Kind::Group(tasks) = group.kind else {
        return group;
    };
    let mut chord = Node::chord(tasks, body);
    // Celery passes it whether there is one or not.
    chord.set("root_id", root_id);
    chord
}

/// A step as it was before it became a chord, with the ids that its calls have now.
fn original(task: &Node, was_group: Option<celeriac_protocol::Signature>) -> Node {
    match (&task.kind, was_group) {
        (Kind::Chord(Header { tasks, .. }, _), Some(signature)) => Node {
            signature,
            kind: Kind::Group(tasks.clone()),
        },
        _ => task.clone(),
    }
}

/// Puts frozen steps where they were taken from.
fn write_back(tasks: &mut [Node], originals: &mut impl Iterator<Item = Node>) {
    for task in tasks {
        if task.is_empty_group() {
            continue;
        }
        match &mut task.kind {
            Kind::Chain(inner) => write_back(inner, originals),
            Kind::Group(inner) if inner.len() == 1 => write_back(inner, originals),
            _ => {
                if let Some(original) = originals.next() {
                    *task = original;
                }
            }
        }
    }
}

fn empty() -> Error {
    Error::Invalid("the chain is empty: give it a task to call".to_owned())
}
