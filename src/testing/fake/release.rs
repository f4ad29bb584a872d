//! What the brokers of a release speak.
//!
//! Taken from the `ApiKeys` of each release's own `kafka-clients` library, for
//! the requests that the fake brokers serve.

/// A release of Apache Kafka, as far as its brokers tell theirs apart: by the
/// versions of the requests that they announce.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Release {
    /// 0.10.2: older than what keepup speaks with.
    V0_10_2,
    /// 2.8: no topic ids when records are fetched.
    V2_8,
    /// 3.0.
    V3_0,
    /// 3.3: the first that fetches by topic id.
    V3_3,
    /// 3.6.
    V3_6,
    /// 3.9: the last with the old minimums.
    V3_9,
    /// 4.0: nothing from before Kafka 2.1 is understood any more.
    V4_0,
    /// 4.3.
    #[default]
    V4_3,
}

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Request {
    /// Records of partitions.
    Fetch,
    /// Where partitions begin and end.
    ListOffsets,
    /// Which brokers, topics and leaders there are.
    Metadata,
    /// A group tells how far it is.
    OffsetCommit,
    /// How far a group is.
    OffsetFetch,
    /// Who keeps a group's commits.
    FindCoordinator,
    /// Which versions of which requests the broker speaks.
    ApiVersions,
    /// Where a leader epoch ends.
    OffsetForLeaderEpoch,
}

/// First and last version that a broker speaks, by request and release; `None`
/// where it does not know the request.
type Ranges = [Option<(i16, i16)>; 8];

impl Request {
    /// All that the fake brokers serve.
    pub const ALL: [Self; 8] = [
        Self::Fetch,
        Self::ListOffsets,
        Self::Metadata,
        Self::OffsetCommit,
        Self::OffsetFetch,
        Self::FindCoordinator,
        Self::ApiVersions,
        Self::OffsetForLeaderEpoch,
    ];

    /// Kafka's number of it.
    pub(crate) fn key(self) -> i16 {
        match self {
            Self::Fetch => 1,
            Self::ListOffsets => 2,
            Self::Metadata => 3,
            Self::OffsetCommit => 8,
            Self::OffsetFetch => 9,
            Self::FindCoordinator => 10,
            Self::ApiVersions => 18,
            Self::OffsetForLeaderEpoch => 23,
        }
    }

    /// In the order of [`Release`].
    #[rustfmt::skip]
    fn ranges(self) -> Ranges {
        match self {
            Self::Fetch => [Some((0, 3)), Some((0, 12)), Some((0, 12)), Some((0, 13)), Some((0, 15)), Some((0, 17)), Some((4, 17)), Some((4, 18))],
            Self::ListOffsets => [Some((0, 1)), Some((0, 6)), Some((0, 7)), Some((0, 7)), Some((0, 8)), Some((0, 9)), Some((1, 10)), Some((1, 11))],
            Self::Metadata => [Some((0, 2)), Some((0, 11)), Some((0, 11)), Some((0, 12)), Some((0, 12)), Some((0, 12)), Some((0, 13)), Some((0, 13))],
            Self::OffsetCommit => [Some((0, 2)), Some((0, 8)), Some((0, 8)), Some((0, 8)), Some((0, 8)), Some((0, 9)), Some((2, 9)), Some((2, 10))],
            Self::OffsetFetch => [Some((0, 2)), Some((0, 7)), Some((0, 8)), Some((0, 8)), Some((0, 8)), Some((0, 9)), Some((1, 9)), Some((1, 10))],
            Self::FindCoordinator => [Some((0, 0)), Some((0, 3)), Some((0, 4)), Some((0, 4)), Some((0, 4)), Some((0, 6)), Some((0, 6)), Some((0, 6))],
            Self::ApiVersions => [Some((0, 0)), Some((0, 3)), Some((0, 3)), Some((0, 3)), Some((0, 3)), Some((0, 4)), Some((0, 4)), Some((0, 4))],
            Self::OffsetForLeaderEpoch => [None, Some((0, 4)), Some((0, 4)), Some((0, 4)), Some((0, 4)), Some((0, 4)), Some((2, 4)), Some((2, 4))],
        }
    }
}

impl Release {
    /// All of them, the oldest first.
    pub const ALL: [Self; 8] = [
        Self::V0_10_2,
        Self::V2_8,
        Self::V3_0,
        Self::V3_3,
        Self::V3_6,
        Self::V3_9,
        Self::V4_0,
        Self::V4_3,
    ];

    /// The first and the last version of a request that its brokers speak;
    /// `None` where they do not know the request.
    pub fn versions(self, of: Request) -> Option<(i16, i16)> {
        of.ranges().get(self as usize).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_release_speaks_no_older_last_version() {
        for request in Request::ALL {
            let last: Vec<_> = Release::ALL
                .into_iter()
                .filter_map(|release| release.versions(request))
                .map(|(first, last)| {
                    assert!(first <= last, "{request:?}");
                    last
                })
                .collect();
            assert!(last.is_sorted(), "{request:?}: {last:?}");
        }
        assert_eq!(Release::default(), Release::ALL[7]);
    }
}
