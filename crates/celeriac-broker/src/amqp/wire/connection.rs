//! Connections and channels, as the sessions use them.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::driver::{Driver, Shared};
use super::failure::Failure;
use super::frame;
use super::method::{self, Id, Request, Said};
use super::octets::{Malformed, Octets, put_long, put_short_text};
use super::state::State;

pub(in crate::amqp) use super::state::{Arrival, Confirmation, Confirmed, Delivery};

/// Who we are, and where we want to be.
#[derive(Debug, Clone)]
pub(in crate::amqp) struct Login {
    pub(in crate::amqp) username: String,
    pub(in crate::amqp) password: String,
    /// `PLAIN`, `AMQPLAIN` or `EXTERNAL`; `PLAIN` by default, or what else takes a password.
    pub(in crate::amqp) method: Option<String>,
    pub(in crate::amqp) vhost: String,
    /// How often to hear of each other at least, in seconds; 0 asks for none.
    pub(in crate::amqp) heartbeat: u16,
    /// What operators see.
    pub(in crate::amqp) name: Option<String>,
}

/// A connection to a server; it ends when this is dropped.
#[derive(Debug)]
pub(in crate::amqp) struct Connection {
    shared: Arc<Shared>,
}

impl Connection {
    /// Logs in over a fresh stream, and opens the vhost.
    ///
    /// # Errors
    /// When the server refuses it, speaks otherwise, or leaves.
    pub(in crate::amqp) async fn open<S>(stream: S, login: &Login) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut handshake = Handshake {
            stream,
            input: BytesMut::with_capacity(8 * 1024),
        };
        handshake.stream.write_all(frame::PROTOCOL_HEADER).await?;
        handshake.stream.flush().await?;
        let start = handshake.expect(method::START).await?;
        let answer = start_ok(&start, login)?;
        handshake.say(&answer).await?;
        let tune = handshake.expect(method::TUNE).await?;
        let limits = Limits::agree(Octets(&tune), login.heartbeat)?;
        handshake.say(&limits.tune_ok()).await?;
        let open = Request::new(method::CONNECTION_OPEN).text(&login.vhost)?;
        handshake.say(&open.text("")?.bits(&[false])).await?;
        handshake.expect(method::CONNECTION_OPEN_OK).await?;
        let state = State::new(limits.frame_max as usize, limits.channel_max);
        let shared = Arc::new(Shared::new(state));
        let driver = Driver {
            stream: handshake.stream,
            input: handshake.input,
            heartbeat: Duration::from_secs(limits.heartbeat.into()),
            shared: Arc::clone(&shared),
        };
        tokio::spawn(driver.run());
        Ok(Self { shared })
    }

    /// Whether it is still there, as far as is known.
    pub(in crate::amqp) fn is_alive(&self) -> bool {
        self.shared.state().ended.is_none()
    }

    /// Whether the server takes nothing that is published.
    pub(in crate::amqp) fn is_blocked(&self) -> bool {
        self.shared.state().is_blocked
    }

    /// Opens a channel.
    pub(in crate::amqp) async fn channel(&self) -> Result<Channel, Failure> {
        let (number, answer) = self.shared.state().open_channel()?;
        self.shared.changed.notify_one();
        answer.await.unwrap_or_else(|_| Err(Failure::closed()))?;
        Ok(Channel(Arc::new(Handle {
            shared: Arc::clone(&self.shared),
            number,
        })))
    }

    /// Leaves in order; waits until the server has said goodbye too, or is gone.
    pub(in crate::amqp) async fn close(&self) {
        self.shared.state().close();
        self.shared.changed.notify_one();
        loop {
            let told = self.shared.sent.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            if !self.is_alive() {
                return;
            }
            told.await;
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.state().end(&Failure::closed());
        self.shared.changed.notify_one();
    }
}

/// A channel of a connection.
#[derive(Debug, Clone)]
pub(in crate::amqp) struct Channel(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    number: u16,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.state().release(self.number);
        self.shared.changed.notify_one();
    }
}

impl Channel {
    /// Whether it can still be used, as far as is known.
    pub(in crate::amqp) fn is_open(&self) -> bool {
        self.0.shared.state().trouble(self.0.number).is_none()
    }

    /// Asks for something, and does not wait for the answer: what is refused comes to light with
    /// the next request or arrival.
    pub(in crate::amqp) fn tell(&self, request: &Request) -> Result<(), Failure> {
        self.0.shared.state().ask(self.0.number, request)?;
        self.0.shared.changed.notify_one();
        Ok(())
    }

    /// Asks for something; the arguments of the answer.
    pub(in crate::amqp) fn call(
        &self,
        request: &Request,
    ) -> impl Future<Output = Result<Vec<u8>, Failure>> + use<> {
        let asked = self.0.shared.state().ask(self.0.number, request);
        self.0.shared.changed.notify_one();
        async move {
            let answer = asked?;
            answer.await.unwrap_or_else(|_| Err(Failure::closed()))
        }
    }

