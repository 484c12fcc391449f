//! `inspect scheduled`: tasks that wait for their ETA, here and in the delay store.

use std::sync::Arc;

use celeriac_core::broker::{Delayed, DeliveryTag};
use celeriac_core::journal::Level;
use celeriac_core::pool::RequestKey;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::command::{Answer, CONTROL};
use super::{Core, Effect, HookToken};
use crate::control::info::info;
use crate::control::mailbox::Address;
use crate::events::event::isoformat;
use crate::receive::decode::{self, Received};
use crate::request::{Request, Stage};

/// What Celery's timer gives to a task with an ETA.
const ETA_PRIORITY: u32 = 6;
/// How many tasks of the delay store are told of: the first to come.
const LISTED: usize = 1000;
/// How many such questions may be open.
const LISTINGS: usize = 16;

/// Somebody who waits for a list, and the part of it that is here.
#[derive(Debug)]
pub(super) struct Listing {
    address: Address,
    /// What is known so far.
    told: Vec<Value>,
    /// How many lanes have not answered.
    waits_for: usize,
}

impl Core {
    pub(super) fn scheduled(&self) -> Answer {
        let mut held: Vec<&Request> = self
            .requests
            .values()
            .filter(|request| request.stage == Stage::Held)
            .collect();
        held.sort_unstable_by_key(|request| (request.head.eta, request.key));
        let held = held
            .into_iter()
            .map(|request| self.entry(request, request.head.eta));
        Answer::Scheduled(held.collect())
    }

    fn entry(&self, request: &Request, eta: Option<Timestamp>) -> Value {
        json!({
            "eta": eta.map(isoformat),
            "priority": ETA_PRIORITY,
            "request": info(request, &self.options.hostname, false),
        })
    }

    /// Answers with what is held here, and with what the delay store holds, if there is one.
    pub(super) fn list_scheduled(&mut self, address: Address, held: Vec<Value>) {
        let connected = |lane: &usize| self.lanes[*lane].is_connected;
        let asked: Vec<usize> = (0..self.lanes.len()).filter(connected).collect();
        let asks = self.options.store.is_some() && !asked.is_empty();
        if !asks || self.remote.listings.len() >= LISTINGS {
            return self.reply(&address, &held.into());
        }
        let token = self.token();
        let listing = Listing {
            address,
            told: held,
            waits_for: asked.len(),
        };
        self.remote.listings.insert(token, listing);
        let questions = asked.into_iter();
        self.effects
            .extend(questions.map(|lane| Effect::ReadDelayed(lane, token, LISTED)));
    }

    /// The broker tells what its delay store holds.
    pub fn delayed_read(&mut self, token: HookToken, read: Result<Vec<Delayed>, String>) {
        let Some(mut listing) = self.remote.listings.remove(&token) else {
            return;
        };
        let stored = read.unwrap_or_else(|error| {
            let text = format!("inspect scheduled: the delay store can't be read: {error}");
            self.notice(Level::Error, CONTROL, &text);
            Vec::new()
        });
        let stored = stored.into_iter().filter_map(|delayed| {
            let until = delayed.until;
            let request = self.request_of(delayed)?;
            Some(self.entry(&request, Some(until)))
        });
        let stored: Vec<Value> = stored.collect();
        listing.told.extend(stored);
        listing.waits_for -= 1;
        if listing.waits_for == 0 {
            self.reply(&listing.address, &listing.told.into());
        } else {
            self.remote.listings.insert(token, listing);
        }
    }

    /// A message of the delay store as the request that it will be.
    fn request_of(&self, delayed: Delayed) -> Option<Request> {
        let Received::Task(head) = decode::classify(&delayed.message, &self.options.accept) else {
            return None;
        };
        Some(Request {
            key: RequestKey(0),
            tag: DeliveryTag(0),
            lane: 0,
            queue: delayed.queue,
            task: Arc::clone(self.options.tasks.get(&head.task)?),
            head,
            message: Arc::new(delayed.message),
            stage: Stage::Held,
            is_settled: false,
            is_taken: false,
            is_lost: false,
            terminated: None,
        })
    }
}
