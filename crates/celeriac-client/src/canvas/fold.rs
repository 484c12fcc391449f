//! The operator `|`: what two calls become, one after the other.
//!
//! Celery's counterparts: `__or__` of the classes of `celery.canvas`, and `_merge_chain_step`.

use super::node::{Kind, Node};

/// `chain(X, Y, Z)`.
pub(super) fn chain(tasks: Vec<Node>) -> Node {
    tasks.into_iter().fold(Node::chain(Vec::new()), then)
}

/// `first | next`.
pub(super) fn then(first: Node, next: Node) -> Node {
    match first.kind {
        Kind::Chain(_) => after_chain(first, next),
        Kind::Group(_) if next.is_empty_group() => first,
        Kind::Group(tasks) => Node::chord(tasks, next),
        Kind::Chord(..) => after_chord(first, next),
        Kind::Task => after_task(first, next),
    }
}

fn after_task(first: Node, next: Node) -> Node {
    match next.kind {
        Kind::Chain(_) => {
            let mut tasks = vec![first];
            tasks.extend(next.unchained());
            Node::chain(tasks)
        }
        _ => Node::chain(vec![first, next.unrolled()]),
    }
}

fn after_chord(first: Node, next: Node) -> Node {
    let next = next.unrolled_group_of_one();
    match next.kind {
        Kind::Task | Kind::Chord(..) => with_body(first, next),
        _ => after_task(first, next),
    }
}

fn after_chain(first: Node, next: Node) -> Node {
    if next.is_empty_group() {
        return first;
    }
    let next = next.unrolled();
    match next.kind {
        Kind::Chain(_) => next.unchained().into_iter().fold(first, then),
        Kind::Group(_) => {
            let mut tasks = first.unchained();
            match tasks.pop() {
                None => next,
                Some(last) if matches!(last.kind, Kind::Chord(..)) => {
                    tasks.push(with_body(last, next));
                    Node::chain(tasks)
                }
                Some(last) => {
                    tasks.extend([last, next]);
                    Node::chain(tasks)
                }
            }
        }
        Kind::Task | Kind::Chord(..) => {
            let Kind::Chain(steps) = &first.kind else {
                return after_task(first, next);
            };
            let is_chord = matches!(next.kind, Kind::Chord(..));
            match steps.last().map(|last| &last.kind) {
                Some(Kind::Group(_)) => in_place_of_last(first, |last| {
                    let Kind::Group(tasks) = last.kind else {
                        return last;
                    };
                    Node::chord(tasks, next)
                }),
                Some(Kind::Chord(..)) if !is_chord => {
                    in_place_of_last(first, |last| with_body(last, next))
                }
                _ => {
                    let mut tasks = first.unchained();
                    tasks.push(next);
                    Node::chain(tasks)
                }
            }
        }
    }
}

/// A chain with something else as its last step. Two chords in a row become one: the second is what
/// the first one's body goes on with.
fn in_place_of_last(mut chain: Node, change: impl FnOnce(Node) -> Node) -> Node {
    if let Kind::Chain(steps) = &mut chain.kind
        && let Some(last) = steps.pop()
    {
        let was_group = matches!(last.kind, Kind::Group(_));
        let last = change(last);
        match steps.pop() {
            Some(before) if was_group && matches!(before.kind, Kind::Chord(..)) => {
                steps.push(with_body(before, last));
            }
            before => {
                steps.extend(before);
                steps.push(last);
            }
        }
    }
    chain
}

/// A chord whose body goes on with `next`.
fn with_body(mut chord: Node, next: Node) -> Node {
    if let Kind::Chord(_, body) = &mut chord.kind {
        let after = match body.take() {
            Some(body) => then(*body, next),
            None => next,
        };
        *body = Some(Box::new(after));
    }
    chord
}

impl Node {
    fn unrolled_group_of_one(self) -> Self {
        match &self.kind {
            Kind::Group(tasks) if tasks.len() == 1 => self.unrolled(),
            _ => self,
        }
    }
}
