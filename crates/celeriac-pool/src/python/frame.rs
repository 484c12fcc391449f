//! Frames on the stream to main: two big-endian lengths, a JSON text, raw bytes.
//!
//! Counterpart: `python/celeriac/host/wire.py`.

use std::io;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A JSON text and bytes that go with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    /// The JSON text.
    pub text: Bytes,
    /// The bytes.
    pub blob: Bytes,
}

/// The longest text that is read: an app's description with tens of thousands of tasks fits.
const TEXT_LIMIT: u32 = 256 << 20;

impl Frame {
    /// A frame of a text alone.
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self {
            text: text.into(),
            blob: Bytes::new(),
        }
    }

    /// Reads a frame; `None` when the other side has closed the stream between two frames.
    ///
    /// # Errors
    /// When the stream ends within a frame or the lengths are absurd.
    pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut lengths = [0; 8];
        match stream.read_exact(&mut lengths).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        };
        let (text, blob) = lengths.split_at(4);
        let length = |bytes: &[u8]| u32::from_be_bytes(bytes.try_into().unwrap_or_default());
        if length(text) > TEXT_LIMIT || length(blob) > TEXT_LIMIT {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a frame is too long",
            ));
        }
        let text = read_exactly(stream, length(text)).await?;
        let blob = read_exactly(stream, length(blob)).await?;
        Ok(Some(Self { text, blob }))
    }

    /// Writes the frame.
    ///
    /// # Errors
    /// When the other side is gone.
    pub async fn write(&self, stream: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let length = |bytes: &Bytes| {
            u32::try_from(bytes.len())
                .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a frame is too long"))
        };
        let mut head = Vec::with_capacity(8 + self.text.len());
        head.extend_from_slice(&length(&self.text)?.to_be_bytes());
        head.extend_from_slice(&length(&self.blob)?.to_be_bytes());
        head.extend_from_slice(&self.text);
        stream.write_all(&head).await?;
        stream.write_all(&self.blob).await
    }
}

async fn read_exactly(stream: &mut (impl AsyncRead + Unpin), length: u32) -> io::Result<Bytes> {
    // Grows with what comes, not with what is announced.
    let mut bytes = Vec::new();
    stream.take(length.into()).read_to_end(&mut bytes).await?;
    if bytes.len() < length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_written_is_read() {
        let frames = [
            Frame::text("{}"),
            Frame {
                text: "{\"a\": 1}".into(),
                blob: Bytes::from(vec![7; 100_000]),
            },
            Frame::default(),
        ];
        let mut stream = Vec::new();
        for frame in &frames {
            frame.write(&mut stream).await.unwrap();
        }
        let mut stream = stream.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut stream).await.unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut stream).await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_torn_or_absurd_frame_is_an_error() {
        let mut torn: &[u8] = &[0, 0, 0, 5, 0, 0, 0, 0, b'a'];
        assert!(Frame::read(&mut torn).await.is_err());
        let mut announced: &[u8] = &[0x0f, 0, 0, 0, 0, 0, 0, 0, b'a'];
        assert!(Frame::read(&mut announced).await.is_err());
        let mut absurd: &[u8] = &[0xff; 16];
        assert!(Frame::read(&mut absurd).await.is_err());
    }
}
