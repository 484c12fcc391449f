//! What the worker may rely on of every pool.
//!
//! Each pool is closed or killed at its end, and must then say so once, and nothing more.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use celeriac_core::pool::{Job, LossCause, Outcome, Pool, PoolEvent, RequestKey};
use celeriac_protocol::{TimeLimit, TimeLimits};
use tokio::time::timeout;

/// Longer than anything takes.
const PATIENCE: Duration = Duration::from_mins(1);
/// SIGTERM, SIGKILL and SIGUSR1 on every Linux.
const TERM: i32 = 15;
const KILL: i32 = 9;
const USR1: i32 = 10;

/// Makes pools, and jobs for them.
#[async_trait]
pub trait Fixture: Send {
    /// A pool that runs so many jobs at once.
    async fn pool(&mut self, size: usize) -> Box<dyn Pool>;

    /// A job of a task that does this, acknowledged late or early as it likes; without limits.
    fn job(&mut self, key: RequestKey, work: Work) -> Job;
}

/// What a task does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Returns 42.
    Return,
    /// Fails with a `ValueError`.
    Fail,
    /// Never ends by itself; ends at once when a soft limit's exception is raised in it, with that.
    Wait,
}

/// Runs the whole suite.
pub async fn run(fixture: &mut dyn Fixture) {
    every_job_begins_and_ends_once(fixture).await;
    what_is_no_call_is_told(fixture).await;
    no_more_run_than_there_are_places(fixture).await;
    a_running_job_is_terminated(fixture).await;
    limits_of_time_hold(fixture).await;
    a_job_is_interrupted(fixture).await;
    its_size_changes(fixture).await;
    after_a_restart_jobs_run(fixture).await;
    a_closed_pool_ends_what_it_has(fixture).await;
    a_killed_pool_loses_what_it_has(fixture).await;
    each_job_has_one_end_whatever_happens(fixture).await;
}

/// A pool, and what it has told.
struct Heard {
    pool: Box<dyn Pool>,
    next: u64,
    begun: HashMap<RequestKey, u32>,
    ends: HashMap<RequestKey, Vec<End>>,
    told: Vec<PoolEvent>,
    is_closed: bool,
}

#[derive(Debug, Clone, PartialEq)]
enum End {
    Finished(Outcome),
    Lost(LossCause),
    Returned,
}

impl Heard {
    async fn new(fixture: &mut dyn Fixture, size: usize) -> Self {
        let mut heard = Self {
            pool: fixture.pool(size).await,
            next: 1,
            begun: HashMap::new(),
            ends: HashMap::new(),
            told: Vec::new(),
            is_closed: false,
        };
        let is_up = |event: &PoolEvent| matches!(event, PoolEvent::Up { .. });
        heard.until(|heard| heard.told.iter().any(is_up)).await;
        heard.until(|heard| heard.pool.free() > 0).await;
        heard
    }

    fn submit(&mut self, fixture: &mut dyn Fixture, work: Work) -> RequestKey {
        self.submit_with(fixture, work, |_| {})
    }

    fn submit_with(
        &mut self,
        fixture: &mut dyn Fixture,
        work: Work,
        change: impl FnOnce(&mut Job),
    ) -> RequestKey {
        let key = RequestKey(self.next);
        self.next += 1;
        let mut job = fixture.job(key, work);
        change(&mut job);
        self.pool.submit(job);
        key
    }

    /// Submits a job when there is a place for it, and waits until it has begun.
    async fn begin(&mut self, fixture: &mut dyn Fixture, work: Work) -> RequestKey {
        self.until(|heard| heard.pool.free() > 0).await;
        let key = self.submit(fixture, work);
        self.until(|heard| heard.begun.contains_key(&key)).await;
        key
    }

    async fn end(&mut self, key: RequestKey) -> End {
        self.until(|heard| heard.ends.contains_key(&key)).await;
        self.ends[&key][0].clone()
    }

