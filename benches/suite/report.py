"""From measurements to a table, a plot and a page. Medians; ratios within one run; nothing is left out."""

import html
import json
import os
import shutil
import statistics

from services import ROOT, TARGET, Failed

OUTPUT = os.path.join(TARGET, "bench")
LEGEND = ("s: seconds, the median of all runs. Of the limit: how fast it is, with the limit of its kind as 1, run by run. "
          "CPU, PostgreSQL, ClickHouse: seconds of processor time per million rows, of the program itself and of the two "
          "servers. Others: the part of all processors that nothing of ours used, at worst.")
README = os.path.join(ROOT, "benches", "README.md")
BEGIN, END = "<!-- begin of the published result -->", "<!-- end of the published result -->"
LIMITS = {"copy": "ClickHouse postgresql()"}
LIMIT = "pg_recvlogical, TCP"
# Of all processors, how much of a measurement others may use before it is called disturbed.
DISTURBED = 0.05
HEADER = ["", "rows", "s", "from – to", "rows/s", "of the limit", "CPU", "PostgreSQL", "ClickHouse", "peak RSS",
          "parts", "others"]


def summary(result):
    """One entry per scenario and system, in the order in which they were first measured."""
    groups = {}
    for one in result["measurements"]:
        groups.setdefault((one["scenario"], one["system"]), []).append(one)
    entries = []
    for (scenario, system), runs in groups.items():
        limit = {one["run"]: one["seconds"] for one in groups.get((scenario, LIMITS.get(scenario, LIMIT)), [])}
        ratios = [limit[one["run"]] / one["seconds"] for one in runs if one["run"] in limit]
        seconds = [one["seconds"] for one in runs]
        median = lambda pick: statistics.median(pick(one) for one in runs)
        million = runs[0]["rows"] / 1e6
        entries.append({
            "scenario": scenario, "system": system, "rows": runs[0]["rows"], "runs": len(runs),
            "seconds": statistics.median(seconds), "fastest": min(seconds), "slowest": max(seconds),
            "rows_per_second": runs[0]["rows"] / statistics.median(seconds),
            "of_limit": statistics.median(ratios) if ratios else None,
            "cpu": {who: median(lambda one: one["cpu"].get(who, 0)) / million for who in ("postgres", "clickhouse")}
                   | {"itself": median(lambda one: one["cpu"].get("walhouse", one["cpu"].get("client", 0))) / million},
            "peak_rss": max(one.get("peak_rss", 0) for one in runs) or None,
            "parts": median(lambda one: one.get("parts", 0)) if "parts" in runs[0] else None,
            "confirmed_seconds": median(lambda one: one.get("confirmed_seconds", 0)) or None,
            "others": max(one["cpu"]["others_share"] for one in runs),
        })
    return entries


def cells(entry):
    some = lambda value, form: "" if value is None else form.format(value)
    return [
        entry["system"], f"{entry['rows']:,}", f"{entry['seconds']:.2f}", f"{entry['fastest']:.2f} – {entry['slowest']:.2f}",
        f"{entry['rows_per_second']:,.0f}", some(entry["of_limit"], "{:.2f}"), f"{entry['cpu']['itself']:.2f}",
        f"{entry['cpu']['postgres']:.2f}", f"{entry['cpu']['clickhouse']:.2f}",
        some(entry["peak_rss"] and entry["peak_rss"] / 2**20, "{:.0f} MiB"), some(entry["parts"], "{:.0f}"),
        f"{entry['others']:.0%}",
    ]


def sections(result):
    """Title, and rows of cells."""
    entries = summary(result)
    for scenario in dict.fromkeys(entry["scenario"] for entry in entries):
        yield result["titles"][scenario], [cells(entry) for entry in entries if entry["scenario"] == scenario]


