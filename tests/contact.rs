//! A broker that falls silent while a run goes on.

use std::time::Duration;

use crate::support::SOON;
use crate::support::deliveries::Deliveries;
use crate::support::{PATIENT, wait_until};

use rustix::process::Signal;

#[test]
fn a_broker_that_is_silent_for_a_while_is_told_once_and_nothing_is_lost() {
    let kafka = kafka!(one);
    kafka.create_topic("silence", 4, &[]);
    // What it sends again because nobody answered is written once all the same.
    let producer = kafka.producer(&[("enable.idempotence", "true")]);
    producer.send_numbers("silence", 4, 0..500);
    producer.flush();
    let deliveries = Deliveries::new("silence", 4);
    let quick = [
        "-X",
        "socket.timeout.ms=2000",
        "-X",
        "session.timeout.ms=20000",
    ];
    let mut run = deliveries.start(&kafka, "silence", &quick);
    deliveries.wait_distinct(2_000, SOON);

    for round in 1..=2 {
        kafka.stop_broker(1);
        run.wait_stderr("keeps trying", round, PATIENT);
        kafka.cont_broker(1);
        let from = 500 * u64::try_from(round).expect("a few");
        producer.send_numbers("silence", 4, from..from + 500);
        producer.flush();
        let ends = [i64::try_from(from).expect("a few") + 500; 4];
        wait_until(PATIENT, "everything to be delivered", || {
            let next = deliveries.next();
            if next == ends { Ok(()) } else { Err(next) }
        });
        // Their commits are answered.
        run.wait_stderr("the cluster answers again", round, PATIENT);
    }
    run.signal(Signal::TERM);
    assert_eq!(
        run.end(Duration::from_secs(10)),
        Some(0),
        "{}",
        run.stderr()
    );
    // One warning for each change. A worker whose question was on its way when the broker fell silent says so once; on
    // a slow machine a silence is long enough for that.
    let stderr = run.stderr();
    let (of_workers, of_the_member): (Vec<&str>, Vec<&str>) = stderr
        .lines()
        .filter(|line| line.contains(" WARN "))
        .partition(|line| line.contains("a broker is not reached"));
    let lost_and_found = |pair: &[&str]| {
        pair[0].contains("keeps trying") && pair[1].contains("the cluster answers again")
    };
    assert!(
        of_the_member.len() == 4 && of_the_member.chunks(2).all(lost_and_found),
        "{stderr}"
    );
    for worker in 0..4 {
        let name = format!(" worker={worker} ");
        let told = of_workers.iter().filter(|line| line.contains(&name));
        assert!(told.count() <= 2, "more than once for a silence: {stderr}");
    }
    deliveries.assert_complete(&[1_500; 4]);
    assert_eq!(deliveries.committed(), [1_500; 4]);
}
