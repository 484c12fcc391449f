//! Frames on the stream to main: it does not matter in which pieces they come.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use celeriac_pool::python::frame::Frame;
use tokio::io::{AsyncRead, AsyncReadExt as _};

pub(crate) fn check(bytes: &[u8]) {
    let (frames, end) = all(bytes);
    for cut in [1, 3, 8, 9, bytes.len() / 2] {
        let cut = cut.min(bytes.len());
        let pieces = bytes[..cut].chain(&bytes[cut..]);
        assert_eq!(all(pieces), (frames.clone(), end.clone()));
    }
    let mut written = Vec::new();
    for frame in &frames {
        now(frame.write(&mut written)).expect("memory takes everything");
    }
    assert!(bytes.starts_with(&written));
}

/// The frames that a stream holds, and the error that ends it.
fn all(mut stream: impl AsyncRead + Unpin) -> (Vec<Frame>, Option<String>) {
    let mut frames = Vec::new();
    loop {
        match now(Frame::read(&mut stream)) {
            Ok(Some(frame)) => frames.push(frame),
            Ok(None) => return (frames, None),
            Err(error) => return (frames, Some(error.to_string())),
        }
    }
}

fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("what is in memory is there at once"),
    }
}
