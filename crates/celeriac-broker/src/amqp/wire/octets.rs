//! The elements that methods, properties and tables are made of.

use super::super::table::Unsayable;

/// What came ends too early, or says what it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed AMQP")]
pub(in crate::amqp) struct Malformed;

/// Reads elements one after the other.
#[derive(Debug, Clone, Copy)]
pub(in crate::amqp) struct Octets<'b>(pub(in crate::amqp) &'b [u8]);

impl<'b> Octets<'b> {
    pub(in crate::amqp) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(in crate::amqp) fn bytes(&mut self, count: usize) -> Result<&'b [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(in crate::amqp) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub(in crate::amqp) fn octet(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(in crate::amqp) fn short(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(in crate::amqp) fn long(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(in crate::amqp) fn long_long(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    /// Up to 255 bytes.
    pub(in crate::amqp) fn short_bytes(&mut self) -> Result<&'b [u8], Malformed> {
        let length = self.octet()?;
        self.bytes(usize::from(length))
    }

    /// A text of up to 255 bytes. What is no UTF-8 is replaced: names are ASCII in practice, and
    /// one that is not is no reason to lose a connection.
    pub(in crate::amqp) fn short_text(&mut self) -> Result<std::borrow::Cow<'b, str>, Malformed> {
        Ok(String::from_utf8_lossy(self.short_bytes()?))
    }

    /// Up to 4 GiB; tables are such.
    pub(in crate::amqp) fn long_bytes(&mut self) -> Result<&'b [u8], Malformed> {
        let length = self.long()?;
        self.bytes(usize::try_from(length).map_err(|_| Malformed)?)
    }
}

/// Writes a text of at most 255 bytes.
pub(in crate::amqp) fn put_short_text(text: &str, to: &mut Vec<u8>) -> Result<(), Unsayable> {
    let length = u8::try_from(text.len()).map_err(|_| Unsayable::TooLong(text.to_owned()))?;
    to.push(length);
    to.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Writes what `write` writes, with its length before it.
pub(in crate::amqp) fn put_long<E>(
    to: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let at = to.len();
    to.extend_from_slice(&[0; 4]);
    write(to)?;
    let length = (to.len() - at - 4) as u32;
    to[at..at + 4].copy_from_slice(&length.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_too_early_is_malformed() {
        assert_eq!(Octets(&[]).octet(), Err(Malformed));
        assert_eq!(Octets(&[0]).short(), Err(Malformed));
        assert_eq!(Octets(&[2, b'a']).short_bytes(), Err(Malformed));
        assert_eq!(Octets(&[0, 0, 0, 2, b'a']).long_bytes(), Err(Malformed));
        assert_eq!(Octets(&[255; 8]).long_bytes(), Err(Malformed));
        assert_eq!(Octets(&[1, b'a']).short_text().unwrap(), "a");
    }

    #[test]
    fn lengths_are_written_before_what_they_count() {
        let mut to = vec![7];
        put_long(&mut to, |to| put_short_text("ab", to)).unwrap();
        assert_eq!(to, [7, 0, 0, 0, 3, 2, b'a', b'b']);
        assert!(put_short_text(&"x".repeat(256), &mut to).is_err());
    }
}
