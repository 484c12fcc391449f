//! How a worker leaves, and waits for main where nothing else is left to do.

use std::time::Duration;

use celeriac_core::pool::{Pool, PoolEvent};
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::{Worker, pools_told};
use crate::happening::Happening;
use crate::hooks::{Answer, HookCall};
use crate::parts::OperatorSignal;
use crate::receive::consumer::{Event, Handle};
use crate::shutdown::Phase;

/// How long leaving the bus may take.
const LEAVING_BUS: Duration = Duration::from_secs(3);
/// How long giving slots of limits back may take: otherwise their leases end.
const LEAVING_LIMITS: Duration = Duration::from_secs(2);

impl Worker {
    /// Leaves, by the time that the shutdown's deadline allows; whether that was enough.
    pub(super) async fn leave_in_time(&mut self) -> bool {
        let Some(by) = self.core.shutdown().leaves_by() else {
            self.leave().await;
            return true;
        };
        let left = by.saturating_sub(self.clock.monotonic());
        let has_left = timeout(left, self.leave()).await.is_ok();
        if !has_left {
            self.notice(
                "The shutdown's deadline is over: the app's last hooks are not waited for.",
            );
        }
        has_left
    }

    /// Leaves the broker, and has the app say goodbye.
    async fn leave(&mut self) {
        if self.heartbeat.is_some() {
            self.beat("worker-offline");
            self.act();
        }
        self.bus.stop();
        self.consumers.iter().for_each(Handle::stop);
        let health = self.health();
        for lane in 0..self.consumers.len() {
            while let Some(event) = {
                let next = self.consumers[lane].next();
                self.probes.during(&health, next).await
            } {
                if matches!(event, Event::Closed) {
                    break;
                }
                self.consumer_told(lane, event);
                self.act();
            }
        }
        let leaving = timeout(LEAVING_LIMITS, self.limits.stop());
        drop(self.probes.during(&health, leaving).await);
        let leaving = async { while self.bus.next().await.is_some() {} };
        drop(
            self.probes
                .during(&health, timeout(LEAVING_BUS, leaving))
                .await,
        );
        if self.keeps_state {
            let revoked = self.core.revoked_ids();
            let saved = self.hooks.call(HookCall::SaveState { revoked });
            if let Attended::Answered(Err(error)) = self.attend(saved).await {
                let text = format!("The state database could not be written: {error}");
                self.journal
                    .write(Happening::Notice { text: &text }.record());
            }
        }
        if self.core.shutdown().phase() == Phase::Cold {
            // As in Celery, there is no time for a goodbye.
            return;
        }
        // What it says is logged by main.
        let said = self.hooks.call(HookCall::WorkerShutdown);
        drop(self.attend(said).await);
    }

    async fn attend(&mut self, answer: Answer) -> Attended {
        let health = self.health();
        let (pools, orders) = (&mut self.pools, &mut self.orders);
        let mut told = Vec::new();
        let attending = attended(pools, orders, &self.main_died, answer, &mut told);
        self.probes.during(&health, attending).await
    }
}

/// How waiting for main ended.
pub(super) enum Attended {
    /// It has answered.
    Answered(Result<serde_json::Value, String>),
    /// The operator has lost patience.
    Interrupted(OperatorSignal),
}

/// Waits for an answer of main while the pool is served: should main die, the pool forks its
/// successor, which is asked again. There is nothing else that it would have to know. What the pool
/// tells meanwhile is kept in `told`.
pub(super) async fn attended(
    pools: &mut [Box<dyn Pool>],
    orders: &mut mpsc::Receiver<OperatorSignal>,
    main_died: &Notify,
    answer: Answer,
    told: &mut Vec<(usize, Vec<PoolEvent>)>,
) -> Attended {
    tokio::pin!(answer);
    loop {
        tokio::select! {
            biased;
            answer = &mut answer => return Attended::Answered(answer),
            () = main_died.notified() => {}
            events = pools_told(pools, 0) => told.push(events),
            Some(order @ OperatorSignal::End(_)) = orders.recv() => {
                return Attended::Interrupted(order);
            }
        }
    }
}
