//! How what is known gets out: metrics, and HTTP.
//!
//! Everything here shows one [`LagSnapshot`](crate::LagSnapshot) and nothing
//! else, so that `/metrics`, `/lag`, the page and a program's own recorder can
//! never disagree, and none of them waits for Kafka or for a worker.
//!
//! | file | what it is for |
//! |---|---|
//! | `names` | every metric: name, kind, unit, labels, meaning; `docs/metrics.md` is made from it |
//! | `values` | which value of a snapshot each metric shows |
//! | `exposition` | a snapshot as Prometheus text |
//! | `facade` | a snapshot to the recorder that the program installed for the `metrics` crate |
//! | `recorder` | a recorder of our own, for the metrics of a program that has none |
//! | `json` | a snapshot as the document of `/lag` |
//! | `http` | the endpoints (feature `http`) |
//! | `systemd` | ready, alive and stopping, where systemd wants to know |

pub(crate) mod exposition;
pub(crate) mod facade;
#[cfg(test)]
pub(crate) mod fixture;
#[cfg(feature = "http")]
pub(crate) mod http;
#[cfg(feature = "http")]
mod json;
pub(crate) mod names;
#[cfg(feature = "http")]
pub(crate) mod recorder;
pub(crate) mod systemd;
mod values;
