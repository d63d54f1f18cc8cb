"""What brings an outbox to Kafka: outflow's relay, and Debezium as a connector in Kafka Connect.

Each is a class with the same face: prepare makes what has to be there before
anything is committed, start starts it, topic is where its records are.
"""

import json
import os
import signal
import tempfile

from stand import BROKER, CACHE, OUTFLOW, Process, drop_topics, free_port, http, make_topic

# The events of the backlog, as outflow's relay would put them on Kafka; i is
# the number of the event, k of its customer. Both sides get the same bytes.
STATE = """
    customer := '01938f00-0000-7000-8000-' || lpad(to_hex(k), 12, '0');
    state := ',"name":"Ada Lovelace ' || k || '","email":"ada' || k || '@example.com","phone":"+44 20 7946 0018","address":{"line1":"12 St James''s Square",'
        || '"city":"London","postal_code":"SW1Y 4JH","country":"GB"},"status":"active"}';
    before := CASE WHEN v > 1 THEN '{"id":"' || customer || '","version":' || v - 1 || state END;
    after := '{"id":"' || customer || '","version":' || v || state;
    event := ('01938f01-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid;
    kind := CASE WHEN v = 1 THEN 'customer.created.v1' ELSE 'customer.updated.v1' END;
"""

EVENT = """
CREATE PROCEDURE write_event(i int, k int, v int) LANGUAGE plpgsql AS $$
DECLARE customer text; state text; before text; after text; event uuid; kind text;
BEGIN {state}{insert}; END $$"""

# Customer k has the events k, k + customers, k + 2 * customers and so on. They
# come from one writer, so they are committed in order.
BACKLOG = """
CREATE PROCEDURE write_backlog(writer int, writers int, events int, customers int) LANGUAGE plpgsql AS $$
DECLARE i int := writer;
BEGIN
    WHILE i < events LOOP
        CALL write_event(i, i % customers, i / customers + 1);
        COMMIT;
        i := i + writers;
    END LOOP;
END $$"""


class Outflow:
    """The production binary's relay, as it comes."""

    insert = """
    INSERT INTO outbox (event_id, aggregate_type, aggregate_id, aggregate_version, type, key, before, after, metadata, occurred_at)
    VALUES (event, 'customer', customer::uuid, v, kind, customer, before::json, after::json, '{"actor":"bench"}', clock_timestamp())"""

    def __init__(self, postgres, database, streaming=False):
        self.postgres, self.database = postgres, database
        self.namespace = f"of-{database}"
        self.topic = f"{self.namespace}.customer.v1"
        self.streaming = streaming  # with a backlog too, which it would publish by windows
        self.process = self.health = self.held = None

    def prepare(self):
        self.postgres.run(self.database, EVENT.format(state=STATE, insert=self.insert), BACKLOG)
        make_topic(self.topic)
        # A relay that has run before has a slot, and falls behind when it is down.
        self.start()
        self.running()
        if not self.streaming:
            self.process.stop()
            return
        self.held = self.postgres.query(self.database, "SELECT active_pid FROM pg_replication_slots WHERE database = current_database() AND active")
        os.kill(self.held, signal.SIGSTOP)  # PostgreSQL's process that decodes

    def start(self):
        if self.held:
            os.kill(self.held, signal.SIGCONT)
            self.held = None
            return
        self.health = f"127.0.0.1:{free_port()}"
        self.process = Process("outflow relay", [OUTFLOW, "relay"], {
            "OUTFLOW_POSTGRES_URL": self.postgres.url(self.database), "OUTFLOW_KAFKA_BROKERS": BROKER, "OUTFLOW_KAFKA_NAMESPACE": self.namespace,
            "OUTFLOW_HEALTH_LISTEN": self.health, "OUTFLOW_LOG_LEVEL": "warn"})
        self.process.ready(lambda: self.status().get("active"), every=0.02)

    def status(self):
        return json.loads(http(f"http://{self.health}/status/relay") or b"{}")

    def running(self):
        self.process.ready(lambda: self.status().get("state") == "streaming", every=0.02)

    def check(self):
        status = self.status()
        if status["failures"] or status["heals"] or status["source"] != "wal":
            raise RuntimeError(f"the relay was interrupted: {status}")

    def stop(self):
        if self.held:
            os.kill(self.held, signal.SIGCONT)
            self.held = None
        if self.process:
            self.process.stop()

    def close(self):
        self.stop()
        drop_topics(self.namespace)


# What Debezium's and Kafka's documents name for throughput and latency.
TUNED = {"max.batch.size": "16384", "max.queue.size": "65536", "poll.interval.ms": "5",
         "producer.override.linger.ms": "5", "producer.override.compression.type": "lz4"}


