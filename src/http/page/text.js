// Numbers and elements for people. Text only ever becomes text: nothing that the process says is read as HTML.

/** An element with attributes, and texts or elements in it. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null && child !== ""));
  return made;
}

/** A word that stands out, by its colour and by itself. */
export function badge(text, kind) {
  const signs = { good: "✓ ", warn: "! ", bad: "✗ " };
  return element("span", { class: `badge ${kind ?? ""}` }, (signs[kind] ?? "") + text);
}

/** Pairs of a name and its value; those without a value are left out. */
export function facts(pairs) {
  const list = element("dl", { class: "facts" });
  for (const [name, value] of pairs) {
    if (value !== undefined && value !== null && value !== "") {
      list.append(element("dt", {}, name), element("dd", {}, value));
    }
  }
  return list;
}

/** Makes what is in an element the same as this, and leaves alone what is so already: a reader's place, a selection and the
 * focus stay. What has a `data-key` is itself only under the same one. */
export function fill(target, ...children) {
  const made = document.createElement(target.tagName);
  made.append(...children);
  const focused = target.contains(document.activeElement) ? document.activeElement : undefined;
  const key = focused?.dataset.key;
  patch(target, made);
  if (key !== undefined && document.activeElement !== focused) {
    [...target.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key)?.focus({ preventScroll: true });
  }
}

function patch(old, made) {
  const [was, wanted] = [[...old.childNodes], [...made.childNodes]];
  wanted.forEach((child, index) => {
    const before = was[index];
    if (!before) old.append(child);
    else if (before.nodeName !== child.nodeName || before.dataset?.key !== child.dataset?.key) before.replaceWith(child);
    else if (before.nodeType === Node.TEXT_NODE) before.data === child.data || (before.data = child.data);
    else if (!before.isEqualNode(child)) {
      // What a person has opened stays open.
      for (const { name } of [...before.attributes]) if (!child.hasAttribute(name) && name !== "open") before.removeAttribute(name);
      for (const { name, value } of child.attributes) if (before.getAttribute(name) !== value) before.setAttribute(name, value);
      patch(before, child);
    }
  });
  for (const gone of was.slice(wanted.length)) gone.remove();
}

const whole = new Intl.NumberFormat("en");

/** A whole number. */
export function count(value) {
  return value === undefined || value === null ? "?" : whole.format(Math.round(value));
}

/** So much in a second. */
export function rate(value) {
  return `${value > 0 && value < 10 ? value.toFixed(1) : whole.format(Math.round(value))}/s`;
}

/** Bytes. */
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** A span of time, from seconds. */
export function span(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} days`;
}

/** The time of day, from seconds since 1970. */
export function clock(seconds, withSeconds = true) {
  const options = { hour: "2-digit", minute: "2-digit", second: withSeconds ? "2-digit" : undefined, hour12: false };
  return new Date(seconds * 1000).toLocaleTimeString("en-GB", options);
}
