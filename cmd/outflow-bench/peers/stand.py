"""What every part needs: a private PostgreSQL, processes and what they took, Kafka's topics."""

import contextlib
import glob
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

import psycopg
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

HERE = pathlib.Path(__file__).resolve().parent
CACHE = pathlib.Path(os.environ["PEERS_CACHE"])
BROKER = os.environ["OUTFLOW_TEST_KAFKA"]
OUTFLOW = str(CACHE / "outflow")
KAFKA = {"bootstrap.servers": BROKER, "log_level": 4}
PARTITIONS = 6
PATIENCE = 120  # seconds, with whatever starts or stops

# The settings of outflow-bench; all else, fsync among it, is the default.
SETTINGS = {
    "listen_addresses": "127.0.0.1", "wal_level": "logical", "shared_buffers": "512MB", "max_wal_size": "8GB",
    "max_connections": "200", "max_replication_slots": "20", "max_wal_senders": "20", "log_min_messages": "fatal",
}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def until(what, ready, every=0.05, patience=PATIENCE):
    """Waits for ready to return something, and returns that."""
    deadline = time.monotonic() + patience
    while True:
        found = ready()
        if found:
            return found
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(every)


def http(url, body=None, method=None):
    """What a server answers with 2xx, else None."""
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read() or b"{}"
    except urllib.error.HTTPError as err:
        if err.code in (404, 409, 500, 503):  # Connect and outflow, while they start
            return None
        raise RuntimeError(f"{url}: {err.code} {err.read().decode()}") from err
    except OSError:
        return None


