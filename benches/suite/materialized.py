"""ClickHouse's own MaterializedPostgreSQL, as a peer: the same WAL, through a copied slot.

It is given a snapshot from before the backlog, in which the tables are empty, so that it does nothing but drain. It makes
its publication anew when it is created; the decoder looks for one of that name as it was at each point of the WAL, and so
there has to be one from before the backlog too.
"""

import time

from services import Failed, Meter, Session

SYSTEM = "MaterializedPostgreSQL"
ALLOW = {"allow_experimental_database_materialized_postgresql": 1}
PATIENCE_SECONDS = 900


def available(servers):
    return SYSTEM in servers.clickhouse.ask("SELECT name FROM system.database_engines").split("\n")


def publication(database):
    return f"{database.name}_ch_publication"


class Snapshot:
    """The tables as they are now, for as long as it is not closed."""

    def __init__(self, database):
        self.session = Session(database.tcp)
        self.session.ask("BEGIN ISOLATION LEVEL REPEATABLE READ")
        self.name = self.session.ask("SELECT pg_export_snapshot()")

    def close(self):
        self.session.close()


def drain(suite, workload, slot, snapshot, database, run):
    """From CREATE DATABASE until every row is there to be read."""
    clickhouse, rows = suite.servers.clickhouse, suite.rows(workload)
    name = f"{slot}_peer"
    clickhouse.settle()
    meter = Meter(suite.servers)
    began = time.perf_counter()
    clickhouse.ask(f"CREATE DATABASE {name} ENGINE = {SYSTEM}('127.0.0.1:{suite.servers.port}', '{database.name}', "
                   f"'postgres', '') SETTINGS materialized_postgresql_tables_list = 'sales_order', "
                   f"materialized_postgresql_replication_slot = '{slot}', "
                   f"materialized_postgresql_snapshot = '{snapshot.name}'", **ALLOW)
    seen = 0
    while seen < rows:
        if time.perf_counter() - began > PATIENCE_SECONDS:
            raise Failed(f"{SYSTEM} has brought {seen} of {rows} rows within {PATIENCE_SECONDS} s")
        time.sleep(0.02)
        try:
            seen = clickhouse.number(f"SELECT count() FROM {name}.sales_order")
        except Failed:
            seen = 0  # Its table is not there yet.
    seconds = time.perf_counter() - began
    suite.add(workload.name, SYSTEM, run, rows, seconds, meter.stop(), parts=clickhouse.inserted_parts(name))
    clickhouse.ask(f"DROP DATABASE {name} SYNC", **ALLOW)
    database.drop_slots(slot)
