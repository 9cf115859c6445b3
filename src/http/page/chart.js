// Small charts of the last hour, as SVG. Each has its latest and highest values as text, and its values as a table.

import { clock, element } from "/page/text.js";

const SVG = "http://www.w3.org/2000/svg";
/** Until it is known how wide the chart is shown. */
const WIDTH = 320;
const HEIGHT = 112;
/** What is left free: for the highest value above, and for the times below. */
const TOP = 16;
const BOTTOM = 16;
const HOUR = 3600;
/** So long a time is shown at least, in seconds. */
const LEAST = 300;
/** Without a point for so many intervals, the line is broken. */
const BREAK = 3;
/** Rows of the table: one every five minutes. */
const STEP = 300;

function shape(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** The least of 1, 2, 5, 10, … that holds the value, in the unit's own steps. */
function ceiling(value, binary) {
  if (!(value > 0)) return binary ? 1024 : 1;
  const base = binary ? 2 ** (10 * Math.floor(Math.log2(value) / 10)) : 1;
  const scaled = value / base;
  const power = 10 ** Math.floor(Math.log10(scaled));
  const step = [1, 2, 5, 10].find((one) => one * power >= scaled * 0.9999) ?? 10;
  return step * power * base;
}

function line(points, key, { until, shown, highest, interval, width }) {
  let path = "";
  let before;
  for (const point of points) {
    const value = point[key];
    if (value === null || value === undefined) continue;
    const x = width * (1 - (until - point.time) / shown);
    if (x < 0) continue;
    const y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - Math.min(1, value / highest));
    const joined = before !== undefined && point.time - before <= interval * BREAK;
    path += `${joined ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    // A point by itself is a dot.
    if (!joined) path += "h0.8";
    before = point.time;
  }
  return path;
}

/** A chart in `place`: `series` are `{ key, name }`, one or two of them; `format` writes a value. */
export class Chart {
  constructor(place, { title, series, format, binary = false }) {
    Object.assign(this, { title, series, format, binary });
    const name = `chart-${series[0].key}`;
    this.latest = element("strong");
    this.svg = shape("svg", { role: "img", viewBox: `0 0 ${WIDTH} ${HEIGHT}` });
    this.rows = element("tbody");
    const heads = series.map((one) => element("th", { scope: "col", class: "number" }, one.name));
    const table = element("table", {},
      element("caption", { class: "hidden" }, `${title}, every five minutes`),
      element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "Time"), ...heads)), this.rows);
    this.details = element("details", {}, element("summary", {}, "As a table", element("span", { class: "hidden" }, `: ${title}`)), table);
    this.details.addEventListener("toggle", () => this.tabulate());
    const legend = series.length > 1 ? this.legend() : "";
    place.append(element("figure", { class: "chart", id: name },
      element("figcaption", {}, element("span", {}, title), this.latest), this.svg, legend, this.details));
  }

  legend() {
    const legend = element("p", { class: "legend", "aria-hidden": "true" });
    this.series.forEach((one, index) => {
      const key = shape("svg", { viewBox: "0 0 28 8" });
      key.append(shape("path", { d: "M0 4H28", class: index ? "second" : "first" }));
      legend.append(element("span", {}, key, one.name));
    });
    return legend;
  }

  /** Draws the points, in the order of their time. `instead` is said where the latest value would be, if that means nothing now. */
  draw(points, interval, instead = "") {
    this.points = points;
    const until = points.length ? points[points.length - 1].time : Date.now() / 1000;
    // A process that is young has no hour behind it.
    const shown = Math.min(HOUR, Math.max(LEAST, until - (points[0]?.time ?? until)));
    const values = points.flatMap((point) => this.series.map((one) => point[one.key] ?? 0));
    const most = values.reduce((one, other) => Math.max(one, other), 0);
    const highest = ceiling(most, this.binary);
    const last = points[points.length - 1];
    const write = (value) => (value === null || value === undefined ? "–" : this.format(value));
    const idle = !last || this.series.every((one) => last[one.key] === null);
    this.latest.textContent = instead || (idle ? "–" : this.series.map((one) => write(last[one.key])).join(" · "));
    const now = instead || (last ? this.series.map((one) => `${one.name} ${write(last[one.key])}`).join(", ") : "no points yet");
    this.svg.setAttribute("aria-label", `${this.title}: now ${now}; the highest of the last hour ${this.format(most)}`);
    const floor = HEIGHT - BOTTOM;
    // As wide as it is shown, so that its text has the size that the style gives it.
    const width = this.svg.clientWidth || WIDTH;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    const lines = this.series.map((one, index) => shape("path",
      { d: line(points, one.key, { until, shown, highest, interval, width }), class: index ? "second" : "first" }));
    const marks = [
      shape("line", { class: "grid", x1: 0, x2: width, y1: TOP, y2: TOP }),
      shape("line", { class: "grid", x1: 0, x2: width, y1: floor, y2: floor }),
      shape("text", { x: 0, y: TOP - 4 }, this.format(highest)),
      shape("text", { x: 0, y: HEIGHT - 3 }, clock(until - shown, false)),
      shape("text", { x: width, y: HEIGHT - 3, "text-anchor": "end" }, clock(until, false)),
    ];
    this.svg.replaceChildren(...marks, ...lines);
    this.tabulate();
  }

  tabulate() {
    if (!this.details.open || !this.points) return;
    const rows = [];
    let next = Infinity;
    for (const point of [...this.points].reverse()) {
      if (point.time > next) continue;
      next = point.time - STEP;
      const cells = this.series.map((one) => {
        const value = point[one.key];
        return element("td", { class: "number" }, value === null || value === undefined ? "–" : this.format(value));
      });
      rows.push(element("tr", {}, element("th", { scope: "row" }, clock(point.time)), ...cells));
    }
    this.rows.replaceChildren(...rows);
  }
}
