//! One JSON object a line. Counterpart: `celeriac.host.logs`.

use celeriac_core::journal::Record;
use jiff::Timestamp;
use serde_json::json;

use super::format::PROCESS_NAME;

/// The line for a record.
pub(super) fn line(record: &Record, now: Timestamp) -> String {
    let mut members = json!({
        "timestamp": now.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string(),
        "level": record.level.to_string(),
        "logger": record.logger,
        "process": PROCESS_NAME,
        "pid": std::process::id(),
        "message": record.message,
    });
    if let Some((id, name)) = &record.task {
        members["task_id"] = json!(&**id);
        members["task_name"] = json!(&**name);
    }
    let mut line = members.to_string();
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use celeriac_core::journal::Level;

    use super::*;

    #[test]
    fn a_record_is_one_line() {
        let mut record = Record::new(Level::Warning, "celery.worker", "two\nlines");
        record.task = Some(("an-id".into(), "proj.add".into()));
        let line = line(&record, "2026-11-22T01:02:03.45Z".parse().unwrap());
        assert_eq!(line.matches('\n').count(), 1);
        let members: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(members["timestamp"], "2026-11-22T01:02:03.450Z");
        assert_eq!(members["message"], "two\nlines");
        assert_eq!(members["task_id"], "an-id");
    }
}
