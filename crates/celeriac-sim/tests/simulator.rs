//! What ARCHITECTURE.md says must stay true, in a world where everything breaks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use celeriac_sim::{Failure, Mutation, Summary, run};

/// How many seeds are lived through, unless `CELERIAC_SEEDS` says otherwise.
const SEEDS: u64 = 2000;
/// Within so many seeds each mutation has to be found.
const FOUND_WITHIN: u64 = 100;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// The same again, with all its steps.
fn shown(seed: u64) -> Result<Summary, Failure> {
    run(seed, None, true)
}

#[test]
fn nothing_is_lost_and_nothing_runs_twice() {
    if let Some(seed) = number("CELERIAC_SEED") {
        if let Err(failure) = shown(seed) {
            panic!("{failure}");
        }
        return;
    }
    let seeds = number("CELERIAC_SEEDS").unwrap_or(SEEDS);
    let next = AtomicU64::new(0);
    let failed: Mutex<Option<u64>> = Mutex::default();
    let (begun, repeated) = (AtomicU64::new(0), AtomicU64::new(0));
    let live = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            match run(seed, None, false) {
                Ok(summary) => {
                    begun.fetch_add(summary.begun as u64, Ordering::Relaxed);
                    repeated.fetch_add(summary.repeated as u64, Ordering::Relaxed);
                }
                Err(_) => {
                    next.store(seeds, Ordering::Relaxed);
                    let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(seed);
                }
            }
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(live);
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = failed.and_then(|seed| shown(seed).err()) {
        panic!("{failure}");
    }
    assert_eq!(failed, None, "this seed fails, but not again");
    let (begun, repeated) = (begun.into_inner(), repeated.into_inner());
    println!("{seeds} seeds: {begun} runs, {repeated} of them repeated because of a fault");
    assert!(begun > 10 * seeds, "too little happens");
    assert!(repeated > seeds / 10, "too little breaks");
}

#[test]
fn the_same_seed_has_the_same_happen() {
    for seed in 0..30 {
        let (one, other) = (shown(seed), shown(seed));
        let (one, other) = (one.expect("it holds"), other.expect("it holds"));
        assert!(!one.trace.is_empty());
        for (step, again) in one.trace.iter().zip(&other.trace) {
            assert_eq!(step, again, "seed {seed}");
        }
        assert_eq!(one, other, "seed {seed}");
    }
}

/// What the auditor says of a world in which something is wrong on purpose.
fn found(mutation: Mutation) -> String {
    let found = (0..FOUND_WITHIN).find_map(|seed| run(seed, Some(mutation), false).err());
    let failure = found.unwrap_or_else(|| panic!("{mutation:?} is not found"));
    failure.violation
}

#[test]
fn what_is_wrong_on_purpose_is_found() {
    for (mutation, words) in [
        (Mutation::RestoreLoses, &["is lost"][..]),
        (Mutation::DeliversTwice, &["begins"]),
        (Mutation::AcksVanish, &["begins again"]),
        (Mutation::AcksEarly, &["no outcome is stored"]),
        (Mutation::ReportsEarly, &["no outcome is stored"]),
        (Mutation::NoSignOfLife, &["begins"]),
        (Mutation::ClockAhead, &["before its ETA", "is discarded as"]),
        (Mutation::TagsOutlive, &["begins"]),
        (Mutation::Silence, &["messages are left"]),
    ] {
        let violation = found(mutation);
        let is_it = words.iter().any(|words| violation.contains(words));
        assert!(is_it, "{mutation:?} is found as: {violation}");
    }
}
