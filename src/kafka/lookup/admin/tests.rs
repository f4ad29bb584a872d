use super::*;
use crate::kafka::messages::DescribedPartition;

fn names(names: &[&str]) -> Vec<Arc<str>> {
    names.iter().map(|name| Arc::from(*name)).collect()
}

fn address(port: u16) -> BrokerAddress {
    BrokerAddress {
        host: Arc::from("localhost"),
        port,
    }
}

fn kafka(code: i16) -> AdminError {
    AdminError::Kafka(ErrorCode::from_code(code).unwrap())
}

fn told<A: Clone>(results: &[(&str, Result<A, AdminError>)]) -> Told<A> {
    results
        .iter()
        .map(|(group, result)| (Arc::from(*group), result.clone()))
        .collect()
}

const LOADING: i16 = 14;
const NOT_COORDINATOR: i16 = 16;
const FORBIDDEN: i16 = 30;

/// A round in which each group has a coordinator.
fn round(groups: &[&str]) -> Round<u32> {
    let groups = names(groups);
    let mut round = Round::new(&groups);
    for group in &groups {
        round.found(group, Ok(address(1)));
    }
    round
}

#[test]
fn groups_are_asked_of_their_own_coordinators() {
    let mut round = Round::<u32>::new(&names(&["a", "b", "c", "a"]));
    assert_eq!(round.without_coordinator(), names(&["a", "b", "c"]));
    round.found(&Arc::from("a"), Ok(address(1)));
    round.found(&Arc::from("b"), Err(kafka(15)));
    round.found(&Arc::from("c"), Ok(address(1)));
    round.found(&Arc::from("somebody else"), Ok(address(2)));
    assert_eq!(round.without_coordinator(), names(&["b"]));
    let asked = round.by_coordinator();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[&address(1)], names(&["a", "c"]));
}

#[test]
fn what_passes_is_asked_again_and_what_does_not_is_the_answer() {
    let asked = names(&["done", "loading", "moved", "forbidden", "left out"]);
    let mut round = round(&["done", "loading", "moved", "forbidden", "left out"]);
    round.told(
        &asked,
        told(&[
            ("done", Ok(1)),
            ("loading", Err(kafka(LOADING))),
            ("moved", Err(kafka(NOT_COORDINATOR))),
            ("forbidden", Err(kafka(FORBIDDEN))),
        ]),
    );
    // Who is loading is asked again, the other two are looked for first.
    assert_eq!(round.by_coordinator()[&address(1)], names(&["loading"]));
    assert_eq!(round.without_coordinator(), names(&["left out", "moved"]));
    let answers = round.close(&AdminError::NoTime);
    assert_eq!(answers["done"], Ok(1));
    assert_eq!(answers["forbidden"], Err(kafka(FORBIDDEN)));
    assert_eq!(answers["loading"], Err(kafka(LOADING)), "the last problem");
    assert_eq!(answers["left out"], Err(AdminError::Unanswered));
}

#[test]
fn an_answer_that_nobody_asked_for_is_not_believed() {
    let mut round = round(&["a", "b"]);
    round.told(
        &names(&["a"]),
        told(&[("b", Ok(2)), ("x", Ok(3)), ("a", Ok(1)), ("a", Ok(4))]),
    );
    let answers = round.close(&AdminError::NoTime);
    assert_eq!(answers.len(), 2);
    assert_eq!(answers["a"], Ok(1), "the first answer");
    assert_eq!(answers["b"], Err(AdminError::NoTime));
}

#[test]
fn a_coordinator_that_cannot_be_reached_is_looked_for_anew() {
    let mut round = round(&["a", "b"]);
    let groups = names(&["a", "b"]);
    round.told(
        &groups,
        all(&groups, &AdminError::Unreachable("refused".to_owned())),
    );
    assert!(round.is_open());
    assert_eq!(round.without_coordinator(), groups);
}

fn listed(group: &str) -> ListedGroup {
    ListedGroup {
        group: Arc::from(group),
        protocol_type: Arc::from("consumer"),
        state: Arc::from("Stable"),
        group_type: None,
    }
}

