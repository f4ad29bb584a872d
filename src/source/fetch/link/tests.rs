use std::io::Write as _;
use std::net::{TcpListener, TcpStream as Peer};
use std::time::Duration;

use mio::{Events, Poll};

use super::*;
use crate::clock::Clock;
use crate::kafka::Isolation;
use crate::source::Waker;

/// A link and the broker at its other end, which says what a test makes it say.
struct Stage {
    poll: Poll,
    settings: ConnectionSettings,
    pool: BufferPool,
    gate: Gate,
    share: usize,
    link: Link,
    listener: TcpListener,
}

/// Version 3 of the answer: number, no error, Fetch from 4 to 11, no throttling,
/// no tags.
const VERSIONS: [u8; 19] = [0, 0, 0, 1, 0, 0, 2, 0, 1, 0, 4, 0, 11, 0, 0, 0, 0, 0, 0];

/// Longest wait for anything between two ends on one machine.
const PATIENCE: Duration = Duration::from_secs(20);

impl Stage {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = BrokerAddress {
            host: Arc::from("127.0.0.1"),
            port: listener.local_addr().unwrap().port(),
        };
        let mut settings = ConnectionSettings::new(Vec::new());
        settings.max_frame = 1 << 20;
        Self {
            poll: Poll::new().unwrap(),
            settings,
            pool: BufferPool::new(1 << 24, Waker::new(|| {})),
            gate: Gate::default(),
            share: 1 << 24,
            link: Link::new(address, Token(1)),
            listener,
        }
    }

    /// Connected, and told the versions that the broker speaks.
    fn connected() -> (Self, Peer) {
        let mut stage = Self::new();
        stage.connect().unwrap();
        let mut peer = stage.listener.accept().unwrap().0;
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        stage.until_asked(&mut peer);
        say(&mut peer, &VERSIONS);
        assert!(matches!(stage.drive(), Ok(Driven::Ready)));
        assert!(stage.link.is_ready());
        (stage, peer)
    }

    fn at<T>(&mut self, now: Instant, act: impl FnOnce(&mut Link, &Surroundings<'_>) -> T) -> T {
        let around = Surroundings {
            now,
            settings: &self.settings,
            registry: self.poll.registry(),
            pool: &self.pool,
            gate: &self.gate,
            share: self.share,
        };
        act(&mut self.link, &around)
    }

    fn connect(&mut self) -> Result<(), ConnectionError> {
        self.at(Clock::System.now(), Link::connect)
    }

    fn ask(&mut self, max_bytes: i32) {
        let request = FetchRequest {
            max_wait: Duration::ZERO,
            min_bytes: 1,
            max_bytes,
            isolation: Isolation::default(),
            ..FetchRequest::default()
        };
        self.at(Clock::System.now(), |link, around| {
            link.send(&request, around).unwrap();
        });
    }

    /// Waits for the socket and drives, until something comes of it.
    fn drive(&mut self) -> Result<Driven, ConnectionError> {
        let begin = Clock::System.now();
        let mut events = Events::with_capacity(8);
        loop {
            let now = Clock::System.now();
            match self.at(now, Link::drive) {
                Ok(Driven::Nothing) => {}
                other => return other,
            }
            assert!(now < begin + PATIENCE, "nothing came of it");
            self.poll
                .poll(&mut events, Some(Duration::from_millis(20)))
                .unwrap();
            for event in &events {
                self.link.notice(true, event.is_writable());
            }
        }
    }

    /// Drives until a whole request has arrived at the peer.
    fn until_asked(&mut self, peer: &mut Peer) {
        peer.set_nonblocking(true).unwrap();
        let begin = Clock::System.now();
        let mut seen = Vec::new();
        let is_whole = |seen: &[u8]| {
            seen.first_chunk::<4>()
                .is_some_and(|length| seen.len() == 4 + u32::from_be_bytes(*length) as usize)
        };
        let mut events = Events::with_capacity(8);
        while !is_whole(&seen) {
            let now = Clock::System.now();
            assert!(now < begin + PATIENCE, "no request came");
            let driven = self.at(now, Link::drive).unwrap();
            assert!(matches!(driven, Driven::Nothing));
            let mut some = [0; 1024];
            match peer.read(&mut some) {
                Ok(0) => panic!("the link closed"),
                Ok(count) => seen.extend(&some[..count]),
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
            self.poll
                .poll(&mut events, Some(Duration::from_millis(5)))
                .unwrap();
        }
        peer.set_nonblocking(false).unwrap();
    }
}

fn say(peer: &mut Peer, frame: &[u8]) {
    let length = u32::try_from(frame.len()).unwrap();
    peer.write_all(&length.to_be_bytes()).unwrap();
    peer.write_all(frame).unwrap();
}

/// A Fetch answer of version 11 to request number 2, with `len` bytes of
/// records that are not looked at.
fn answer(len: usize) -> Vec<u8> {
    let mut frame = vec![0, 0, 0, 2];
    frame.extend([0; 4 + 2 + 4]); // throttle, error, session
    frame.extend([0, 0, 0, 1, 0, 1, b't', 0, 0, 0, 1]); // topic
    frame.extend([0; 4 + 2 + 8 + 8 + 8]); // partition, error, three offsets
    frame.extend([0xff; 4]); // no aborted transactions
    frame.extend([0xff; 4]); // no preferred replica
    frame.extend(u32::try_from(len).unwrap().to_be_bytes());
    frame.resize(frame.len() + len, 7);
    frame
}

#[test]
fn an_answer_is_read_however_it_is_cut() {
    let (mut stage, mut peer) = Stage::connected();
    stage.ask(1000);
    stage.until_asked(&mut peer);
    let frame = answer(500);
    let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
    for part in [&length[..2], &length[2..], &frame[..1], &frame[1..300]] {
        peer.write_all(part).unwrap();
        let now = Clock::System.now();
        stage.link.notice(true, true);
        let driven = stage.at(now, Link::drive).unwrap();
        assert!(matches!(driven, Driven::Nothing));
    }
    peer.write_all(&frame[300..]).unwrap();
    let Ok(Driven::Answer(answer)) = stage.drive() else {
        panic!("no answer");
    };
    assert_eq!(answer.topics[0].partitions[0].records.len(), 500);
    assert!(stage.pool.held() > 0);
    drop(answer);
    assert_eq!(stage.pool.held(), 0);
    assert!(stage.link.is_ready());
}

#[test]
fn a_length_that_lies_reserves_nothing_and_times_out() {
    let (mut stage, mut peer) = Stage::connected();
    stage.ask(1 << 20);
    stage.until_asked(&mut peer);
    peer.write_all(&(1_u32 << 20).to_be_bytes()).unwrap();
    peer.write_all(b"only this").unwrap();
    let begin = Clock::System.now();
    let mut now = begin;
    let error = loop {
        stage.link.notice(true, false);
        match stage.at(now, Link::drive) {
            Ok(driven) => assert!(matches!(driven, Driven::Nothing)),
            Err(error) => break error,
        }
        assert!(stage.pool.held() <= 1 << 16);
        now += Duration::from_secs(1);
    };
    assert!(matches!(error, ConnectionError::TimedOut { .. }), "{error}");
    assert!(now - begin >= stage.settings.request_timeout);
    assert_eq!(stage.pool.held(), 0);
}

#[test]
fn an_answer_above_the_limit_is_refused_unread_and_told_from_what_is_no_answer() {
    for (length, number) in [((1_u32 << 20) + 1, 2), (u32::MAX, 2), (0x4854_5450, 77)] {
        let (mut stage, mut peer) = Stage::connected();
        stage.ask(1000);
        stage.until_asked(&mut peer);
        peer.write_all(&length.to_be_bytes()).unwrap();
        peer.write_all(&u32::to_be_bytes(number)).unwrap();
        let error = match stage.drive().unwrap_err() {
            ConnectionError::Wire { error, .. } => error,
            other => panic!("{other}"),
        };
        if number == 2 {
            assert!(matches!(error, WireError::FrameTooLong { .. }), "{error}");
        } else {
            let (expected, got) = (2, 77);
            assert_eq!(error, WireError::OutOfStep { expected, got });
        }
    }
}

#[test]
fn an_answer_that_trickles_in_is_given_up_and_one_that_flows_is_not() {
    let (mut stage, mut peer) = Stage::connected();
    stage.settings.max_frame = 1 << 24;
    stage.ask(1 << 23);
    stage.until_asked(&mut peer);
    let frame = answer(8 << 20);
    let length = u32::try_from(frame.len()).unwrap().to_be_bytes();
    peer.write_all(&length).unwrap();
    let mut sent = 0;
    // Gives so much each second, and says how many seconds that goes well.
    let mut seconds_at = |stage: &mut Stage, each: usize, most: u64| {
        for second in 0..most {
            let part = frame.get(sent..sent + each).unwrap();
            peer.write_all(part).unwrap();
            sent += each;
            let expected = 4 + sent;
            let now = Clock::System.now() + Duration::from_secs(second);
            let begin = Clock::System.now();
            loop {
                stage.link.notice(true, false);
                match stage.at(now, Link::drive) {
                    Ok(driven) => assert!(matches!(driven, Driven::Nothing)),
                    Err(error) => return Err((second, error)),
                }
                let State::Up(wire) = &stage.link.state else {
                    panic!("the link is down");
                };
                if wire.progress() == expected {
                    break;
                }
                assert!(Clock::System.now() < begin + PATIENCE);
            }
        }
        Ok(())
    };
    assert!(seconds_at(&mut stage, 100_000, 60).is_ok());
    let (second, error) = seconds_at(&mut stage, 100, 60 + 30).unwrap_err();
    assert!(matches!(error, ConnectionError::TimedOut { .. }), "{error}");
    assert!((60..75).contains(&second), "{second}");
}

#[test]
fn a_broker_that_fails_with_every_request_is_tried_ever_more_seldom() {
    let (mut stage, mut peer) = Stage::connected();
    for failures in 1..=3 {
        stage.ask(1000);
        stage.until_asked(&mut peer);
        drop(peer);
        stage.drive().unwrap_err();
        let now = Clock::System.now();
        stage.link.fail(now);
        assert_eq!(stage.link.failures(), failures);
        // It takes the next connection, and tells its versions.
        let later = now + Duration::from_secs(10);
        stage.at(later, Link::connect).unwrap();
        peer = stage.listener.accept().unwrap().0;
        stage.until_asked(&mut peer);
        say(&mut peer, &VERSIONS);
        assert!(matches!(stage.drive(), Ok(Driven::Ready)));
    }
    stage.ask(1000);
    stage.until_asked(&mut peer);
    say(&mut peer, &answer(0));
    assert!(matches!(stage.drive(), Ok(Driven::Answer(_))));
    assert_eq!(stage.link.failures(), 0);
}

#[test]
fn one_oversized_answer_at_a_time_is_let_in() {
    let (mut stage, mut peer) = Stage::connected();
    stage.share = 100_000;
    let other = stage.gate.enter().unwrap();
    stage.ask(1000);
    stage.until_asked(&mut peer);
    say(&mut peer, &answer(200_000));
    assert!(matches!(stage.drive(), Ok(Driven::Blocked)));
    assert_eq!(stage.pool.held(), 0);
    drop(other);
    let Ok(Driven::Answer(answer)) = stage.drive() else {
        panic!("no answer");
    };
    assert!(
        stage.gate.enter().is_none(),
        "held as long as the answer is"
    );
    drop(answer);
    assert!(stage.gate.enter().is_some());
}

#[test]
fn a_connection_that_is_closed_while_idle_is_opened_again_at_once() {
    let (mut stage, peer) = Stage::connected();
    drop(peer);
    let begin = Clock::System.now();
    while stage.link.is_ready() {
        stage.link.notice(true, false);
        let now = Clock::System.now();
        assert!(now < begin + PATIENCE);
        let driven = stage.at(now, Link::drive).unwrap();
        assert!(matches!(driven, Driven::Nothing));
    }
    assert_eq!(stage.link.failures(), 0);
    stage.connect().unwrap();
    stage.listener.accept().unwrap();
}

#[test]
fn a_connection_that_is_closed_over_a_request_fails_and_waits() {
    let (mut stage, mut peer) = Stage::connected();
    stage.ask(1000);
    stage.until_asked(&mut peer);
    drop(peer);
    let error = stage.drive().unwrap_err();
    assert!(error.is_stale(), "{error}");
    let now = Clock::System.now();
    stage.link.fail(now);
    assert_eq!(stage.link.failures(), 1);
    stage.at(now, Link::connect).unwrap();
    assert!(matches!(stage.link.state, State::Down), "not yet");
    assert!(stage.link.next_moment(&stage.settings).is_some());
    let later = now + Duration::from_secs(1);
    stage.at(later, Link::connect).unwrap();
    assert!(matches!(stage.link.state, State::Connecting { .. }));
}

#[test]
fn a_refused_connection_is_an_error_with_the_address() {
    let mut stage = Stage::new();
    let port = stage.listener.local_addr().unwrap().port();
    drop(std::mem::replace(
        &mut stage.listener,
        TcpListener::bind("127.0.0.1:0").unwrap(),
    ));
    let error = match stage.connect() {
        Ok(()) => stage.drive().unwrap_err(),
        Err(error) => error,
    };
    assert!(error.to_string().contains(&format!("127.0.0.1:{port}")));
}

#[test]
fn an_answer_to_another_request_is_out_of_step() {
    let (mut stage, mut peer) = Stage::connected();
    stage.ask(1000);
    stage.until_asked(&mut peer);
    let mut frame = answer(0);
    frame[3] = 9;
    say(&mut peer, &frame);
    let error = stage.drive().unwrap_err();
    assert!(error.to_string().contains("out of step"), "{error}");
}
