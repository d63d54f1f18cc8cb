"""From the acknowledgement of a commit to a read_committed consumer, at 200 commits a second."""

import json
import random
import subprocess
import sys
import time

import psycopg

from publishers import PUBLISHERS
from stand import HERE, Ends, consumer, until

PER_SECOND = 200
WRITERS = 4
WARM_UP = 10  # seconds that don't count: a JVM is slow at first
COUNTED = 10


def write(url, writer, events):
    """One writer, a process of its own. Commits at random moments, and prints when each was acknowledged."""
    chance = random.Random(int(writer))
    acknowledged = {}
    with psycopg.connect(url, autocommit=True) as conn:
        at = time.monotonic()
        for i in range(int(writer), int(events), WRITERS):
            at += chance.expovariate(PER_SECOND / WRITERS)
            time.sleep(max(0, at - time.monotonic()))
            conn.execute("CALL write_event(%s, %s, 1)", (i, i))
            acknowledged[i] = time.monotonic_ns()
    print(json.dumps(acknowledged))


def measure(postgres, make, scale):
    counted = max(PER_SECOND, round(COUNTED * scale * PER_SECOND))
    first = WARM_UP * PER_SECOND
    events = first + counted
    with postgres.database() as database:
        publisher = make(postgres, database)
        try:
            publisher.prepare()
            publisher.start()
            publisher.running()
            acknowledged, arrived = {}, {}
            c, ends = consumer(publisher.topic), Ends()
            try:
                until("no consumer", lambda: [ends.of(m) for m in c.consume(6, 0.1)] and len(ends) == 6)
                writers = [subprocess.Popen([sys.executable, HERE / "latency.py", postgres.url(database), str(w), str(events)], stdout=subprocess.PIPE)
                           for w in range(WRITERS)]
                deadline = time.monotonic() + 120
                while len(arrived) < events and time.monotonic() < deadline:
                    m = c.poll(1)
                    if m is None or not ends.of(m):
                        continue
                    i = int(m.key()[-12:], 16)
                    if i in arrived:
                        raise RuntimeError(f"event {i} arrived twice")
                    arrived[i] = time.monotonic_ns()
                for w in writers:
                    acknowledged |= {int(k): v for k, v in json.loads(w.communicate(timeout=60)[0]).items()}
            finally:
                c.close()
            used = publisher.process.used()
            publisher.check()
        finally:
            publisher.close()
    if len(arrived) != events or len(acknowledged) != events:
        raise RuntimeError(f"{events} events, {len(acknowledged)} acknowledged, {len(arrived)} arrived")
    # The log can be decoded a moment before PostgreSQL answers, so an event may arrive before its writer knows.
    took = sorted(max(0, arrived[i] - acknowledged[i]) / 1e6 for i in range(first, events))
    return {"p50_ms": round(took[len(took) // 2], 2), "p99_ms": round(took[len(took) * 99 // 100], 2), "events": counted} | used


def sides(postgres, scale):
    return [(name, lambda make=make: measure(postgres, make, scale)) for name, make in PUBLISHERS.items()
            if name != "outflow, streaming only"]


if __name__ == "__main__":
    write(*sys.argv[1:])
