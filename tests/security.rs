//! Brokers that are spoken to through TLS and SASL, and those that are not trusted or do not trust us.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::deliveries::Deliveries;
use crate::support::keepup::keepup;
use crate::support::process::thread;
use crate::support::secure::{PASSWORD, Secure, USER};
use crate::support::{PATIENT, SOON, wait_for};

/// The shared broker of these tests, or the end of the test where there is no Kafka.
macro_rules! secure {
    () => {
        match Secure::shared(test_name!()) {
            Some(secure) => secure,
            None => return,
        }
    };
}

fn options(properties: &[String]) -> Vec<&str> {
    properties
        .iter()
        .flat_map(|property| ["-X", property.as_str()])
        .collect()
}

#[test]
fn every_kind_of_listener_delivers_every_record_once() {
    let secure = secure!();
    let kafka = &secure.kafka;
    kafka.create_topic("kinds", 4, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers("kinds", 4, 0..5_000);
    producer.flush();
    let ends = kafka.end_offsets("kinds");

    let sasl = |protocol, mechanism| secure.sasl(protocol, mechanism, PASSWORD);
    for (name, listener, properties) in [
        ("tls", "TLS", secure.tls()),
        ("mutual", "MUTUAL", secure.mutual()),
        ("plain", "SASL", sasl("sasl_plaintext", "PLAIN")),
        ("scram256", "SASL", sasl("sasl_plaintext", "SCRAM-SHA-256")),
        ("scram512", "SASL", sasl("SASL_PLAINTEXT", "SCRAM-SHA-512")),
        ("tls-plain", "BOTH", sasl("sasl_ssl", "PLAIN")),
        ("tls-scram256", "BOTH", sasl("sasl_ssl", "SCRAM-SHA-256")),
        ("tls-scram512", "BOTH", sasl("SASL_SSL", "SCRAM-SHA-512")),
    ] {
        let begin = Instant::now();
        let deliveries = Deliveries::new("kinds", 4);
        let more = [
            &options(&properties)[..],
            &["--until-end", "--workers", "2", "-vv"],
        ]
        .concat();
        let mut run = deliveries.start_at(&secure.listener(listener), name, &more);
        assert_eq!(run.end(PATIENT), Some(0), "{name}: {}", run.stderr());
        deliveries.assert_exactly_once(&ends);
        let committed = kafka.committed(name, "kinds");
        assert_eq!(committed.into_iter().flatten().collect::<Vec<_>>(), ends);
        assert!(!run.stderr().contains(PASSWORD), "{}", run.stderr());
        println!("{name}: {:?}", begin.elapsed());
    }
}

/// Passes connections on to a broker, and counts them.
struct Door {
    address: String,
    count: Arc<AtomicUsize>,
}

impl Door {
    fn to(broker: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let count = Arc::new(AtomicUsize::new(0));
        let (broker, counted) = (broker.to_owned(), Arc::clone(&count));
        // Ends with the process, as what it waits for does not.
        drop(thread("door", move || {
            for client in listener.incoming().map_while(Result::ok) {
                counted.fetch_add(1, Ordering::Relaxed);
                let Ok(server) = TcpStream::connect(&broker) else {
                    continue;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let pair = from
                        .try_clone()
                        .and_then(|from| Ok((from, to.try_clone()?)));
                    let (mut from, mut to) = pair.expect("a socket can be shared");
                    drop(thread("door", move || {
                        let _ = io::copy(&mut from, &mut to);
                        let _ = to.shutdown(Shutdown::Both);
                    }));
                }
            }
        }));
        Self { address, count }
    }

    fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

#[test]
fn who_is_not_trusted_is_refused_at_the_start_with_the_reason_and_without_a_storm() {
    let secure = secure!();
    secure.kafka.create_topic("refused", 1, &[]);
    let with = |mut properties: Vec<String>, more: &[&str]| {
        properties.extend(more.iter().map(|&property| property.to_owned()));
        properties
    };
    let sasl = |protocol, mechanism| secure.sasl(protocol, mechanism, "wrong-hunter3");
    let stranger = format!("ssl.ca.location={}", secure.file("stranger.pem"));
    let refused: [(&str, Vec<String>, &[&str]); 11] = [
        (
            "SASL",
            sasl("sasl_plaintext", "PLAIN"),
            &["\"keeper\" is refused (PLAIN)", "check sasl.username"],
        ),
        (
            "BOTH",
            sasl("sasl_ssl", "SCRAM-SHA-512"),
            &["\"keeper\" is refused (SCRAM-SHA-512)"],
        ),
        (
            "EXPIRED",
            secure.tls(),
            &["certificate has expired", "renew it"],
        ),
        (
            "OTHER",
            secure.tls(),
            &["other.example", "not for 127.0.0.1"],
        ),
        (
            "TLS",
            with(secure.tls(), &[&stranger]),
            &["none of the trusted authorities", "ssl.ca.location"],
        ),
        (
            "MUTUAL",
            secure.tls(),
            &["refuses our side", "ssl.certificate.location"],
        ),
        ("TLS", Vec::new(), &["speaks TLS", "security.protocol"]),
        (
            "TLS",
            sasl("sasl_plaintext", "PLAIN"),
            &["speaks TLS", "security.protocol"],
        ),
        (
            "PLAINTEXT",
            sasl("sasl_plaintext", "PLAIN"),
            &["does not authenticate by SASL"],
        ),
        (
            "TLS",
            sasl("sasl_ssl", "PLAIN"),
            &["does not authenticate by SASL"],
        ),
        (
            "EXPIRED",
            with(
                secure.tls(),
                &["ssl.endpoint.identification.algorithm=none"],
            ),
            &["certificate has expired"],
        ),
    ];
    for (listener, properties, words) in refused {
        let broker = match listener {
            "PLAINTEXT" => secure.kafka.bootstrap().to_owned(),
            other => secure.listener(other),
        };
        let door = Door::to(&broker);
        let arguments = ["run", "-b", &door.address, "-t", "refused", "-g", "refused"];
        let options = options(&properties);
        let begin = Instant::now();
        let output = keepup(
            &[&arguments[..], &options, &["-vv", "--timeout", "30s"]].concat(),
            "",
            PATIENT,
        );
        let took = begin.elapsed();
        println!(
            "{listener} {words:?}: {took:?}, {} connections",
            door.count()
        );
        assert_eq!(output.code, Some(1), "{listener}: {output:?}");
        for word in words {
            assert!(output.stderr.contains(word), "{word}: {output:?}");
        }
        assert!(!output.stderr.contains("hunter"), "{output:?}");
        assert!(took < Duration::from_secs(15), "{listener}: {took:?}");
        // Ours, and the member's own.
        assert!(door.count() <= 6, "{listener}: {}", door.count());
    }
}

#[test]
fn what_is_not_verified_is_told_in_a_warning() {
    let secure = secure!();
    secure.kafka.create_topic("unverified", 1, &[]);
    let end = ["--until-end"];
    for (listener, property, warned) in [
        ("OTHER", "ssl.endpoint.identification.algorithm=none", false),
        ("OTHER", "enable.ssl.certificate.verification=false", true),
        ("EXPIRED", "enable.ssl.certificate.verification=false", true),
    ] {
        let mut properties = secure.tls();
        properties.push(property.to_owned());
        let more = [&options(&properties)[..], &end].concat();
        let deliveries = Deliveries::new("unverified", 1);
        let mut run = deliveries.start_at(&secure.listener(listener), property, &more);
        assert_eq!(run.end(PATIENT), Some(0), "{property}: {}", run.stderr());
        let warnings = run.stderr().matches("verification is off").count();
        assert_eq!(warnings, usize::from(warned), "{}", run.stderr());
    }
}

#[test]
fn a_run_says_again_who_it_is_before_the_broker_forgets() {
    // Every client has to, within 3 seconds.
    let reauthentication = ["connections.max.reauth.ms=3000"];
    let Some(secure) = Secure::start(test_name!(), &reauthentication) else {
        return;
    };
    let kafka = &secure.kafka;
    kafka.create_topic("again", 4, &[]);
    let properties = secure.sasl("sasl_ssl", "SCRAM-SHA-256", PASSWORD);
    let deliveries = Deliveries::new("again", 4);
    let more = [&options(&properties)[..], &["-vv", "--workers", "2"]].concat();
    let mut run = deliveries.start_at(&secure.listener("BOTH"), "again", &more);

    let producer = kafka.producer(&[]);
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < Duration::from_secs(15) {
        producer.send_numbers("again", 4, sent..sent + 50);
        producer.flush();
        sent += 50;
        deliveries.wait_distinct(4 * sent, SOON);
    }
    // Two workers with a connection each.
    run.wait_stderr("authenticated again", 8, SOON);
    run.signal(rustix::process::Signal::TERM);
    assert_eq!(run.end(SOON), Some(0), "{}", run.stderr());
    let ends = [i64::try_from(sent).expect("a few"); 4];
    deliveries.assert_exactly_once(&ends);
    assert_eq!(deliveries.committed(), ends);
    let stderr = run.stderr();
    for trouble in ["a connection is gone", "is not reached", " WARN "] {
        assert!(!stderr.contains(trouble), "{trouble}: {stderr}");
    }

    // Who does not is shown the door: otherwise nothing was tested here.
    let mut silent = plain::Client::connect(&secure.listener("SASL"), USER, PASSWORD);
    assert_eq!(silent.lifetime, Duration::from_secs(3));
    assert!(silent.asks_for_topics());
    std::thread::park_timeout(silent.lifetime);
    wait_for(SOON, "the broker to forget it", || {
        !silent.asks_for_topics()
    });
}

#[test]
fn a_password_that_changes_while_a_run_goes_on_is_weathered_until_it_is_changed_back() {
    // Whoever is connected is asked again, so the change is felt.
    let reauthentication = ["connections.max.reauth.ms=3000"];
    let Some(secure) = Secure::start(test_name!(), &reauthentication) else {
        return;
    };
    let kafka = &secure.kafka;
    kafka.create_topic("rotated", 2, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers("rotated", 2, 0..100);
    producer.flush();
    let mut properties = secure.sasl("sasl_plaintext", "SCRAM-SHA-512", PASSWORD);
    properties.push("reconnect.backoff.max.ms=1000".to_owned());
    let deliveries = Deliveries::new("rotated", 2);
    let more = [&options(&properties)[..], &["-v", "--workers", "2"]].concat();
    let mut run = deliveries.start_at(&secure.listener("SASL"), "rotated", &more);
    deliveries.wait_distinct(200, SOON);

    secure.set_password("another hunter4");
    run.wait_stderr("does not authenticate us", 1, PATIENT);
    producer.send_numbers("rotated", 2, 100..200);
    producer.flush();
    secure.set_password(PASSWORD);
    deliveries.wait_distinct(400, PATIENT);
    run.signal(rustix::process::Signal::TERM);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    deliveries.assert_complete(&[200; 2]);
    assert_eq!(deliveries.committed(), [200; 2]);
    let stderr = run.stderr();
    println!("{stderr}");
    assert!(!stderr.contains("hunter"), "{stderr}");
    // Each worker and the lookup say it once, and the member does.
    let warnings = stderr.lines().filter(|line| line.contains(" WARN "));
    assert!(warnings.count() <= 12, "{stderr}");
}

/// A client that authenticates once, by PLAIN, and never again.
mod plain {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Duration;

    use crate::support::SOON;

    pub(super) struct Client {
        stream: TcpStream,
        pub(super) lifetime: Duration,
    }

    impl Client {
        pub(super) fn connect(address: &str, user: &str, password: &str) -> Self {
            let stream = TcpStream::connect(address).expect("the broker listens");
            stream.set_read_timeout(Some(SOON)).expect("a socket");
            let mut client = Self {
                stream,
                lifetime: Duration::ZERO,
            };
            let mut handshake = 5_i16.to_be_bytes().to_vec();
            handshake.extend(b"PLAIN");
            let agreed = client.ask(17, 1, &handshake).expect("an answer");
            assert_eq!(agreed[..2], [0, 0], "{agreed:?}");
            let proof = format!("\0{user}\0{password}");
            let mut authenticate = u32::try_from(proof.len())
                .expect("short")
                .to_be_bytes()
                .to_vec();
            authenticate.extend(proof.as_bytes());
            // error, no message, empty bytes, lifetime
            let answer = client.ask(36, 1, &authenticate).expect("an answer");
            assert_eq!(answer[..2], [0, 0], "{answer:?}");
            let millis = answer.last_chunk().expect("a lifetime");
            client.lifetime = Duration::from_millis(u64::from_be_bytes(*millis));
            client
        }

        /// Asks for all topics, which takes who is known.
        pub(super) fn asks_for_topics(&mut self) -> bool {
            self.ask(3, 1, &(-1_i32).to_be_bytes()).is_some()
        }

        fn ask(&mut self, api: i16, version: i16, body: &[u8]) -> Option<Vec<u8>> {
            let mut frame = api.to_be_bytes().to_vec();
            frame.extend(version.to_be_bytes());
            frame.extend([0, 0, 0, 1]);
            frame.extend([0xff, 0xff]);
            frame.extend(body);
            let length = u32::try_from(frame.len()).expect("short");
            self.stream.write_all(&length.to_be_bytes()).ok()?;
            self.stream.write_all(&frame).ok()?;
            let mut length = [0; 4];
            self.stream.read_exact(&mut length).ok()?;
            let mut answer = vec![0; u32::from_be_bytes(length) as usize];
            self.stream.read_exact(&mut answer).ok()?;
            Some(answer.split_off(4))
        }
    }
}
