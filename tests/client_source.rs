//! Records read through librdkafka: by choice while members come, go and are killed, and by necessity.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::cluster::free_ports;
use crate::support::deliveries::Deliveries;
use crate::support::kafka::Kafka;
use crate::support::keepup::{Keepup, keepup};
use crate::support::process::thread;
use crate::support::prometheus::get;
use crate::support::{PATIENT, SOON, seed, wait_until};

const PARTITIONS: i32 = 12;

/// How long members come and go.
const CHAOS: Duration = Duration::from_secs(20);

/// What was done to the members.
#[derive(Debug, Default)]
struct Done {
    starts: usize,
    stops: usize,
    kills: usize,
}

/// Two processes of one group over 12 partitions that are written to all the time; either of them is started, stopped
/// or killed every now and then.
fn survives_chaos(kafka: &'static Kafka, topic: &'static str, properties: &[&str]) {
    kafka.create_topic(topic, PARTITIONS, &[]);
    let mut random = fastrand::Rng::with_seed(seed());
    let enough = Arc::new(AtomicBool::new(false));
    let producing = thread("producer", {
        let enough = Arc::clone(&enough);
        move || {
            let producer = kafka.producer(&[]);
            for number in (0..).step_by(5) {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                producer.send_numbers(topic, PARTITIONS, number..number + 5);
                // Some 3,000 records per second.
                std::thread::park_timeout(Duration::from_millis(20));
            }
            producer.flush();
        }
    });
    let deliveries = Deliveries::new(topic, 12);
    let mut arguments = vec!["--source", "client", "--workers", "auto:4"];
    for property in properties {
        arguments.extend(["-X", property]);
    }
    let start = || deliveries.start(kafka, topic, &arguments);

    let mut done = Done::default();
    let mut members: [Option<Keepup>; 2] = [Some(start()), None];
    let begin = Instant::now();
    while begin.elapsed() < CHAOS {
        let next = Instant::now() + Duration::from_millis(random.u64(100..2_500));
        wait_until(PATIENT, "the next moment", || {
            let left = next.saturating_duration_since(Instant::now());
            if left.is_zero() { Ok(()) } else { Err(left) }
        });
        let member = &mut members[random.usize(..2)];
        match member.take() {
            None => {
                *member = Some(start());
                done.starts += 1;
            }
            Some(mut run) if random.bool() => {
                run.signal(Signal::KILL);
                assert_eq!(run.end(SOON), None);
                done.kills += 1;
            }
            Some(mut run) => {
                run.signal(Signal::TERM);
                assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
                done.stops += 1;
            }
        }
    }
    enough.store(true, Ordering::Relaxed);
    producing.join().expect("the producer ends");
    members[0].get_or_insert_with(start);
    let ends = kafka.end_offsets(topic);
    wait_until(PATIENT, "everything to be delivered", || {
        let next = deliveries.next();
        if next == ends { Ok(()) } else { Err(next) }
    });
    for run in members.iter_mut().flatten() {
        run.signal(Signal::TERM);
        assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    }
    println!(
        "{done:?}: {} records, {} again",
        deliveries.distinct(),
        deliveries.repeats()
    );
    deliveries.assert_complete(&ends);
    deliveries.assert_in_order();
    let committed = kafka.committed(topic, topic);
    assert_eq!(committed.into_iter().flatten().collect::<Vec<_>>(), ends);
    assert!(done.kills + done.stops > 0, "nothing happened: {done:?}");
}

#[test]
fn members_that_read_through_librdkafka_come_go_and_are_killed_and_nothing_is_lost() {
    let kafka = kafka!(shared);
    let quick = ["heartbeat.interval.ms=300", "session.timeout.ms=6000"];
    survives_chaos(kafka, "client-classic", &quick);
}

#[test]
fn the_same_under_the_consumer_protocol() {
    let kafka = kafka!(shared);
    survives_chaos(kafka, "client-consumer", &["group.protocol=consumer"]);
}

/// Tokens that nobody has signed, as Kafka checks them unless it is told otherwise.
const TOKENS: [&str; 2] = [
    "listener.name.oauth.sasl.enabled.mechanisms=OAUTHBEARER",
    "listener.name.oauth.oauthbearer.sasl.jaas.config=\
     org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required \
     unsecuredLoginStringClaim_sub=\"broker\";",
];

