//! placeholder until the fetch source lands
