import com.sun.management.OperatingSystemMXBean;
import java.io.IOException;
import java.io.PrintWriter;
import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.lang.management.ManagementFactory;
import java.nio.ByteOrder;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.consumer.ConsumerRecord;
import org.apache.kafka.clients.consumer.KafkaConsumer;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/**
 * Consumer throughput|latency BOOTSTRAP TOPIC RECORDS THREADS AUTHORITY|- FILE|-: Kafka's own consumer, one per thread,
 * each with its part of the topic's 8 partitions.
 *
 * throughput: as fast as it can, with up to 5,000 records per poll. Prints the line that all clients print.
 *
 * latency: with the client's default settings. Prints "ready", notes of each record its number (the first eight bytes)
 * and when it was there (CLOCK_MONOTONIC, in nanoseconds), and writes that to FILE at the end.
 */
public final class Consumer {
    private static final int PARTITIONS = 8;
    private static final VarHandle LONG =
            MethodHandles.byteArrayViewVarHandle(long[].class, ByteOrder.LITTLE_ENDIAN);
    private static final long STARTED = System.nanoTime();

    private static long first;
    private static long firstCpu;
    private static int ready;

    public static void main(String[] arguments) throws Exception {
        boolean isLatency = arguments[0].equals("latency");
        long records = Long.parseLong(arguments[3]);
        int threads = Integer.parseInt(arguments[4]);
        List<Part> parts = new ArrayList<>();
        for (int number = 0; number < threads; number++) {
            parts.add(isLatency ? new Latency(arguments, number, threads) : new Throughput(arguments, number, threads));
        }
        List<Thread> running = new ArrayList<>();
        for (Part part : parts) {
            Thread thread = new Thread(part);
            thread.start();
            running.add(thread);
        }
        for (Thread thread : running) {
            thread.join();
        }
        if (isLatency) {
            write(parts, Path.of(arguments[6]));
        } else {
            printLine(parts, threads);
        }
        for (Part part : parts) {
            part.consumer.close();
        }
    }

    /** One consumer with its part of the partitions. */
    private abstract static class Part implements Runnable {
        final KafkaConsumer<byte[], byte[]> consumer;
        final List<TopicPartition> mine = new ArrayList<>();
        final long share;
        long records;

        Part(String[] arguments, int number, int threads, Properties properties) {
            properties.put(ConsumerConfig.BOOTSTRAP_SERVERS_CONFIG, arguments[1]);
            properties.put(ConsumerConfig.GROUP_ID_CONFIG, "bench-java-" + ProcessHandle.current().pid());
            properties.put(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG, "earliest");
            properties.put(ConsumerConfig.KEY_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
            properties.put(ConsumerConfig.VALUE_DESERIALIZER_CLASS_CONFIG, ByteArrayDeserializer.class);
            if (!arguments[5].equals("-")) {
                properties.put("security.protocol", "SSL");
                properties.put("ssl.truststore.type", "PEM");
                properties.put("ssl.truststore.location", arguments[5]);
            }
            for (int partition = number; partition < PARTITIONS; partition += threads) {
                mine.add(new TopicPartition(arguments[2], partition));
            }
            // The records are spread evenly over the partitions.
            share = mine.size() * Long.parseLong(arguments[3]) / PARTITIONS;
            consumer = new KafkaConsumer<>(properties);
        }
    }

    private static final class Throughput extends Part {
        long bytes;
        long xor;

        Throughput(String[] arguments, int number, int threads) {
            super(arguments, number, threads, tuned());
        }

        private static Properties tuned() {
            Properties properties = new Properties();
            properties.put(ConsumerConfig.MAX_POLL_RECORDS_CONFIG, "5000");
            return properties;
        }

        @Override
        public void run() {
            consumer.assign(mine);
            while (records < share) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    if (records == 0) {
                        begin();
                    }
                    records += 1;
                    byte[] value = record.value();
                    bytes += value.length;
                    if (value.length >= 8) {
                        xor ^= (long) LONG.get(value, 0);
                    }
                }
            }
        }
    }

    private static final class Latency extends Part {
        final long[] numbers;
        final long[] moments;

        Latency(String[] arguments, int number, int threads) {
            super(arguments, number, threads, new Properties());
            numbers = new long[(int) share];
            moments = new long[(int) share];
        }

        @Override
        public void run() {
            consumer.assign(mine);
            for (TopicPartition partition : mine) {
                consumer.position(partition);
            }
            tellReady(mine.size());
            while (records < share) {
                for (ConsumerRecord<byte[], byte[]> record : consumer.poll(Duration.ofSeconds(1))) {
                    int index = (int) records;
                    moments[index] = System.nanoTime();
                    numbers[index] = (long) LONG.get(record.value(), 0);
                    records += 1;
                }
            }
        }
    }

    private static synchronized void begin() {
        if (first == 0) {
            first = System.nanoTime();
            firstCpu = cpu();
        }
    }

    private static synchronized void tellReady(int partitions) {
        ready += partitions;
        if (ready == PARTITIONS) {
            System.out.println("ready");
        }
    }

    /** User and system time of this process in nanoseconds. */
    private static long cpu() {
        return ((OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean()).getProcessCpuTime();
    }

    private static void printLine(List<Part> parts, int threads) throws IOException {
        long end = System.nanoTime();
        long cpu = cpu() - firstCpu;
        long records = 0;
        long sum = 0;
        for (Part part : parts) {
            records += part.records;
            sum ^= ((Throughput) part).bytes ^ ((Throughput) part).xor;
        }
        if (sum == 42) {
            System.err.println("one in 2^64: what was added up is used");
        }
        double seconds = (end - first) / 1e9;
        System.out.printf(
                "{\"peer\":\"java\",\"records\":%d,\"seconds\":%.4f,\"start_s\":%.4f,\"records_per_s\":%.0f,"
                        + "\"cpu_run_s\":%.4f,\"cpu_ns_per_record\":%.1f,\"peak_rss_mib\":%.1f,\"workers\":%d}%n",
                records, seconds, (first - STARTED) / 1e9, records / seconds,
                cpu / 1e9, (double) cpu / records, peakMib(), threads);
    }

    private static double peakMib() throws IOException {
        for (String line : Files.readAllLines(Path.of("/proc/self/status"))) {
            if (line.startsWith("VmHWM:")) {
                return Double.parseDouble(line.replaceAll("[^0-9]", "")) / 1024;
            }
        }
        throw new IOException("no VmHWM in /proc/self/status");
    }

    private static void write(List<Part> parts, Path file) throws IOException {
        try (PrintWriter writer = new PrintWriter(Files.newBufferedWriter(file))) {
            for (Part part : parts) {
                Latency latency = (Latency) part;
                for (int index = 0; index < latency.records; index++) {
                    writer.println(latency.numbers[index] + " " + latency.moments[index]);
                }
            }
        }
    }
}
