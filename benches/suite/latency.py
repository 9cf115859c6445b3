"""A steady load: how long after its commit is a row visible in ClickHouse, and how soon does a restart stream."""

import array
import os
import subprocess
import threading
import time

from drain import verify
from services import ROOT, Daemon, Failed, Meter, binary, peak_rss, stat, tail
from workload import FINISH

SCHEMA = """CREATE TABLE sales_order (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL,
    total_amount numeric(12, 2) NOT NULL, currency char(3) NOT NULL, placed_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL, note text, metadata jsonb);
"""
# The clock is read before the commit, so what is measured is never too short.
INSERT = os.path.join(ROOT, "benches", "suite", "order.sql")
POLL_SECONDS = 0.005
STARTS = 5


class Reader(threading.Thread):
    """Asks ClickHouse again and again which rows are new. A row became visible at some time between the beginning of the
    last question whose answer lacked it and the end of the first one whose answer has it; the end is taken."""

    def __init__(self, servers, database):
        super().__init__(daemon=True)
        self.clickhouse = type(servers.clickhouse)(servers.clickhouse.port)
        self.database = database
        self.seen = {}  # id: (visible by, not later than so many seconds too late)
        self.low = 0    # Every id up to here is seen.
        self.stopping = threading.Event()
        self.failure = None

    def run(self):
        try:
            before = time.time()
            while not self.stopping.is_set():
                asked = time.time()
                ids = array.array("q")
                ids.frombytes(self.clickhouse.send(
                    f"SELECT id FROM {self.database}.sales_order WHERE id > {self.low} FORMAT RowBinary", max_threads=1))
                answered = time.time()
                for row in ids:
                    self.seen.setdefault(row, (answered, answered - before))
                while self.low + 1 in self.seen:
                    self.low += 1
                before = asked
                time.sleep(POLL_SECONDS)
        except Exception as error:  # The main thread tells.
            self.failure = error


def quantiles(values):
    ordered = sorted(values)
    pick = lambda share: ordered[min(len(ordered) - 1, int(len(ordered) * share))]
    return {"p50": pick(0.5), "p95": pick(0.95), "p99": pick(0.99), "max": ordered[-1]}


def latency(suite):
    servers = suite.servers
    suite.say(f"steady load: {suite.rate:,} transactions/s for {suite.seconds} s")
    database = servers.database("steady")
    database.script(SCHEMA + FINISH)
    daemon = Daemon(servers, database, "steady_0")
    daemon.start()
    daemon.wait_ready()
    reader = Reader(servers, daemon.name)
    reader.start()
    parts, walhouse_before = servers.clickhouse.inserted_parts(daemon.name), stat(daemon.process.pid)[0]
    meter = Meter(servers)
    began = time.perf_counter()
    load(suite, database)
    seconds = time.perf_counter() - began
    sent = database.number("SELECT count(*) FROM sales_order")
    deadline = time.monotonic() + 60
    while len(reader.seen) < sent and not reader.failure and time.monotonic() < deadline:
        time.sleep(0.02)
    cpu = meter.stop(stat(daemon.process.pid)[0] - walhouse_before, "walhouse")
    reader.stopping.set()
    reader.join()
    if reader.failure or len(reader.seen) < sent:
        raise Failed(f"{len(reader.seen)} of {sent} rows became visible within a minute: {reader.failure}\n{tail(daemon.log)}")
    commits = (line.split("\t") for line in database.ask(
        "SELECT id, extract(epoch FROM updated_at) FROM sales_order").split("\n"))
    delays = [reader.seen[int(row)][0] - float(moment) for row, moment in commits]
    suite.result["latency"] = {
        "rate_wanted": suite.rate, "rate_reached": sent / seconds, "rows": sent, "seconds": seconds,
        "commit_to_visible_seconds": quantiles(delays),
        "reader_error_seconds": quantiles([error for _, error in reader.seen.values()]),
        "cpu_seconds": cpu, "peak_rss": peak_rss(daemon.process.pid),
        "parts": servers.clickhouse.inserted_parts(daemon.name) - parts,
    }
    daemon.stop()
    starts(suite, daemon)
    if suite.verify:
        verify(daemon)
    daemon.forget()
    servers.drop(database)


def load(suite, database):
    log = os.path.join(suite.servers.directory, "pgbench.log")
    with open(log, "ab") as file:
        done = subprocess.run([binary("pgbench"), "-n", "-c", "4", "-M", "prepared", "-R", str(suite.rate), "-T",
                               str(suite.seconds), "-f", INSERT, database.tcp],
                              stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if done.returncode != 0:
        raise Failed(f"pgbench:\n{tail(log)}")


def starts(suite, daemon):
    """From exec until PostgreSQL streams to the slot, and until it has read what WAL it has to read again for that."""
    states = ("SELECT coalesce(min(r.state), '') FROM pg_replication_slots s JOIN pg_stat_replication r "
              f"ON r.pid = s.active_pid WHERE s.slot_name = '{daemon.name}'")
    streaming, at_head = [], []
    for _ in range(STARTS):
        began = daemon.start()
        seen = {}
        while "streaming" not in seen:
            state = daemon.database.ask(states)
            if state in ("catchup", "streaming"):
                seen.setdefault("first", time.perf_counter() - began)
                seen.setdefault(state, time.perf_counter() - began)
            daemon.check_alive()
            if time.perf_counter() - began > 60:
                raise Failed(f"walhouse did not stream within a minute:\n{tail(daemon.log)}")
            time.sleep(0.002)
        streaming.append(seen["first"])
        at_head.append(seen["streaming"])
        daemon.wait_ready()
        daemon.stop()
    suite.result["exec_to_streaming_seconds"] = streaming
    suite.result["exec_to_head_seconds"] = at_head
