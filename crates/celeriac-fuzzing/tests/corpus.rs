//! The corpus that the fuzzer has gathered, replayed, and changed by chance.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use celeriac_fuzzing::TARGETS;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestRunner};

/// How many inputs are made up for each target.
const CASES: u32 = 1000;
/// What the fuzzer itself does not go beyond.
const MOST_BYTES: usize = 4096;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

/// The inputs of a target, with the names of their files.
fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = folder().join(target);
    let entries =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = entries
        .map(|entry| {
            let path = entry.expect("the folder can be read").path();
            (
                path.display().to_string(),
                fs::read(&path).expect("a file of the corpus can be read"),
            )
        })
        .collect();
    inputs.sort();
    inputs
}

#[test]
fn every_target_has_a_corpus_of_small_inputs() {
    let names: BTreeSet<_> = TARGETS
        .iter()
        .map(|target| target.name.to_owned())
        .collect();
    let folders: BTreeSet<_> = fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(folders, names);
    for name in &names {
        let inputs = corpus(name);
        assert!(
            (2..=200).contains(&inputs.len()),
            "{name}: {}",
            inputs.len()
        );
        for (file, input) in inputs {
            assert!(input.len() <= MOST_BYTES, "{file}");
        }
    }
}

#[test]
fn what_the_fuzzer_has_found_holds() {
    for target in TARGETS {
        for (file, input) in corpus(target.name) {
            assert!(catch_unwind(|| (target.check)(&input)).is_ok(), "{file}");
        }
    }
}

#[test]
fn what_comes_of_it_by_chance_holds() {
    for target in TARGETS {
        let inputs: Vec<_> = corpus(target.name)
            .into_iter()
            .map(|(_, input)| input)
            .collect();
        let config = Config {
            cases: CASES,
            ..Config::default()
        };
        let tried = TestRunner::new(config).run(&changed(inputs), |input| {
            (target.check)(&input);
            Ok(())
        });
        if let Err(error) = tried {
            panic!("{}: {error}", target.name);
        }
    }
}

/// A change of an input.
#[derive(Debug, Clone)]
enum Change {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    /// A part of one goes over into another.
    Join(Index, Vec<u8>),
    Cut(Index),
}

impl Change {
    fn apply(self, to: &mut Vec<u8>) {
        let place = |index: Index, to: &[u8]| index.index(to.len() + 1);
        match self {
            Self::Set(index, byte) if !to.is_empty() => *index.get_mut(to) = byte,
            Self::Set(..) => {}
            Self::Insert(index, bytes) => {
                let at = place(index, to);
                to.splice(at..at, bytes);
            }
            Self::Remove(index, count) => {
                let at = place(index, to);
                to.drain(at..(at + count).min(to.len()));
            }
            Self::Join(index, other) => {
                to.truncate(place(index, to));
                to.extend_from_slice(&other[place(index, &other)..]);
            }
            Self::Cut(index) => to.truncate(place(index, to)),
        }
    }
}

/// Inputs with some changes.
fn changed(inputs: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let place = any::<Index>;
    let change = prop_oneof![
        4 => (place(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        // What stands in texts and lengths has more effect than what does not.
        2 => (place(), select(br#"{}[]",:\-+0/@.%NI"#.to_vec()))
            .prop_map(|(at, byte)| Change::Set(at, byte)),
        2 => (place(), select(vec![0, 1, 0x7f, 0x80, 0xff, 0xce]))
            .prop_map(|(at, byte)| Change::Set(at, byte)),
        1 => (place(), prop::collection::vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Change::Insert(at, bytes)),
        1 => (place(), 1_usize..9).prop_map(|(at, count)| Change::Remove(at, count)),
        1 => (place(), select(inputs.clone())).prop_map(|(at, other)| Change::Join(at, other)),
        1 => place().prop_map(Change::Cut),
    ];
    let changes = prop::collection::vec(change, 1..6);
    (select(inputs), changes).prop_map(|(mut input, changes)| {
        for change in changes {
            change.apply(&mut input);
        }
        input.truncate(MOST_BYTES);
        input
    })
}
