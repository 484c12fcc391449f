//! Becoming another user, after the host has become it.
//!
//! Celery's counterpart: `celery.platforms.maybe_drop_privileges`.

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Uid, User, getgid, getuid, initgroups, setgid, setuid};

/// Becomes the user and group that the host became.
///
/// # Errors
/// What the system says.
pub(super) fn become_user(uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    if let Some(gid) = gid.map(Gid::from_raw).filter(|gid| *gid != getgid()) {
        setgid(gid)?;
    }
    let Some(uid) = uid.map(Uid::from_raw).filter(|uid| *uid != getuid()) else {
        return Ok(());
    };
    if let Some(user) = User::from_uid(uid)? {
        initgroups(&CString::new(user.name)?, getgid())?;
    }
    setuid(uid)?;
    // A process that could take it back has not given it up.
    if !uid.is_root() && setuid(Uid::from_raw(0)).is_ok() {
        return Err(io::Error::other("privileges of root could be taken back"));
    }
    Ok(())
}