def facts(result):
    """What is said in sentences."""
    lines = []
    ms = lambda quantiles: ", ".join(f"{name} {value * 1000:.0f} ms" for name, value in quantiles.items())
    steady = result.get("latency")
    if steady:
        lines.append(f"Commit to visible in ClickHouse at {steady['rate_reached']:.0f} transactions/s (wanted "
                     f"{steady['rate_wanted']}) for {steady['seconds']:.0f} s, {steady['rows']:,} rows: "
                     f"{ms(steady['commit_to_visible_seconds'])}. The reader sees a row too late by at most: "
                     f"{ms(steady['reader_error_seconds'])}.")
        used = steady["cpu_seconds"]
        lines.append(f"Meanwhile: walhouse {used['walhouse']:.1f} s of CPU, PostgreSQL {used['postgres']:.1f} s, ClickHouse "
                     f"{used['clickhouse']:.1f} s, the reader and the suite {used['suite']:.1f} s; peak RSS of walhouse "
                     f"{steady['peak_rss'] / 2**20:.0f} MiB; {steady['parts']} parts.")
    if result.get("exec_to_streaming_seconds"):
        span = lambda taken: (f"{statistics.median(taken) * 1000:.0f} ms (median of {len(taken)}, "
                              f"{min(taken) * 1000:.0f} to {max(taken) * 1000:.0f} ms)")
        lines.append(f"From exec to streaming: {span(result['exec_to_streaming_seconds'])}; until PostgreSQL has decoded again "
                     f"what it has to, from the slot's restart_lsn to the head of the WAL: "
                     f"{span(result['exec_to_head_seconds'])}.")
    sent = result.get("events")
    if sent:
        lines.append(f"{sent['events']:,} events through the outbox at {sent['rate_reached']:,.0f}/s (wanted "
                     f"{sent['rate_wanted']:,}): the last one was in its queue {sent['seconds_behind_the_load']:.1f} s after it "
                     f"was written; {sent['walhouse_cpu_microseconds_per_event']:.0f} µs of walhouse's CPU for each; peak RSS "
                     f"{sent['peak_rss'] / 2**20:.0f} MiB. Rows beside them were visible after "
                     f"{ms(sent['row_visible_seconds'])}.")
        lines.append(f"From the full queue into the audit log: {sent['audited_per_second']:,.0f} events/s, "
                     f"{sent['audit_cpu_microseconds_per_event']:.0f} µs of walhouse's CPU for each; {sent['audit_rows']:,} rows "
                     f"for {sent['events']:,} events, before merges.")
    page = result.get("metrics")
    if page:
        lines.append(f"/metrics with {page['tables']:,} tables, {page['series']:,} series and {page['bytes'] / 2**20:.1f} MiB, "
                     f"asked for {page['scrapes']} times while {page['rows_per_second']:,.0f} rows/s came: "
                     f"{ms(page['scrape_seconds'])}. With nothing else to do: {ms(page['alone_seconds'])}, "
                     f"{page['cpu_milliseconds_per_scrape']:.1f} ms of walhouse's CPU for each; peak RSS "
                     f"{page['peak_rss'] / 2**20:.0f} MiB. Others had {page['others_share']:.0%} of the processors.")
    ours = {entry["scenario"]: entry for entry in summary(result) if entry["system"] == "walhouse"}
    if "narrow" in ours and "tenth" in ours:
        large, small = ours["narrow"], ours["tenth"]
        lines.append(f"{large['rows'] / small['rows']:.0f} times the rows: {large['seconds'] / small['seconds']:.1f} times "
                     f"the time (start included), peak RSS {small['peak_rss'] / 2**20:.0f} and {large['peak_rss'] / 2**20:.0f} MiB.")
    if not result["peer"]:
        lines.append("This build of ClickHouse has no MaterializedPostgreSQL: it was not measured.")
    worst = disturbance(result)
    if worst > DISTURBED:
        lines.append(f"DISTURBED: up to {worst:.0%} of the processors' time went to others during a measurement. Compare "
                     "ratios with caution, and absolute figures not at all.")
    return lines


def disturbance(result):
    return max((entry["others"] for entry in summary(result)), default=0.0)


def origin(result):
    machine = result["machine"]
    dirty = ", with changes that are not committed" if result["dirty"] else ""
    size = "BENCH=smoke: only shows that the suite works" if result["smoke"] else f"{result['runs']} runs, medians"
    return (f"{result['date']}, commit {result['commit']}{dirty}. {machine['cpu']}, {machine['cpus']} processors, "
            f"{machine['memory_gib']:.0f} GiB, Linux {machine['kernel']}. {result['postgres']}, ClickHouse "
            f"{result['clickhouse']}, fsync off in PostgreSQL. {size}. Load average at the start: {machine['load']:.1f}.")


