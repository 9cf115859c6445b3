// What needs a person, and where it is written what to do; also once the process tells nothing any more.

import { clock, element, fill } from "/page/text.js";

const at = (id) => document.getElementById(id);
const runbook = (alert) => element("p", { class: "quiet" }, "Runbook: ", element("code", {}, `docs/runbooks.md, ${alert}`));

/** What needs a person, each with its remedy. */
export function drawFindings(findings) {
  at("well").hidden = findings.length > 0;
  at("well").textContent = "All is well: nothing needs a person.";
  fill(at("finding-list"), ...findings.map((one) => element("li", {},
    element("strong", {}, one.about), `: ${one.what}`,
    element("p", {}, "→ ", element("code", {}, one.remedy)), one.runbook && runbook(one.runbook))));
}

/** A process that has ended tells nothing: what that means, and what to do, has to be known here. */
export function drawAlarm(alarm, { failure, when }) {
  const told = [
    element("p", {}, element("strong", {}, `walhouse does not answer since ${failure}.`),
      " It has ended, or can not be reached from here. While it is down nothing is replicated, and PostgreSQL keeps WAL."),
    element("p", {}, "→ ", element("code", {}, "walhouse status"), " where it runs tells what is missing. If it has ended with exit code 3,",
      " it waits for a person, and the last line of its log says why."),
    runbook("WalhouseDown"),
    element("p", {}, "What is shown below is from before. This page goes on asking."),
  ];
  fill(alarm, ...(failure ? told : []));
  alarm.hidden = !failure;
  // What is drawn is of then, and none of it is good news any more.
  at("main").classList.toggle("old", Boolean(failure && when));
  at("main").style.setProperty("--heard", `"${clock(when / 1000)}"`);
}
