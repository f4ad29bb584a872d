//! What this build is made of: a report of a problem begins with it.

use std::fmt;

use crate::kafka::version;

/// Versions, and what was built in.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BuildInfo {
    /// This crate's version.
    pub version: &'static str,
    /// The features that this crate was built with.
    pub features: Vec<&'static str>,
    /// librdkafka's version.
    pub librdkafka: String,
    /// What librdkafka was built with, as it says itself.
    pub librdkafka_features: Vec<String>,
}

/// What this build is made of.
///
/// ```
/// println!("{}", keepup::build_info());
/// ```
pub fn build_info() -> BuildInfo {
    let features = [
        (cfg!(feature = "testing"), "testing"),
        (cfg!(feature = "zstd"), "zstd"),
    ];
    BuildInfo {
        version: env!("CARGO_PKG_VERSION"),
        features: features
            .into_iter()
            .filter_map(|(built_in, name)| built_in.then_some(name))
            .collect(),
        librdkafka: version::librdkafka(),
        librdkafka_features: version::librdkafka_features(),
    }
}

impl fmt::Display for BuildInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.version)?;
        writeln!(f, "features: {}", self.features.join(", "))?;
        write!(
            f,
            "librdkafka {}: {}",
            self.librdkafka,
            self.librdkafka_features.join(", ")
        )
    }
}
