//! What a store holds, as JSON: decompressed where it was compressed, and refused with a remedy where
//! it was serialized as something else.
//!
//! Celery's counterpart: `celery.backends.base.Backend.decode` and `decompress_payload`.

use std::borrow::Cow;
use std::io::Read as _;

use celeriac_core::backend::{Error, ErrorKind};
use flate2::read::ZlibDecoder;
use serde::de::DeserializeOwned;

/// What `result_compression` puts in front: this, the name of the method, a zero byte.
const COMPRESSED: &[u8] = b"\0celery-compressed\0";
/// No result is larger: Redis holds no more either.
const LARGEST: u64 = 512 << 20;
const REMEDY: &str = "set result_serializer = 'json' for all workers and clients of this backend";

/// Reads what was stored.
///
/// # Errors
/// [`ErrorKind::Unreadable`] for anything but JSON.
pub(crate) fn decode<T: DeserializeOwned>(stored: &[u8]) -> Result<T, Error> {
    let plain = decompress(stored)?;
    serde_json::from_slice(&plain).map_err(|error| {
        let Some(serializer) = other_serializer(&plain) else {
            return unreadable(&format!("a stored result is no JSON: {error}"), REMEDY);
        };
        unreadable(
            &format!("a result was stored as {serializer}, which only Python can read"),
            REMEDY,
        )
    })
}

/// How something that is no JSON begins.
fn other_serializer(plain: &[u8]) -> Option<&'static str> {
    match plain {
        // Protocol 2 and later; msgpack's maps begin with the same byte and no small number.
        [0x80, 2..=5, ..] => Some("a Python pickle (result_serializer 'pickle')"),
        [0x80..=0x8f | 0xde | 0xdf, ..] => Some("msgpack (result_serializer 'msgpack')"),
        [b'a'..=b'z', ..] => Some("YAML (result_serializer 'yaml')"),
        _ => None,
    }
}

/// Undoes `result_compression`.
fn decompress(stored: &[u8]) -> Result<Cow<'_, [u8]>, Error> {
    let Some(rest) = stored.strip_prefix(COMPRESSED) else {
        return Ok(Cow::Borrowed(stored));
    };
    let end = rest
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(rest.len());
    let method = String::from_utf8_lossy(&rest[..end]).into_owned();
    let body = rest.get(end + 1..).unwrap_or_default();
    let mut plain = Vec::new();
    match method.as_str() {
        // What kombu calls gzip is zlib.
        "application/x-gzip" => ZlibDecoder::new(body)
            .take(LARGEST + 1)
            .read_to_end(&mut plain)
            .map_err(|error| {
                unreadable(
                    &format!("a compressed result is damaged: {error}"),
                    "forget the result, or run its task again",
                )
            })?,
        _ => {
            return Err(unreadable(
                &format!("a result was compressed with {method:?}"),
                "set result_compression = 'gzip', which celeriac reads, or none",
            ));
        }
    };
    if plain.len() as u64 > LARGEST {
        return Err(unreadable(
            "a compressed result is larger than 512 MiB",
            "keep large results elsewhere, and return where they are",
        ));
    }
    Ok(Cow::Owned(plain))
}

fn unreadable(what: &str, remedy: &str) -> Error {
    Error::new(ErrorKind::Unreadable, what).with_hint(remedy)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use serde_json::{Value, json};

    use super::*;

    fn compressed(method: &str, body: &[u8]) -> Vec<u8> {
        [COMPRESSED, method.as_bytes(), b"\0", body].concat()
    }

    #[test]
    fn compressed_results_are_read() {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(br#"{"status": "SUCCESS"}"#).unwrap();
        let stored = compressed("application/x-gzip", &encoder.finish().unwrap());
        assert_eq!(
            decode::<Value>(&stored).unwrap(),
            json!({"status": "SUCCESS"})
        );
    }

    #[test]
    fn what_only_python_reads_is_refused_with_a_remedy() {
        for (stored, word) in [
            (b"\x80\x05\x95\x10\0".to_vec(), "pickle"),
            (b"\x86\xa6status\xa7SUCCESS".to_vec(), "msgpack"),
            (b"children: []\nstatus: SUCCESS\n".to_vec(), "YAML"),
            (b"{\"status\": NaN}".to_vec(), "no JSON"),
            (b"".to_vec(), "no JSON"),
            (compressed("application/x-lzma", b"x"), "x-lzma"),
            (compressed("application/x-gzip", b"x"), "damaged"),
            (COMPRESSED.to_vec(), "compressed"),
        ] {
            let error = decode::<Value>(&stored).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unreadable);
            assert!(error.message.contains(word), "{error}");
            assert!(error.hint.is_some(), "{error}");
        }
    }
}
