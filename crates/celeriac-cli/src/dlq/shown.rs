//! Dead letters as an operator reads them.

use std::fmt::Write as _;

use celeriac_core::dead_letter::{Content, DeadLetter};
use celeriac_core::pool::signal_name;

/// So many dead letters, in words.
pub(super) fn count(number: u64) -> String {
    match number {
        1 => "1 dead letter".to_owned(),
        number => format!("{number} dead letters"),
    }
}

/// Somebody else's text without what a terminal would obey.
fn plain(text: &str) -> String {
    let shown = |character: char| match character {
        _ if character.is_control() => character.escape_default().to_string(),
        _ => character.to_string(),
    };
    text.chars().map(shown).collect()
}

/// A line for each; `beyond` more are not shown.
pub(super) fn list(letters: &[&DeadLetter], beyond: usize) -> String {
    if letters.is_empty() {
        return "There are no dead letters.\n".to_owned();
    }
    let rows: Vec<[String; 6]> = letters
        .iter()
        .map(|letter| {
            [
                plain(&letter.id),
                plain(letter.task.as_deref().unwrap_or("-")),
                plain(&letter.queue),
                letter.cause.to_string(),
                letter.attempts.to_string(),
                letter.died_at.strftime("%Y-%m-%d %H:%M:%SZ").to_string(),
            ]
        })
        .collect();
    let head = ["ID", "TASK", "QUEUE", "CAUSE", "ATTEMPTS", "DIED"].map(str::to_owned);
    let width = |column: usize| {
        let cells = rows.iter().chain([&head]);
        cells.map(|row| row[column].chars().count()).max()
    };
    let widths: Vec<usize> = (0..head.len()).map(|at| width(at).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in [&head].into_iter().chain(&rows) {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        // Writing to a `String` can't fail.
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    if beyond > 0 {
        let _ = writeln!(text, "... and {beyond} more (-n shows more)");
    }
    text
}

/// All that is known of one.
pub(super) fn in_full(letter: &DeadLetter) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12} {}", plain(value));
    };
    line("id", &letter.id);
    line("task", letter.task.as_deref().unwrap_or("-"));
    if let Some((args, kwargs)) = letter.arguments() {
        line("arguments", &format!("{args} {kwargs}"));
    }
    line("queue", &letter.queue);
    line("cause", letter.cause.name());
    line("reason", &letter.reason);
    line("attempts", &letter.attempts.to_string());
    line("died", &letter.died_at.to_string());
    line("worker", &letter.hostname);
    let remains = &letter.remains;
    if let Some(signal) = remains.signal {
        let name = signal_name(signal).unwrap_or("unknown");
        line("signal", &format!("{signal} ({name})"));
    }
    if let Some(code) = remains.exit_code {
        line("exit code", &code.to_string());
    }
    if let Some(peak) = remains.peak_memory {
        line("peak memory", &format!("{peak} KiB"));
    }
    if let Some(words) = &remains.out_of_memory {
        line("out of mem.", words);
    }
    if let Some(seconds) = remains.run_time {
        line("run time", &format!("{seconds:.3} s"));
    }
    if !remains.log.is_empty() {
        let _ = writeln!(text, "last lines");
        for said in &remains.log {
            let _ = writeln!(text, "    {}", plain(said));
        }
    }
    let (kind, content) = match &letter.message {
        Content::Envelope(envelope) => ("message", envelope),
        Content::Raw(raw) => ("bytes", raw),
    };
    let _ = writeln!(text, "{kind}");
    let _ = writeln!(
        text,
        "    {}",
        content.escape_debug().to_string().replace("\\\"", "\"")
    );
    text
}

#[cfg(test)]
pub(super) mod tests {
    use celeriac_core::dead_letter::{Cause, Remains};

    use super::*;

    pub(in crate::dlq) fn letter(id: &str, task: &str) -> DeadLetter {
        DeadLetter {
            id: id.to_owned(),
            queue: "celery".to_owned(),
            task: Some(task.to_owned()),
            cause: Cause::Killed,
            reason: "signal 11".to_owned(),
            remains: Remains {
                signal: Some(11),
                peak_memory: Some(2048),
                log: vec!["a line".to_owned()],
                ..Remains::default()
            },
            attempts: 3,
            hostname: "w@h".to_owned(),
            died_at: "2026-11-22T12:00:00Z".parse().unwrap(),
            message: Content::Raw("\u{1}".to_owned()),
        }
    }

    #[test]
    fn a_list_has_columns() {
        let (first, second) = (letter("1", "proj.add"), letter("23", "t"));
        assert_eq!(
            list(&[&first, &second], 4),
            "ID  TASK      QUEUE   CAUSE   ATTEMPTS  DIED\n\
             1   proj.add  celery  killed  3         2026-11-22 12:00:00Z\n\
             23  t         celery  killed  3         2026-11-22 12:00:00Z\n\
             ... and 4 more (-n shows more)\n"
        );
        assert_eq!(list(&[], 0), "There are no dead letters.\n");
        assert_eq!(
            (count(1), count(0)),
            ("1 dead letter".into(), "0 dead letters".into())
        );
    }

    #[test]
    fn a_terminal_obeys_nothing_that_a_client_has_sent() {
        let mut letter = letter("1\n2  evil", "\u{1b}]0;title\u{7}");
        letter.reason = "first\nsecond \u{9b}31m".to_owned();
        letter.remains.log = vec!["\u{1b}[2J".to_owned()];
        let listed = list(&[&letter], 0);
        assert_eq!(listed.lines().count(), 2, "{listed}");
        for text in [listed, in_full(&letter)] {
            let unsafe_ones = text.chars().filter(|c| c.is_control() && *c != '\n');
            assert_eq!(unsafe_ones.count(), 0, "{text:?}");
        }
    }

    #[test]
    fn nothing_that_is_known_is_left_out() {
        let text = in_full(&letter("1", "t"));
        for part in [
            "signal       11 (SIGSEGV)\n",
            "peak memory  2048 KiB\n",
            "    a line\n",
            "bytes\n    \\u{1}\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
