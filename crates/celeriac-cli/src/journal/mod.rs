//! Writing log records down, as Celery's lines or as JSON, or through the app's own logging.

mod format;
mod forward;
mod json;
mod sink;
mod trace;

use std::sync::Arc;

use celeriac_config::description::LogSettings;
use celeriac_core::clock::Clock;
use celeriac_core::journal::{Journal, Level, Record};
use celeriac_pool::python::Main;

use crate::arguments::worker::LogFormat;
use format::Format;
use sink::Sink;

/// Makes the journal that the app's logging asks for, and has everything in this process write to
/// it.
///
/// # Errors
/// When the log file can't be opened.
pub(crate) fn open(
    settings: &LogSettings,
    log_format: LogFormat,
    clock: Arc<dyn Clock>,
    main: Option<&Main>,
) -> std::io::Result<Arc<dyn Journal>> {
    let level = Level::from_number(settings.level);
    let writer = match log_format {
        LogFormat::Json => Writer::Json,
        LogFormat::Celery => {
            let format = Format::parse(&settings.format, settings.datefmt.as_deref());
            // What only Python understands, only Python can write.
            match (format.filter(|_| !settings.forward), main) {
                (Some(format), _) => Writer::Lines {
                    format,
                    color: settings.color,
                },
                (None, None) => Writer::Json,
                (None, Some(main)) => {
                    let journal = Arc::new(forward::Forward::new(level, clock, main.clone()));
                    trace::install(Arc::clone(&journal) as Arc<dyn Journal>);
                    return Ok(journal);
                }
            }
        }
    };
    let sink = Sink::open(settings.file.as_deref())?;
    let journal: Arc<dyn Journal> = Arc::new(Written {
        level,
        writer,
        sink,
        clock,
    });
    trace::install(Arc::clone(&journal));
    Ok(journal)
}

/// A journal that this process writes itself.
struct Written {
    level: Level,
    writer: Writer,
    sink: Sink,
    clock: Arc<dyn Clock>,
}

enum Writer {
    Lines { format: Format, color: bool },
    Json,
}

impl Journal for Written {
    fn writes(&self, level: Level) -> bool {
        level >= self.level
    }

    fn write(&self, record: Record) {
        if !self.writes(record.level) {
            return;
        }
        let now = self.clock.now();
        let line = match &self.writer {
            Writer::Lines { format, color } => format.line(&record, now, *color),
            Writer::Json => json::line(&record, now),
        };
        self.sink.write(line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_hides_what_is_below_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("log");
        let journal = Written {
            level: Level::Warning,
            writer: Writer::Json,
            sink: Sink::open(file.to_str()).unwrap(),
            clock: Arc::new(celeriac_core::clock::SystemClock::new()),
        };
        journal.write(Record::new(Level::Info, "a", "not this"));
        journal.write(Record::new(Level::Error, "a", "but this"));
        let written = std::fs::read_to_string(file).unwrap();
        assert!(
            written.contains("but this") && !written.contains("not this"),
            "{written}"
        );
    }
}
