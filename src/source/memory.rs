//! placeholder until the memory source lands
