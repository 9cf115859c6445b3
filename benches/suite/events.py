"""Events: from the WAL into a queue at a steady rate beside rows for ClickHouse, and from the queue into the audit log."""

import os
import subprocess
import time
import urllib.request

from latency import SCHEMA, Reader, quantiles
from services import ROOT, Daemon, Failed, Meter, binary, free_port, peak_rss, stat, tail
from workload import FINISH

SCRIPT = os.path.join(ROOT, "benches", "suite", "events.sql")
OUTBOX = os.path.join(ROOT, "migrations", "postgres", "0002_outbox_event.sql")
# Of one transaction, beside one row for ClickHouse.
EVENTS = 10
RATE = 5000


def events(suite):
    servers = suite.servers
    suite.say(f"events: {RATE:,} a second for {suite.seconds} s, {EVENTS} in a transaction, beside a row for ClickHouse")
    queues = free_port()
    servers.server("sqs", "--port", str(queues))
    database = servers.database("events")
    with open(OUTBOX, encoding="utf-8") as file:
        database.script(SCHEMA + file.read() + FINISH)
    section = f'\n[queue]\nendpoint_url = "http://127.0.0.1:{queues}"\nregion = "eu-central-1"\n\n[workers]\nenabled = '
    daemon = Daemon(servers, database, "events_0")
    with open(daemon.config, "a", encoding="utf-8") as file:
        file.write(section + "false\n")
    daemon.start()
    daemon.wait_ready()
    until(daemon, 30, "the outbox is not published", lambda: "sent from now on" in tail(daemon.log, 1000))
    result = suite.result["events"] = {"rate_wanted": RATE} | to_the_queue(suite, daemon)
    daemon.stop()
    with open(daemon.config, encoding="utf-8") as file:
        config = file.read()
    with open(daemon.config, "w", encoding="utf-8") as file:
        file.write(config.replace(section + "false\n", section + "true\n"))
    result |= to_the_audit_log(daemon, result["events"])
    daemon.stop()
    daemon.forget()
    servers.drop(database)


def to_the_queue(suite, daemon):
    servers, database = suite.servers, daemon.database
    reader = Reader(servers, daemon.name)
    reader.start()
    used = stat(daemon.process.pid)[0]
    meter, began = Meter(servers), time.perf_counter()
    load(suite, database)
    loaded = time.perf_counter() - began
    written = database.number("SELECT count(*) FROM outbox_event")
    until(daemon, 300, "events are not sent", lambda: metric(daemon, "walhouse_events_sent_total") >= written)
    seconds = time.perf_counter() - began
    used = stat(daemon.process.pid)[0] - used
    cpu = meter.stop(used, "walhouse")
    rows = database.number("SELECT count(*) FROM sales_order")
    until(daemon, 60, "rows are not visible", lambda: len(reader.seen) >= rows or reader.failure)
    reader.stopping.set()
    reader.join()
    commits = (line.split("\t") for line in database.ask(
        "SELECT id, extract(epoch FROM updated_at) FROM sales_order").split("\n"))
    delays = [reader.seen[int(row)][0] - float(moment) for row, moment in commits]
    return {
        "events": written, "rate_reached": written / loaded, "seconds_behind_the_load": seconds - loaded,
        "walhouse_cpu_microseconds_per_event": used / written * 1e6, "peak_rss": peak_rss(daemon.process.pid),
        "cpu_seconds": cpu, "row_visible_seconds": quantiles(delays),
    }


def to_the_audit_log(daemon, written):
    """A queue that is full, and the workers that come for it."""
    began = time.perf_counter()
    daemon.start()
    audited = f"SELECT count() FROM {daemon.name}.audit_log"
    clickhouse = daemon.servers.clickhouse
    first = None

    def all_of_them():
        nonlocal first
        count = clickhouse.number(audited)
        if count and first is None:
            first = time.perf_counter(), count
        return count >= written

    until(daemon, 900, "events are not in the audit log", all_of_them)
    ended = time.perf_counter()
    used = stat(daemon.process.pid)[0]
    once = clickhouse.number(f"SELECT uniqExact(event_id) FROM {daemon.name}.audit_log")
    if once != written:
        raise Failed(f"{written} events were written, and {once} are in the audit log")
    return {
        "audited_per_second": (written - first[1]) / (ended - first[0]), "audit_seconds": ended - began,
        "audit_cpu_microseconds_per_event": used / written * 1e6,
        "audit_rows": clickhouse.number(audited),
    }


def load(suite, database):
    log = os.path.join(suite.servers.directory, "pgbench.log")
    with open(log, "ab") as file:
        done = subprocess.run([binary("pgbench"), "-n", "-c", "4", "-M", "prepared", "-R", str(RATE // EVENTS), "-T",
                               str(suite.seconds), "-f", SCRIPT, database.tcp],
                              stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    if done.returncode != 0:
        raise Failed(f"pgbench:\n{tail(log)}")


def metric(daemon, name):
    with urllib.request.urlopen(f"http://127.0.0.1:{daemon.port}/metrics", timeout=5) as answer:
        lines = [line for line in answer.read().decode().splitlines() if line.startswith((name + " ", name + "{"))]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def until(daemon, seconds, what, reached):
    deadline = time.monotonic() + seconds
    while not reached():
        daemon.check_alive()
        if time.monotonic() > deadline:
            raise Failed(f"{what} within {seconds} s:\n{tail(daemon.log)}")
        time.sleep(0.05)
