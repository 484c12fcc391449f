//! ISO 8601 times as `eta` and `expires` carry them.
//!
//! Celery reads them with `dateutil.parser.isoparse`, which takes far more forms than
//! `datetime.isoformat` writes; other clients use them, so all of them are read here.

use jiff::civil::{Date, DateTime, ISOWeekDate, Time, Weekday};
use jiff::{Span, Timestamp, tz};

/// Why a text is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTime {
    /// It follows no ISO 8601 form.
    #[error("not an ISO 8601 time")]
    Form,
    /// The form is right, but a field is out of range (month 13, hour 25, year 0).
    #[error("a field is out of range")]
    Range,
}

/// Reads an ISO 8601 time. A time without an offset counts as UTC, as in
/// `celery.utils.time.maybe_make_aware`.
///
/// # Errors
/// When the text is no ISO 8601 time, or stands for none.
pub fn parse(text: &str) -> Result<Timestamp, InvalidTime> {
    if !text.is_ascii() {
        return Err(InvalidTime::Form);
    }
    let (date, rest) = parse_date(text)?;
    // Any one character may stand between date and time.
    let (time, offset) = match rest.get(1..) {
        None => (TimeOfDay::default(), None),
        Some(time) => parse_time(time)?,
    };
    let next_day = Span::new().days(i64::from(time.is_midnight_of_next_day));
    let at = DateTime::from_parts(date, time.time)
        .checked_add(next_day)
        .map_err(|_| InvalidTime::Range)?;
    let offset = tz::Offset::from_seconds(offset.unwrap_or(0)).map_err(|_| InvalidTime::Range)?;
    // The last day of the year 9999 is beyond what a timestamp holds, whatever the offset.
    Ok(offset.to_timestamp(at).unwrap_or(Timestamp::MAX))
}

/// Splits the date off the front.
fn parse_date(text: &str) -> Result<(Date, &str), InvalidTime> {
    parse_common_date(text).or_else(|_| parse_uncommon_date(text))
}

/// `YYYY`, `YYYY-MM`, `YYYY-MM-DD`, `YYYYMMDD`.
fn parse_common_date(text: &str) -> Result<(Date, &str), InvalidTime> {
    let (year, rest) = digits(text, 4)?;
    if rest.is_empty() {
        return Ok((date(year, 1, 1)?, rest));
    }
    let (separated, rest) = strip(rest, '-');
    let (month, rest) = digits(rest, 2)?;
    if rest.is_empty() {
        return if separated {
            Ok((date(year, month, 1)?, rest))
        } else {
            Err(InvalidTime::Form)
        };
    }
    let rest = match strip(rest, '-') {
        (true, rest) if separated => rest,
        (false, rest) if !separated => rest,
        _ => return Err(InvalidTime::Form),
    };
    let (day, rest) = digits(rest, 2)?;
    Ok((date(year, month, day)?, rest))
}

/// `YYYY-Www`, `YYYY-Www-D`, `YYYY-DDD`, and the same without dashes.
fn parse_uncommon_date(text: &str) -> Result<(Date, &str), InvalidTime> {
    let (year, rest) = digits(text, 4)?;
    let (separated, rest) = strip(rest, '-');
    if let (true, rest) = strip(rest, 'W') {
        let (week, rest) = digits(rest, 2)?;
        let (day, rest) = if rest.is_empty() {
            (1, rest)
        } else {
            match strip(rest, '-') {
                (dash, rest) if dash == separated => digits(rest, 1)?,
                _ => return Err(InvalidTime::Form),
            }
        };
        return Ok((week_date(year, week, day)?, rest));
    }
    let (day, rest) = digits(rest, 3)?;
    let first = date(year, 1, 1)?;
    if day < 1 || day > i32::from(first.days_in_year()) {
        return Err(InvalidTime::Range);
    }
    let date = first
        .checked_add(Span::new().days(day - 1))
        .map_err(|_| InvalidTime::Range)?;
    Ok((date, rest))
}

