use super::super::failure::Refusal;
use super::*;
use proptest::prelude::*;

fn method(channel: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame::put(frame::METHOD, channel, &mut frame, |to| {
        to.extend_from_slice(payload);
    });
    frame
}

fn content(channel: u16, parts: &[&[u8]]) -> Vec<u8> {
    let mut frames = Vec::new();
    let size: usize = parts.iter().map(|part| part.len()).sum();
    frame::put(frame::HEADER, channel, &mut frames, |to| {
        to.extend_from_slice(&[0, 60, 0, 0]);
        to.extend_from_slice(&(size as u64).to_be_bytes());
        to.extend_from_slice(&[0, 0]);
    });
    for part in parts {
        frame::put(frame::BODY, channel, &mut frames, |to| {
            to.extend_from_slice(part);
        });
    }
    frames
}

/// With one open channel.
fn open() -> State {
    let mut state = State::new(frame::FRAME_MAX, 10);
    let (number, mut answer) = state.open_channel().unwrap();
    assert_eq!(number, 1);
    receive(&mut state, &method(1, b"\0\x14\0\x0b\0\0\0\0"));
    assert!(answer.try_recv().unwrap().is_ok());
    state
}

fn receive(state: &mut State, bytes: &[u8]) {
    assert_eq!(state.receive(bytes), Ok(bytes.len()));
}

fn arrival(state: &mut State) -> Poll<Result<Arrival, Failure>> {
    state.poll_arrival(1, &mut Context::from_waker(Waker::noop()))
}

const DELIVER: &[u8] = b"\0\x3c\0\x3c\x01t\0\0\0\0\0\0\0\x07\x01\x01e\x01k";

#[test]
fn a_message_arrives_when_its_last_part_is_here() {
    let cases: [&[&[u8]]; 3] = [&[], &[b"whole"], &[b"in ", b"two"]];
    for parts in cases {
        let mut state = open();
        let frames = [method(1, DELIVER), content(1, parts)].concat();
        for most in 0..frames.len() {
            // Byte by byte, as a slow network has it.
            let mut fresh = open();
            let read = fresh.receive(&frames[..most]).unwrap();
            assert!(read <= most && arrival(&mut fresh).is_pending());
        }
        receive(&mut state, &frames);
        let Poll::Ready(Ok(Arrival::Delivery(delivery))) = arrival(&mut state) else {
            panic!("it is here");
        };
        assert_eq!(delivery.body, parts.concat());
        assert_eq!((delivery.tag, delivery.redelivered), (7, true));
        assert_eq!(&*delivery.exchange, "e");
        assert!(arrival(&mut state).is_pending());
    }
}

