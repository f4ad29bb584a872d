//! Members that the group gives nothing: they are ready all the same, end like the others, and take over.

use keepup::{Builder, MemberState, StopReason};

use crate::support::kafka::Kafka;
use crate::support::members::{Member, Protocol, Tally};
use crate::support::{PATIENT, SOON, wait_until};

/// Waits until a member takes part in the group and has that many partitions.
fn wait_for_joined(member: &Member, partitions: usize) {
    let what = format!("{} to be ready with {partitions} partitions", member.name);
    wait_until(SOON, &what, || {
        let seen = member.handle().lag();
        let is_so = seen.member == MemberState::Joined
            && seen.health.is_ready()
            && member.partitions().len() == partitions;
        if is_so {
            Ok(())
        } else {
            Err((seen.member, seen.health.clone(), member.partitions()))
        }
    });
}

per_protocol! {
    s47_a_spare_is_ready_and_takes_over_when_the_one_who_has_the_partition_leaves {
        Cooperative => cooperative,
        Consumer => kip_848,
    }
    s47_a_spare_ends_by_itself_where_the_run_ends_with_the_records {
        Cooperative => cooperative,
        Consumer => kip_848,
    }
}

fn s47_a_spare_is_ready_and_takes_over_when_the_one_who_has_the_partition_leaves(
    kafka: &'static Kafka,
    name: &'static str,
    protocol: Protocol,
) {
    let tally = Tally::default();
    kafka.filled_topic(name, 1, 0..10);
    let start = |who| Member::start(who, kafka.run_of(name, name, protocol), &tally);
    let holder = start("holder");
    wait_for_joined(&holder, 1);
    let spare = start("spare");
    wait_for_joined(&spare, 0);
    tally.wait_for_all(name, 0..1, 0..10);
    assert_eq!(holder.stop().exit_code(), 0);
    kafka.fill(name, 1, 10..20);
    wait_for_joined(&spare, 1);
    tally.wait_for_all(name, 0..1, 0..20);
    assert_eq!(tally.warnings("spare"), [""; 0]);
    assert_eq!(spare.stop().exit_code(), 0);
    let numbers: Vec<i64> = (0..20).collect();
    assert_eq!(tally.offsets(name, 0), numbers, "each once, in order");
    assert_eq!(tally.offsets_by("spare", name, 0), numbers[10..]);
}

fn s47_a_spare_ends_by_itself_where_the_run_ends_with_the_records(
    kafka: &'static Kafka,
    name: &'static str,
    protocol: Protocol,
) {
    let tally = Tally::default();
    kafka.filled_topic(name, 1, 0..10);
    let run = || kafka.run_of(name, name, protocol);
    let holder = Member::start("holder", run(), &tally);
    wait_for_joined(&holder, 1);
    let spare = Member::start("spare", run().until_end(true), &tally);
    let report = spare.ended();
    assert_eq!(report.reason, StopReason::EndReached);
    assert_eq!((report.exit_code(), report.records), (0, 0), "{report:?}");
    assert!(report.left_group, "{report:?}");
    wait_for_joined(&holder, 1);
    assert_eq!(holder.stop().exit_code(), 0);
}

/// A static member under KIP-848.
fn named(kafka: &Kafka, name: &str, instance: &str) -> Builder {
    let builder = kafka.run_of(name, name, Protocol::Consumer);
    builder.property("group.instance.id", instance)
}

#[test]
fn s40_under_kip_848_a_static_member_that_gets_its_name_and_no_partition_is_ready() {
    let kafka = kafka!(shared);
    let name = "s40-spare";
    let tally = Tally::default();
    kafka.filled_topic(name, 1, 0..10);
    let start = |who, instance| {
        let builder = named(kafka, name, instance).instance_wait(PATIENT);
        Member::start(who, builder, &tally)
    };
    let holder = start("holder", "other");
    wait_for_joined(&holder, 1);
    let old = start("old", "same");
    wait_for_joined(&old, 0);
    let new = start("new", "same");
    tally.wait_for_warning("new", "group.instance.id \"same\"");
    wait_until(SOON, "it to be held up", || {
        match new.handle().lag().member {
            MemberState::HeldUp => Ok(()),
            other => Err(other),
        }
    });
    assert_eq!(old.stop().exit_code(), 0);
    tally.wait_for_warning("new", "gave this member its group.instance.id");
    wait_for_joined(&new, 0);
    assert_eq!(holder.stop().exit_code(), 0);
    kafka.fill(name, 1, 10..20);
    // Whoever leaves under a name is expected back for the rest of its session.
    wait_until(PATIENT, "it to take over", || {
        let has = new.partitions();
        if has == [0] { Ok(()) } else { Err(has) }
    });
    tally.wait_for_all(name, 0..1, 0..20);
    assert_eq!(tally.warnings("new").len(), 2);
    assert_eq!(new.stop().exit_code(), 0);
}

#[test]
fn s47_under_kip_848_a_member_that_loses_its_last_partition_to_another_is_ready_all_the_same() {
    let kafka = kafka!(shared);
    let name = "s47-moved";
    let tally = Tally::default();
    kafka.filled_topic(name, 1, 0..10);
    // This assignor gives the partition to the first by name, whoever has it.
    let start = |instance| {
        let builder = named(kafka, name, instance).property("group.remote.assignor", "range");
        Member::start(instance, builder, &tally)
    };
    let second = start("b");
    wait_for_joined(&second, 1);
    tally.wait_for_all(name, 0..1, 0..10);
    let first = start("a");
    wait_for_joined(&first, 1);
    wait_for_joined(&second, 0);
    kafka.fill(name, 1, 10..20);
    tally.wait_for_all(name, 0..1, 0..20);
    assert_eq!(tally.offsets_by("a", name, 0).len(), 10);
    assert_eq!(tally.warnings("b"), [""; 0]);
    for member in [first, second] {
        assert_eq!(member.stop().exit_code(), 0);
    }
}