/// The day of an ISO week; week 53 of a year that has 52 is the first of the next, as in dateutil.
fn week_date(year: i32, week: i32, day: i32) -> Result<Date, InvalidTime> {
    let out_of_range = |_| InvalidTime::Range;
    if !(1..=53).contains(&week) || !(1..=7).contains(&day) {
        return Err(InvalidTime::Range);
    }
    let year = i16::try_from(year).map_err(|_| InvalidTime::Range)?;
    ISOWeekDate::new(year, 1, Weekday::Monday)
        .map_err(out_of_range)?
        .date()
        .checked_add(Span::new().days((week - 1) * 7 + day - 1))
        .map_err(out_of_range)
}

#[derive(Default)]
struct TimeOfDay {
    time: Time,
    is_midnight_of_next_day: bool,
}

/// `hh`, `hh:mm`, `hh:mm:ss`, a fraction after `.` or `,`, all with or without colons, and an
/// offset in seconds.
fn parse_time(text: &str) -> Result<(TimeOfDay, Option<i32>), InvalidTime> {
    let (hour, mut rest) = digits(text, 2)?;
    let (mut minute, mut second, mut nanosecond) = (0, 0, 0);
    let at_offset = |rest: &str| rest.is_empty() || rest.starts_with(['Z', 'z', '+', '-']);
    if !at_offset(rest) {
        let (separated, after) = strip(rest, ':');
        (minute, rest) = digits(after, 2)?;
        if !at_offset(rest) {
            let (colon, after) = strip(rest, ':');
            if separated && !colon {
                return Err(InvalidTime::Form);
            }
            (second, rest) = digits(after, 2)?;
        }
        if let Some(after) = rest.strip_prefix(['.', ',']) {
            let length = after.bytes().take_while(u8::is_ascii_digit).count();
            if length == 0 {
                return Err(InvalidTime::Form);
            }
            // Python keeps microseconds and cuts the rest off.
            let kept = &after[..length.min(6)];
            let fraction: i32 = kept.parse().map_err(|_| InvalidTime::Form)?;
            nanosecond = fraction * 10_i32.pow(9 - kept.len() as u32);
            rest = &after[length..];
        }
    }
    let offset = if rest.is_empty() {
        None
    } else {
        Some(parse_offset(rest)?)
    };
    let is_midnight_of_next_day = hour == 24;
    if is_midnight_of_next_day && (minute, second, nanosecond) != (0, 0, 0) {
        return Err(InvalidTime::Range);
    }
    let hour = if is_midnight_of_next_day { 0 } else { hour };
    let time = Time::new(hour as i8, minute as i8, second as i8, nanosecond)
        .map_err(|_| InvalidTime::Range)?;
    Ok((
        TimeOfDay {
            time,
            is_midnight_of_next_day,
        },
        offset,
    ))
}

/// `Z`, `±hh`, `±hhmm`, `±hh:mm` in seconds east of UTC.
fn parse_offset(text: &str) -> Result<i32, InvalidTime> {
    if text.eq_ignore_ascii_case("z") {
        return Ok(0);
    }
    let (sign, rest) = match text.split_at(1) {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return Err(InvalidTime::Form),
    };
    let (hours, rest) = digits(rest, 2)?;
    let (minutes, rest) = match rest {
        "" => (0, rest),
        _ => digits(strip(rest, ':').1, 2)?,
    };
    match (rest, hours, minutes) {
        ("", 0..=23, 0..=59) => Ok(sign * (hours * 3600 + minutes * 60)),
        ("", ..) => Err(InvalidTime::Range),
        _ => Err(InvalidTime::Form),
    }
}

fn date(year: i32, month: i32, day: i32) -> Result<Date, InvalidTime> {
    // Python's years begin at 1.
    if year < 1 {
        return Err(InvalidTime::Range);
    }
    Date::new(year as i16, month as i8, day as i8).map_err(|_| InvalidTime::Range)
}

/// Splits exactly `count` digits off the front.
fn digits(text: &str, count: usize) -> Result<(i32, &str), InvalidTime> {
    let number = text
        .get(..count)
        .filter(|head| head.bytes().all(|byte| byte.is_ascii_digit()));
    match number.and_then(|head| head.parse().ok()) {
        Some(number) => Ok((number, &text[count..])),
        None => Err(InvalidTime::Form),
    }
}

