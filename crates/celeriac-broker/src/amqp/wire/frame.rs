//! Frames: a type, a channel, a payload with its length, and an end octet.

use super::octets::Malformed;

/// What a connection begins with.
pub(super) const PROTOCOL_HEADER: &[u8] = b"AMQP\x00\x00\x09\x01";
/// The most that may come in one frame before both sides have agreed on something.
pub(super) const FRAME_MAX: usize = 128 * 1024;
/// The most that is read as one frame. RabbitMQ cuts bodies to what was agreed, but not the headers
/// of a message that has grown on the way, such as a dead letter's.
pub(super) const MOST_RECEIVED: usize = 16 * 1024 * 1024;
/// What a frame has around its payload.
pub(super) const OVERHEAD: usize = 8;

pub(super) const METHOD: u8 = 1;
pub(super) const HEADER: u8 = 2;
pub(super) const BODY: u8 = 3;
pub(super) const HEARTBEAT: u8 = 8;
const END: u8 = 0xCE;

/// A frame that came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Frame<'b> {
    pub(super) kind: u8,
    pub(super) channel: u16,
    pub(super) payload: &'b [u8],
}

/// The frame that `input` begins with and its length in all; `None` until all of it is here.
pub(super) fn next(input: &[u8], most: usize) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let Some(([kind, channel @ .., a, b, c, d], rest)) = input.split_first_chunk::<7>() else {
        // A server that does not speak this version says which it speaks, and leaves.
        return if input.starts_with(b"AMQP") {
            Err(Malformed)
        } else {
            Ok(None)
        };
    };
    let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
    if length + OVERHEAD > most {
        return Err(Malformed);
    }
    let Some((payload, [end, ..])) = rest.split_at_checked(length) else {
        return Ok(None);
    };
    if *end != END {
        return Err(Malformed);
    }
    let frame = Frame {
        kind: *kind,
        channel: u16::from_be_bytes(*channel),
        payload,
    };
    Ok(Some((frame, length + OVERHEAD)))
}

/// Writes a frame with what `write` writes.
pub(super) fn put(kind: u8, channel: u16, to: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    to.push(kind);
    to.extend_from_slice(&channel.to_be_bytes());
    let at = to.len();
    to.extend_from_slice(&[0; 4]);
    write(to);
    let length = (to.len() - at - 4) as u32;
    to[at..at + 4].copy_from_slice(&length.to_be_bytes());
    to.push(END);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_pieces() {
        let mut bytes = Vec::new();
        put(BODY, 258, &mut bytes, |to| to.extend_from_slice(b"abc"));
        put(HEARTBEAT, 0, &mut bytes, |_| ());
        for most in 0..11 {
            assert_eq!(next(&bytes[..most], FRAME_MAX), Ok(None), "{most}");
        }
        let frame = Frame {
            kind: BODY,
            channel: 258,
            payload: b"abc",
        };
        assert_eq!(next(&bytes, FRAME_MAX), Ok(Some((frame, 11))));
        let (frame, length) = next(&bytes[11..], FRAME_MAX).unwrap().unwrap();
        assert_eq!(
            (frame.kind, frame.payload, length),
            (HEARTBEAT, &b""[..], 8)
        );
    }

    #[test]
    fn what_is_no_frame_is_malformed() {
        let mut bytes = Vec::new();
        put(BODY, 1, &mut bytes, |to| to.extend_from_slice(b"abc"));
        assert_eq!(next(&bytes, 10), Err(Malformed), "too long");
        *bytes.last_mut().unwrap() = 0;
        assert_eq!(next(&bytes, FRAME_MAX), Err(Malformed), "no end");
        assert_eq!(next(&PROTOCOL_HEADER[..5], FRAME_MAX), Err(Malformed));
        assert_eq!(next(b"HTTP/1.1 400", FRAME_MAX), Err(Malformed));
    }
}
