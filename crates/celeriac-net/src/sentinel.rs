//! Redis Sentinel: which server is the master now.
//!
//! Celery's counterparts: `kombu.transport.redis.SentinelChannel` and `redis.sentinel.Sentinel`.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, PushInfo, RedisError, cmd};
use serde_json::{Map, Value};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::ServerUrl;
use crate::redis::{InvalidAddress, RedisAddress};

/// How long to wait for more answers after the first good one: another sentinel may know better.
const SECOND_OPINION: Duration = Duration::from_millis(250);
/// The port where a URL names none.
const PORT: u16 = 26379;

/// Sentinels that watch one master.
#[derive(Debug, Clone)]
pub struct Sentinels {
    nodes: Vec<RedisAddress>,
    /// How to talk to the master, wherever it is.
    master: RedisAddress,
    name: String,
    /// The option `min_other_sentinels`.
    least_others: u64,
    timeout: Duration,
    /// Whether any of them ever knew the master.
    was_known: Arc<AtomicBool>,
}

/// What one sentinel says of the master.
struct Answer {
    host: String,
    port: u16,
    /// Grows with every promotion.
    epoch: u64,
}

impl Sentinels {
    /// The sentinels that `urls` name. User, password and database of the first URL are those of
    /// the master, as in kombu.
    ///
    /// # Errors
    /// When an option is missing or makes no sense.
    pub fn new(
        urls: &[ServerUrl],
        options: &Map<String, Value>,
        ssl: Option<&Value>,
        timeout: Duration,
    ) -> Result<Self, InvalidAddress> {
        let name = options.get("master_name").and_then(Value::as_str);
        let (Some(first), Some(name)) = (urls.first(), name) else {
            return Err(InvalidAddress::NoMasterName);
        };
        let arguments = options.get("sentinel_kwargs").and_then(Value::as_object);
        let argument = |name| arguments.and_then(|arguments| arguments.get(name));
        let has_tls = argument("ssl").is_some_and(|value| *value == Value::Bool(true));
        let tls = arguments.filter(|_| has_tls).cloned().map(Value::Object);
        let nodes: Result<Vec<RedisAddress>, InvalidAddress> = urls
            .iter()
            .map(|url| {
                let node = RedisAddress::new(url, tls.as_ref(), timeout)?;
                let text = |name| argument(name).and_then(Value::as_str);
                let host = url.host().unwrap_or("127.0.0.1");
                let node = node.at(host, url.port().unwrap_or(PORT));
                Ok(node.as_user(text("username"), text("password")))
            })
            .collect();
        let others = options.get("min_other_sentinels").and_then(Value::as_u64);
        Ok(Self {
            nodes: nodes?,
            master: RedisAddress::new(first, ssl, timeout)?,
            name: name.to_owned(),
            least_others: others.unwrap_or(0),
            timeout,
            was_known: Arc::default(),
        })
    }

    /// The master, as the sentinel says that has heard of the most promotions.
    async fn find_master(&self) -> Result<RedisAddress, RedisError> {
        let mut asked = JoinSet::new();
        for node in &self.nodes {
            let (node, name, others) = (node.clone(), self.name.clone(), self.least_others);
            asked.spawn(async move {
                let answer = ask(&node, &name, others).await;
                answer.map_err(|reason| (reason, node.to_string()))
            });
        }
        let mut deadline = Instant::now() + self.timeout;
        let mut best: Option<Answer> = None;
        let mut refusals = Vec::new();
        let mut is_unknown = false;
        while let Ok(Some(joined)) = timeout_at(deadline, asked.join_next()).await {
            match joined {
                Ok(Ok(answer)) => {
                    deadline = deadline.min(Instant::now() + SECOND_OPINION);
                    if best.as_ref().is_none_or(|best| answer.epoch > best.epoch) {
                        best = Some(answer);
                    }
                }
                Ok(Err((Refusal::Unknown, node))) => {
                    is_unknown = true;
                    refusals.push(format!("{node} knows no {:?}", self.name));
                }
                Ok(Err((Refusal::Other(reason), node))) => {
                    refusals.push(format!("{node}: {reason}"));
                }
                Err(error) => refusals.push(error.to_string()),
            }
        }
        if let Some(best) = best {
            self.was_known.store(true, Ordering::Relaxed);
            return Ok(self.master.at(&best.host, best.port));
        }
        if is_unknown && !self.was_known.load(Ordering::Relaxed) {
            let reason = "no sentinel knows the master";
            return Err((
                ErrorKind::MasterNameNotFoundBySentinel,
                reason,
                self.name.clone(),
            )
                .into());
        }
        if refusals.is_empty() {
            refusals.push("none of them answered".to_owned());
        }
        let reason = format!("no sentinel tells of a master: {}", refusals.join("; "));
        Err(io::Error::new(io::ErrorKind::NotConnected, reason).into())
    }

