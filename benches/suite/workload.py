"""What is written into PostgreSQL: tables, what is in them before, and the backlog."""

from dataclasses import dataclass

# nine columns: what an order of a shop looks like.
SALES_ORDER = """CREATE TABLE {name} (
    id bigint PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL, total_amount numeric(12, 2) NOT NULL,
    currency char(3) NOT NULL, placed_at timestamptz NOT NULL, updated_at timestamptz NOT NULL, note text, metadata jsonb);
"""
SALES_ORDER_ROWS = """INSERT INTO {name} SELECT i, i % 50000, (ARRAY['draft', 'paid', 'shipped', 'delivered'])[1 + i % 4],
    (i % 1000000) / 100.0, 'EUR', '2026-01-01'::timestamptz + i * interval '1 second',
    '2026-01-02'::timestamptz + i * interval '1.000001 second', CASE WHEN i % 3 = 0 THEN 'to the neighbours, ' || i END,
    jsonb_build_object('source', 'web', 'items', i % 7) FROM generate_series({first}, {last}) AS i;
"""
FINISH = "CREATE TABLE finish (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY);\n"
TRANSACTION = 20_000
TELLERS = 100


@dataclass(frozen=True)
class Workload:
    """`rows` are the changed rows of the backlog; the functions take that number and return SQL."""

    name: str
    title: str
    rows: int
    smoke: int
    schema: callable
    before: callable
    backlog: callable
    runs: int = 0  # Fewer than for the others, where one takes long; 0: as many.
    peer: bool = False  # Whether MaterializedPostgreSQL does the same.
    streams: bool = False  # Whether walhouse does it a second time, without its catch-up reader.


def nothing(_rows):
    return ""


def orders(_rows):
    return SALES_ORDER.format(name="sales_order")


def in_transactions(statement, rows, size=TRANSACTION):
    """`statement` has {first} and {last}: the ids that one transaction concerns."""
    body = statement.format(first="lo", last=f"least(lo + {size - 1}, {rows})")
    return f"DO $$ BEGIN FOR lo IN 1..{rows} BY {size} LOOP {body} COMMIT; END LOOP; END $$;\n"


def order_rows(rows, size=TRANSACTION):
    return in_transactions(SALES_ORDER_ROWS.replace("{name}", "sales_order"), rows, size)


def one_transaction(rows):
    return SALES_ORDER_ROWS.format(name="sales_order", first=1, last=rows)


# Sixty columns of the types that wide tables have.
WIDE_TYPES = {
    "bigint": "i * {n}", "integer": "(i % 100000) + {n}", "text": "'text {n} of row ' || i", "boolean": "i % {n} = 0",
    "numeric(18, 4)": "i * 1.0001 * {n}", "timestamptz": "'2026-01-01'::timestamptz + i * {n} * interval '1 second'",
    "date": "'2026-01-01'::date + (i % 1000)::int", "double precision": "i * 0.37 / {n}",
    "uuid": "md5('{n}' || i)::uuid", "jsonb": "jsonb_build_object('n', {n}, 'list', jsonb_build_array(i, i % 9, 'x'))",
}
WIDE_COLUMNS = 59


def wide_schema(_rows):
    types = list(WIDE_TYPES)
    columns = ", ".join(f"c{n} {types[n % len(types)]}" for n in range(WIDE_COLUMNS))
    return f"CREATE TABLE wide (id bigint PRIMARY KEY, {columns});\n"


def wide_rows(rows):
    values = list(WIDE_TYPES.values())
    columns = ", ".join(values[n % len(values)].replace("{n}", str(n + 1)) for n in range(WIDE_COLUMNS))
    return in_transactions(f"INSERT INTO wide SELECT i, {columns} FROM generate_series({{first}}, {{last}}) AS i;", rows)


def bank(rows):
    accounts = max(1000, rows // 4)
    return f"""
        CREATE TABLE branches (bid int PRIMARY KEY, balance bigint NOT NULL, filler char(88));
        CREATE TABLE tellers (tid int PRIMARY KEY, bid int NOT NULL, balance bigint NOT NULL, filler char(84));
        CREATE TABLE accounts (aid int PRIMARY KEY, bid int NOT NULL, balance bigint NOT NULL, filler char(84));
        CREATE TABLE history (hid bigint PRIMARY KEY, tid int, bid int, aid int, delta int, at timestamp);
        INSERT INTO branches SELECT i, 0, '' FROM generate_series(1, 10) AS i;
        INSERT INTO tellers SELECT i, 1 + i % 10, 0, '' FROM generate_series(1, {TELLERS}) AS i;
        INSERT INTO accounts SELECT i, 1 + i % 10, 0, '' FROM generate_series(1, {accounts}) AS i;
    """


def payments(rows):
    """pgbench's TPC-B-like transaction: three updates and an insert, on keys that jump about."""
    accounts = max(1000, rows // 4)
    return f"""DO $$ DECLARE a int; BEGIN FOR i IN 1..{rows // 4} LOOP
        a := 1 + (i * 7919::bigint) % {accounts};
        UPDATE accounts SET balance = balance + i % 100 WHERE aid = a;
        UPDATE tellers SET balance = balance + i % 100 WHERE tid = 1 + i % {TELLERS};
        UPDATE branches SET balance = balance + i % 100 WHERE bid = 1 + i % 10;
        INSERT INTO history VALUES (i, 1 + i % {TELLERS}, 1 + i % 10, a, i % 100, '2026-01-01');
        COMMIT; END LOOP; END $$;\n"""


def deletes(rows):
    return in_transactions("DELETE FROM sales_order WHERE id BETWEEN {first} AND {last};", rows)


def table_count(rows):
    return 500 if rows >= 100_000 else 50


def many_tables(rows):
    return "".join(SALES_ORDER.format(name=f"t{n:03}") for n in range(table_count(rows)))


def many_tables_rows(rows):
    """Every transaction concerns every table."""
    tables, each = table_count(rows), 20
    rounds = max(1, rows // tables // each)
    insert = SALES_ORDER_ROWS.format(name="%I", first="%s", last="%s").replace("% ", "%% ").replace("'", "''")
    return f"""DO $$ BEGIN FOR r IN 1..{rounds} LOOP FOR t IN 0..{tables - 1} LOOP
        EXECUTE format('{insert}', 't' || to_char(t, 'FM000'), (r - 1) * {each} + 1, r * {each});
        END LOOP; COMMIT; END LOOP; END $$;\n"""


WORKLOADS = [
    Workload("narrow", "narrow inserts, transactions of 20,000", 2_000_000, 40_000, orders, nothing, order_rows,
             peer=True, streams=True),
    Workload("tenth", "the same, a tenth of the rows", 200_000, 4_000, orders, nothing, order_rows),
    Workload("single", "narrow inserts, transactions of 1", 500_000, 10_000, orders, nothing,
             lambda rows: order_rows(rows, 1)),
    Workload("wide", "wide inserts (60 columns), transactions of 20,000", 200_000, 4_000, wide_schema, nothing, wide_rows,
             streams=True),
    Workload("updates", "updates like pgbench's, 4 changes a transaction", 1_200_000, 8_000, bank, nothing, payments,
             streams=True),
    Workload("deletes", "deletes, transactions of 20,000", 1_000_000, 20_000, orders, order_rows, deletes),
    Workload("huge", "one transaction", 10_000_000, 100_000, orders, nothing, one_transaction, runs=1),
    Workload("tables", "many tables at once", 1_000_000, 10_000, many_tables, nothing, many_tables_rows, runs=1),
]
COPY_ROWS, COPY_SMOKE = 4_000_000, 100_000
