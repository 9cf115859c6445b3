// Buttons that act, each with a confirmation that says what will happen.
//
// Buttons are drawn anew every few seconds, so one listener for all of them reads from a button's data what it is about. What
// was asked for is disabled until the process has been heard of it.

import { actor, ask, keepActor, why } from "/page/ask.js";
import { deed } from "/page/deeds.js";
import { element, fill } from "/page/text.js";

const at = (id) => document.getElementById(id);

/** What the person may do; until it is known, nothing. */
export const role = { mayAct: false };
/** The keys of buttons that something was asked for by, and when: nothing that was looked at before shows it. */
const asked = new Map();
let known = () => ({});
let afterwards = () => {};
/** The deed that is confirmed now, and the button that it belongs to. */
let open;

/** Pause and resume are one button. */
const keyOf = (act, subject) => `${act.replace(/^(pause|resume)-/, "hold-")} ${subject}`;

/** A button; nothing for those who may not. `about` is said to those who do not see where it stands. One that is disabled can
 * still have the focus, so that nobody loses their place while something is under way. */
export function control(act, subject, text, { about = subject, disabled = false, kind } = {}) {
  if (!role.mayAct) return "";
  const key = keyOf(act, subject);
  return element("button", { type: "button", class: kind, "data-act": act, "data-subject": subject, "data-key": key,
    "aria-disabled": disabled || asked.has(key) ? "true" : undefined }, text, element("span", { class: "hidden" }, ` ${about}`));
}

/** What was looked at from `begun` on shows what was asked for before. */
export function heardOf(begun) {
  for (const [key, when] of asked) if (when < begun) asked.delete(key);
}

/** Says something to everybody: in the dialog that is open, since what is behind it is not read out. */
export function say(text) {
  const place = at("letters").open ? at("letters-said") : at("said-text");
  place.textContent = text;
  at("said-close").hidden = at("said-text").textContent === "";
}

function confirm(act, subject, button) {
  const made = deed(act, subject, known());
  open = { ...made, key: keyOf(act, subject), button };
  at("confirm-title").textContent = made.title;
  at("confirm-do").textContent = made.verb;
  fill(at("confirm-text"), ...made.says.map((text) => element("p", {}, text)));
  at("confirm-why").hidden = !made.reason;
  at("reason").value = "";
  at("actor").value = actor();
  busy(false);
  at("confirm").showModal();
}

function busy(isBusy, error = "") {
  for (const one of at("confirm").querySelectorAll("button, input")) one.disabled = isBusy;
  at("confirm-said").textContent = isBusy ? "Asking…" : "";
  at("confirm-error").textContent = error;
  at("confirm-error").hidden = error === "";
}

async function act() {
  const { path, body, reason, done, key } = open;
  keepActor(at("actor").value.trim());
  busy(true);
  try {
    await ask(path, reason ? { ...body, reason: at("reason").value.trim() } : body);
  } catch (error) {
    // Whether it was done is for the answer to say.
    busy(false, `walhouse says: ${why(error)}`);
    at("confirm-do").focus();
    return;
  }
  asked.set(key, Date.now());
  at("confirm").close();
  say(done);
  afterwards(open);
}

/** The focus goes back to where it was, also if that has been drawn anew. */
function restore({ button, key }) {
  const scope = at("letters").open ? at("letters") : document;
  const same = [...scope.querySelectorAll("button[data-key]")].find((one) => one.dataset.key === key);
  const fallback = at("letters").open ? at("letters-title") : at("main");
  (button.isConnected ? button : same ?? fallback).focus();
}

/** Begins to listen. `knowing` gives what confirmations tell of, `then` is called after each deed. */
export function listen(knowing, then) {
  [known, afterwards] = [knowing, then];
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-act]");
    if (button && DOES.has(button.dataset.act) && !button.ariaDisabled) confirm(button.dataset.act, button.dataset.subject, button);
  });
  at("confirm").querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    void act();
  });
  // Once it is asked for it can not be taken back, and its answer is waited for.
  at("confirm").addEventListener("cancel", (event) => at("confirm-do").disabled && event.preventDefault());
  at("confirm-cancel").addEventListener("click", () => at("confirm").close());
  at("confirm").addEventListener("close", () => restore(open));
  at("said-close").addEventListener("click", () => {
    say("");
    at("main").focus();
  });
}

/** What asks for a confirmation; another act opens something. */
const DOES = new Set(["pause-pipeline", "resume-pipeline", "pause-worker", "resume-worker", "pause-table", "resume-table",
  "resync-table", "redrive", "redrive-one"]);