    /// Connects to the master as [`RedisAddress::connect_with_pushes`] does.
    ///
    /// # Errors
    /// Also when there is no master at the moment.
    pub async fn connect_with_pushes(
        &self,
        on_push: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> Result<MultiplexedConnection, RedisError> {
        let master = self.find_master().await?;
        as_master(master.connect_with_pushes(on_push).await?, &master).await
    }

    /// Connects to the master as [`RedisAddress::connect`] does.
    ///
    /// # Errors
    /// Also when there is no master at the moment.
    pub async fn connect(&self) -> Result<MultiplexedConnection, RedisError> {
        let master = self.find_master().await?;
        as_master(master.connect().await?, &master).await
    }
}

/// Why a sentinel's answer is of no use.
enum Refusal {
    /// It watches no master of that name.
    Unknown,
    /// Anything else.
    Other(String),
}

async fn ask(node: &RedisAddress, name: &str, least_others: u64) -> Result<Answer, Refusal> {
    let other = |error: RedisError| Refusal::Other(error.to_string());
    let mut connection = node.connect().await.map_err(other)?;
    let asked: Result<HashMap<String, String>, _> = cmd("SENTINEL")
        .arg("MASTER")
        .arg(name)
        .query_async(&mut connection)
        .await;
    let state = asked.map_err(|error| {
        let detail = error.detail().unwrap_or_default();
        if detail.contains("No such master") {
            Refusal::Unknown
        } else {
            other(error)
        }
    })?;
    read(&state, least_others).map_err(Refusal::Other)
}

/// Reads a sentinel's answer; an error says why it does not count.
fn read(state: &HashMap<String, String>, least_others: u64) -> Result<Answer, String> {
    let text = |name: &str| state.get(name).map(String::as_str).unwrap_or_default();
    let number = |name: &str| text(name).parse::<u64>().unwrap_or(0);
    let flags: Vec<&str> = text("flags").split(',').collect();
    if !flags.contains(&"master") || flags.contains(&"s_down") || flags.contains(&"o_down") {
        return Err(format!("the master is down ({})", text("flags")));
    }
    let others = number("num-other-sentinels");
    if others < least_others {
        return Err(format!(
            "it sees {others} other sentinels, and min_other_sentinels is {least_others}"
        ));
    }
    match (text("ip"), text("port").parse()) {
        (host, Ok(port)) if !host.is_empty() => Ok(Answer {
            host: host.to_owned(),
            port,
            epoch: number("config-epoch"),
        }),
        _ => Err("it names no address".to_owned()),
    }
}

/// Proves that the server is a master: a sentinel may not have heard yet that it is none.
async fn as_master(
    mut connection: MultiplexedConnection,
    address: &RedisAddress,
) -> Result<MultiplexedConnection, RedisError> {
    let role: Vec<redis::Value> = cmd("ROLE").query_async(&mut connection).await?;
    let role: String = redis::from_redis_value(role.into_iter().next().unwrap_or_default())?;
    if role == "master" {
        return Ok(connection);
    }
    let reason = format!("{address} is no master any more but a {role}");
    Err(io::Error::new(io::ErrorKind::NotConnected, reason).into())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sentinels(options: &Value) -> Result<Sentinels, InvalidAddress> {
        let urls = ["sentinel://u:pw@h1/3", "sentinel://h2:26380"];
        let urls = urls.map(|url| ServerUrl::parse(url).unwrap());
        let options = options.as_object().unwrap();
        Sentinels::new(&urls, options, None, Duration::from_secs(4))
    }

    #[test]
    fn the_name_of_the_master_is_required() {
        let error = sentinels(&json!({})).unwrap_err();
        assert!(error.to_string().contains("master_name"), "{error}");
    }

    #[test]
    fn the_first_url_is_the_masters_and_the_sentinels_have_a_password_of_their_own() {
        let options = json!({"master_name": "m", "sentinel_kwargs": {"password": "s"}});
        let sentinels = sentinels(&options).unwrap();
        let nodes: Vec<String> = sentinels.nodes.iter().map(ToString::to_string).collect();
        assert_eq!(nodes, ["h1:26379", "h2:26380"]);
        for node in &sentinels.nodes {
            assert_eq!(node.login(), (None, Some("s"), 0));
        }
        let master = sentinels.master.at("h9", 6390);
        assert_eq!(master.to_string(), "h9:6390");
        assert_eq!(master.login(), (Some("u"), Some("pw"), 3));
    }

    #[test]
    fn only_a_master_that_is_up_counts() {
        let state = |flags: &str| {
            let members = [
                ("ip", "10.0.0.1"),
                ("port", "6379"),
                ("flags", flags),
                ("num-other-sentinels", "1"),
                ("config-epoch", "7"),
            ];
            members
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into_iter()
                .collect::<HashMap<_, _>>()
        };
        let answer = read(&state("master"), 1).unwrap();
        assert_eq!(
            (&*answer.host, answer.port, answer.epoch),
            ("10.0.0.1", 6379, 7)
        );
        for flags in ["slave", "s_down,master", "s_down,o_down,master", ""] {
            assert!(read(&state(flags), 0).is_err(), "{flags}");
        }
        let error = read(&state("master"), 2).err().unwrap();
        assert!(error.contains("min_other_sentinels"), "{error}");
    }
}
