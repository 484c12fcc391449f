//! What must hold of the frames of the local bus, whatever bytes they are.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::frame::Frame;

/// What is read is written as something that is read as the same, and it does not matter in which
/// pieces bytes come.
pub fn local_frame(bytes: &[u8]) {
    if let Some(frame) = Frame::decode(bytes) {
        let again = frame.encode();
        let (length, text) = again.split_at(4);
        assert_eq!(length, (text.len() as u32).to_be_bytes());
        assert_eq!(Frame::decode(text), Some(frame));
    }
    let cut = bytes.len() / 2;
    let pieces = bytes[..cut].chain(&bytes[cut..]);
    assert_eq!(all(bytes), all(pieces));
}

/// The frames that a stream holds.
fn all(mut stream: impl AsyncRead + Unpin) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut context = Context::from_waker(Waker::noop());
    loop {
        let reading = pin!(Frame::read(&mut stream));
        let Poll::Ready(frame) = reading.poll(&mut context) else {
            panic!("what is in memory is there at once");
        };
        match frame {
            Some(frame) => frames.push(frame),
            None => return frames,
        }
    }
}
