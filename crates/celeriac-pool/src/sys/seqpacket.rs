//! Pairs of connected sockets whose messages are read whole or not at all.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use tokio::io::unix::AsyncFd;

/// One end of a pair, for this process.
#[derive(Debug)]
pub struct SeqPacket {
    fd: AsyncFd<OwnedFd>,
}

/// Makes a pair: one end for this process, the other for another one.
///
/// # Errors
/// When descriptors run out.
pub fn pair() -> io::Result<(SeqPacket, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    Ok((SeqPacket::new(ours)?, theirs))
}

/// Makes a pair of stream sockets, neither inherited by programs that are started later.
///
/// # Errors
/// When descriptors run out.
pub fn stream_pair() -> io::Result<(std::os::unix::net::UnixStream, OwnedFd)> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let ours = std::os::unix::net::UnixStream::from(ours);
    ours.set_nonblocking(true)?;
    Ok((ours, theirs))
}

impl SeqPacket {
    #[expect(
        unsafe_code,
        reason = "registration asks for a promise about the descriptor"
    )]
    fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        // SAFETY: an `OwnedFd` is open and stays the same until it is dropped, and the `AsyncFd`
        // owns it until then.
        let fd = unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)?;
        Ok(Self { fd })
    }

    /// Receives one message into `buffer`; `0` when the other end is closed. Safe to cancel.
    ///
    /// # Errors
    /// Whatever the system says; [`io::ErrorKind::InvalidData`] when the message is longer.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.fd.readable().await?;
            match ready.try_io(|fd| receive(fd.get_ref().as_fd(), buffer)) {
                Ok(result) => return result.map(|(length, _)| length),
                Err(_would_block) => {}
            }
        }
    }

    /// Waits until there may be a message, and takes none. Safe to cancel.
    ///
    /// # Errors
    /// When the runtime shuts down.
    pub async fn readable(&self) -> io::Result<()> {
        self.fd.readable().await?.retain_ready();
        Ok(())
    }

    /// Receives one message if there is one.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is none.
    pub fn try_receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        self.fd.try_io(tokio::io::Interest::READABLE, |fd| {
            receive(fd.as_fd(), buffer).map(|(length, _)| length)
        })
    }

    /// Sends the parts as one message, with descriptors, if there is room.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when there is no room.
    pub fn try_send(&self, parts: &[&[u8]], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let parts: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(self.fd.get_ref(), &parts, &mut ancillary, flags)?;
        Ok(())
    }
}

/// Reads one message, and the descriptors that came with it, from a socket that another process
/// reads too, if there is one: whoever reads it first has it alone.
///
/// # Errors
/// [`io::ErrorKind::WouldBlock`] when there is none.
pub fn take_back(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    receive(fd, buffer)
}

fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
    let message = loop {
        match recvmsg(fd, &mut parts, &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    if message.flags.contains(rustix::net::ReturnFlags::TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a message is too long",
        ));
    }
    let length = message.bytes;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((length, descriptors.flatten().collect()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[tokio::test]
    async fn messages_stay_whole_and_in_order() {
        let (ours, theirs) = pair().unwrap();
        let theirs = SeqPacket::new(theirs).unwrap();
        ours.try_send(&[b"one", b"+", b"two"], &[]).unwrap();
        ours.try_send(&[b"three"], &[]).unwrap();
        let mut buffer = [0; 64];
        let length = theirs.receive(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"one+two");
        let length = theirs.try_receive(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"three");
        let error = theirs.try_receive(&mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        assert_eq!(theirs.receive(&mut buffer).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_an_error() {
        let (ours, theirs) = pair().unwrap();
        ours.try_send(&[&[1; 100]], &[]).unwrap();
        let error = take_back(theirs.as_fd(), &mut [0; 10]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn what_was_not_read_can_be_taken_back() {
        let (ours, theirs) = pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        ours.try_send(&[b"job"], &[file.as_fd()]).unwrap();
        let mut buffer = [0; 16];
        let (length, descriptors) = take_back(theirs.as_fd(), &mut buffer).unwrap();
        assert_eq!((length, descriptors.len()), (3, 1));
        drop(descriptors);
        let error = take_back(theirs.as_fd(), &mut buffer).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        // The descriptor that came along is closed with it: no number beyond ours is open.
        let next = std::fs::File::open("/dev/null").unwrap();
        assert!(next.as_raw_fd() <= file.as_raw_fd() + 2);
    }

    #[tokio::test]
    async fn a_full_socket_has_no_room_until_it_is_read() {
        let (ours, theirs) = pair().unwrap();
        let message = vec![0; 32 * 1024];
        let mut sent = 0;
        let error = loop {
            match ours.try_send(&[&message], &[]) {
                Ok(()) => sent += 1,
                Err(error) => break error,
            }
        };
        assert!(sent > 0);
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        let mut buffer = vec![0; 64 * 1024];
        take_back(theirs.as_fd(), &mut buffer).unwrap();
        ours.try_send(&[&message], &[]).unwrap();
    }
}