fn list(groups: &[&str]) -> ListGroupsAnswer {
    ListGroupsAnswer {
        error: 0,
        groups: groups.iter().map(|group| listed(group)).collect(),
    }
}

fn three_brokers() -> BTreeMap<i32, BrokerAddress> {
    [(1, 1), (2, 2), (3, 3)]
        .map(|(id, port)| (id, address(port)))
        .into()
}

#[test]
fn the_lists_of_all_brokers_are_one_and_who_does_not_tell_is_named() {
    let mut listing = Listing::new(three_brokers());
    assert_eq!(listing.open().len(), 3);
    listing.told(1, Ok(list(&["a", "b"])));
    listing.told(2, Err(kafka(LOADING)));
    listing.told(3, Err(AdminError::Unreachable("refused".to_owned())));
    assert_eq!(
        listing.open().iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [2, 3]
    );
    // A group that moved meanwhile is where it was seen last.
    listing.told(2, Ok(list(&["b", "c"])));
    listing.told(3, Err(AdminError::Unreachable("refused".to_owned())));
    assert!(!listing.is_open(), "no broker is tried for ever");
    let list = listing.close();
    let coordinators: Vec<(&str, i32)> = list
        .groups
        .iter()
        .map(|(group, (broker, _))| (&**group, *broker))
        .collect();
    assert_eq!(coordinators, [("a", 1), ("b", 2), ("c", 2)]);
    assert_eq!(
        list.missing,
        BTreeMap::from([(3, AdminError::Unreachable("refused".to_owned()))])
    );
}

#[test]
fn a_broker_that_has_left_is_not_waited_for_and_one_that_refuses_is_not_asked_again() {
    let mut listing = Listing::new(three_brokers());
    listing.told(1, Ok(list(&[])));
    listing.told(2, Err(kafka(31)));
    listing.told(3, Err(kafka(LOADING)));
    assert_eq!(listing.open().len(), 1);
    let mut left = three_brokers();
    left.remove(&3);
    listing.keep(&left);
    assert!(!listing.is_open());
    assert_eq!(listing.close().missing, BTreeMap::from([(2, kafka(31))]));
}

fn page(topics: &[(&str, &[i32])], next: Option<(&str, i32)>) -> DescribeTopicsAnswer {
    DescribeTopicsAnswer {
        topics: topics
            .iter()
            .map(|(name, partitions)| DescribedTopic {
                name: Arc::from(*name),
                id: uuid::Uuid::nil(),
                error: 0,
                is_internal: false,
                partitions: partitions
                    .iter()
                    .map(|partition| DescribedPartition {
                        partition: *partition,
                        error: 0,
                        leader: None,
                        replicas: Vec::new(),
                        in_sync: Vec::new(),
                        offline: Vec::new(),
                        eligible: None,
                    })
                    .collect(),
            })
            .collect(),
        next: next.map(|(topic, partition)| Cursor {
            topic: Arc::from(topic),
            partition,
        }),
    }
}

#[test]
fn a_topic_that_goes_on_in_the_next_page_stays_one() {
    let mut pages = Pages::default();
    assert_eq!(
        pages.add(page(&[("a", &[0]), ("b", &[0, 1])], Some(("b", 2)))),
        Ok(true)
    );
    assert_eq!(pages.add(page(&[("b", &[2, 3])], Some(("c", 0)))), Ok(true));
    assert_eq!(pages.add(page(&[("c", &[0])], None)), Ok(false));
    let topics: Vec<(&str, usize)> = pages
        .topics
        .iter()
        .map(|topic| (&*topic.name, topic.partitions.len()))
        .collect();
    assert_eq!(topics, [("a", 1), ("b", 4), ("c", 1)]);
}

#[test]
fn pages_that_lead_nowhere_are_not_turned_for_ever() {
    let mut pages = Pages::default();
    assert_eq!(pages.add(page(&[("b", &[0])], Some(("b", 1)))), Ok(true));
    for back in [("b", 1), ("b", 0), ("a", 9)] {
        assert_eq!(
            pages.add(page(&[], Some(back))),
            Err(AdminError::NoProgress),
            "{back:?}"
        );
    }
}

