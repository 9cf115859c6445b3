"""The second half of the demo: what the shop writes for others to act on, and what becomes of it."""

import json
import os
import time
import urllib.request

REPORT = """
[reports.customers_by_region]
description = "How many customers there are in each region."
sql = '''
SELECT region, count() AS customers FROM dim_users
WHERE merchant_account_id = {merchant:String} GROUP BY region ORDER BY customers DESC, region
'''
"""
# What is asked for while the shop is busy: a report, an export, and a report that nobody has written yet.
REQUESTS = [
    ("reportGeneration", {"report": "sales_by_day_and_channel", "format": "csv", "from": "2000-01-01", "to": "2100-01-01"}),
    ("dataExport", {"report": "merchant_orders", "format": "jsonl"}),
    ("reportGeneration", {"report": "customers_by_region", "format": "csv"}),
]


def config(directory, port):
    """What walhouse needs to know for events."""
    return f"""
[queue]
endpoint_url = "http://127.0.0.1:{port}"
region = "eu-central-1"

[objects]
url = "file://{directory}/reports"

[warehouse]
enabled = true
"""


class Events:
    def __init__(self, demo, say, until, run):
        self.demo, self.say, self.until, self.run = demo, say, until, run

    def ask(self):
        """Somebody at merchant 1 asks for reports, in transactions of the shop's own."""
        for operation, parameters in REQUESTS:
            payload = json.dumps({"operationType": operation, "userId": "7", "merchantAccountId": "1",
                                  "parameters": parameters})
            self.demo.postgres.sql("INSERT INTO outbox_event (aggregate_type, aggregate_id, event_type, payload) VALUES "
                                   f"('merchant', '1', 'AsynchronousOperationRequested', '{payload}')")

    def select(self, query):
        url = f"{self.demo.clickhouse.url}/?database=shop"
        try:
            with urllib.request.urlopen(url, data=query.encode(), timeout=60) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def number(self, query):
        text = self.select(query).strip()
        return int(text) if text.isdigit() else 0

    def show(self):
        """Waits until everything was acted on, and shows it."""
        written = self.demo.postgres.number("SELECT count(*) FROM outbox_event WHERE event_type = 'SecurityEventOccurred'")
        # An export is an event of its own.
        count = "SELECT count() FROM audit_log FINAL"
        began = time.monotonic()
        self.until(lambda: self.number(count) >= written + 1, 300, f"{written + 1:,} events in the audit log")
        self.say(f"The audit log has {self.number(count):,} events: {written:,} that the shop wrote, each once, and the export"
                 f" (the last of them {time.monotonic() - began:.1f} s after the load)")
        print(self.select("SELECT event_type, outcome, count() AS events, uniqExact(acting_user_id) AS users FROM audit_log FINAL "
                          "GROUP BY 1, 2 ORDER BY 1, 2 FORMAT PrettyCompactMonoBlock"))
        self.answered(2)
        self.say("Reports and exports that were asked for while the shop was busy")
        print(self.select("SELECT report, status, rows, bytes, error FROM async_operations FINAL ORDER BY requested_at "
                          "FORMAT PrettyCompactMonoBlock"))
        self.head("sales_by_day_and_channel")

    def answered(self, operations):
        query = "SELECT count() FROM async_operations FINAL WHERE status = 'succeeded'"
        self.until(lambda: self.number(query) == operations, 120, f"{operations} reports")

    def head(self, report):
        location = self.select("SELECT location FROM async_operations FINAL WHERE status = 'succeeded' "
                               f"AND report = '{report}' LIMIT 1").strip()
        path = location.removeprefix("file://")
        print(f"    {path} ({os.path.getsize(path):,} bytes) begins with")
        with open(path, encoding="utf-8") as file:
            for _, line in zip(range(4), file):
                print(f"        {line.rstrip()}")
        print()

    def redrive(self):
        """The request that nobody could answer: its report is written, and it is sent home."""
        self.say("One request is a dead letter: nobody has written that report")
        self.run("dlq", "list", "--queue", "async-operations")
        self.say("It is written now; walhouse starts again with it, and the letter is sent home")
        with open(self.demo.daemon.config, "a", encoding="utf-8") as file:
            file.write(REPORT)
        self.demo.daemon.stop()
        self.demo.daemon.start()
        self.until(self.demo.daemon.ready, 60, "walhouse is not ready again")
        self.run("dlq", "redrive", "--queue", "async-operations")
        self.answered(3)
        self.head("customers_by_region")
