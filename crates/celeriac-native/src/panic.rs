//! Panics of tasks, which are failures: caught, with their message, place and backtrace.
//!
//! The hook looks at panics that happen inside [`catch`] only; all others are reported as before.

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe, PanicHookInfo};
use std::sync::Once;

use celeriac_protocol::Exception;

use crate::error::Failure;

/// The module of the exception that a panic is in Python. There is no such module: Celery makes the
/// class up.
pub const MODULE: &str = "celeriac.native";
/// The exception that a panic is in Python.
pub const CLASS: &str = "Panic";

thread_local! {
    static IS_CAUGHT: Cell<bool> = const { Cell::new(false) };
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// What the hook has seen of a panic.
struct Seen {
    place: Option<String>,
    backtrace: Backtrace,
}

/// Calls a task's code; a panic in it is a failure.
///
/// # Errors
/// The panic.
pub fn catch<R>(call: impl FnOnce() -> R) -> Result<R, Failure> {
    install_hook();
    let was_caught = IS_CAUGHT.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(call));
    IS_CAUGHT.set(was_caught);
    result.map_err(|payload| {
        let seen = SEEN.take();
        let failure = failure(&*payload, seen);
        // What was panicked with may panic when it is dropped.
        std::mem::forget(payload);
        failure
    })
}

fn failure(payload: &(dyn Any + Send), seen: Option<Seen>) -> Failure {
    let message = payload
        .downcast_ref::<&'static str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a message".to_owned());
    let place = seen.as_ref().and_then(|seen| seen.place.as_deref());
    let message = match place {
        Some(place) => format!("{message} (at {place})"),
        None => message,
    };
    let traceback = seen.map(|seen| format!("Panic: {message}\n{}", seen.backtrace));
    Failure {
        exception: Exception::new(MODULE, CLASS, message),
        traceback,
    }
}

fn install_hook() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let others = panic::take_hook();
        panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
            if !IS_CAUGHT.get() {
                return others(info);
            }
            SEEN.set(Some(Seen {
                place: info.location().map(ToString::to_string),
                backtrace: Backtrace::force_capture(),
            }));
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failure_with_its_place_and_backtrace() {
        let failure = catch(|| -> i32 { panic!("no {}", "way") }).unwrap_err();
        let shown = failure.exception.to_string();
        assert!(shown.starts_with("Panic: no way (at "), "{shown}");
        assert!(shown.contains("panic.rs:"), "{shown}");
        assert_eq!(failure.exception.exc_module.as_deref(), Some(MODULE));
        assert!(failure.traceback.unwrap().contains("panic::tests"));
        let fixed = catch(|| panic!("fixed")).map(|()| 1).unwrap_err();
        assert!(fixed.exception.to_string().contains("fixed"));
        let odd = catch(|| panic::panic_any(7)).map(|()| 1).unwrap_err();
        assert!(odd.exception.to_string().contains("without a message"));
        assert_eq!(catch(|| 1).unwrap(), 1);
    }

    #[test]
    fn one_catch_within_another_leaves_it_in_force() {
        let outer = catch(|| {
            let inner = catch(|| panic!("inner")).map(|()| 1).unwrap_err();
            assert!(inner.exception.to_string().contains("inner"));
            assert!(IS_CAUGHT.get());
            panic!("outer")
        });
        assert!(
            outer
                .map(|()| 1)
                .unwrap_err()
                .exception
                .to_string()
                .contains("outer")
        );
        assert!(!IS_CAUGHT.get());
    }
}
