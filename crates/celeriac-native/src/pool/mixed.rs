//! A pool of two: tasks in Rust run in the worker's process, all others in another pool.

use std::collections::VecDeque;

use async_trait::async_trait;
use celeriac_core::pool::{Condition, Job, Pool, PoolEvent, RequestKey};

use super::native::NativePool;

/// Gives the jobs of the tasks that a [`NativePool`] knows to it, and all others to another pool. Both
/// have one number of places: as many jobs run at once as the other pool has processes.
pub struct MixedPool {
    python: Box<dyn Pool>,
    native: NativePool,
    told: VecDeque<PoolEvent>,
    python_is_closed: bool,
    native_is_closed: bool,
}

impl MixedPool {
    /// The two as one.
    pub fn new(python: Box<dyn Pool>, mut native: NativePool) -> Self {
        native.resize(python.size());
        Self {
            python,
            native,
            told: VecDeque::new(),
            python_is_closed: false,
            native_is_closed: false,
        }
    }

    /// Merges what one of them tells.
    fn hear(&mut self, events: Vec<PoolEvent>, is_native: bool) {
        for event in events {
            match event {
                PoolEvent::Closed => {
                    if is_native {
                        self.native_is_closed = true;
                    } else {
                        self.python_is_closed = true;
                    }
                    if self.native_is_closed && self.python_is_closed {
                        self.told.push_back(PoolEvent::Closed);
                    }
                }
                // The worker is up when its processes are.
                PoolEvent::Up { .. } if is_native => {}
                event => self.told.push_back(event),
            }
        }
    }
}

#[async_trait]
impl Pool for MixedPool {
    fn free(&self) -> usize {
        self.python.free().saturating_sub(self.native.load())
    }

    fn submit(&mut self, job: Job) {
        let is_native = self.native.tracer().registry().runs(&job);
        // What is beyond the places of both, neither knows alone.
        let is_shared = is_native || self.native.load() > 0;
        if is_shared && self.free() == 0 {
            self.told.push_back(PoolEvent::Returned { key: job.key });
        } else if is_native {
            self.native.submit(job);
        } else {
            self.python.submit(job);
        }
    }

    fn terminate(&mut self, key: RequestKey, signal: i32) {
        if self.native.has(key) {
            self.native.terminate(key, signal);
        } else {
            self.python.terminate(key, signal);
        }
    }

    fn interrupt(&mut self, key: RequestKey, requeues: bool) {
        if self.native.has(key) {
            self.native.interrupt(key, requeues);
        } else {
            self.python.interrupt(key, requeues);
        }
    }

    fn condition(&self) -> Condition {
        self.python.condition()
    }

    fn size(&self) -> usize {
        self.python.size()
    }

    fn processes(&self) -> Vec<(u32, u64)> {
        let mut processes = self.python.processes();
        processes.extend(self.native.processes());
        processes
    }

    fn resize(&mut self, size: usize) -> usize {
        // Busy places stay, whichever of the two has their jobs.
        let all = self.python.size();
        let busy = all.saturating_sub(self.python.free()) + self.native.load();
        let size = self.python.resize(size.max(busy.min(all)));
        self.native.resize(self.python.size());
        size
    }

    fn shrink(&mut self, by: usize) {
        self.python.shrink(by);
        let surplus = self.native.size().saturating_sub(self.python.size());
        self.native.shrink(surplus);
    }

    fn restart(&mut self) {
        self.python.restart();
        self.native.restart();
    }

    fn close(&mut self) {
        self.python.close();
        self.native.close();
    }

    fn kill(&mut self) {
        self.python.kill();
        self.native.kill();
    }

    async fn next(&mut self) -> Vec<PoolEvent> {
        if self.told.is_empty() {
            let (events, is_native) = tokio::select! {
                events = self.native.next() => (events, true),
                events = self.python.next() => (events, false),
            };
            self.hear(events, is_native);
        }
        self.told.drain(..).collect()
    }
}
