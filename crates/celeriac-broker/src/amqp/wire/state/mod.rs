//! What both ends of a connection know of each other. No I/O: bytes come in as frames, and what is
//! to be sent is in a buffer.

mod confirms;

use std::collections::{BTreeMap, VecDeque};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use bytestring::ByteString;
use tokio::sync::oneshot;

use super::super::table::Unsayable;
use super::failure::Failure;
use super::frame::{self, Frame};
use super::method::{self, Deliver, Id, Request, Returned, Said};
use super::octets::{Malformed, Octets};
use confirms::Confirms;

pub(in crate::amqp) use confirms::{Confirmation, Confirmed};

/// What is received at most before somebody takes it; then reading stops.
const MOST_ARRIVED: usize = 100_000;
/// What is set aside at most for a body that is only announced.
const MOST_ANNOUNCED: usize = 1 << 20;

/// What a content header has before its properties.
const CONTENT_HEADER: usize = 12;

/// The answer to a request: its arguments.
pub(super) type Answer = oneshot::Receiver<Answered>;
type Answered = Result<Vec<u8>, Failure>;
/// What comes over a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::amqp) enum Arrival {
    /// A message.
    Delivery(Delivery),
    /// The server has cancelled the consumer of this tag: its queue is gone.
    Cancelled(String),
}

/// A message as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::amqp) struct Delivery {
    /// The tag of the consumer.
    pub(in crate::amqp) consumer: ByteString,
    /// The tag by which it is settled; they count from 1.
    pub(in crate::amqp) tag: u64,
    pub(in crate::amqp) redelivered: bool,
    pub(in crate::amqp) exchange: ByteString,
    pub(in crate::amqp) routing_key: ByteString,
    /// Flags and values, as in the frame.
    pub(in crate::amqp) properties: Bytes,
    pub(in crate::amqp) body: Bytes,
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct State {
    channels: BTreeMap<u16, Channel>,
    /// What is to be sent.
    pub(super) out: Vec<u8>,
    /// How many bytes were written to it, and how many of them the server's socket has.
    pub(super) put: u64,
    pub(super) sent: u64,
    frame_max: usize,
    channel_max: u16,
    /// The server takes nothing that is published (`connection.blocked`).
    pub(super) is_blocked: bool,
    /// Why there is no connection any more.
    pub(super) ended: Option<Failure>,
    /// How many messages wait to be taken.
    arrived: usize,
}

#[derive(Debug, Default)]
struct Channel {
    closed: Option<Failure>,
    /// Nobody uses it any more: what still comes is for nobody.
    is_released: bool,
    /// Requests that the server has not answered, in order.
    waiting: VecDeque<(Id, oneshot::Sender<Answered>)>,
    arrivals: VecDeque<Arrival>,
    waker: Option<Waker>,
    content: Option<Content>,
    confirms: Confirms,
    consumer: Last,
    exchange: Last,
    routing_key: Last,
}

/// A name that is mostly the same as the last.
#[derive(Debug, Default)]
struct Last(ByteString);

impl Last {
    fn keep(&mut self, text: &str) -> ByteString {
        if *self.0 != *text {
            self.0 = text.into();
        }
        self.0.clone()
    }
}

/// A message of which frames are still to come.
#[derive(Debug)]
struct Content {
    of: ContentOf,
    /// Bytes that are still to come; `None` until its header is here.
    missing: Option<u64>,
    properties: Bytes,
    body: Vec<u8>,
}

#[derive(Debug)]
enum ContentOf {
    Delivery {
        consumer: ByteString,
        tag: u64,
        redelivered: bool,
        exchange: ByteString,
        routing_key: ByteString,
    },
    Return(Returned),
}

impl State {
    /// Of a connection on which both sides have agreed on these limits.
    pub(super) fn new(frame_max: usize, channel_max: u16) -> Self {
        Self {
            channels: BTreeMap::new(),
            out: Vec::new(),
            put: 0,
            sent: 0,
            frame_max,
            channel_max,
            is_blocked: false,
            ended: None,
            arrived: 0,
        }
    }

