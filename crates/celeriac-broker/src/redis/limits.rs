//! Limits in Redis: a script decides, by the server's clock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use celeriac_core::broker::{Error, ErrorKind};
use celeriac_core::limit::{
    Answer, Claim, FARTHEST_LOOK, FARTHEST_TURN, FIRST_LOOK, GRACE, Holding, LEASE, LimitSession,
    LimitStore, Order, UNKNOWN_HOLD,
};
use redis::aio::MultiplexedConnection;
use redis::cmd;
use serde_json::{Value, json};

use super::Shared;
use super::error::broker_error;
use super::scripts::LIMITS;
use crate::limit::ledger::{micros, names};

/// The limits of one server.
pub(super) struct RedisLimits(pub(super) Arc<Shared>);

impl std::fmt::Debug for RedisLimits {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisLimits({})", self.0.display)
    }
}

#[async_trait]
impl LimitStore for RedisLimits {
    fn display_url(&self) -> String {
        self.0.display.clone()
    }

    async fn connect(&self) -> Result<Box<dyn LimitSession>, Error> {
        let connected = self.0.server.connect().await;
        let mut connection = connected.map_err(|error| broker_error(&error))?;
        let _: () = cmd("PING")
            .query_async(&mut connection)
            .await
            .map_err(|error| broker_error(&error))?;
        let shared = Arc::clone(&self.0);
        Ok(Box::new(RedisLimitSession { shared, connection }))
    }
}

struct RedisLimitSession {
    shared: Arc<Shared>,
    connection: MultiplexedConnection,
}

#[async_trait]
impl LimitSession for RedisLimitSession {
    async fn exchange(&mut self, orders: &[Order]) -> Result<Vec<Answer>, Error> {
        let mut places = BTreeMap::new();
        let mut call = LIMITS.prepare_invoke();
        for (number, name) in names(orders).into_iter().enumerate() {
            places.insert(name, 2 * number + 1);
            call.key(format!("{}{name}", self.shared.keys.limit))
                .key(format!("{}{name}", self.shared.keys.slots));
        }
        let orders: Vec<Value> = orders.iter().map(|order| written(order, &places)).collect();
        call.arg(Value::from(orders).to_string())
            .arg(constants().to_string());
        let answers: Vec<Vec<String>> = call
            .invoke_async(&mut self.connection)
            .await
            .map_err(|error| broker_error(&error))?;
        answers.iter().map(|answer| read(answer)).collect()
    }
}

/// Where the keys of a name begin.
type Places<'n> = BTreeMap<&'n str, usize>;

/// An order as the script reads it.
fn written(order: &Order, places: &Places<'_>) -> Value {
    match order {
        Order::Acquire(asked) => {
            let permits = asked.permits.iter().map(|permit| {
                let mut written = json!({"key": places.get(&*permit.name)});
                if let Some(rate) = permit.rate {
                    written["interval"] = micros(rate.interval).into();
                    written["burst"] = rate.burst.into();
                }
                if let Some(slots) = permit.slots {
                    written["slots"] = slots.into();
                }
                written
            });
            let mut acquire = json!({
                "holder": asked.holder,
                "permits": permits.collect::<Vec<_>>(),
            });
            if let Some(turn) = asked.turn {
                acquire["turn"] = turn.into();
            }
            if let Some(claim) = &asked.claim {
                acquire["claim"] = claimed(claim, places);
            }
            json!({"acquire": acquire})
        }
        Order::Renew(holding) => json!({"renew": held(holding, Duration::ZERO, places)}),
        Order::Release(holding, time) => json!({"release": held(holding, *time, places)}),
    }
}

fn held(holding: &Holding, time: Duration, places: &Places<'_>) -> Value {
    let slots = holding.slots.iter().map(|name| places.get(&**name));
    let mut written = json!({
        "holder": holding.holder,
        "slots": slots.collect::<Vec<_>>(),
        "held": micros(time),
    });
    if let Some(claim) = &holding.claim {
        written["claim"] = claimed(claim, places);
    }
    written
}

fn claimed(claim: &Claim, places: &Places<'_>) -> Value {
    json!({
        "key": places.get(&*claim.name),
        "owner": claim.owner,
        "lasts": micros(claim.lasts),
        "window": claim.is_window,
    })
}

fn constants() -> Value {
    json!({
        "lease": micros(LEASE),
        "grace": micros(GRACE),
        "first_look": micros(FIRST_LOOK),
        "farthest_look": micros(FARTHEST_LOOK),
        "farthest_turn": micros(FARTHEST_TURN),
        "unknown_hold": micros(UNKNOWN_HOLD),
    })
}

fn read(answer: &[String]) -> Result<Answer, Error> {
    let words: Vec<&str> = answer.iter().map(String::as_str).collect();
    let read = match words[..] {
        ["granted"] => Some(Answer::Granted),
        ["duplicate", of] => Some(Answer::Duplicate { of: of.to_owned() }),
        ["denied", wait, turn] => wait.parse().ok().map(|wait| Answer::Denied {
            wait: Duration::from_micros(wait),
            turn: turn.parse().ok(),
        }),
        _ => None,
    };
    read.ok_or_else(|| {
        let message = format!("Redis answers {answer:?} to a question for limits");
        Error::new(ErrorKind::Refused, message)
    })
}
