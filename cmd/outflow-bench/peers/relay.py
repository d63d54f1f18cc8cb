"""A backlog of transactions of one event each, brought to Kafka by whoever finds it when it starts."""

import time
from concurrent.futures import ThreadPoolExecutor

from publishers import PUBLISHERS
from stand import PARTITIONS, TopicPartition, audit, consumer

EVENTS = 300_000
CUSTOMERS = 10_000
WRITERS = 4
FAULTS = ("lost", "duplicated", "out_of_order", "keys_back")


def fill(postgres, database, events):
    # Making the backlog is not what is measured: it waits for the disk at its end alone.
    def write(writer):
        postgres.run(database, "SET synchronous_commit = off", f"CALL write_backlog({writer}, {WRITERS}, {events}, {CUSTOMERS})")
    with ThreadPoolExecutor(WRITERS) as pool:
        list(pool.map(write, range(WRITERS)))
    postgres.run(database, "CHECKPOINT")


def measure(postgres, make, events, kill):
    with postgres.database() as database:
        publisher = make(postgres, database)
        try:
            publisher.prepare()
            fill(postgres, database, events)
            began = time.time()
            cpu = publisher.process.used()["cpu_s"] if publisher.process and publisher.process.alive() else 0
            publisher.start()
            if kill:
                at_kill = arrived(publisher, events // 3, quiet=0)
                publisher.process.popen.kill()
                publisher.process.popen.wait()
                if at_kill >= events:
                    raise RuntimeError("it was done before it could be killed: the backlog is too small")
                began, cpu = time.time(), 0
                publisher.start()
            arrived(publisher, events, quiet=15 if kill else 2)
            used = publisher.process.used()
            publisher.check()
            publisher.stop()
            found = audit(publisher.topic, events)
        finally:
            publisher.close()
    used["cpu_s"] = round(used["cpu_s"] - cpu, 2)
    first, last = found.pop("first"), found.pop("last")
    if kill:
        return {k: found[k] for k in FAULTS} | {"at_kill": at_kill, "last_after_s": round(last - began, 2)}
    if any(found[k] for k in FAULTS):
        raise RuntimeError(f"after an undisturbed run: {found}")
    return found | used | {"first_after_s": round(first - began, 2), "last_after_s": round(last - began, 2)}


def arrived(publisher, events, quiet):
    """Waits until so many offsets of the topic are taken, by records and by markers of transactions, and nothing has come for so many seconds."""
    last, since = 0, time.monotonic()
    c = consumer(publisher.topic, reading=False)

    def ready():
        nonlocal last, since
        ends = sum(c.get_watermark_offsets(TopicPartition(publisher.topic, p), timeout=30)[1] for p in range(PARTITIONS))
        if ends != last:
            last, since = ends, time.monotonic()
        return ends >= events and time.monotonic() - since >= quiet
    try:
        publisher.process.ready(ready, every=0.25 if quiet else 0.005, patience=600)
        return last
    finally:
        c.close()


def sides(postgres, scale, kill=False):
    events = max(1000, round(EVENTS * scale))
    return [(name, lambda make=make: measure(postgres, make, events, kill)) for name, make in PUBLISHERS.items()]