    /// A number for a new channel, and the answer to the request that opens it.
    pub(super) fn open_channel(&mut self) -> Result<(u16, Answer), Failure> {
        let dead = self
            .channels
            .iter()
            .find(|(_, channel)| channel.closed.is_some() && channel.is_released);
        let number = match dead {
            // The server has closed it, and knows that we know.
            Some((number, _)) => *number,
            None => self
                .channels
                .last_key_value()
                .map_or(1, |(last, _)| last + 1),
        };
        if number > self.channel_max {
            return Err(Failure::Lost(
                "the server allows no further channel".to_owned(),
            ));
        }
        if let Some(before) = self.channels.insert(number, Channel::default()) {
            self.arrived -= before.arrivals.len();
        }
        Ok((number, self.ask(number, &method::channel_open())?))
    }

    /// The last handle of a channel is gone: it is closed, which puts what is out on it back into
    /// its queues. Its number may be used again then.
    pub(super) fn release(&mut self, number: u16) {
        if self.trouble(number).is_none() {
            // Nobody waits for the answer.
            drop(self.ask(number, &method::channel_close()));
        }
        if let Some(channel) = self.channels.get_mut(&number) {
            channel.is_released = true;
            self.arrived -= channel.arrivals.len();
            channel.arrivals.clear();
        }
    }

    /// Why a channel can't be used; `None` when it can.
    pub(super) fn trouble(&self, channel: u16) -> Option<&Failure> {
        let closed = || self.channels.get(&channel)?.closed.as_ref();
        self.ended.as_ref().or_else(closed)
    }

    /// Asks for something.
    ///
    /// # Errors
    /// When the channel or the connection is closed.
    pub(super) fn ask(&mut self, channel: u16, request: &Request) -> Result<Answer, Failure> {
        let (to, answer) = oneshot::channel();
        self.check(channel)?;
        self.put_method(channel, request.id, &request.arguments);
        if let Some(asked) = self.channels.get_mut(&channel)
            && request.is_answered
        {
            let (class, number) = request.id;
            asked.waiting.push_back(((class, number + 1), to));
        } else {
            drop(to.send(Ok(Vec::new())));
        }
        Ok(answer)
    }

    fn check(&self, channel: u16) -> Result<(), Failure> {
        match self.trouble(channel) {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        }
    }

    /// Asks the server to close the connection.
    pub(super) fn close(&mut self) {
        if let Ok(request) = method::close(super::failure::code::SUCCESS, "Goodbye") {
            self.put_method(0, request.id, &request.arguments);
        }
    }

    pub(super) fn put_heartbeat(&mut self) {
        self.put_frame(frame::HEARTBEAT, 0, |_| ());
    }

    fn put_method(&mut self, channel: u16, (class, number): Id, arguments: &[u8]) {
        self.put_frame(frame::METHOD, channel, |to| {
            to.extend_from_slice(&class.to_be_bytes());
            to.extend_from_slice(&number.to_be_bytes());
            to.extend_from_slice(arguments);
        });
    }

    fn put_frame(&mut self, kind: u8, channel: u16, write: impl FnOnce(&mut Vec<u8>)) {
        let before = self.out.len();
        frame::put(kind, channel, &mut self.out, write);
        self.put += (self.out.len() - before) as u64;
    }

    /// Publishes; `request` is a [`method::publish`], `properties` flags and values.
    ///
    /// # Errors
    /// When the channel or the connection is closed, or the properties are too large.
    pub(super) fn publish(
        &mut self,
        channel: u16,
        request: &Request,
        properties: &[u8],
        body: &[u8],
    ) -> Result<(), Failure> {
        self.check(channel)?;
        if properties.len() + CONTENT_HEADER + frame::OVERHEAD > self.frame_max {
            return Err(Unsayable::TooLarge(properties.len()).into());
        }
        self.put_method(channel, request.id, &request.arguments);
        self.put_frame(frame::HEADER, channel, |to| {
            to.extend_from_slice(&request.id.0.to_be_bytes());
            to.extend_from_slice(&[0, 0]);
            to.extend_from_slice(&(body.len() as u64).to_be_bytes());
            to.extend_from_slice(properties);
        });
        for part in body.chunks(self.frame_max - frame::OVERHEAD) {
            self.put_frame(frame::BODY, channel, |to| to.extend_from_slice(part));
        }
        Ok(())
    }