fn classic(group: &str, error: i16, state: &str, protocol_type: &str) -> ClassicGroup {
    ClassicGroup {
        group: Arc::from(group),
        error,
        state: Arc::from(state),
        protocol_type: Arc::from(protocol_type),
        protocol: Arc::from("range"),
        members: vec![ClassicMember {
            id: Arc::from("member"),
            instance: None,
            client_id: Arc::from("client"),
            host: Arc::from("/127.0.0.1"),
            assignment: bytes::Bytes::from_static(b"no assignment"),
        }],
    }
}

#[test]
fn a_group_that_is_gone_is_missing_however_the_version_says_it() {
    for gone in [classic("g", 0, "Dead", ""), classic("g", 69, "Dead", "")] {
        assert_eq!(
            classic_group(gone, &address(1)).1,
            Err(AdminError::NoSuchGroup)
        );
    }
}

#[test]
fn only_assignments_of_consumers_are_read_and_nonsense_in_them_hides_no_member() {
    let consumers = classic_group(classic("g", 0, "Stable", "consumer"), &address(1))
        .1
        .unwrap();
    assert!(
        matches!(&consumers.members[0].assigned, Assigned::Unreadable(_)),
        "{consumers:?}"
    );
    let connect = classic_group(classic("g", 0, "Stable", "connect"), &address(1))
        .1
        .unwrap();
    assert_eq!(connect.members[0].assigned, Assigned::Foreign);
}

/// Against brokers of 2.8: one group to a question, no new protocol, no pages.
mod on_an_old_cluster {
    use std::io::{self, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::thread::JoinHandle;

    use bytes::{Bytes, BytesMut};
    use kafka_protocol::messages::{self as kafka, BrokerId, GroupId, TopicName};
    use kafka_protocol::protocol::{
        Decodable, Encodable, StrBytes, decode_request_header_from_buffer,
    };
    use parking_lot::Mutex;

    use super::*;
    use crate::kafka::messages::Api;

    /// What a broker of 2.8 speaks.
    const SPOKEN: [(Api, i16, i16); 8] = [
        (Api::Fetch, 0, 12),
        (Api::ListOffsets, 0, 6),
        (Api::Metadata, 0, 11),
        (Api::OffsetFetch, 0, 7),
        (Api::FindCoordinator, 0, 3),
        (Api::DescribeGroups, 0, 5),
        (Api::ListGroups, 0, 4),
        (Api::ApiVersions, 0, 3),
    ];

    /// Broker 1, which answers; broker 2 is down.
    struct OldCluster {
        asked: Arc<Mutex<Vec<i16>>>,
        port: u16,
        thread: Option<JoinHandle<()>>,
    }

    impl OldCluster {
        fn start() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            let down = TcpListener::bind("127.0.0.1:0").unwrap();
            let ports = [port, down.local_addr().unwrap().port()];
            drop(down);
            let asked = Arc::new(Mutex::new(Vec::new()));
            let keys = Arc::clone(&asked);
            let thread = std::thread::Builder::new()
                .name("test-old-broker".to_owned())
                .spawn(move || {
                    // One connection, like the session that is tried here.
                    let (stream, _) = listener.accept().unwrap();
                    serve(stream, ports, &keys).unwrap();
                })
                .unwrap();
            Self {
                asked,
                port,
                thread: Some(thread),
            }
        }

        fn admin(&self) -> Admin {
            let settings = ConnectionSettings::new(vec![format!("127.0.0.1:{}", self.port)]);
            Admin::new(settings, Clock::System, StopFlag::default()).unwrap()
        }

        fn count_of(&self, api: Api) -> usize {
            self.asked
                .lock()
                .iter()
                .filter(|key| **key == api.key())
                .count()
        }
    }

    impl Drop for OldCluster {
        fn drop(&mut self) {
            let joined = self.thread.take().unwrap().join();
            assert!(joined.is_ok() || std::thread::panicking());
        }
    }