    /// Listens until something holds.
    async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        let listening = async {
            while !holds(self) {
                // What `free` depends on need not be an event.
                let events = timeout(Duration::from_millis(20), self.pool.next()).await;
                self.hear(events.unwrap_or_default());
            }
        };
        let in_time = timeout(PATIENCE, listening).await.is_ok();
        assert!(in_time, "it never came to that; told: {:?}", self.told);
    }

    fn hear(&mut self, events: Vec<PoolEvent>) {
        for event in events {
            assert!(!self.is_closed, "it is closed, and tells {event:?}");
            let (key, end) = match &event {
                PoolEvent::Started { key, .. } => {
                    assert!(!self.ends.contains_key(key), "{key} begins after its end");
                    let begun = self.begun.entry(*key).or_default();
                    *begun += 1;
                    assert_eq!(*begun, 1, "{key} begins again");
                    self.told.push(event);
                    continue;
                }
                PoolEvent::Finished { key, outcome } => (*key, End::Finished(outcome.clone())),
                PoolEvent::Lost { key, cause, .. } => (*key, End::Lost(*cause)),
                PoolEvent::Returned { key } => (*key, End::Returned),
                PoolEvent::Closed => {
                    self.is_closed = true;
                    self.told.push(event);
                    continue;
                }
                _ => {
                    self.told.push(event);
                    continue;
                }
            };
            let has_begun = self.begun.contains_key(&key);
            assert_eq!(has_begun, end != End::Returned, "{key} ends with {end:?}");
            self.told.push(event);
            let ends = self.ends.entry(key).or_default();
            ends.push(end);
            assert_eq!(ends.len(), 1, "{key} ends more than once: {ends:?}");
        }
    }

    fn place(&self, is_it: impl Fn(&PoolEvent) -> bool) -> Option<usize> {
        self.told.iter().position(is_it)
    }

    /// Closes the pool, which must have nothing to do.
    async fn leave(mut self) {
        self.pool.close();
        self.until(|heard| heard.is_closed).await;
        for key in (1..self.next).map(RequestKey) {
            assert!(self.ends.contains_key(&key), "{key} has no end");
        }
        let more = timeout(Duration::from_millis(50), self.pool.next()).await;
        self.hear(more.unwrap_or_default());
    }
}

fn is_success(end: &End) -> bool {
    matches!(end, End::Finished(Outcome::Success { result, .. }) if result == "42")
}

fn is_failure(end: &End, with: &str) -> bool {
    matches!(end, End::Finished(Outcome::Failure(failure)) if failure.exception.contains(with))
}

fn seconds(seconds: f64) -> Option<TimeLimit> {
    TimeLimit::new(&serde_json::Number::from_f64(seconds)?)?
}

async fn every_job_begins_and_ends_once(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 2).await;
    let mut expected = Vec::new();
    for at in 0..40 {
        let work = if at % 4 == 0 {
            Work::Fail
        } else {
            Work::Return
        };
        heard.until(|heard| heard.pool.free() > 0).await;
        let key = heard.submit_with(fixture, work, |job| job.wants_result = true);
        expected.push((key, work));
    }
    for (key, work) in expected {
        let end = heard.end(key).await;
        match work {
            Work::Fail => assert!(is_failure(&end, "ValueError"), "{end:?}"),
            _ => assert!(is_success(&end), "{end:?}"),
        }
    }
    let given: u64 = heard.pool.processes().iter().map(|(_, given)| given).sum();
    assert!(given > 0, "it has processes that were given jobs");
    heard.leave().await;
}

async fn what_is_no_call_is_told(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 1).await;
    for (body, is_readable) in [(&b"[[], {"[..], false), (b"[[], {}]", true), (b"7", true)] {
        heard.until(|heard| heard.pool.free() > 0).await;
        let key = heard.submit_with(fixture, Work::Return, |job| {
            job.body = Bytes::from_static(body);
        });
        match heard.end(key).await {
            End::Finished(Outcome::Invalid { .. }) if is_readable => {}
            End::Finished(Outcome::Undecodable { .. }) if !is_readable => {}
            end => panic!("{end:?}"),
        }
    }
    heard.leave().await;
}

async fn no_more_run_than_there_are_places(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 2).await;
    let first = heard.begin(fixture, Work::Wait).await;
    let second = heard.begin(fixture, Work::Wait).await;
    assert_eq!(heard.pool.free(), 0);
    // One that was submitted all the same has not begun when it is given back.
    let third = heard.submit(fixture, Work::Return);
    let end = heard.end(third).await;
    assert_eq!(end, End::Returned);
    heard.pool.terminate(first, TERM);
    heard.end(first).await;
    let fourth = heard.begin(fixture, Work::Return).await;
    heard.end(fourth).await;
    heard.pool.terminate(second, TERM);
    heard.end(second).await;
    heard.leave().await;
}

async fn a_running_job_is_terminated(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 1).await;
    for signal in [TERM, KILL] {
        let key = heard.begin(fixture, Work::Wait).await;
        heard.pool.terminate(key, signal);
        // A second time changes nothing.
        heard.pool.terminate(key, signal);
        assert_eq!(heard.end(key).await, End::Lost(LossCause::Terminated));
    }
    let key = heard.begin(fixture, Work::Wait).await;
    heard.pool.terminate(key, USR1);
    let end = heard.end(key).await;
    assert!(is_failure(&end, "SoftTimeLimitExceeded"), "{end:?}");
    // One that is not known.
    heard.pool.terminate(RequestKey(4711), TERM);
    heard.leave().await;
}