    /// Has the message that was just published on a channel with confirms told about.
    pub(super) fn confirm(&mut self, channel: u16, exchange: &str, routing_key: &str) -> Confirmed {
        let (to, confirmed) = oneshot::channel();
        if let Some(channel) = self.channels.get_mut(&channel) {
            channel.confirms.expect(exchange, routing_key, to);
        }
        confirmed
    }

    /// The next that came over a channel.
    pub(super) fn poll_arrival(
        &mut self,
        channel: u16,
        context: &mut Context<'_>,
    ) -> Poll<Result<Arrival, Failure>> {
        let ended = self.ended.clone();
        let Some(channel) = self.channels.get_mut(&channel) else {
            return Poll::Ready(Err(ended.unwrap_or_else(Failure::closed)));
        };
        if let Some(arrival) = channel.arrivals.pop_front() {
            self.arrived -= 1;
            return Poll::Ready(Ok(arrival));
        }
        if let Some(failure) = channel.closed.clone().or(ended) {
            return Poll::Ready(Err(failure));
        }
        match &mut channel.waker {
            Some(waker) => waker.clone_from(context.waker()),
            waker => *waker = Some(context.waker().clone()),
        }
        Poll::Pending
    }

    /// Whether more has come than anybody takes.
    pub(super) fn is_full(&self) -> bool {
        self.arrived >= MOST_ARRIVED
    }

    /// The connection is no more.
    pub(super) fn end(&mut self, failure: &Failure) {
        if self.ended.is_none() {
            self.ended = Some(failure.clone());
        }
        for channel in self.channels.values_mut() {
            channel.close(failure);
        }
    }

    /// Takes in what came, and says how many bytes of it were whole frames.
    pub(super) fn receive(&mut self, input: &[u8]) -> Result<usize, Malformed> {
        let mut read = 0;
        while let Some((frame, length)) = frame::next(&input[read..], frame::MOST_RECEIVED)? {
            read += length;
            self.take(frame)?;
        }
        Ok(read)
    }

    fn take(&mut self, frame: Frame<'_>) -> Result<(), Malformed> {
        match frame.kind {
            frame::METHOD => self.take_method(frame.channel, frame.payload),
            frame::HEADER => self.take_header(frame.channel, frame.payload),
            frame::BODY => self.take_body(frame.channel, frame.payload),
            frame::HEARTBEAT => Ok(()),
            _ => Err(Malformed),
        }
    }

    fn take_method(&mut self, number: u16, payload: &[u8]) -> Result<(), Malformed> {
        match Said::read(payload)? {
            Said::ConnectionClose(refusal) => {
                self.put_method(0, method::CONNECTION_CLOSE_OK, &[]);
                self.end(&Failure::Refused(refusal));
                return Ok(());
            }
            Said::ConnectionCloseOk => {
                self.end(&Failure::closed());
                return Ok(());
            }
            Said::Blocked => self.is_blocked = true,
            Said::Unblocked => self.is_blocked = false,
            said => return self.take_of_channel(number, said),
        }
        Ok(())
    }

    fn take_of_channel(&mut self, number: u16, said: Said<'_>) -> Result<(), Malformed> {
        let channel = self.channels.get_mut(&number).ok_or(Malformed)?;
        match said {
            Said::Deliver(deliver) => channel.announce_delivery(&deliver),
            Said::Got(deliver) => {
                channel.announce_delivery(&deliver);
                channel.answer(method::GET_OK, method::GOT)?;
            }
            Said::Return(returned) => channel.announce(ContentOf::Return(returned)),
            Said::Confirm {
                tag,
                multiple,
                is_ack,
            } => channel.confirms.tell(tag, multiple, is_ack),
            Said::Cancel { tag, nowait } => {
                self.arrived += channel.arrive(Arrival::Cancelled(tag.clone()));
                if !nowait && let Ok(answer) = Request::new(method::CANCEL_OK).text(&tag) {
                    self.put_method(number, answer.id, &answer.arguments);
                }
            }
            Said::ChannelClose(refusal) => {
                // One that we close as well is closed when the server has answered that.
                if !channel.is_released {
                    channel.close(&Failure::Refused(refusal));
                }
                self.put_method(number, method::CHANNEL_CLOSE_OK, &[]);
            }
            Said::Flow(active) => self.put_method(number, method::FLOW_OK, &[active]),
            Said::Answer(method::GET_EMPTY, _) => channel.answer(method::GET_OK, &[])?,
            Said::Answer(id, arguments) => {
                channel.answer(id, arguments)?;
                if id == method::CHANNEL_CLOSE_OK {
                    channel.close(&Failure::closed());
                }
            }
            _ => return Err(Malformed),
        }
        Ok(())
    }