    fn serve(mut stream: TcpStream, ports: [u16; 2], asked: &Mutex<Vec<i16>>) -> io::Result<()> {
        loop {
            let mut length = [0; 4];
            if stream.read_exact(&mut length).is_err() {
                return Ok(());
            }
            let mut frame = vec![0; u32::from_be_bytes(length) as usize];
            stream.read_exact(&mut frame)?;
            let mut frame = Bytes::from(frame);
            let header = decode_request_header_from_buffer(&mut frame).unwrap();
            let (key, version) = (header.request_api_key, header.request_api_version);
            let times = asked.lock().iter().filter(|asked| **asked == key).count();
            asked.lock().push(key);
            let api = Api::ALL.into_iter().find(|api| api.key() == key).unwrap();
            let mut answer = BytesMut::new();
            answer.extend_from_slice(&header.correlation_id.to_be_bytes());
            if api.is_flexible(version) && api != Api::ApiVersions {
                answer.extend_from_slice(&[0]);
            }
            answer_to(api, version, frame, ports, times, &mut answer);
            stream.write_all(&u32::try_from(answer.len()).unwrap().to_be_bytes())?;
            stream.write_all(&answer)?;
        }
    }

    fn text(text: &str) -> StrBytes {
        StrBytes::from_string(text.to_owned())
    }

    /// The answer to the request that is the `times`-th of its kind.
    fn answer_to(
        api: Api,
        version: i16,
        mut body: Bytes,
        ports: [u16; 2],
        times: usize,
        out: &mut BytesMut,
    ) {
        let orders = || TopicName(text("orders"));
        match api {
            Api::ApiVersions => kafka::ApiVersionsResponse::default()
                .with_api_keys(
                    SPOKEN
                        .iter()
                        .map(|(api, min, max)| {
                            kafka::api_versions_response::ApiVersion::default()
                                .with_api_key(api.key())
                                .with_min_version(*min)
                                .with_max_version(*max)
                        })
                        .collect(),
                )
                .encode(out, version),
            Api::Metadata => {
                use kafka::metadata_response as parts;
                let brokers = ports.iter().zip(1..).map(|(port, id)| {
                    parts::MetadataResponseBroker::default()
                        .with_node_id(BrokerId(id))
                        .with_host(text("127.0.0.1"))
                        .with_port(i32::from(*port))
                });
                let partition = parts::MetadataResponsePartition::default()
                    .with_leader_id(BrokerId(1))
                    .with_replica_nodes(vec![BrokerId(1), BrokerId(2)])
                    .with_isr_nodes(vec![BrokerId(1)]);
                kafka::MetadataResponse::default()
                    .with_brokers(brokers.collect())
                    .with_topics(vec![
                        parts::MetadataResponseTopic::default()
                            .with_name(Some(orders()))
                            .with_partitions(vec![partition]),
                    ])
                    .encode(out, version)
            }
            Api::FindCoordinator => {
                let error = if times == 0 { 15 } else { 0 };
                kafka::FindCoordinatorResponse::default()
                    .with_error_code(error)
                    .with_node_id(BrokerId(1))
                    .with_host(text("127.0.0.1"))
                    .with_port(i32::from(ports[0]))
                    .encode(out, version)
            }
            Api::ListGroups => {
                let group = kafka::list_groups_response::ListedGroup::default()
                    .with_group_id(GroupId(text("billing")))
                    .with_protocol_type(text("consumer"))
                    .with_group_state(text("Empty"));
                kafka::ListGroupsResponse::default()
                    .with_error_code(if times == 0 { LOADING } else { 0 })
                    .with_groups(vec![group])
                    .encode(out, version)
            }
            Api::DescribeGroups => {
                let asked = kafka::DescribeGroupsRequest::decode(&mut body, version).unwrap();
                let groups = asked.groups.into_iter().map(|group| {
                    let state = if group.as_str() == "nobody" {
                        "Dead"
                    } else {
                        "Empty"
                    };
                    kafka::describe_groups_response::DescribedGroup::default()
                        .with_group_id(group)
                        .with_group_state(text(state))
                });
                kafka::DescribeGroupsResponse::default()
                    .with_groups(groups.collect())
                    .encode(out, version)
            }
            Api::OffsetFetch => {
                use kafka::offset_fetch_response as parts;
                let asked = kafka::OffsetFetchRequest::decode(&mut body, version).unwrap();
                let length = i64::try_from(asked.group_id.len()).unwrap();
                let partition =
                    parts::OffsetFetchResponsePartition::default().with_committed_offset(length);
                kafka::OffsetFetchResponse::default()
                    .with_topics(vec![
                        parts::OffsetFetchResponseTopic::default()
                            .with_name(orders())
                            .with_partitions(vec![partition]),
                    ])
                    .encode(out, version)
            }
            other => panic!("{other} was asked of a broker that does not speak it"),
        }
        .unwrap();
    }

