//! Which librdkafka this was built with.

use rdkafka::config::ClientConfig;

/// Its version, as `2.12.1`.
pub(crate) fn librdkafka() -> String {
    rdkafka::util::get_rdkafka_version().1
}

/// What it can do, as it says itself: compressions, `ssl`, SASL mechanisms.
/// Empty where it does not tell.
pub(crate) fn librdkafka_features() -> Vec<String> {
    ClientConfig::new()
        .create_native_config()
        .and_then(|config| config.get("builtin.features"))
        .map(|features| {
            let mut names: Vec<String> = features
                .trim_matches(char::from(0))
                .split(',')
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect();
            names.sort();
            names
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_tells_its_version_and_its_compressions() {
        assert!(librdkafka().starts_with("2."), "{}", librdkafka());
        let features = librdkafka_features();
        for compression in ["gzip", "lz4", "snappy"] {
            assert!(
                features.iter().any(|name| name == compression),
                "{features:?}"
            );
        }
    }
}
