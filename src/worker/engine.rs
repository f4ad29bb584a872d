//! stub
use crate::handler::{BatchHandler, Handler, WorkerInfo};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    pub(crate) max_records: usize,
    pub(crate) max_wait: Duration,
}
pub(crate) struct EngineFactory {}
impl EngineFactory {
    pub(crate) fn per_record<H: Handler + 'static>(
        _f: impl Fn(WorkerInfo) -> H + Send + Sync + 'static,
    ) -> Self {
        Self {}
    }
    pub(crate) fn per_batch<H: BatchHandler + 'static>(
        _l: BatchLimits,
        _f: impl Fn(WorkerInfo) -> H + Send + Sync + 'static,
    ) -> Self {
        Self {}
    }
}
