//! What libraries and lower layers say by `tracing`, in the journal as well.

use std::cell::Cell;
use std::fmt::Write as _;
use std::sync::Arc;

use celeriac_core::journal::{Journal, Level, Record};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Metadata, Subscriber};

thread_local! {
    /// Whether an event is being written: what writing it says would write again.
    static IS_WRITING: Cell<bool> = const { Cell::new(false) };
}

/// Has everything in this process write to `journal`. The first call counts.
pub(super) fn install(journal: Arc<dyn Journal>) {
    drop(tracing::subscriber::set_global_default(ToJournal(journal)));
}

struct ToJournal(Arc<dyn Journal>);

fn level_of(metadata: &Metadata<'_>) -> Level {
    match *metadata.level() {
        tracing::Level::ERROR => Level::Error,
        tracing::Level::WARN => Level::Warning,
        tracing::Level::INFO => Level::Info,
        _ => Level::Debug,
    }
}

impl Subscriber for ToJournal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_ours = ["celeriac", "celery"]
            .iter()
            .any(|name| metadata.target().starts_with(name));
        let is_important = *metadata.level() <= tracing::Level::WARN;
        metadata.is_event() && (is_ours || is_important) && self.0.writes(level_of(metadata))
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        if IS_WRITING.replace(true) {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let level = level_of(event.metadata());
        self.0
            .write(Record::new(level, event.metadata().target(), text.finish()));
        IS_WRITING.set(false);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

/// The message of an event, and its fields behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(self) -> String {
        if self.fields.is_empty() {
            self.message
        } else {
            format!("{}:{}", self.message, self.fields)
        }
    }
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a `String` can't fail.
        let _ = if field.name() == "message" {
            write!(self.message, "{value:?}")
        } else if field.name() == "error" {
            write!(self.fields, " {value:?}")
        } else {
            write!(self.fields, " {}={value:?}", field.name())
        };
    }
}
