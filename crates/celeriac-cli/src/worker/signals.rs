//! The operating system's signals, as orders for the worker.

use std::io;

use celeriac_worker::parts::OperatorSignal;
use celeriac_worker::shutdown::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

/// Orders that wait; a worker takes them at once.
const QUEUED: usize = 16;

/// Has signals come as orders from now on.
///
/// SIGHUP is one only where there is no terminal: closing it must not restart the worker.
///
/// # Errors
/// When signals can't be watched.
pub(super) fn watch(has_terminal: bool) -> io::Result<mpsc::Receiver<OperatorSignal>> {
    let (orders, watched) = mpsc::channel(QUEUED);
    let mut wanted = vec![
        (
            SignalKind::terminate(),
            OperatorSignal::End(Signal::Terminate),
        ),
        (
            SignalKind::interrupt(),
            OperatorSignal::End(Signal::Interrupt),
        ),
        (SignalKind::quit(), OperatorSignal::End(Signal::Quit)),
        (SignalKind::user_defined1(), OperatorSignal::Cry),
    ];
    if !has_terminal {
        wanted.push((SignalKind::hangup(), OperatorSignal::End(Signal::Hangup)));
    }
    for (kind, order) in wanted {
        let mut stream = signal(kind)?;
        let orders = orders.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && orders.send(order).await.is_ok() {}
        });
    }
    Ok(watched)
}
