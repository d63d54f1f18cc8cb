"""POST /api/customers by 64 connections: outflow's API, and a service in Django REST framework."""

import json
import os
import re
import socket
import subprocess

from stand import CACHE, HERE, OUTFLOW, Process, free_port

CONNECTIONS = 64
SECONDS = 6
WARM_UP = 2  # seconds of the same load, before


def load(port, run, seconds):
    # One thread: the load shares two cores with what it measures.
    out = subprocess.run(["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "30s", "-s", str(HERE / "post.lua"), f"http://127.0.0.1:{port}"],
                         env=os.environ | {"RUN": run}, check=True, capture_output=True, text=True).stdout
    found = json.loads(re.search(r"^RESULT (.*)$", out, re.M)[1])
    if found["refused"] or found["broken"] or not found["answers"]:
        raise RuntimeError(f"not every create was answered with success: {out}")
    return found


def measure(postgres, start, scale):
    with postgres.database() as database:
        port = free_port()
        with start(postgres.url(database), port) as process:
            process.ready(lambda: listens(port))
            warm = load(port, "w", WARM_UP)
            found = load(port, "m", max(2, round(SECONDS * scale)))
            found |= process.used()
        counted = "SELECT count(*) FROM {}"
        rows = postgres.query(database, counted.format("customers"))
        events = postgres.query(database, counted.format("outbox WHERE type = 'customer.created.v1'"))
        pairs = postgres.query(database, counted.format(
            "customers c JOIN outbox o ON o.aggregate_id = c.id AND o.type = 'customer.created.v1' AND o.after ->> 'email' = c.email"))
    answered = warm["answers"] + found["answers"]
    # wrk leaves without the answers that are under way when its time is over.
    if not answered <= rows <= answered + 2 * CONNECTIONS or not rows == events == pairs:
        raise RuntimeError(f"{answered} answers, {rows} rows, {events} events, {pairs} that belong together")
    return found | {"per_second": round(found["answers"] / found["seconds"]), "rows": rows, "events": events}


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def outflow(url, port):
    return Process("outflow api", [OUTFLOW, "api"], {"OUTFLOW_POSTGRES_URL": url, "OUTFLOW_LISTEN": f"127.0.0.1:{port}", "OUTFLOW_LOG_LEVEL": "error"})


def django(url, port):
    return Process("gunicorn", [str(CACHE / "python/bin/gunicorn"), "--workers", "4", "--bind", f"127.0.0.1:{port}", "service:application"],
                   {"DATABASE_URL": url}, cwd=HERE / "service")


def sides(postgres, scale):
    return [
        ("outflow", lambda: measure(postgres, outflow, scale)),
        ("Django REST framework", lambda: measure(postgres, django, scale)),
    ]
