import java.nio.charset.StandardCharsets;
import java.time.Duration;
import java.util.HexFormat;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Reader --bootstrap-server HOST:PORT ISOLATION_LEVEL TOPIC…: a plain consumer without a group, that reads topics from
 * their beginnings to the ends that the isolation level shows, and prints each record as a line of JSON:
 *
 *   {"topic":"orders","partition":0,"offset":7,"timestamp":-1,"timestamp_type":"NoTimestampType","key":"6b6579",
 *    "value":null,"headers":[{"name":"6e616d65","value":""}]}
 *
 * Bytes are hexadecimal, and null is null. A header's name is what Java makes of it, as UTF-8. After the records of all
 * partitions comes a line {"done":N}.
 */
public final class Reader {
    private static final HexFormat HEX = HexFormat.of();

    /** Longer than any pause of a broker that is busy; without an end the tests would wait for their own. */
    private static final long PATIENCE_NANOS = 60_000_000_000L;

    public static void main(String[] arguments) {
        Properties properties = new Properties();
        properties.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[1]);
        properties.put(ConsumerConfig.ISOLATION_LEVEL_CONFIG, arguments[2]);
        properties.put(ConsumerConfig.ENABLE_AUTO_COMMIT_CONFIG, "false");
        properties.put(ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        properties.put(ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
        List<String> topics = List.of(arguments).subList(3, arguments.length);
        try (KafkaConsumer<byte[], byte[]> consumer = new KafkaConsumer<>(properties)) {
            List<TopicPartition> partitions = topics.stream()
                    .flatMap(topic -> consumer.partitionsFor(topic).stream())
                    .map(info -> new TopicPartition(info.topic(), info.partition()))
                    .toList();
            consumer.assign(partitions);
            consumer.seekToBeginning(partitions);
            Map<TopicPartition, Long> ends = consumer.endOffsets(partitions);
            long start = System.nanoTime();
            long printed = 0;
            while (partitions.stream().anyMatch(partition -> consumer.position(partition) < ends.get(partition))) {
                if (System.nanoTime() - start > PATIENCE_NANOS) {
                    throw new IllegalStateException("not at the end: " + ends);
                }
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofMillis(100))) {
                    System.out.println(line(record));
                    printed += 1;
                }
            }
            System.out.println("{\"done\":" + printed + "}");
            System.out.flush();
        }
    }

    private static String line(ConsumerRecord<byte[], byte[]> record) {
        StringBuilder line = new StringBuilder();
        line.append("{\"topic\":\"").append(record.topic());
        line.append("\",\"partition\":").append(record.partition());
        line.append(",\"offset\":").append(record.offset());
        line.append(",\"timestamp\":").append(record.timestamp());
        line.append(",\"timestamp_type\":\"").append(record.timestampType());
        line.append("\",\"key\":").append(bytes(record.key()));
        line.append(",\"value\":").append(bytes(record.value()));
        line.append(",\"headers\":[");
        String separator = "";
        for (Header header : record.headers()) {
            line.append(separator).append("{\"name\":");
            line.append(bytes(header.key().getBytes(StandardCharsets.UTF_8)));
            line.append(",\"value\":").append(bytes(header.value())).append('}');
            separator = ",";
        }
        return line.append("]}").toString();
    }

    private static String bytes(byte[] bytes) {
        return bytes == null ? "null" : '"' + HEX.formatHex(bytes) + '"';
    }
}
