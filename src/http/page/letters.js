// The dead letters of a queue: why, of whom, since when, and what they are made of. Nothing that they say inside comes here:
// the process tells the names of fields and the types of their values, and walhouse dlq show the rest, of which the audit log
// hears.

import { control, say } from "/page/act.js";
import { ask, why } from "/page/ask.js";
import { badge, count, element, facts, fill, span } from "/page/text.js";

/** So many are listed; those that are sent home make room for others. */
const MOST = 50;
const FEWEST = 3;
/** Somebody has the letters in hand, as a redrive that goes on, or SQS is slow: when to ask again, in milliseconds, and how often. */
const AGAIN = 1500;
const TRIES = 20;
const PASSING = [409, 429, 503, 504];

const at = (id) => document.getElementById(id);
/** The queue whose letters are shown, and how many there are. */
export const shown = { queue: "", name: "", count: 0 };

/** Opens the list of a queue. */
export function look(queue, name) {
  Object.assign(shown, { queue, name, count: 0 });
  at("letters-title").textContent = `Dead letters of ${name}`;
  at("letters-count").textContent = "";
  fill(at("letter-list"));
  fill(at("letters-all"));
  at("letters").showModal();
  void refresh("Asking…");
}

/** Asks anew, and says `text` meanwhile; nothing if what was said last should stay. */
export async function refresh(text) {
  const { queue } = shown;
  if (text) say(text);
  let [limit, last] = [MOST, undefined];
  for (let tries = 0; tries < TRIES; tries += 1) {
    try {
      const { queues: [listed] } = await ask(`/dlq/${queue}?limit=${limit}`);
      if (shown.queue === queue) draw(listed, text !== undefined);
      return;
    } catch (error) {
      if (!at("letters").open || shown.queue !== queue) return;
      last = error;
      if (!PASSING.includes(error.status)) break;
      // So many are not listed in time, where SQS is slow.
      if (error.status === 504) limit = Math.max(FEWEST, Math.floor(limit / 2));
    }
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
  }
  say(`They can not be listed: ${why(last)}`);
}

function draw({ count: all, letters }, isSaid) {
  shown.count = all;
  const more = all > letters.length ? `, ${letters.length} of them here` : "";
  at("letters-count").textContent = all === 0 ? "There are none." : `${count(all)} ${all === 1 ? "letter" : "letters"}${more}.`;
  if (isSaid) say("");
  fill(at("letter-list"), ...letters.map(letterItem));
  // The letter that had the focus may be gone.
  const isLost = at("letters").open && !at("confirm").open && !at("letters").contains(document.activeElement);
  if (isLost) at("letters-title").focus();
  fill(at("letters-all"), all > 0 ? control("redrive", shown.queue, "Send all home", { about: `: ${shown.name}`, kind: "primary" }) : "");
}

function letterItem(letter) {
  const id = letter.event_id ?? letter.message_id;
  const age = letter.time ? span(Math.max(0, (Date.now() - Date.parse(letter.time)) / 1000)) : undefined;
  const heading = letter.event_type ? `${letter.event_type} ${letter.event_version ?? ""}`.trim() : "No event";
  return element("li", { "data-key": id },
    element("h3", {}, heading),
    element("p", { class: "reason" }, badge("reason", "bad"), " ", letter.reason),
    facts([
      [letter.event_id ? "Event" : "Message", element("code", {}, id)],
      ["Given up", age && `${age} ago`],
      ["By", letter.handler && `${letter.handler}${letter.tries ? `, after ${count(letter.tries)} ${letter.tries === 1 ? "try" : "tries"}` : ""}`],
      ["Correlation", letter.correlation_id && element("code", {}, letter.correlation_id)],
      ["Payload", letter.payload_location && `${count(letter.payload_bytes)} bytes in the object store`],
    ]),
    element("details", { "data-key": `shape ${id}` }, element("summary", {}, "What it is made of", element("span", { class: "hidden" }, `: ${id}`)),
      element("h4", {}, "Body"), shapeList(letter.shape),
      element("h4", {}, "Attributes"), attributes(letter.attributes ?? {})),
    element("p", { class: "row" }, control("redrive-one", id, "Send home")));
}

function shapeList(shape) {
  if (shape === undefined || shape === null) return element("p", { class: "quiet" }, "not known");
  if (typeof shape !== "object") return element("p", {}, shape);
  return element("ul", { class: "shape" }, ...Object.entries(shape).map(([name, value]) => element("li", {},
    element("code", {}, name), typeof value === "object" ? shapeList(value) : ` ${value}`)));
}

function attributes(all) {
  const pairs = Object.entries(all);
  if (!pairs.length) return element("p", { class: "quiet" }, "none");
  return facts(pairs.map(([name, value]) => [name, value ?? "not shown"]));
}

at("letters-close").addEventListener("click", () => at("letters").close());
at("letters-again").addEventListener("click", () => refresh("Asking…"));