class Process:
    """A process, and those that it starts."""

    def __init__(self, name, args, env=None, **more):
        self.name = name
        self.log = tempfile.TemporaryFile()
        self.began = time.time()
        clean = {k: v for k, v in os.environ.items() if not k.startswith("OUTFLOW_")}
        self.popen = subprocess.Popen(args, env=clean | (env or {}), stdout=self.log, stderr=subprocess.STDOUT, **more)

    def pids(self):
        pid = self.popen.pid
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [str(pid), *children]

    def used(self):
        """Peak memory in bytes (VmHWM, and what is shared counted once for each process), and CPU seconds, until now."""
        peak, proportional, ticks = 0, 0, 0
        for pid in self.pids():
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak += int(line.split()[1]) * 1024
            for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    proportional += int(line.split()[1]) * 1024
            fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        return {"peak_mb": round(peak / 1e6, 1), "pss_mb": round(proportional / 1e6, 1), "cpu_s": round(ticks / os.sysconf("SC_CLK_TCK"), 2)}

    def alive(self):
        return self.popen.poll() is None

    def tail(self):
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - 4000))
        return self.log.read().decode(errors="replace")

    def ready(self, ready, **how):
        def look():
            if not self.alive():
                raise RuntimeError(f"{self.name} ended: {self.tail()}")
            return ready()
        try:
            return until(f"{self.name} is not ready", look, **how)
        except TimeoutError as err:
            raise TimeoutError(f"{err}: {self.tail()}") from err

    def stop(self, sign=signal.SIGTERM):
        if self.alive():
            self.popen.send_signal(sign)
            try:
                self.popen.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.popen.kill()
                self.popen.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Postgres:
    """A cluster of its own on loopback that waits for the disk."""

    def __init__(self):
        found = sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda p: int(p.split("/")[-2]))
        bin_dir = os.environ.get("POSTGRES_BIN") or (found[-1] if found else os.path.dirname(shutil.which("initdb") or ""))
        if not os.path.exists(os.path.join(bin_dir, "initdb")):
            raise RuntimeError("no PostgreSQL found: POSTGRES_BIN names the folder of its programs")
        self.dir = tempfile.mkdtemp(prefix="outflow-peers-")
        self.who = {}
        if os.getuid() == 0:  # PostgreSQL refuses to run as root
            self.who = {"user": "postgres", "group": "postgres", "extra_groups": []}
            shutil.chown(self.dir, "postgres", "postgres")
        data = os.path.join(self.dir, "data")
        subprocess.run([f"{bin_dir}/initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8"],
                       check=True, stdout=subprocess.DEVNULL, cwd=self.dir, **self.who)
        self.port = free_port()
        settings = SETTINGS | {"port": str(self.port), "unix_socket_directories": self.dir}
        self.server = Process("postgres", [f"{bin_dir}/postgres", "-D", data, *(a for k, v in settings.items() for a in ("-c", f"{k}={v}"))],
                              cwd=self.dir, **self.who)
        self.count = 0
        try:
            self.server.ready(lambda: self.answers())
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                if self.query("postgres", f"SHOW {setting}") != "on":
                    raise RuntimeError(f"{setting} is off")
            self.run("postgres", "CREATE DATABASE migrated")
            subprocess.run([OUTFLOW, "migrate"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                           env=os.environ | {"OUTFLOW_POSTGRES_URL": self.url("migrated")})
        except BaseException:
            self.close()
            raise

    def url(self, database):
        return f"postgres://postgres@127.0.0.1:{self.port}/{database}?sslmode=disable"

    def answers(self):
        try:
            return self.query("postgres", "SELECT 1")
        except psycopg.OperationalError:
            return None

    def connect(self, database):
        return psycopg.connect(self.url(database), autocommit=True)

    def run(self, database, *statements):
        with self.connect(database) as conn:
            for sql in statements:
                conn.execute(sql)

    def query(self, database, sql):
        with self.connect(database) as conn:
            return conn.execute(sql).fetchone()[0]

    @contextlib.contextmanager
    def database(self, template="migrated"):
        """A database for one run."""
        self.count += 1
        name = f"run{self.count}"
        self.run("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name
        finally:
            self.run("postgres", f"SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = '{name}' AND active")
            until("a slot stays in use", lambda: self.query("postgres", f"SELECT count(*) = 0 FROM pg_replication_slots WHERE database = '{name}' AND active"))
            self.run("postgres", f"SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = '{name}'",
                     f"DROP DATABASE {name} WITH (FORCE)", "CHECKPOINT")

    def close(self):
        self.server.stop(signal.SIGINT)
        shutil.rmtree(self.dir, ignore_errors=True)


def make_topic(name):
    """A topic whose records carry the time at which the broker appended them."""
    config = {"message.timestamp.type": "LogAppendTime", "retention.ms": "-1", "retention.bytes": "-1"}
    admin = AdminClient(KAFKA)
    admin.create_topics([NewTopic(name, PARTITIONS, 1, config=config)])[name].result(30)


def drop_topics(prefix):
    admin = AdminClient(KAFKA)
    names = [t for t in admin.list_topics(timeout=30).topics if t.startswith(prefix)]
    for future in (admin.delete_topics(names) if names else {}).values():
        future.result(30)


def consumer(topic, reading=True):
    """A consumer of all committed records of a topic, from the first on; or one that only asks for offsets."""
    c = Consumer(KAFKA | {"group.id": "reader", "enable.auto.commit": False, "isolation.level": "read_committed", "enable.partition.eof": True,
                          "queued.min.messages": 500_000})
    if reading:
        c.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
    return c


class Ends(dict):
    """Which partitions have been read to their end."""

    def of(self, message):
        """Whether the message is a record, and not the news of an end."""
        if not message.error():
            self.pop(message.partition(), None)
            return True
        if message.error().code() != KafkaError._PARTITION_EOF:
            raise RuntimeError(message.error())
        self[message.partition()] = True
        return False


def audit(topic, events):
    """Reads a topic back. Tells what is not once and in the order of its key, and the rate by the broker's clock."""
    versions, latest, back, times = {}, {}, set(), []
    wrong = {"lost": 0, "duplicated": 0, "out_of_order": 0}
    c, ends = consumer(topic), Ends()
    try:
        while len(ends) < PARTITIONS:
            for m in c.consume(10_000, 1):
                if not ends.of(m):
                    continue
                kind, at = m.timestamp()
                if kind != TIMESTAMP_LOG_APPEND_TIME:
                    raise RuntimeError(f"{topic} lacks the broker's time")
                times.append(at)
                # {"version":12,"before":...
                version = int(m.value()[len('{"version":'):].split(b",", 1)[0])
                seen = versions.setdefault(m.key(), set())
                if version in seen:
                    wrong["duplicated"] += 1
                elif version < max(seen, default=0):
                    wrong["out_of_order"] += 1
                if version < latest.get(m.key(), 0):
                    back.add(m.key())
                seen.add(version)
                latest[m.key()] = version
    finally:
        c.close()
    wrong |= {"lost": events - sum(map(len, versions.values())), "keys_back": len(back)}
    if len(times) < 2:
        return wrong
    times.sort()
    half = times[len(times) // 2]
    rate = lambda n, ms: round(n * 1000 / max(ms, 1))
    return wrong | {"first": times[0] / 1000, "last": times[-1] / 1000, "per_second": rate(len(times), times[-1] - times[0]),
                    "second_half": rate(len(times) / 2, times[-1] - half)}
