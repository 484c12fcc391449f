//! As much of HTTP/1.1 as probes need: a GET or HEAD without a body, one for each connection.
//!
//! Orchestrators send a fixed request line, whose path is all that is read here; a library that
//! speaks all of HTTP would be more code in the worker than everything else in this folder.

use super::report::{Question, Report};

/// Longer than any probe's head, custom headers included.
pub(super) const MAX_HEAD: usize = 8 * 1024;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A yes or no.
    Answer(Question),
    /// All answers, as JSON.
    Report,
    /// Nothing that is answered here: this status.
    Refused(Status),
}

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) wanted: Wanted,
    /// HEAD: the answer has no body.
    pub(super) is_head: bool,
}

/// A status line's number and words.
pub(super) type Status = (u16, &'static str);

const OK: Status = (200, "OK");
const BAD_REQUEST: Status = (400, "Bad Request");
const NOT_FOUND: Status = (404, "Not Found");
const NOT_ALLOWED: Status = (405, "Method Not Allowed");
const TOO_LARGE: Status = (431, "Request Header Fields Too Large");
const UNAVAILABLE: Status = (503, "Service Unavailable");

/// What has been read of a request so far; `None` where more is to come.
pub(super) fn read(head: &[u8]) -> Option<Request> {
    let refused = |status| Request {
        wanted: Wanted::Refused(status),
        is_head: false,
    };
    if !head.windows(4).any(|end| end == b"\r\n\r\n") {
        return (head.len() >= MAX_HEAD).then(|| refused(TOO_LARGE));
    }
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = std::str::from_utf8(line).unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Some(refused(BAD_REQUEST));
    };
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") {
        return Some(refused(BAD_REQUEST));
    }
    if !matches!(method, "GET" | "HEAD") {
        return Some(refused(NOT_ALLOWED));
    }
    let path = target.split('?').next().unwrap_or_default();
    let wanted = match path {
        "/livez" => Wanted::Answer(Question::Live),
        "/readyz" => Wanted::Answer(Question::Ready),
        "/startupz" => Wanted::Answer(Question::Started),
        "/health" => Wanted::Report,
        _ => Wanted::Refused(NOT_FOUND),
    };
    Some(Request {
        wanted,
        is_head: method == "HEAD",
    })
}

/// The response; without a report the worker has not answered in time.
pub(super) fn response(request: Request, report: Option<&Report>) -> Vec<u8> {
    let late = "the worker's loop does not turn";
    let (status, kind, body) = match (request.wanted, report) {
        (Wanted::Refused(status), _) => (status, "text/plain", format!("{}\n", status.1)),
        (Wanted::Answer(question), Some(report)) => {
            let answer = report.answer(question);
            let status = if answer.ok { OK } else { UNAVAILABLE };
            (status, "text/plain", format!("{}\n", answer.line(question)))
        }
        (Wanted::Answer(question), None) => {
            let body = format!("not {}: {late}\n", question.word());
            (UNAVAILABLE, "text/plain", body)
        }
        (Wanted::Report, Some(report)) => {
            let body = serde_json::to_string(report).unwrap_or_default();
            (OK, "application/json", format!("{body}\n"))
        }
        (Wanted::Report, None) => (UNAVAILABLE, "text/plain", format!("{late}\n")),
    };
    let (number, words) = status;
    let allow = if status == NOT_ALLOWED {
        "Allow: GET, HEAD\r\n"
    } else {
        ""
    };
    let mut response = format!(
        "HTTP/1.1 {number} {words}\r\nContent-Type: {kind}; charset=utf-8\r\n\
         Content-Length: {}\r\nCache-Control: no-store\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    if !request.is_head {
        response.push_str(&body);
    }
    response.into_bytes()
}

#[cfg(test)]
mod tests {
    use celeriac_worker::vitals::Health;

    use super::*;

    fn report() -> Report {
        Report::new("w1@here", Health::leaving())
    }

    #[test]
    fn what_a_request_asks_for() {
        let get = |wanted| {
            Some(Request {
                wanted,
                is_head: false,
            })
        };
        for (head, expected) in [
            ("", None),
            ("GET /livez HTTP/1.1\r\nHost: x\r\n", None),
            (
                "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
                get(Wanted::Answer(Question::Live)),
            ),
            (
                "GET /readyz?verbose HTTP/1.0\r\n\r\n",
                get(Wanted::Answer(Question::Ready)),
            ),
            (
                "GET /startupz HTTP/1.1\r\n\r\nmore",
                get(Wanted::Answer(Question::Started)),
            ),
            ("GET /health HTTP/1.1\r\n\r\n", get(Wanted::Report)),
            (
                "HEAD /livez HTTP/1.1\r\n\r\n",
                Some(Request {
                    wanted: Wanted::Answer(Question::Live),
                    is_head: true,
                }),
            ),
            ("GET / HTTP/1.1\r\n\r\n", get(Wanted::Refused(NOT_FOUND))),
            (
                "POST /livez HTTP/1.1\r\n\r\n",
                get(Wanted::Refused(NOT_ALLOWED)),
            ),
            ("GET /livez\r\n\r\n", get(Wanted::Refused(BAD_REQUEST))),
            ("PRI * HTTP/2.0\r\n\r\n", get(Wanted::Refused(BAD_REQUEST))),
            ("\r\n\r\n", get(Wanted::Refused(BAD_REQUEST))),
        ] {
            assert_eq!(read(head.as_bytes()), expected, "{head:?}");
        }
        assert_eq!(
            read(b"\xff\xfe /livez x\r\n\r\n"),
            get(Wanted::Refused(BAD_REQUEST))
        );
        assert_eq!(read(&[b'x'; MAX_HEAD]), get(Wanted::Refused(TOO_LARGE)));
    }

    #[test]
    fn an_answer_says_why() {
        for (target, report, status, words) in [
            ("/livez", Some(report()), "200 OK", "\r\n\r\nlive\n"),
            (
                "/readyz",
                Some(report()),
                "503 Service Unavailable",
                "\r\n\r\nnot ready: it has shut down, and leaves\n",
            ),
            ("/startupz", Some(report()), "200 OK", "\r\n\r\nstarted\n"),
            (
                "/livez",
                None,
                "503 Service Unavailable",
                "not live: the worker's loop does not turn",
            ),
            (
                "/health",
                Some(report()),
                "200 OK",
                r#""hostname":"w1@here""#,
            ),
            ("/health", None, "503 Service Unavailable", "does not turn"),
            ("/x", Some(report()), "404 Not Found", "Not Found\n"),
        ] {
            let request = read(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes()).unwrap();
            let answer = String::from_utf8(response(request, report.as_ref())).unwrap();
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}\r\n")),
                "{answer}"
            );
            assert!(answer.contains(words), "{answer}");
        }
        let head = read(b"HEAD /livez HTTP/1.1\r\n\r\n").unwrap();
        assert!(response(head, Some(&report())).ends_with(b"\r\n\r\n"));
        let post = read(b"POST /livez HTTP/1.1\r\n\r\n").unwrap();
        let refused = String::from_utf8(response(post, None)).unwrap();
        assert!(refused.contains("\r\nAllow: GET, HEAD\r\n"), "{refused}");
    }
}