    /// Publishes; `properties` are flags and values.
    pub(in crate::amqp) fn publish(
        &self,
        exchange: &str,
        routing_key: &str,
        properties: &[u8],
        body: &[u8],
    ) -> Result<(), Failure> {
        let request = method::publish(exchange, routing_key, false)?;
        let mut state = self.0.shared.state();
        state.publish(self.0.number, &request, properties, body)?;
        self.0.shared.changed.notify_one();
        Ok(())
    }

    /// Publishes on a channel with confirms; what the server says is told when it does. That no queue
    /// wants a message it tells only where that is `mandatory`.
    pub(in crate::amqp) fn publish_confirmed(
        &self,
        exchange: &str,
        routing_key: &str,
        mandatory: bool,
        properties: &[u8],
        body: &[u8],
    ) -> Result<Confirmed, Failure> {
        let request = method::publish(exchange, routing_key, mandatory)?;
        let mut state = self.0.shared.state();
        state.publish(self.0.number, &request, properties, body)?;
        let confirmed = state.confirm(self.0.number, exchange, routing_key);
        drop(state);
        self.0.shared.changed.notify_one();
        Ok(confirmed)
    }

    /// The next that arrives.
    pub(in crate::amqp) async fn arrival(&self) -> Result<Arrival, Failure> {
        std::future::poll_fn(|context| self.poll_arrival(context)).await
    }

    /// Waits until all that was said is on its way, or the server takes nothing (`connection.blocked`).
    pub(in crate::amqp) async fn sent(&self) -> Result<(), Failure> {
        let all = self.0.shared.state().put;
        loop {
            let told = self.0.shared.sent.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let state = self.0.shared.state();
                if let Some(failure) = state.trouble(self.0.number) {
                    return Err(failure.clone());
                }
                if state.sent >= all || state.is_blocked {
                    return Ok(());
                }
            }
            told.await;
        }
    }

    /// The next that comes.
    pub(in crate::amqp) fn poll_arrival(
        &self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Arrival, Failure>> {
        let mut state = self.0.shared.state();
        let was_full = state.is_full();
        let arrival = state.poll_arrival(self.0.number, context);
        if was_full {
            self.0.shared.changed.notify_one();
        }
        arrival
    }
}

/// What both sides agree on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    channel_max: u16,
    frame_max: u32,
    heartbeat: u16,
}

impl Limits {
    /// Reads the server's, and takes the smaller of both; 0 means none.
    fn agree(mut tune: Octets<'_>, heartbeat: u16) -> Result<Self, Malformed> {
        let channel_max = tune.short()?;
        let frame_max = tune.long()?;
        let theirs = tune.short()?;
        let most = frame::FRAME_MAX as u32;
        Ok(Self {
            channel_max: if channel_max == 0 {
                u16::MAX - 1
            } else {
                channel_max
            },
            frame_max: if frame_max == 0 {
                most
            } else {
                frame_max.min(most)
            },
            // As py-amqp: who asks for none has none, and a server without one leaves it to us.
            heartbeat: if theirs == 0 {
                heartbeat
            } else {
                heartbeat.min(theirs)
            },
        })
    }

    fn tune_ok(self) -> Request {
        let request = Request::new(method::TUNE_OK).short(self.channel_max);
        request.long(self.frame_max).short(self.heartbeat)
    }
}

/// The answer to the server's first words.
fn start_ok(start: &[u8], login: &Login) -> Result<Request, Failure> {
    let mut octets = Octets(start);
    octets.short()?;
    octets.long_bytes()?;
    let mechanisms = String::from_utf8_lossy(octets.long_bytes()?);
    let mut properties = json!({
        "product": "celeriac",
        "version": env!("CARGO_PKG_VERSION"),
        "capabilities": {
            "authentication_failure_close": true,
            "basic.nack": true,
            "connection.blocked": true,
            "consumer_cancel_notify": true,
            "publisher_confirms": true,
        },
    });
    if let Some(name) = &login.name {
        properties["connection_name"] = name.as_str().into();
    }
    let none = Map::new();
    let properties: &Map<String, Value> = properties.as_object().unwrap_or(&none);
    let (mechanism, response) = response(&mechanisms, login)?;
    let mut request = Request::new(method::START_OK);
    let to = &mut request.arguments;
    super::super::table::put_arguments(properties, to)?;
    put_short_text(mechanism, to)?;
    put_long::<Failure>(to, |to| {
        to.extend_from_slice(&response);
        Ok(())
    })?;
    put_short_text("en_US", to)?;
    Ok(request)
}