/// Strips one character off the front if it is `prefix`, and tells whether it was.
fn strip(text: &str, prefix: char) -> (bool, &str) {
    text.strip_prefix(prefix)
        .map_or((false, text), |rest| (true, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Forms and what `dateutil.parser.isoparse` makes of them, naive times read as UTC.
    const READ_BY_DATEUTIL: [(&str, &str); 24] = [
        (
            "2026-11-22T01:26:17.052033+00:00",
            "2026-11-22T01:26:17.052033Z",
        ),
        ("2026-11-22T01:26:17.052033", "2026-11-22T01:26:17.052033Z"),
        ("2026-11-22 01:26:17", "2026-11-22T01:26:17Z"),
        ("2026-11-22x01:26", "2026-11-22T01:26:00Z"),
        ("20261122T012617Z", "2026-11-22T01:26:17Z"),
        ("20261122T0126z", "2026-11-22T01:26:00Z"),
        ("20261122T01", "2026-11-22T01:00:00Z"),
        ("2026-11-22T01:26:17+05:30", "2026-11-21T19:56:17Z"),
        ("2026-11-22T01:26:17-0800", "2026-11-22T09:26:17Z"),
        ("2026-11-22T01:26:17-08", "2026-11-22T09:26:17Z"),
        ("2026-11-22T01:26:17,5", "2026-11-22T01:26:17.5Z"),
        (
            "2026-11-22T01:26:17.123456789",
            "2026-11-22T01:26:17.123456Z",
        ),
        ("2026", "2026-01-01T00:00:00Z"),
        ("2026-11", "2026-11-01T00:00:00Z"),
        ("2026-11-22", "2026-11-22T00:00:00Z"),
        ("20261122", "2026-11-22T00:00:00Z"),
        ("2026-W47", "2026-11-16T00:00:00Z"),
        ("2026-W47-7", "2026-11-22T00:00:00Z"),
        ("2026W477T12", "2026-11-22T12:00:00Z"),
        ("2026-326", "2026-11-22T00:00:00Z"),
        ("2026326T12:30", "2026-11-22T12:30:00Z"),
        ("2026-11-22T24:00", "2026-11-23T00:00:00Z"),
        ("2026-12-31T24:00:00.000+01:00", "2026-12-31T23:00:00Z"),
        ("2025-W53-1", "2025-12-29T00:00:00Z"),
    ];

    #[test]
    fn forms_of_dateutil_are_read() {
        for (text, expected) in READ_BY_DATEUTIL {
            let expected: Timestamp = expected.parse().unwrap();
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn the_end_of_time_is_far_away() {
        for text in [
            "9999-12-31T23:59:59.999999+00:00",
            "9999-12-31",
            "9999-12-31T00:00-14:00",
        ] {
            assert_eq!(parse(text), Ok(Timestamp::MAX), "{text}");
        }
    }

    #[test]
    fn what_dateutil_refuses_is_refused() {
        for text in [
            "",
            "x",
            "202611",
            "2026-1-2",
            "2026-11-22T",
            "2026-11-22T1",
            "2026-13-01",
            "2026-02-30",
            "2026-11-22T25:00",
            "2026-11-22T24:01",
            "2026-11-22T01:26:17.",
            "2026-11-22T01:26:17+1",
            "2026-11-22T01:26:17+24:00",
            "2026-11-22T01:26:17+01:60",
            "2026-W54",
            "2026-W10-8",
            "2026-366",
            "0000-01-01",
            "2026-11-22T01:2617",
            "tomorrow",
            "2026-11-22T01:26:17 Z",
            "２０２６-11-22",
            "1795310777",
            "2026-11-22T01:26:17+00:00:00",
            "-2026-11-22",
        ] {
            assert!(parse(text).is_err(), "{text}: {:?}", parse(text));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(text in "\\PC{0,40}") {
            drop(parse(&text));
        }

        #[test]
        fn what_python_writes_is_read(
            micros in -62_000_000_000_000_000_i64..250_000_000_000_000_000,
        ) {
            let at = Timestamp::from_microsecond(micros).unwrap();
            let text = at.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string();
            prop_assert_eq!(parse(&text), Ok(at));
        }
    }
}
