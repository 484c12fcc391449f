//! Lines in Python's %-style, as `worker_log_format` gives it.
//!
//! Celery's counterparts: `logging.Formatter` and `celery.utils.log.ColorFormatter`.

use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};

use celeriac_core::journal::{Level, Record};
use jiff::Timestamp;
use jiff::tz::TimeZone;

/// The parent's name in log lines, as in Celery's.
pub(super) const PROCESS_NAME: &str = "MainProcess";

/// A format that this process can write.
#[derive(Debug)]
pub(super) struct Format {
    parts: Vec<Part>,
    datefmt: Option<String>,
    zone: TimeZone,
    pid: u32,
    /// The last second that was formatted: most lines share theirs with the line before.
    second: Mutex<(i64, String)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field {
        name: Field,
        width: usize,
        is_left: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Time,
    Level,
    LevelNumber,
    Message,
    Logger,
    Process,
    ProcessName,
    Thread,
    ThreadName,
}

impl Field {
    /// The field that a conversion names, such as `levelname` and `s`.
    fn named(name: &str, conversion: char) -> Option<Self> {
        match (name, conversion) {
            ("asctime", 's') => Some(Self::Time),
            ("levelname", 's') => Some(Self::Level),
            ("levelno", 's' | 'd') => Some(Self::LevelNumber),
            ("message", 's') => Some(Self::Message),
            ("name", 's') => Some(Self::Logger),
            ("process", 's' | 'd') => Some(Self::Process),
            ("processName", 's') => Some(Self::ProcessName),
            ("thread", 's' | 'd') => Some(Self::Thread),
            ("threadName", 's') => Some(Self::ThreadName),
            _ => None,
        }
    }
}

impl Format {
    /// Reads a format; `None` for one that only Python can write.
    pub(super) fn parse(format: &str, datefmt: Option<&str>) -> Option<Self> {
        let mut parts = Vec::new();
        let mut text = String::new();
        let mut rest = format;
        while let Some((before, after)) = rest.split_once('%') {
            text.push_str(before);
            if let Some(after) = after.strip_prefix('%') {
                text.push('%');
                rest = after;
                continue;
            }
            let (name, after) = after.strip_prefix('(')?.split_once(')')?;
            let end = after.find(|c: char| c.is_ascii_alphabetic())?;
            let (modifiers, conversion) = (&after[..end], after[end..].chars().next()?);
            let is_left = modifiers.starts_with('-');
            let width = match modifiers.trim_start_matches('-') {
                "" => 0,
                width if !width.starts_with('0') => width.parse().ok()?,
                _ => return None,
            };
            let name = Field::named(name, conversion)?;
            if !text.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut text)));
            }
            parts.push(Part::Field {
                name,
                width,
                is_left,
            });
            rest = &after[end + 1..];
        }
        text.push_str(rest);
        parts.push(Part::Text(text));
        // A moment that can be written tells that all can.
        if let Some(datefmt) = datefmt {
            jiff::fmt::strtime::format(datefmt, Timestamp::UNIX_EPOCH).ok()?;
        }
        Some(Self {
            parts,
            datefmt: datefmt.map(str::to_owned),
            zone: TimeZone::system(),
            pid: std::process::id(),
            second: Mutex::new((i64::MIN, String::new())),
        })
    }

    /// The line for a record.
    pub(super) fn line(&self, record: &Record, now: Timestamp, color: bool) -> String {
        let mut line = String::with_capacity(128 + record.message.len());
        let color = color.then(|| color_of(record.level)).flatten();
        if let Some(number) = color {
            // Writing to a `String` can't fail.
            let _ = write!(line, "\u{1b}[1;{number}m");
        }
        for part in &self.parts {
            match part {
                Part::Text(text) => line.push_str(text),
                Part::Field {
                    name,
                    width,
                    is_left,
                } => {
                    let start = line.len();
                    self.push(&mut line, *name, record, now);
                    pad(&mut line, start, *width, *is_left);
                }
            }
        }
        if color.is_some() {
            line.push_str("\u{1b}[0m");
        }
        line.push('\n');
        line
    }

    fn push(&self, line: &mut String, field: Field, record: &Record, now: Timestamp) {
        let written = match field {
            Field::Time => {
                self.push_time(line, now);
                Ok(())
            }
            Field::Level => write!(line, "{}", record.level),
            Field::LevelNumber => write!(line, "{}", record.level as u32),
            Field::Message => line.write_str(&record.message),
            Field::Logger => line.write_str(record.logger),
            Field::Process | Field::Thread => write!(line, "{}", self.pid),
            Field::ProcessName => line.write_str(PROCESS_NAME),
            Field::ThreadName => line.write_str("MainThread"),
        };
        let _ = written;
    }

    fn push_time(&self, line: &mut String, now: Timestamp) {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        let whole = now.as_millisecond().div_euclid(1000);
        if second.0 != whole {
            let zoned = now.to_zoned(self.zone.clone());
            let format = self.datefmt.as_deref().unwrap_or("%Y-%m-%d %H:%M:%S");
            *second = (whole, zoned.strftime(format).to_string());
        }
        line.push_str(&second.1);
        if self.datefmt.is_none() {
            let _ = write!(line, ",{:03}", now.as_millisecond().rem_euclid(1000));
        }
    }
}

