"""The drain of a backlog: the same WAL, read by pg_recvlogical, by the decoder alone, and by walhouse."""

import os
import subprocess
import time

import materialized
from services import PUBLICATION, Daemon, Failed, Meter, binary, peak_rss, stat, tail
from workload import FINISH

POLL_SECONDS = 0.02
PATIENCE_SECONDS = 1800
OPTIONS = f"'proto_version', '1', 'publication_names', '{PUBLICATION}'"


def drain(suite, workload):
    servers, rows = suite.servers, suite.rows(workload)
    runs = min(suite.runs, workload.runs or suite.runs)
    database = servers.database(workload.name)
    database.script(workload.schema(rows) + FINISH + workload.before(rows))
    tables = database.ask("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").split("\n")
    daemons = [Daemon(servers, database, f"{workload.name}_{run}") for run in range(runs)]
    streaming = [Daemon(servers, database, f"{workload.name}_{run}_streams", "catch_up_sessions = 0\n")
                 for run in range(runs) if workload.streams]
    for daemon in daemons + streaming:
        daemon.start()
        daemon.wait_ready()
        daemon.stop()
    suite.say(f"{workload.title}: {rows:,} rows")
    snapshot = peer_before(suite, workload, database)
    database.script("SET synchronous_commit = off;\n" + workload.backlog(rows))
    text, end = database.mark_end()
    database.ask("CHECKPOINT")
    servers.clickhouse.settle()

    readers = [
        ("pg_recvlogical, TCP", lambda slot: receive(database.tcp, slot, text)),
        ("pg_recvlogical, Unix socket", lambda slot: receive(database.unix, slot, text)),
        ("decoding alone", lambda slot: peek(database, slot)),
    ]
    for run, daemon in enumerate(daemons):
        # Another order in each run, so that nobody always comes first.
        tasks = [lambda reader=reader: copied_slot(suite, workload, daemon, run, reader) for reader in readers]
        tasks.append(lambda: walhouse(suite, workload, daemon, run, end, tables))
        if streaming:
            tasks.append(lambda: walhouse(suite, workload, streaming[run], run, end, tables, "walhouse, streaming alone"))
        # walhouse's own slot moves on when it has its turn: what the others read is copied before.
        if snapshot:
            peer = f"{daemon.name}_peer"
            database.ask(f"SELECT pg_copy_logical_replication_slot('{daemon.name}', '{peer}')")
            tasks.append(lambda: materialized.drain(suite, workload, peer, snapshot, database, run))
        for reader, _ in readers:
            database.ask(f"SELECT pg_copy_logical_replication_slot('{daemon.name}', '{copy_name(daemon, reader)}')")
        for task in tasks[run % len(tasks):] + tasks[:run % len(tasks)]:
            task()
        if run == runs - 1 and suite.verify:
            verify(daemon)
        daemon.forget()
        if streaming:
            streaming[run].forget()
    if snapshot:
        snapshot.close()
    servers.drop(database)


def peer_before(suite, workload, database):
    """What ClickHouse's own engine needs to have been there before the backlog."""
    if not (workload.peer and suite.has_peer):
        return None
    database.script(f"CREATE PUBLICATION {materialized.publication(database)} FOR TABLE sales_order")
    return materialized.Snapshot(database)


def copy_name(daemon, reader):
    return daemon.name + "_" + "".join(letter if letter.isalnum() else "_" for letter in reader.lower())


def copied_slot(suite, workload, daemon, run, reader):
    name, read = reader
    slot = copy_name(daemon, name)
    meter = Meter(suite.servers)
    began = time.perf_counter()
    usage = read(slot)
    seconds = time.perf_counter() - began
    cpu = meter.stop(usage.ru_utime + usage.ru_stime)
    suite.add(workload.name, name, run, suite.rows(workload), seconds, cpu)
    daemon.database.drop_slots(slot)


def finished(process, what):
    """The resources that it used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failed(f"{what} exited with {process.returncode}")
    return usage


def receive(url, slot, end):
    command = [binary("pg_recvlogical"), "-d", url, "--slot", slot, "--start", "--no-loop", "--endpos", end, "-f", "-",
               "-o", "proto_version=1", "-o", f"publication_names={PUBLICATION}"]
    return finished(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL), "pg_recvlogical")


def peek(database, slot):
    sql = f"COPY (SELECT lsn, data FROM pg_logical_slot_peek_binary_changes('{slot}', NULL, NULL, {OPTIONS})) TO STDOUT (FORMAT binary)"
    command = [binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", database.unix, "-c", sql]
    return finished(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL), "psql")


def wait_for(daemon, what, reached):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        daemon.check_alive()
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not within {PATIENCE_SECONDS} s:\n{tail(daemon.log)}")
        time.sleep(POLL_SECONDS)


def walhouse(suite, workload, daemon, run, end, tables, system="walhouse"):
    """From exec until the stored checkpoint is past the end; every row is there to be read by then."""
    clickhouse = suite.servers.clickhouse
    parts = clickhouse.inserted_parts(daemon.name)
    meter = Meter(suite.servers)
    began = daemon.start()
    wait_for(daemon, "the checkpoint",
             lambda: clickhouse.number(f"SELECT max(lsn) FROM {daemon.name}._checkpoint") >= end)
    seconds = time.perf_counter() - began
    pid = daemon.process.pid
    cpu = meter.stop(stat(pid)[0], "walhouse")
    rss = peak_rss(pid)
    compare_counts(daemon, tables)
    wait_for(daemon, "the slot", lambda: daemon.database.confirmed(daemon.name) >= end)
    suite.add(workload.name, system, run, suite.rows(workload), seconds, cpu, peak_rss=rss,
              parts=clickhouse.inserted_parts(daemon.name) - parts,
              confirmed_seconds=time.perf_counter() - began)
    daemon.stop()


def compare_counts(daemon, tables):
    """A drain that has not brought every row is no drain."""
    for table in tables:
        expected = daemon.database.number(f"SELECT count(*) FROM {table}")
        found = daemon.servers.clickhouse.number(f"SELECT count() FROM {daemon.name}.{table} FINAL WHERE _is_deleted = 0")
        if expected != found:
            raise Failed(f"{daemon.name}: PostgreSQL has {expected} rows in {table}, ClickHouse {found}, "
                         "and the checkpoint is past the end")


def verify(daemon):
    daemon.start()
    daemon.wait_ready()
    daemon.verify()
    daemon.stop()