    fn soon() -> Instant {
        Clock::System.now() + Duration::from_secs(30)
    }

    #[test]
    fn the_groups_of_the_broker_that_answers_are_listed_and_the_other_is_named() {
        let cluster = OldCluster::start();
        let mut admin = cluster.admin();
        let of = |types: &[&str]| ListGroupsRequest {
            types: types.iter().map(|name| (*name).to_owned()).collect(),
            ..ListGroupsRequest::default()
        };
        let list = admin.list_groups(&of(&[]), soon()).unwrap();
        assert_eq!(
            list.groups.keys().map(|group| &**group).collect::<Vec<_>>(),
            ["billing"]
        );
        let [(2, AdminError::Unreachable(why))] = &list.missing.into_iter().collect::<Vec<_>>()[..]
        else {
            panic!("broker 2 is down")
        };
        assert!(why.contains("127.0.0.1"), "{why}");
        // All its groups are classic ones, though it cannot be asked for them.
        let classic = admin.list_groups(&of(&["Classic"]), soon()).unwrap();
        assert_eq!(classic.groups.len(), 1);
        let consumer = admin.list_groups(&of(&["consumer"]), soon()).unwrap();
        assert_eq!((consumer.groups.len(), consumer.missing.len()), (0, 1));
    }

    #[test]
    fn groups_are_asked_for_one_by_one_and_as_classic_ones() {
        let cluster = OldCluster::start();
        let mut admin = cluster.admin();
        let groups = names(&["billing", "audit", "nobody"]);
        let described = admin.describe_groups(&groups, soon());
        assert_eq!(&*described["billing"].as_ref().unwrap().state, "Empty");
        assert_eq!(&*described["audit"].as_ref().unwrap().state, "Empty");
        assert_eq!(described["nobody"], Err(AdminError::NoSuchGroup));
        // The first of the three had to be asked for twice.
        assert_eq!(cluster.count_of(Api::FindCoordinator), 4);
        let offsets = admin.group_offsets(&groups, soon());
        assert_eq!(cluster.count_of(Api::OffsetFetch), 3);
        for group in &groups {
            let [commit] = &offsets[group].as_ref().unwrap()[..] else {
                panic!("{offsets:?}")
            };
            assert_eq!(usize::try_from(commit.offset).unwrap(), group.len());
        }
    }

    #[test]
    fn topics_are_described_by_metadata() {
        let cluster = OldCluster::start();
        let topics = cluster.admin().describe_topics(&[], soon()).unwrap();
        let [orders] = &topics[..] else {
            panic!("{topics:?}")
        };
        assert_eq!(&*orders.name, "orders");
        assert_eq!(orders.partitions[0].replicas, [1, 2]);
        assert_eq!(orders.partitions[0].eligible, None);
    }

    #[test]
    fn a_question_without_an_answer_ends_at_its_deadline() {
        // It takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = silent.local_addr().unwrap().to_string();
        let settings = ConnectionSettings::new(vec![address]);
        let mut admin = Admin::new(settings, Clock::System, StopFlag::default()).unwrap();
        let begin = Clock::System.now();
        let answers = admin.describe_groups(&names(&["a"]), begin + Duration::from_millis(600));
        assert!(
            matches!(answers["a"], Err(AdminError::Unreachable(_))),
            "{answers:?}"
        );
        let list = admin.list_groups(
            &ListGroupsRequest::default(),
            Clock::System.now() + Duration::from_millis(300),
        );
        assert!(matches!(list, Err(AdminError::Unreachable(_))), "{list:?}");
        assert!(Clock::System.now() - begin < Duration::from_secs(10));
    }
}