fn pad(line: &mut String, start: usize, width: usize, is_left: bool) {
    let length = line[start..].chars().count();
    if length < width {
        let padding = " ".repeat(width - length);
        if is_left {
            line.push_str(&padding);
        } else {
            line.insert_str(start, &padding);
        }
    }
}

/// The terminal's number for a level's colour.
fn color_of(level: Level) -> Option<u8> {
    match level {
        Level::Debug => Some(34),
        Level::Info => None,
        Level::Warning => Some(33),
        Level::Error => Some(31),
        Level::Critical => Some(35),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: &str, datefmt: Option<&str>) -> Option<String> {
        let mut format = Format::parse(format, datefmt)?;
        format.zone = TimeZone::UTC;
        format.pid = 7;
        let record = Record::new(Level::Info, "celery.worker", "hello");
        Some(format.line(&record, "2026-11-22T01:26:37.904Z".parse().unwrap(), false))
    }

    #[test]
    fn celerys_format() {
        let format = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s";
        assert_eq!(
            line(format, None).unwrap(),
            "[2026-11-22 01:26:37,904: INFO/MainProcess] hello\n"
        );
    }

    #[test]
    fn formats_of_apps() {
        for (format, datefmt, expected) in [
            (
                "%(levelname)-8s|%(levelname)8s|",
                None,
                "INFO    |    INFO|\n",
            ),
            ("100%% %(name)s %(process)d", None, "100% celery.worker 7\n"),
            ("%(asctime)s %(message)s", Some("%H:%M"), "01:26 hello\n"),
            ("", None, "\n"),
        ] {
            assert_eq!(line(format, datefmt).as_deref(), Some(expected), "{format}");
        }
    }

    #[test]
    fn what_only_python_knows_is_left_to_it() {
        for format in [
            "%(task_id)s",
            "%(levelno)03d",
            "%(message)",
            "%s",
            "{message}%",
            "%(name",
        ] {
            assert_eq!(line(format, None), None, "{format}");
        }
        assert_eq!(line("%(asctime)s", Some("%Q%!")), None);
    }

    #[test]
    fn levels_have_celerys_colours() {
        let format = Format::parse("%(message)s", None).unwrap();
        let line = |level| {
            format.line(
                &Record::new(level, "celery", "x"),
                Timestamp::UNIX_EPOCH,
                true,
            )
        };
        assert_eq!(line(Level::Error), "\u{1b}[1;31mx\u{1b}[0m\n");
        assert_eq!(line(Level::Info), "x\n");
    }
}