    fn take_header(&mut self, number: u16, payload: &[u8]) -> Result<(), Malformed> {
        let mut octets = Octets(payload);
        octets.long()?;
        let size = octets.long_long()?;
        let channel = self.channels.get_mut(&number).ok_or(Malformed)?;
        let content = channel.content.as_mut().ok_or(Malformed)?;
        if content.missing.replace(size).is_some() {
            return Err(Malformed);
        }
        content.properties = Bytes::copy_from_slice(octets.0);
        let announced = usize::try_from(size).unwrap_or(usize::MAX);
        content.body.reserve_exact(announced.min(MOST_ANNOUNCED));
        self.finish(number);
        Ok(())
    }

    fn take_body(&mut self, number: u16, payload: &[u8]) -> Result<(), Malformed> {
        let channel = self.channels.get_mut(&number).ok_or(Malformed)?;
        let content = channel.content.as_mut().ok_or(Malformed)?;
        let missing = content.missing.as_mut().ok_or(Malformed)?;
        *missing = missing.checked_sub(payload.len() as u64).ok_or(Malformed)?;
        content.body.extend_from_slice(payload);
        self.finish(number);
        Ok(())
    }

    /// Hands on a message that is complete.
    fn finish(&mut self, number: u16) {
        let Some(channel) = self.channels.get_mut(&number) else {
            return;
        };
        let Some(content) = channel
            .content
            .take_if(|content| content.missing == Some(0))
        else {
            return;
        };
        match content.of {
            ContentOf::Return(returned) => channel.confirms.returned(&returned),
            ContentOf::Delivery {
                consumer,
                tag,
                redelivered,
                exchange,
                routing_key,
            } => {
                self.arrived += channel.arrive(Arrival::Delivery(Delivery {
                    consumer,
                    tag,
                    redelivered,
                    exchange,
                    routing_key,
                    properties: content.properties,
                    body: content.body.into(),
                }));
            }
        }
    }
}

impl Channel {
    fn announce_delivery(&mut self, deliver: &Deliver<'_>) {
        let of = ContentOf::Delivery {
            consumer: self.consumer.keep(&deliver.consumer),
            tag: deliver.tag,
            redelivered: deliver.redelivered,
            exchange: self.exchange.keep(&deliver.exchange),
            routing_key: self.routing_key.keep(&deliver.routing_key),
        };
        self.announce(of);
    }

    fn announce(&mut self, of: ContentOf) {
        self.content = Some(Content {
            of,
            missing: None,
            properties: Bytes::new(),
            body: Vec::new(),
        });
    }

    /// Has something taken by whoever uses the channel; says by how much more there is to take.
    fn arrive(&mut self, arrival: Arrival) -> usize {
        if self.is_released {
            return 0;
        }
        self.arrivals.push_back(arrival);
        self.wake();
        1
    }

    /// Answers the request that waits longest.
    fn answer(&mut self, id: Id, arguments: &[u8]) -> Result<(), Malformed> {
        let (expected, to) = self.waiting.pop_front().ok_or(Malformed)?;
        if id != expected {
            return Err(Malformed);
        }
        // Whoever asked may not care.
        drop(to.send(Ok(arguments.to_vec())));
        Ok(())
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn close(&mut self, failure: &Failure) {
        if self.closed.is_none() {
            self.closed = Some(failure.clone());
        }
        for (_, to) in self.waiting.drain(..) {
            drop(to.send(Err(failure.clone())));
        }
        self.confirms.fail(failure);
        self.wake();
    }
}

#[cfg(test)]
mod tests;