/// The properties of a client with such a token.
fn token(config: &str) -> Vec<String> {
    [
        "security.protocol=sasl_plaintext",
        "sasl.mechanism=OAUTHBEARER",
        "enable.sasl.oauthbearer.unsecure.jwt=true",
        &format!("sasl.oauthbearer.config={config}"),
    ]
    .into_iter()
    .flat_map(|property| ["-X".to_owned(), property.to_owned()])
    .collect()
}

fn borrowed(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

#[test]
fn where_our_connections_do_not_speak_the_mechanism_librdkafka_takes_over_with_one_line() {
    let listeners = [("OAUTH", "SASL_PLAINTEXT")];
    let Some(kafka) = Kafka::listening(test_name!(), &listeners, &TOKENS, false) else {
        return;
    };
    kafka.create_topic("tokens", 4, &[]);
    let producer = kafka.producer(&[]);
    producer.send_numbers("tokens", 4, 0..500);
    producer.flush();
    let ends = kafka.end_offsets("tokens");
    let bootstrap = kafka.listener("OAUTH");
    let deliveries = Deliveries::new("tokens", 4);
    let address = format!("127.0.0.1:{}", free_ports(1)[0]);
    let token_of_keeper = token("principal=keeper");
    let mut arguments = vec!["--workers", "2", "--listen", &address];
    arguments.extend(borrowed(&token_of_keeper));
    let mut run = deliveries.start_at(&bootstrap, "tokens", &arguments);
    deliveries.wait_distinct(2_000, PATIENT);

    // Its lag is known, down to the last partition.
    let address = address.parse().expect("an address");
    wait_until(PATIENT, "the lag to be known and 0", || {
        let (_, body) = get(address, "/lag")?;
        let lag: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        let partitions = lag["partitions"].as_array().cloned().unwrap_or_default();
        let is_known = partitions.len() == 4
            && partitions.iter().all(|partition| {
                partition["end_offset"] == 500
                    && partition["records_lag"] == 0
                    && partition["committed_lag"] == 0
            });
        if is_known { Ok(()) } else { Err(body) }
    });
    // What comes later comes, too.
    producer.send_numbers("tokens", 4, 500..600);
    producer.flush();
    deliveries.wait_distinct(2_400, PATIENT);
    run.signal(Signal::TERM);
    assert_eq!(run.end(PATIENT), Some(0), "{}", run.stderr());
    assert_eq!(ends, [500; 4]);
    let ends = kafka.end_offsets("tokens");
    deliveries.assert_exactly_once(&ends);
    deliveries.assert_in_order();
    let committed = kafka.committed("tokens", "tokens");
    assert_eq!(committed.into_iter().flatten().collect::<Vec<_>>(), ends);
    let stderr = run.stderr();
    let told: Vec<&str> = stderr
        .lines()
        .filter(|line| line.contains("spoken by librdkafka only"))
        .collect();
    assert!(
        matches!(told[..], [line] if line.contains("OAUTHBEARER")),
        "{stderr}"
    );
    assert_eq!(stderr.matches(" WARN ").count(), 1, "{stderr}");

    // Who insists on our own connections is refused before anything is started.
    let mut arguments = vec!["run", "-b", &bootstrap, "-t", "tokens", "-g", "tokens"];
    arguments.extend(["--source", "fetch"]);
    arguments.extend(borrowed(&token_of_keeper));
    let refused = keepup(&arguments, "", SOON);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("source = fetch") && refused.stderr.contains("--source client"),
        "{}",
        refused.stderr
    );

    // A token without a subject is none: refused at the first contact, with the reason.
    let nobody = token("principalClaimName=azp principal=keeper");
    let mut arguments = vec!["run", "-b", &bootstrap, "-t", "tokens", "-g", "tokens"];
    arguments.extend(borrowed(&nobody));
    let begin = Instant::now();
    let refused = keepup(&arguments, "", PATIENT);
    println!("refused after {:?}: {}", begin.elapsed(), refused.stderr);
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("no secure connection") && refused.stderr.contains("SASL"),
        "{}",
        refused.stderr
    );
}
