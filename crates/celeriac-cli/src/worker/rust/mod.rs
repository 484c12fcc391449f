//! A worker without Python: an app whose tasks are in Rust, and what runs in place of main.

pub(super) mod describe;
pub(super) mod hooks;
pub(super) mod mixed;