/// Against a real broker, which knows both protocols.
mod on_a_broker {
    use rdkafka::config::ClientConfig;
    use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
    use rdkafka::{Offset, TopicPartitionList};

    use super::*;
    use crate::kafka::mock::Sender;

    const PATIENCE: Duration = Duration::from_mins(1);

    fn bootstrap() -> String {
        std::env::var("KEEPUP_TEST_BOOTSTRAP").expect("KEEPUP_TEST_BOOTSTRAP=host:port of a broker")
    }

    fn admin() -> Admin {
        let settings = ConnectionSettings::new(vec![bootstrap()]);
        Admin::new(settings, Clock::System, StopFlag::default()).unwrap()
    }

    fn soon() -> Instant {
        Clock::System.now() + PATIENCE
    }

    fn consumer(group: &str, settings: &[(&str, &str)]) -> BaseConsumer {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", bootstrap())
            .set("group.id", group)
            .set("client.id", "observed")
            .set("enable.auto.commit", "false");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        config.create().unwrap()
    }

    /// Joins and waits until it has all partitions of the topic.
    fn joined(group: &str, protocol: &str, topic: &str, partitions: usize) -> BaseConsumer {
        let consumer = consumer(group, &[("group.protocol", protocol)]);
        consumer.subscribe(&[topic]).unwrap();
        let deadline = soon();
        while consumer.assignment().unwrap().count() < partitions {
            assert!(Clock::System.now() < deadline, "{group} got no partitions");
            let _ = consumer.poll(Duration::from_millis(100));
        }
        consumer
    }

    /// Makes topics, and waits until the broker describes them.
    fn create(admin: &mut Admin, topics: &[Arc<str>]) -> Vec<DescribedTopic> {
        let sender = Sender::new(&bootstrap(), &[]).unwrap();
        for topic in topics {
            sender.create_by_asking(topic).unwrap();
        }
        let deadline = soon();
        loop {
            let described = admin.describe_topics(topics, deadline).unwrap();
            let is_there = |topic: &DescribedTopic| {
                let partitions = &topic.partitions;
                topic.error == 0
                    && partitions.len() > 1
                    && partitions.iter().all(|partition| partition.error == 0)
            };
            if described.iter().all(is_there) {
                assert_eq!(described.len(), topics.len());
                return described;
            }
            assert!(admin.wait(1, deadline).unwrap(), "{described:?}");
        }
    }