def terminal(result):
    lines = [origin(result), LEGEND]
    for title, rows in sections(result):
        widths = [max(len(row[at]) for row in rows + [HEADER]) for at in range(len(HEADER))]
        widths[0] = max(widths[0], 28)
        lines.append("\n" + title)
        for row in [HEADER, *rows]:
            lines.append("  ".join(cell.ljust(width) if at == 0 else cell.rjust(width)
                                   for at, (cell, width) in enumerate(zip(row, widths))))
    return "\n".join(lines + [""] + facts(result))


def markdown(result):
    lines = [origin(result), "", LEGEND, ""]
    for title, rows in sections(result):
        lines += [f"**{title[0].upper() + title[1:]}**", "", "| " + " | ".join(HEADER) + " |",
                  "|---|" + "--:|" * (len(HEADER) - 1)]
        lines += ["| " + " | ".join(row) + " |" for row in rows] + [""]
    return "\n".join(lines + [f"- {fact}" for fact in facts(result)]) + "\n"


def plot(result):
    """How fast each is, with the limit of its scenario as 1."""
    bars = [entry for entry in summary(result) if entry["of_limit"]]
    left, width, height = 420, 420, 18
    longest = max([entry["of_limit"] for entry in bars] + [1.0])
    at = lambda ratio: left + width * ratio / longest
    out, y, scenario = [], 40, None
    for entry in bars:
        if entry["scenario"] != scenario:
            scenario = entry["scenario"]
            y += 12
            out.append(f'<text x="10" y="{y + 13}" font-weight="bold">{html.escape(result["titles"][scenario])}</text>')
            y += height + 4
        color = "#c2410c" if entry["system"] == "walhouse" else "#94a3b8"
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{html.escape(entry["system"])}</text>'
                   f'<rect x="{left}" y="{y}" width="{at(entry["of_limit"]) - left:.1f}" height="{height - 3}" fill="{color}"/>'
                   f'<text x="{at(entry["of_limit"]) + 6:.1f}" y="{y + 13}">{entry["of_limit"]:.2f} '
                   f'({entry["rows_per_second"] / 1000:,.0f}k rows/s)</text>')
        y += height
    line = f'<line x1="{at(1):.1f}" x2="{at(1):.1f}" y1="34" y2="{y}" stroke="#334155" stroke-dasharray="4 3"/>'
    title = "Speed as a part of the limit (1.00)" + (", smoke sizes: not a result" if result["smoke"] else "")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 180}" height="{y + 20}" '
            f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
            f'<text x="10" y="22" font-size="15">{html.escape(title)}</text>{"".join(out)}{line}</svg>\n')


def write(result):
    os.makedirs(OUTPUT, exist_ok=True)
    texts = {"result.json": json.dumps(result, indent=1) + "\n", "result.md": markdown(result), "result.svg": plot(result)}
    for name, text in texts.items():
        with open(os.path.join(OUTPUT, name), "w", encoding="utf-8") as file:
            file.write(text)


def publish():
    """Writes the last result into benches/README.md, if it is one that can be stood by."""
    try:
        with open(os.path.join(OUTPUT, "result.json"), encoding="utf-8") as file:
            result = json.load(file)
    except OSError:
        raise Failed("there is no result yet: run make bench first") from None
    doubts = [why for why, holds in {
        "it has smoke sizes": result["smoke"],
        "only some of the scenarios ran": result["partial"],
        "the sides were not compared value by value": not result["verified"],
        "it was measured with changes that are not committed": result["dirty"],
        f"others used up to {disturbance(result):.0%} of the processors": disturbance(result) > DISTURBED,
    }.items() if holds]
    if doubts:
        raise Failed(f"this result is not published: {'; '.join(doubts)}. Run make bench again on a quiet machine")
    with open(README, encoding="utf-8") as file:
        before, _, rest = file.read().partition(BEGIN)
    after = rest.partition(END)[2]
    with open(README, "w", encoding="utf-8") as file:
        file.write(f"{before}{BEGIN}\n\n{markdown(result)}\n![Speed as a part of the limit](result.svg)\n\n{END}{after}")
    shutil.copyfile(os.path.join(OUTPUT, "result.svg"), os.path.join(ROOT, "benches", "result.svg"))
