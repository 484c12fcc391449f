//! The pools of a worker's lanes.

use std::sync::Arc;

use celeriac_config::Description;
use celeriac_config::pools::PoolKind;
use celeriac_core::clock::Clock;
use celeriac_core::pool::Pool;
use celeriac_native::MixedPool;
use celeriac_pool::prefork::pool::MainForks;
use celeriac_pool::prefork::{PreforkOptions, PreforkPool};
use celeriac_pool::python::host::Becomes;
use celeriac_pool::python::zygote::Zygote;
use celeriac_pool::python::{Host, StartOptions};
use celeriac_pool::sys::seqpacket::SeqPacket;

use super::lanes::LaneOf;
use super::native::Engine;
use super::settings;
use crate::failure::Failure;

/// The pools, and what forks a new main; nothing does where there is no Python.
pub(super) type Pools = (Vec<Box<dyn Pool>>, Option<MainForks>);

/// Which lane the zygote of the host that becomes main is for: the first whose processes can be
/// forked from it.
pub(super) fn lane_of_main(lanes: &[LaneOf]) -> Option<usize> {
    let plain = |lane: &LaneOf| lane.child().is_some() && lane.kind != PoolKind::Gevent;
    let any = |lane: &LaneOf| lane.child().is_some();
    let first = lanes.iter().position(plain);
    first.or_else(|| lanes.iter().position(any))
}

/// Makes the pools. `zygote` is that of the host that becomes main; a lane that can't share it gets a
/// host of its own, which loads the app once more.
///
/// # Errors
/// When a host can't be started, or an option can't be used.
pub(super) async fn pools(
    lanes: &[LaneOf],
    description: &Description,
    engine: Option<&Engine>,
    python: Option<(StartOptions, SeqPacket)>,
    clock: &Arc<dyn Clock>,
) -> Result<Pools, Failure> {
    let failed = |error: std::io::Error| Failure::new(format!("The worker can't start: {error}"));
    let owner = lane_of_main(lanes);
    let (start, mut zygote) = match python {
        Some((start, zygote)) => (Some(start), Some(zygote)),
        None => (None, None),
    };
    let mut pools: Vec<Box<dyn Pool>> = Vec::with_capacity(lanes.len());
    let mut forks = None;
    for (at, lane) in lanes.iter().enumerate() {
        let (Some(child), Some(start)) = (lane.child(), &start) else {
            let engine = engine.ok_or_else(no_tasks)?;
            pools.push(Box::new(engine.pool(lane.size())?));
            continue;
        };
        let mut start = start.clone();
        let own = zygote.take_if(|_| owner == Some(at));
        let (zygote, is_mains) = if let Some(zygote) = own {
            (zygote, true)
        } else {
            let name = lane.kind.name();
            start.options.insert("pool".to_owned(), name.into());
            let (_, host) = Host::start(&start, Becomes::Zygote).await?;
            (host.split().await?.1, false)
        };
        let options = PreforkOptions {
            kind: child,
            processes: lane.processes,
            size: lane.size(),
            limits: settings::pool(description, &lane.worker)?,
            watch: settings::watch(description),
            start,
        };
        let (pool, main_forks) =
            PreforkPool::new(options, Zygote::new(zygote), Arc::clone(clock)).map_err(failed)?;
        if is_mains {
            forks = Some(main_forks);
        }
        let pool: Box<dyn Pool> = Box::new(pool);
        pools.push(match engine {
            Some(engine) => Box::new(MixedPool::new(pool, engine.pool(lane.size())?)),
            None => pool,
        });
    }
    Ok((pools, forks))
}

fn no_tasks() -> Failure {
    Failure::new("There are no tasks that a native pool could run").with_hint(
        "declare some in celeriac.toml ([commands.NAME], [containers.NAME]), or add them to the app \
         in Rust: App::task(…)",
    )
}
