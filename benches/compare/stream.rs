//! The stream that rdkafka's documentation recommends: a `StreamConsumer` per
//! thread, on a runtime of its own that never leaves the thread.

use std::sync::Arc;

use rdkafka::Message;
use rdkafka::consumer::{Consumer, StreamConsumer};
use tokio::runtime;

use crate::clients::Task;
use crate::measure::{Measured, Sum};
use crate::plain;

pub(crate) fn run(task: &Task) {
    let measured = Arc::new(Measured::new());
    let threads: Vec<_> = (0..task.threads)
        .map(|number| {
            let (config, mine, share) = plain::part(task, number);
            let measured = Arc::clone(&measured);
            let body = move || {
                let runtime = runtime::Builder::new_current_thread()
                    .enable_time()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    let consumer: StreamConsumer = config.create().expect("a consumer");
                    consumer.assign(&mine).expect("an assignment");
                    let mut sum = Sum::default();
                    while sum.records < share {
                        match consumer.recv().await {
                            Ok(message) => {
                                if sum.records == 0 {
                                    measured.begin();
                                }
                                sum.add(message.payload().unwrap_or_default());
                            }
                            Err(error) => panic!("{error}"),
                        }
                    }
                    (sum, consumer)
                })
            };
            std::thread::Builder::new().spawn(body).expect("a thread")
        })
        .collect();
    let (sums, consumers): (Vec<Sum>, Vec<StreamConsumer>) = threads
        .into_iter()
        .map(|thread| thread.join().expect("a client ends"))
        .unzip();
    measured.print("stream", task.threads, &sums);
    drop(consumers);
}