    fn commit(consumer: &BaseConsumer, topic: &str, offsets: &[(i32, i64)]) {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let mut element = list.add_partition(topic, *partition);
            element.set_offset(Offset::Offset(*offset)).unwrap();
            element.set_metadata("noted");
        }
        consumer.commit(&list, CommitMode::Sync).unwrap();
    }

    #[test]
    #[ignore = "needs a broker: KEEPUP_TEST_BOOTSTRAP=host:port"]
    fn groups_of_both_protocols_are_listed_and_described_and_their_commits_are_read() {
        let unique = format!("{:016x}", fastrand::u64(..));
        let topic = format!("observed-{unique}");
        let mut admin = admin();
        let described = create(&mut admin, &[Arc::from(&*topic)]);
        let [shape] = &described[..] else {
            panic!("{described:?}")
        };
        let partitions = shape.partitions.len();
        assert!(shape.partitions.iter().all(|partition| {
            let leader = partition.leader.unwrap();
            partition.replicas == [leader.id] && leader.epoch >= 0
        }));

        let [classic, new, only_commits, nobody] = ["classic", "new", "only-commits", "nobody"]
            .map(|name| Arc::<str>::from(format!("{name}-{unique}")));
        let members = [
            joined(&classic, "classic", &topic, partitions),
            joined(&new, "consumer", &topic, partitions),
        ];
        for member in &members {
            commit(member, &topic, &[(0, 3), (1, 5)]);
        }
        commit(&consumer(&only_commits, &[]), &topic, &[(1, 9)]);

        let list = admin
            .list_groups(&ListGroupsRequest::default(), soon())
            .unwrap();
        assert_eq!(list.missing, BTreeMap::new());
        for (group, group_type, state) in [
            (&classic, "Classic", "Stable"),
            (&new, "Consumer", "Stable"),
            (&only_commits, "Classic", "Empty"),
        ] {
            let (_, listed) = &list.groups[group];
            let told = listed.group_type.as_deref();
            assert!(
                told.is_none_or(|told| told.eq_ignore_ascii_case(group_type)),
                "{listed:?}"
            );
            assert_eq!(&*listed.state, state);
        }
        assert!(!list.groups.contains_key(&nobody));
        let filter = ListGroupsRequest {
            types: vec!["consumer".to_owned()],
            ..ListGroupsRequest::default()
        };
        let of_the_new_protocol = admin.list_groups(&filter, soon()).unwrap().groups;
        assert!(of_the_new_protocol.contains_key(&new));
        assert!(!of_the_new_protocol.contains_key(&classic));

        let groups = [&classic, &new, &only_commits, &nobody].map(Arc::clone);
        let described = admin.describe_groups(&groups, soon());
        let every_partition: Vec<i32> = (0..i32::try_from(partitions).unwrap()).collect();
        for (group, is_new) in [(&classic, false), (&new, true)] {
            let description = described[group].as_ref().unwrap();
            assert_eq!(&*description.state, "Stable");
            assert_eq!(&*description.protocol_type, "consumer");
            assert_eq!(description.epochs.is_some(), is_new);
            let [member] = &description.members[..] else {
                panic!("{description:?}")
            };
            assert_eq!(&*member.client_id, "observed");
            assert_eq!(member.details.is_some(), is_new);
            let Assigned::Partitions(assigned) = &member.assigned else {
                panic!("{member:?}")
            };
            let [(name, numbers)] = &assigned[..] else {
                panic!("{assigned:?}")
            };
            let mut numbers = numbers.clone();
            numbers.sort_unstable();
            assert_eq!((&**name, &numbers), (&*topic, &every_partition));
        }
        let empty = described[&only_commits].as_ref().unwrap();
        assert_eq!((&*empty.state, empty.members.len()), ("Empty", 0));
        assert_eq!(described[&nobody], Err(AdminError::NoSuchGroup));

        let offsets = admin.group_offsets(&groups, soon());
        let committed = |group: &Arc<str>| {
            let mut found: Vec<(i32, i64)> = offsets[group]
                .as_ref()
                .unwrap()
                .iter()
                .map(|commit| {
                    assert_eq!((&*commit.topic, commit.error), (&*topic, 0));
                    assert_eq!(commit.metadata.as_deref(), Some("noted"));
                    (commit.partition, commit.offset)
                })
                .collect();
            found.sort_unstable();
            found
        };
        assert_eq!(committed(&classic), [(0, 3), (1, 5)]);
        assert_eq!(committed(&new), [(0, 3), (1, 5)]);
        assert_eq!(committed(&only_commits), [(1, 9)]);
        assert_eq!(committed(&nobody), []);
    }

    #[test]
    #[ignore = "needs a broker: KEEPUP_TEST_BOOTSTRAP=host:port"]
    fn all_topics_are_described_as_metadata_describes_them() {
        let mut admin = admin();
        let unique = format!("{:016x}", fastrand::u64(..));
        let topics = [0, 1, 2].map(|number| Arc::from(format!("paged-{unique}-{number}")));
        create(&mut admin, &topics);
        let wanted = |topics: Vec<DescribedTopic>| -> Vec<DescribedTopic> {
            let mut wanted: Vec<DescribedTopic> = topics
                .into_iter()
                .filter(|topic| topic.name.contains(&unique))
                .collect();
            wanted.sort_by(|a, b| a.name.cmp(&b.name));
            for topic in &mut wanted {
                for partition in &mut topic.partitions {
                    partition.eligible = None;
                }
                topic
                    .partitions
                    .sort_by_key(|partition| partition.partition);
            }
            wanted
        };
        let pages = wanted(admin.describe_topics(&[], soon()).unwrap());
        let metadata = wanted(admin.topics_by_metadata(&[], soon()).unwrap());
        assert_eq!(pages.len(), 3);
        assert_eq!(pages, metadata);
    }
}