/// How to log in, and with what words.
fn response(mechanisms: &str, login: &Login) -> Result<(&'static str, Vec<u8>), Failure> {
    let offers = |mechanism: &str| mechanisms.split(' ').any(|offered| offered == mechanism);
    let asked = login.method.as_deref();
    let ways: &[&'static str] = match asked {
        // Who one is, is in the certificate.
        Some("EXTERNAL") => &["EXTERNAL"],
        Some("AMQPLAIN") => &["AMQPLAIN"],
        _ => &["PLAIN", "AMQPLAIN"],
    };
    let Some(way) = ways.iter().find(|way| offers(way)) else {
        return Err(Failure::Lost(format!(
            "the server offers {mechanisms} to log in by, and not {}",
            ways[0]
        )));
    };
    let words = match *way {
        "PLAIN" => format!("\0{}\0{}", login.username, login.password).into_bytes(),
        "AMQPLAIN" => {
            let words = json!({"LOGIN": login.username, "PASSWORD": login.password});
            let mut table = Vec::new();
            super::super::table::put_table(&words.to_string(), &mut table)?;
            // The members alone, without the table's length.
            table.split_off(4)
        }
        _ => Vec::new(),
    };
    Ok((way, words))
}

/// A connection on which nothing is agreed yet.
struct Handshake<S> {
    stream: S,
    input: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Handshake<S> {
    async fn say(&mut self, request: &Request) -> Result<(), Failure> {
        let mut out = Vec::new();
        frame::put(frame::METHOD, 0, &mut out, |to| {
            to.extend_from_slice(&request.id.0.to_be_bytes());
            to.extend_from_slice(&request.id.1.to_be_bytes());
            to.extend_from_slice(&request.arguments);
        });
        self.stream.write_all(&out).await?;
        Ok(self.stream.flush().await?)
    }

    /// The arguments of the method that has to come next.
    async fn expect(&mut self, expected: Id) -> Result<Vec<u8>, Failure> {
        loop {
            let Some((frame, length)) = frame::next(&self.input, frame::MOST_RECEIVED)? else {
                if self.stream.read_buf(&mut self.input).await? == 0 {
                    let text = "the server has closed the connection before it was open";
                    return Err(Failure::Lost(text.to_owned()));
                }
                continue;
            };
            let said = match frame.kind {
                frame::METHOD => Some(Said::read(frame.payload)?),
                frame::HEARTBEAT => None,
                _ => return Err(Malformed.into()),
            };
            let answer = match said {
                None => None,
                Some(Said::Answer(id, arguments)) if id == expected => Some(Ok(arguments.to_vec())),
                Some(Said::ConnectionClose(refusal)) => Some(Err(Failure::Refused(refusal))),
                Some(_) => return Err(Malformed.into()),
            };
            drop(self.input.split_to(length));
            match answer {
                Some(Ok(arguments)) => return Ok(arguments),
                Some(Err(refused)) => {
                    // It is polite, no more.
                    drop(self.say(&Request::new(method::CONNECTION_CLOSE_OK)).await);
                    return Err(refused);
                }
                None => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_limit_holds_and_who_asks_for_no_heartbeat_has_none() {
        for (tune, heartbeat, expected) in [
            (&b"\x07\xff\0\x02\0\0\0\x3c"[..], 120, (2047, 131_072, 60)),
            (b"\x07\xff\0\x02\0\0\0\x3c", 10, (2047, 131_072, 10)),
            (b"\x07\xff\0\x02\0\0\0\x3c", 0, (2047, 131_072, 0)),
            (b"\0\0\0\0\0\0\0\0", 120, (65_534, 131_072, 120)),
            (b"\0\0\0\0\x10\0\0\0", 0, (65_534, 4096, 0)),
        ] {
            let limits = Limits::agree(Octets(tune), heartbeat).unwrap();
            let agreed = (limits.channel_max, limits.frame_max, limits.heartbeat);
            assert_eq!(agreed, expected);
        }
        assert!(Limits::agree(Octets(b"\0"), 0).is_err());
    }

    #[test]
    fn the_password_is_said_in_a_way_that_the_server_offers() {
        let mut login = Login {
            username: "u".to_owned(),
            password: "p".to_owned(),
            method: None,
            vhost: "/".to_owned(),
            heartbeat: 0,
            name: None,
        };
        let members = b"\x05LOGINS\0\0\0\x01u\x08PASSWORDS\0\0\0\x01p";
        for (method, offered, expected) in [
            (None, "AMQPLAIN PLAIN", Some(("PLAIN", &b"\0u\0p"[..]))),
            (Some("PLAIN"), "AMQPLAIN", Some(("AMQPLAIN", members))),
            (
                Some("AMQPLAIN"),
                "AMQPLAIN PLAIN",
                Some(("AMQPLAIN", members)),
            ),
            (Some("EXTERNAL"), "PLAIN EXTERNAL", Some(("EXTERNAL", b""))),
            (Some("EXTERNAL"), "PLAIN", None),
            (None, "EXTERNAL", None),
        ] {
            login.method = method.map(str::to_owned);
            let said = response(offered, &login).ok();
            let said = said.as_ref().map(|(way, words)| (*way, &words[..]));
            assert_eq!(said, expected, "{method:?} of {offered}");
        }
    }
}
