//! libFuzzer over one target: the one that `FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

use celeriac_fuzzing::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;

static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").unwrap_or_default();
    let found = TARGETS.iter().find(|target| target.name == name);
    *found.unwrap_or_else(|| panic!("FUZZ_TARGET={name:?} is no target"))
});

fuzz_target!(|bytes: &[u8]| (CHOSEN.check)(bytes));