#[test]
fn a_header_may_be_larger_than_what_was_agreed() {
    // RabbitMQ cuts bodies to frames, and nothing else: a dead letter has grown on the way.
    let mut state = State::new(64, 10);
    let (channel, _) = state.open_channel().unwrap();
    let mut frames = method(channel, DELIVER);
    frame::put(frame::HEADER, channel, &mut frames, |to| {
        to.extend_from_slice(&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        to.resize(to.len() + 200_000, 7);
    });
    receive(&mut state, &frames);
    let Poll::Ready(Ok(Arrival::Delivery(delivery))) = arrival(&mut state) else {
        panic!("it is here");
    };
    assert_eq!(delivery.properties.len(), 200_000);
}

#[test]
fn what_has_no_place_is_malformed() {
    for frames in [
        method(2, DELIVER),
        content(1, &[b"x"]),
        [method(1, DELIVER), content(1, &[]), content(1, &[])].concat(),
        method(1, b"\0\x3c\0\x0b"),
        method(1, b"\0"),
    ] {
        assert_eq!(open().receive(&frames), Err(Malformed), "{frames:?}");
    }
    let mut too_long = [method(1, DELIVER), content(1, &[b"x"])].concat();
    frame::put(frame::BODY, 1, &mut too_long, |to| to.push(b'y'));
    assert_eq!(open().receive(&too_long), Err(Malformed));
}

#[test]
fn answers_go_to_whoever_asked_first() {
    let mut state = open();
    let mut first = state.ask(1, &method::queue_purge("a").unwrap()).unwrap();
    let mut second = state.ask(1, &method::queue_purge("b").unwrap()).unwrap();
    let mut told = state.ask(1, &method::ack(1, false)).unwrap();
    assert_eq!(told.try_recv().unwrap(), Ok(Vec::new()));
    receive(&mut state, &method(1, b"\0\x32\0\x1f\0\0\0\x05"));
    assert_eq!(first.try_recv().unwrap(), Ok(b"\0\0\0\x05".to_vec()));
    assert!(second.try_recv().is_err());
}

#[test]
fn a_channel_that_the_server_closes_tells_all_who_wait_and_its_number_is_used_again() {
    let mut state = open();
    let mut asked = state.ask(1, &method::queue_purge("a").unwrap()).unwrap();
    let mut confirmed = state.confirm(1, "", "q");
    state.out.clear();
    receive(
        &mut state,
        &method(1, b"\0\x14\0\x28\x01\x94\x02no\0\x32\0\x1e"),
    );
    let refused = Failure::Refused(Refusal {
        code: 404,
        text: "no".to_owned(),
    });
    assert_eq!(asked.try_recv().unwrap(), Err(refused.clone()));
    assert_eq!(confirmed.try_recv().unwrap(), Err(refused.clone()));
    assert_eq!(arrival(&mut state), Poll::Ready(Err(refused.clone())));
    assert_eq!(state.ask(1, &method::qos(1, true)).err(), Some(refused));
    assert_eq!(state.out, method(1, b"\0\x14\0\x29"));
    assert_eq!(state.ended, None);
    assert_eq!(state.open_channel().unwrap().0, 2, "somebody still has it");
    state.release(1);
    assert_eq!(state.open_channel().unwrap().0, 1);
    assert_eq!(state.trouble(1), None);
}

#[test]
fn a_connection_that_the_server_closes_is_answered_and_all_is_over() {
    let mut state = open();
    state.out.clear();
    receive(
        &mut state,
        &method(0, b"\0\x0a\0\x32\x01\x40\x03bye\0\0\0\0"),
    );
    assert_eq!(state.out, method(0, b"\0\x0a\0\x33"));
    assert!(matches!(&state.ended, Some(Failure::Refused(refusal)) if refusal.code == 320));
    assert!(matches!(arrival(&mut state), Poll::Ready(Err(_))));
    assert!(state.open_channel().is_err());
}

#[test]
fn messages_are_confirmed_one_by_one_and_together() {
    let mut state = open();
    let keys = ["q", "gone", "q", "q", "gone", "other"];
    let mut confirmed = keys.map(|key| state.confirm(1, "", key));
    receive(&mut state, &method(1, b"\0\x3c\0\x78\0\0\0\0\0\0\0\x03\0"));
    receive(
        &mut state,
        &method(1, b"\0\x3c\0\x32\x01\x38\x08NO_ROUTE\0\x04gone"),
    );
    receive(&mut state, &content(1, &[b"x"]));
    receive(
        &mut state,
        &method(1, b"\0\x3c\0\x50\0\0\0\0\0\0\0\x05\x01"),
    );
    let returned = || Some(Confirmation::Returned("NO_ROUTE".to_owned()));
    let told = confirmed
        .each_mut()
        .map(|confirmed| Some(confirmed.try_recv().ok()?.unwrap()));
    assert_eq!(
        told,
        [
            Some(Confirmation::Ack),
            returned(),
            Some(Confirmation::Nack),
            Some(Confirmation::Ack),
            returned(),
            None
        ]
    );
}

#[test]
fn a_message_is_got_where_there_is_one() {
    let mut state = open();
    let get = method::get("q").unwrap();
    let mut asked = [(); 3].map(|()| state.ask(1, &get).unwrap());
    receive(
        &mut state,
        &method(1, b"\0\x3c\0\x47\0\0\0\0\0\0\0\x07\x01\0\x01q\0\0\0\0"),
    );
    receive(&mut state, &content(1, &[b"x"]));
    receive(&mut state, &method(1, b"\0\x3c\0\x48\0"));
    let told = asked
        .each_mut()
        .map(|answer| Some(answer.try_recv().ok()?.unwrap()));
    assert_eq!(told, [Some(method::GOT.to_vec()), Some(Vec::new()), None]);
    let Poll::Ready(Ok(Arrival::Delivery(delivery))) = arrival(&mut state) else {
        panic!("it is here");
    };
    assert_eq!((delivery.tag, &delivery.body[..]), (7, &b"x"[..]));
}

#[test]
fn a_channel_that_nobody_uses_is_closed_and_its_number_is_used_again() {
    let mut state = open();
    receive(
        &mut state,
        &[method(1, DELIVER), content(1, &[b"x"])].concat(),
    );
    state.out.clear();
    state.release(1);
    assert_eq!(state.out, method(1, b"\0\x14\0\x28\0\xc8\0\0\0\0\0"));
    // What was on its way is for nobody, and takes no room.
    receive(
        &mut state,
        &[method(1, DELIVER), content(1, &[b"x"])].concat(),
    );
    assert_eq!(state.arrived, 0);
    // The server closes it at the same time, and answers all the same.
    receive(
        &mut state,
        &method(1, b"\0\x14\0\x28\x01\x94\x02no\0\x32\0\x1e"),
    );
    assert_eq!(state.open_channel().unwrap().0, 2, "it is not closed yet");
    receive(&mut state, &method(1, b"\0\x14\0\x29"));
    assert_eq!(state.open_channel().unwrap().0, 1);
    assert_eq!(state.trouble(1), None);
}

#[test]
fn a_large_body_is_cut_to_frames() {
    let mut state = State::new(22, 10);
    let (channel, _) = state.open_channel().unwrap();
    state.out.clear();
    let request = method::publish("", "q", false).unwrap();
    state.publish(channel, &request, &[0, 0], &[7; 40]).unwrap();
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some((frame, length)) = frame::next(&state.out[at..], 100).unwrap() {
        frames.push((frame.kind, frame.payload.len()));
        at += length;
    }
    assert_eq!(
        frames,
        [
            (frame::METHOD, 10),
            (frame::HEADER, 14),
            (frame::BODY, 14),
            (frame::BODY, 14),
            (frame::BODY, 12)
        ]
    );
    let refused = state.publish(channel, &request, &[0; 3], b"");
    assert!(matches!(refused, Err(Failure::Unsayable(_))), "{refused:?}");
}

/// A frame of any kind with what may stand in one, and what may not.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let method = prop::sample::select(vec![
        DELIVER.to_vec(),
        b"\0\x3c\0\x32\x01\x38\x08NO_ROUTE\0\x01q".to_vec(),
        b"\0\x3c\0\x1e\x01t\0".to_vec(),
        b"\0\x14\0\x28\x01\x94\x02no\0\x32\0\x1e".to_vec(),
        b"\0\x0a\0\x3c\x01m".to_vec(),
        b"\0\x3c\0\x50\0\0\0\0\0\0\0\x02\x01".to_vec(),
        b"\0\x3c\0\0\0\0\0\0\0\0\x02\0\0".to_vec(),
    ]);
    let payload = prop_oneof![
        3 => method,
        1 => prop::collection::vec(any::<u8>(), 0..40),
    ];
    let kind = prop_oneof![
        6 => Just(frame::METHOD),
        3 => Just(frame::HEADER),
        3 => Just(frame::BODY),
        1 => any::<u8>(),
    ];
    (kind, 0..3_u16, payload).prop_map(|(kind, channel, payload)| {
        let mut bytes = Vec::new();
        frame::put(kind, channel, &mut bytes, |to| {
            to.extend_from_slice(&payload);
        });
        bytes
    })
}

proptest! {
    #[test]
    fn whatever_comes_is_taken_or_malformed(
        frames in prop::collection::vec(any_frame(), 0..12),
        noise in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
    ) {
        let mut bytes = frames.concat();
        for (at, byte) in noise {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let mut state = open();
        if let Ok(read) = state.receive(&bytes) {
            prop_assert!(read <= bytes.len());
        }
        let mut taken = 0;
        while let Poll::Ready(Ok(_)) = arrival(&mut state) {
            taken += 1;
        }
        prop_assert!(taken <= frames.len());
        prop_assert!(!state.is_full());
    }
}