async fn limits_of_time_hold(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 1).await;
    let key = heard.submit_with(fixture, Work::Wait, |job| {
        job.time_limits.soft = seconds(0.1);
    });
    let end = heard.end(key).await;
    assert!(is_failure(&end, "SoftTimeLimitExceeded"), "{end:?}");
    let is_soft = |event: &PoolEvent| *event == PoolEvent::SoftTimeLimit { key };
    assert!(heard.place(is_soft).is_some());

    heard.until(|heard| heard.pool.free() > 0).await;
    let key = heard.submit_with(fixture, Work::Wait, |job| {
        job.time_limits.hard = seconds(0.1);
    });
    assert_eq!(heard.end(key).await, End::Lost(LossCause::TimeLimit));
    let is_hard =
        |event: &PoolEvent| matches!(event, PoolEvent::HardTimeLimit { key: k, .. } if *k == key);
    let is_lost = |event: &PoolEvent| matches!(event, PoolEvent::Lost { key: k, .. } if *k == key);
    assert!(heard.place(is_hard).unwrap() < heard.place(is_lost).unwrap());

    heard.until(|heard| heard.pool.free() > 0).await;
    let key = heard.submit_with(fixture, Work::Return, |job| {
        job.wants_result = true;
        job.time_limits = TimeLimits {
            hard: seconds(60.0),
            soft: seconds(50.0),
        };
    });
    let end = heard.end(key).await;
    assert!(is_success(&end), "{end:?}");
    heard.leave().await;
}

async fn a_job_is_interrupted(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 1).await;
    let key = heard.begin(fixture, Work::Wait).await;
    heard.pool.interrupt(key, false);
    let end = heard.end(key).await;
    assert!(is_failure(&end, "SoftTimeLimitExceeded"), "{end:?}");
    let key = heard.begin(fixture, Work::Wait).await;
    heard.pool.interrupt(key, true);
    match heard.end(key).await {
        End::Finished(Outcome::Reject { requeue: true, .. }) => {}
        end => panic!("{end:?}"),
    }
    heard.leave().await;
}

async fn its_size_changes(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 1).await;
    let first = heard.begin(fixture, Work::Wait).await;
    heard.pool.resize(2);
    assert_eq!(heard.pool.size(), 2);
    let second = heard.begin(fixture, Work::Wait).await;
    // Busy ones stay.
    heard.pool.resize(1);
    assert_eq!(heard.pool.size(), 2);
    heard.pool.shrink(1);
    assert_eq!(heard.pool.size(), 1);
    for key in [first, second] {
        assert!(!heard.ends.contains_key(&key), "{key} was ended");
        heard.pool.terminate(key, TERM);
        heard.end(key).await;
    }
    let key = heard.begin(fixture, Work::Return).await;
    heard.end(key).await;
    heard.leave().await;
}

async fn after_a_restart_jobs_run(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 1).await;
    let key = heard.begin(fixture, Work::Wait).await;
    heard.pool.restart();
    heard.pool.terminate(key, TERM);
    heard.end(key).await;
    let key = heard.begin(fixture, Work::Return).await;
    heard.end(key).await;
    heard.leave().await;
}

async fn a_closed_pool_ends_what_it_has(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 1).await;
    let key = heard.begin(fixture, Work::Wait).await;
    heard.pool.close();
    assert_eq!(heard.pool.free(), 0);
    let late = heard.submit(fixture, Work::Return);
    assert_eq!(heard.end(late).await, End::Returned);
    assert!(!heard.is_closed && !heard.ends.contains_key(&key));
    heard.pool.terminate(key, TERM);
    assert_eq!(heard.end(key).await, End::Lost(LossCause::Terminated));
    heard.leave().await;
}

async fn a_killed_pool_loses_what_it_has(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 2).await;
    let first = heard.begin(fixture, Work::Wait).await;
    let second = heard.begin(fixture, Work::Wait).await;
    heard.pool.kill();
    for key in [first, second] {
        assert_eq!(heard.end(key).await, End::Lost(LossCause::Terminated));
    }
    heard.leave().await;
}

async fn each_job_has_one_end_whatever_happens(fixture: &mut dyn Fixture) {
    let mut heard = Heard::new(fixture, 3).await;
    for at in 0_u64..30 {
        let work = [Work::Return, Work::Wait, Work::Fail][(at % 3) as usize];
        let key = heard.submit_with(fixture, work, |job| {
            if work == Work::Wait {
                job.time_limits.hard = seconds(0.2);
                job.time_limits.soft = (at % 2 == 0).then(|| seconds(0.1)).flatten();
            }
        });
        match at % 5 {
            0 => heard.pool.terminate(key, TERM),
            1 => heard
                .pool
                .terminate(RequestKey(key.0.saturating_sub(2)), USR1),
            2 => heard.pool.interrupt(key, true),
            _ => {}
        }
        let events = timeout(Duration::from_millis(5), heard.pool.next()).await;
        heard.hear(events.unwrap_or_default());
    }
    for key in (1..heard.next).map(RequestKey) {
        heard.end(key).await;
    }
    heard.leave().await;
}
