//! Which versions of which requests a broker speaks.

use bytes::Bytes;
use kafka_protocol::messages;

use super::{Api, Request, put_body, text};
use crate::kafka::frame::{WireError, checked};
use crate::kafka::shape::{Answer, Shape, Struct, Tagged, always, since};

static API: Struct = Struct {
    fields: &[
        always("api_key", Shape::Fixed(2)),
        always("min_version", Shape::Fixed(2)),
        always("max_version", Shape::Fixed(2)),
    ],
    tagged: &[],
};

static FEATURE: Struct = Struct {
    fields: &[
        always("feature name", Shape::String),
        always("feature versions", Shape::Fixed(4)),
    ],
    tagged: &[],
};

pub(super) static SHAPE: Answer = Answer {
    flexible: 3,
    body: Struct {
        fields: &[
            always("error_code", Shape::Fixed(2)),
            always("api_keys", Shape::Array(&Shape::Struct(&API))),
            since("throttle_time_ms", 1, Shape::Fixed(4)),
        ],
        tagged: &[
            Tagged {
                name: "supported_features",
                tag: 0,
                from: 3,
                shape: Shape::Array(&Shape::Struct(&FEATURE)),
            },
            Tagged {
                name: "finalized_features_epoch",
                tag: 1,
                from: 3,
                shape: Shape::Fixed(8),
            },
            Tagged {
                name: "finalized_features",
                tag: 2,
                from: 3,
                shape: Shape::Array(&Shape::Struct(&FEATURE)),
            },
            Tagged {
                name: "zk_migration_ready",
                tag: 3,
                from: 3,
                shape: Shape::Fixed(1),
            },
        ],
    },
};

/// Asks for the versions that a broker speaks; the first request on a
/// connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ApiVersionsRequest;

/// The versions of the requests of [`Api`] that a broker speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ApiVersions {
    /// Boxed: every connection has one, and some are moved about.
    ranges: Box<[Option<(i16, i16)>; Api::ALL.len()]>,
}

impl ApiVersions {
    /// The broker of `ranges`; what it does not name it does not speak.
    #[cfg(test)]
    pub(crate) fn new(ranges: &[(Api, i16, i16)]) -> Self {
        let mut versions = Self::default();
        for &(api, min, max) in ranges {
            versions.ranges[api as usize] = Some((min, max));
        }
        versions
    }

    /// Whether a run can do with this broker.
    ///
    /// # Errors
    ///
    /// [`WireError::NoCommonVersion`], of the first request that it cannot do
    /// without and the broker does not speak.
    pub(crate) fn check(&self) -> Result<(), WireError> {
        for api in Api::NEEDED {
            self.pick(api)?;
        }
        Ok(())
    }

    /// The highest version that both sides speak.
    ///
    /// # Errors
    ///
    /// [`WireError::NoCommonVersion`].
    pub(crate) fn pick(&self, api: Api) -> Result<i16, WireError> {
        self.pick_between(api, i16::MIN, i16::MAX)
    }

    /// The highest version from `lowest` on that both sides speak.
    ///
    /// # Errors
    ///
    /// [`WireError::NoCommonVersion`].
    pub(crate) fn pick_at_least(&self, api: Api, lowest: i16) -> Result<i16, WireError> {
        self.pick_between(api, lowest, i16::MAX)
    }

    /// The highest version up to `limit` that both sides speak: Fetch above 12
    /// names topics by id, which one may not know.
    ///
    /// # Errors
    ///
    /// [`WireError::NoCommonVersion`].
    pub(crate) fn pick_at_most(&self, api: Api, limit: i16) -> Result<i16, WireError> {
        self.pick_between(api, i16::MIN, limit)
    }

    fn pick_between(&self, api: Api, lowest: i16, limit: i16) -> Result<i16, WireError> {
        let (our_min, our_max) = api.ours();
        let our_min = our_min.max(lowest);
        let theirs = self.ranges[api as usize];
        theirs
            .map(|(min, max)| (min.max(our_min), max.min(our_max).min(limit)))
            .filter(|(min, max)| min <= max)
            .map(|(_, max)| max)
            .ok_or(WireError::NoCommonVersion {
                api,
                ours: (our_min, our_max.min(limit)),
                theirs,
            })
    }
}

impl Request for ApiVersionsRequest {
    const API: Api = Api::ApiVersions;
    type Answer = ApiVersions;

    fn put(&self, version: i16, out: &mut Vec<u8>) -> Result<(), String> {
        let mut request = messages::ApiVersionsRequest::default();
        if version >= 3 {
            request.client_software_name = text("keepup");
            request.client_software_version = text(env!("CARGO_PKG_VERSION"));
        }
        put_body(&request, version, out)
    }

    fn take(body: Bytes, version: i16) -> Result<ApiVersions, WireError> {
        let answer: messages::ApiVersionsResponse = checked(body, &SHAPE, Self::API, version)?;
        let mut versions = ApiVersions::default();
        for range in &answer.api_keys {
            if let Some(api) = Api::ALL.into_iter().find(|api| api.key() == range.api_key) {
                versions.ranges[api as usize] = Some((range.min_version, range.max_version));
            }
        }
        Ok(versions)
    }
}
