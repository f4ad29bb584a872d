import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.Metric;
import org.apache.kafka.common.MetricName;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * LagWitness --bootstrap-server HOST:PORT GROUP TOPIC PARTITIONS RECORDS MICROS: a plain consumer that reads RECORDS
 * records at a pace of one per MICROS microseconds, and prints what its own metrics say of its lag, as JSON lines:
 *
 *   {"elapsed_ms":1000,"done":false,"partitions":[{"partition":0,"lag":1750.0,"max":1950.0,"avg":1850.0},…]}
 *
 * every 500 ms since its first record, and at the end. What the client does not know is null.
 */
public final class LagWitness {
    private static final long PRINT_EVERY_NANOS = 500_000_000L;

    public static void main(String[] arguments) {
        String bootstrap = arguments[1];
        String group = arguments[2];
        String topic = arguments[3];
        int partitions = Integer.parseInt(arguments[4]);
        long records = Long.parseLong(arguments[5]);
        long pace = Long.parseLong(arguments[6]) * 1_000L;
        Properties properties = new Properties();
        properties.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        properties.put(ConsumerConfig.GROUP_ID_CONFIG, group);
        properties.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
        properties.put(ConsumerConfig.ISOLATION_LEVEL_CONFIG, "read_committed");
        // Small steps, and the partitions in turns rather than one after the other.
        properties.put(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, "50");
        properties.put(ConsumerConfig.MAX_PARTITION_FETCH_BYTES_CONFIG, "4096");
        properties.put(ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        properties.put(ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties)) {
            consumer.subscribe(List.of(topic));
            long handled = 0;
            long start = 0;
            long printed = 0;
            while (handled < records) {
                for (var ignored : consumer.poll(Duration.ofMillis(100))) {
                    long now = System.nanoTime();
                    if (handled == 0) {
                        start = now;
                        printed = now;
                    }
                    if (now - printed >= PRINT_EVERY_NANOS) {
                        printed = now;
                        print(consumer, topic, partitions, now - start, false);
                    }
                    handled += 1;
                    waitUntil(start + handled * pace);
                }
            }
            print(consumer, topic, partitions, System.nanoTime() - start, true);
        }
    }

    private static void waitUntil(long nanos) {
        long left = nanos - System.nanoTime();
        while (left > 0) {
            java.util.concurrent.locks.LockSupport.parkNanos(left);
            left = nanos - System.nanoTime();
        }
    }

    private static void print(KafkaConsumer<?, ?> consumer, String topic, int partitions, long nanos, boolean done) {
        Map<MetricName, ? extends Metric> metrics = consumer.metrics();
        StringBuilder line = new StringBuilder();
        line.append("{\"elapsed_ms\":").append(nanos / 1_000_000L).append(",\"done\":").append(done);
        line.append(",\"partitions\":[");
        for (int partition = 0; partition < partitions; partition++) {
            line.append(partition == 0 ? "" : ",").append("{\"partition\":").append(partition);
            line.append(",\"lag\":").append(value(metrics, "records-lag", topic, partition));
            line.append(",\"max\":").append(value(metrics, "records-lag-max", topic, partition));
            line.append(",\"avg\":").append(value(metrics, "records-lag-avg", topic, partition)).append('}');
        }
        System.out.println(line.append("]}"));
        System.out.flush();
    }

    private static String value(Map<MetricName, ? extends Metric> metrics, String name, String topic, int partition) {
        for (var entry : metrics.entrySet()) {
            Map<String, String> tags = entry.getKey().tags();
            if (entry.getKey().name().equals(name)
                    && topic.equals(tags.get("topic"))
                    && String.valueOf(partition).equals(tags.get("partition"))) {
                double value = ((Number) entry.getValue().metricValue()).doubleValue();
                return Double.isNaN(value) || Double.isInfinite(value) ? "null" : String.valueOf(value);
            }
        }
        return "null";
    }
}