class Connect:
    """Debezium's outbox event router in a distributed Kafka Connect of one worker."""

    # The columns that Debezium's documents give an outbox, with the value that outflow would publish.
    table = """
CREATE TABLE dbz_outbox (id uuid PRIMARY KEY, aggregatetype varchar(255) NOT NULL, aggregateid varchar(255) NOT NULL, type varchar(255) NOT NULL, payload json)"""
    insert = """
    INSERT INTO dbz_outbox (id, aggregatetype, aggregateid, type, payload) VALUES (event, 'customer', customer, kind,
        ('{"version":' || v || ',"before":' || coalesce(before, 'null') || ',"after":' || after || ',"metadata":{"actor":"bench"}}')::json)"""

    def __init__(self, postgres, database, tuning=None, exactly_once=True):
        self.postgres, self.database, self.tuning, self.exactly_once = postgres, database, tuning or {}, exactly_once
        self.name = f"dbz-{database}"
        self.topic = f"{self.name}.customer"
        self.slot = f"{database}_debezium"
        self.process = self.rest = self.properties = None

    def prepare(self):
        self.postgres.run(
            self.database, self.table, EVENT.format(state=STATE, insert=self.insert), BACKLOG,
            f"CREATE PUBLICATION {self.slot} FOR TABLE dbz_outbox WITH (publish = 'insert')",
            f"SELECT pg_create_logical_replication_slot('{self.slot}', 'pgoutput')")
        make_topic(self.topic)

    def start(self):
        self.rest = f"http://127.0.0.1:{free_port()}"
        worker = {
            "bootstrap.servers": BROKER, "group.id": self.name, "listeners": self.rest, "plugin.path": str(CACHE / "plugins"),
            "key.converter": "org.apache.kafka.connect.storage.StringConverter", "value.converter": "org.apache.kafka.connect.storage.StringConverter",
            "exactly.once.source.support": "enabled" if self.exactly_once else "disabled",
        }
        for kind in ("config", "offset", "status"):
            worker |= {f"{kind}.storage.topic": f"{self.name}.{kind}", f"{kind}.storage.replication.factor": "1"}
        self.properties = tempfile.NamedTemporaryFile("w", suffix=".properties")  # gone when it is closed
        self.properties.writelines(f"{k}={v}\n" for k, v in worker.items())
        self.properties.flush()
        # Kafka's own start script gives Connect these.
        java = ["java", "-Xms256M", "-Xmx2G", "-server", "-XX:+UseG1GC", "-XX:MaxGCPauseMillis=20", "-XX:InitiatingHeapOccupancyPercent=35",
                "-XX:+ExplicitGCInvokesConcurrent", "-Djava.awt.headless=true", "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"]
        self.process = Process("connect", [*java, "-cp", f"{CACHE}/connect/*", "org.apache.kafka.connect.cli.ConnectDistributed", self.properties.name])
        self.process.ready(lambda: http(f"{self.rest}/connectors") is not None)
        self.properties.close()
        body = json.dumps(self.connector()).encode()
        self.process.ready(lambda: http(f"{self.rest}/connectors/{self.name}/config", body, "PUT"))

    def connector(self):
        return {
            "connector.class": "io.debezium.connector.postgresql.PostgresConnector", "tasks.max": "1",
            "database.hostname": "127.0.0.1", "database.port": str(self.postgres.port), "database.user": "postgres", "database.password": "unused",
            "database.dbname": self.database, "topic.prefix": self.name, "plugin.name": "pgoutput", "slot.name": self.slot,
            "publication.name": self.slot, "publication.autocreate.mode": "disabled", "table.include.list": "public.dbz_outbox",
            "snapshot.mode": "no_data", "tombstones.on.delete": "false",
            "transforms": "outbox", "transforms.outbox.type": "io.debezium.transforms.outbox.EventRouter",
            "transforms.outbox.route.topic.replacement": f"{self.name}.${{routedByValue}}",
        } | ({"exactly.once.support": "required", "transaction.boundary": "poll"} if self.exactly_once else {}) | self.tuning

    def running(self):
        def ready():
            status = json.loads(http(f"{self.rest}/connectors/{self.name}/status") or b"{}")
            tasks = [t["state"] for t in status.get("tasks", [])]
            if "FAILED" in tasks:
                raise RuntimeError(status)
            return tasks == ["RUNNING"] and self.postgres.query(self.database, f"SELECT active FROM pg_replication_slots WHERE slot_name = '{self.slot}'")
        self.process.ready(ready, every=0.2)

    def check(self):
        self.running()

    def stop(self):
        if self.properties:
            self.properties.close()
        if self.process:
            self.process.stop()

    def close(self):
        self.stop()
        drop_topics(self.name)


PUBLISHERS = {
    "outflow": lambda postgres, database: Outflow(postgres, database),
    "outflow, streaming only": lambda postgres, database: Outflow(postgres, database, streaming=True),
    "Debezium in Connect, exactly once": lambda postgres, database: Connect(postgres, database),
    "Debezium in Connect, exactly once, tuned": lambda postgres, database: Connect(postgres, database, TUNED),
    "Debezium in Connect, at least once, tuned": lambda postgres, database: Connect(postgres, database, TUNED, exactly_once=False),
}
