//! All that groups have committed, with what was noted beside the offsets.
//!
//! The same request as in [`super::committed`], asked for another reason. There
//! a consumer wants to know where to begin, for partitions that it names, and
//! must not read an offset that an open transaction is about to move. Here
//! somebody looks at other groups from outside, wants whatever there is, and
//! wants it now.
//!
//! Versions from 10 on name topics by id. They are not spoken: what is looked
//! at from outside includes topics that were deleted, which have a name and no
//! id any more.

use std::sync::Arc;

use bytes::Bytes;
use kafka_protocol::messages::{self, GroupId};

use super::committed::SHAPE;
use super::{Api, Request, put_body, shared, text};
use crate::kafka::frame::{WireError, checked};

/// Asks a coordinator for every commit of groups.
#[derive(Clone, Debug)]
pub(crate) struct GroupOffsetsRequest {
    /// One at a time for brokers before 3.0.
    pub(crate) groups: Vec<Arc<str>>,
}

/// What a coordinator answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupOffsetsAnswer {
    pub(crate) groups: Vec<GroupOffsets>,
}

/// The commits of one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupOffsets {
    /// None where the version does not repeat it: then one group was asked for.
    pub(crate) group: Option<Arc<str>>,
    /// 0 for none. While there is one, nothing is known of the group.
    pub(crate) error: i16,
    pub(crate) offsets: Vec<GroupOffset>,
}

/// A commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupOffset {
    pub(crate) topic: Arc<str>,
    pub(crate) partition: i32,
    /// 0 for none. Only without an error does the offset say anything.
    pub(crate) error: i16,
    /// -1 where there is none.
    pub(crate) offset: i64,
    /// Of the record before the offset; -1 where the consumer did not tell.
    pub(crate) leader_epoch: i32,
    /// What the consumer noted, mostly nothing.
    pub(crate) metadata: Option<Arc<str>>,
}

impl GroupOffsetsRequest {
    /// The first version that can be asked for several groups.
    const SEVERAL_FROM: i16 = 8;
}

impl Request for GroupOffsetsRequest {
    const API: Api = Api::OffsetFetch;
    type Answer = GroupOffsetsAnswer;

    /// All topics of a group can be asked for from version 2 on.
    fn lowest_version(&self) -> i16 {
        if self.groups.len() == 1 {
            2
        } else {
            Self::SEVERAL_FROM
        }
    }

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let mut request = messages::OffsetFetchRequest::default();
        if version >= Self::SEVERAL_FROM {
            request.groups = self
                .groups
                .iter()
                .map(|name| {
                    messages::offset_fetch_request::OffsetFetchRequestGroup::default()
                        .with_group_id(GroupId(text(name)))
                        .with_topics(None)
                })
                .collect();
        } else {
            let [group] = &self.groups[..] else {
                return Err("below version 8 it is for one group".to_owned());
            };
            if version < 2 {
                return Err("all topics can be asked for from version 2 on".to_owned());
            }
            request.group_id = GroupId(text(group));
            request.topics = None;
        }
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<GroupOffsetsAnswer, WireError> {
        let answer: messages::OffsetFetchResponse = checked(body, &SHAPE, Self::API, version)?;
        if version >= Self::SEVERAL_FROM {
            let groups = answer.groups.into_iter().map(|group| GroupOffsets {
                group: Some(shared(&group.group_id)),
                error: group.error_code,
                offsets: group
                    .topics
                    .into_iter()
                    .flat_map(|topic| {
                        let name = shared(&topic.name);
                        topic
                            .partitions
                            .into_iter()
                            .map(move |partition| GroupOffset {
                                topic: Arc::clone(&name),
                                partition: partition.partition_index,
                                error: partition.error_code,
                                offset: partition.committed_offset,
                                leader_epoch: partition.committed_leader_epoch,
                                metadata: partition.metadata.as_ref().map(shared),
                            })
                    })
                    .collect(),
            });
            return Ok(GroupOffsetsAnswer {
                groups: groups.collect(),
            });
        }
        let offsets = answer.topics.into_iter().flat_map(|topic| {
            let name = shared(&topic.name);
            topic
                .partitions
                .into_iter()
                .map(move |partition| GroupOffset {
                    topic: Arc::clone(&name),
                    partition: partition.partition_index,
                    error: partition.error_code,
                    offset: partition.committed_offset,
                    leader_epoch: partition.committed_leader_epoch,
                    metadata: partition.metadata.as_ref().map(shared),
                })
        });
        Ok(GroupOffsetsAnswer {
            groups: vec![GroupOffsets {
                group: None,
                error: answer.error_code,
                offsets: offsets.collect(),
            }],
        })
    }
}
