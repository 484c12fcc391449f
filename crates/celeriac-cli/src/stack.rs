//! Room for threads that libraries start.

use std::thread;

/// What std reads before it starts its first thread: the size of stacks that are not given one.
const VARIABLE: &str = "RUST_MIN_STACK";
/// The AMQP library reads tables within tables by recursion, on a thread of its own, as deep as a
/// frame of 128 KiB can hold them: that is 18,000 levels. A hostile header must not end the worker.
/// It is address space, not memory: what is not used is never there.
const STACK: &str = "268435456";

/// Gives threads whose starter names no size a stack that nothing from outside can use up.
///
/// To be called before there is any thread.
pub(crate) fn make_deep() {
    if std::env::var_os(VARIABLE).is_some() {
        return;
    }
    set(Some(STACK));
    // std keeps what it has read here.
    drop(thread::spawn(|| {}).join());
    // It is no business of the app's processes.
    set(None);
}

#[expect(
    unsafe_code,
    clippy::disallowed_methods,
    reason = "there is no other way, and no other thread"
)]
fn set(value: Option<&str>) {
    // SAFETY: this is the only thread, as the caller promises; the one above has ended.
    unsafe {
        match value {
            Some(value) => std::env::set_var(VARIABLE, value),
            None => std::env::remove_var(VARIABLE),
        }
    }
}
