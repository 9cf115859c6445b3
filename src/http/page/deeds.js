// What an operator may do from the page: each deed with what it does, in plain words, and what is asked of the API for it.
//
// A deed is { title, verb, says, path, body, reason, done }: `says` are paragraphs, `reason` whether a reason goes with it.

import { bytes } from "/page/text.js";

const ANEW = [
  "The whole table is read in PostgreSQL and copied into a fresh one beside the one in ClickHouse, while changes go on. Then the"
    + " two are exchanged, so there is something to read all the time.",
  "It costs a scan in PostgreSQL, and room for a second copy in ClickHouse until it is done.",
];

/** What the slot keeps, and how much more it may. */
function kept(status) {
  const slot = status?.source?.slot;
  if (!slot) return "How much it keeps can not be told, since PostgreSQL is not reached.";
  const now = `It keeps ${bytes(slot.retained_bytes)} now`;
  return slot.safe_bytes === null
    ? `${now}, and nothing but its disk limits that (max_slot_wal_keep_size = -1).`
    : `${now}. After ${bytes(Math.max(0, slot.safe_bytes))} more it gives the slot up, and every table has to be copied anew (max_slot_wal_keep_size).`;
}

const worker = (name, queue) => ({
  pause: {
    title: `Pause the worker ${name}?`,
    verb: "Pause the worker",
    says: [
      `It takes no more events from ${queue}, in every process with this configuration. It finishes what it has in hand.`,
      "Events wait in the queue until it is resumed, also over a restart. SQS deletes those that are older than the queue keeps them.",
    ],
    path: "/pause",
    body: { workers: [name] },
    reason: true,
    done: `The worker ${name} is paused as soon as every process has seen it.`,
  },
  resume: {
    title: `Resume the worker ${name}?`,
    verb: "Resume the worker",
    says: [`It takes events from ${queue} again, in every process with this configuration, those that have waited first.`],
    path: "/resume",
    body: { workers: [name] },
    done: `The worker ${name} goes on within seconds.`,
  },
});

const DEEDS = {
  "pause-pipeline": (_, { status }) => ({
    title: "Pause the pipeline?",
    verb: "Pause the pipeline",
    says: [
      "What is in memory is written to ClickHouse first. Then nothing more is read: ClickHouse stays as it is, and no events are"
        + " sent. Workers go on with what is in their queues.",
      `PostgreSQL keeps all WAL for the slot until the pipeline is resumed. ${kept(status)}`,
      "A restart does not end the pause.",
    ],
    path: "/pause",
    body: {},
    reason: true,
    done: "The pipeline is being paused.",
  }),
  "resume-pipeline": (_, { status }) => ({
    title: "Resume the pipeline?",
    verb: "Resume the pipeline",
    says: [
      `It goes on where it stood${status?.stored?.checkpoint ? `, at ${status.stored.checkpoint.position}` : ""}, and nothing is left out.`
        + ` It has ${bytes(status?.source?.slot?.lag_bytes ?? 0)} of WAL to catch up with.`,
    ],
    path: "/resume",
    body: {},
    done: "The pipeline goes on within seconds.",
  }),
  "pause-worker": (name, { queueOf }) => worker(name, queueOf(name)).pause,
  "resume-worker": (name, { queueOf }) => worker(name, queueOf(name)).resume,
  "pause-table": (table) => ({
    title: `Pause ${table}?`,
    verb: "Pause the table",
    says: [
      "Its rows in ClickHouse stay as they are and can be read. All other tables go on.",
      "All tables share the slot, so changes of this one are passed over from now on, and gone for it: when it is resumed, the whole"
        + " table is copied anew.",
    ],
    path: "/pause",
    body: { tables: [table] },
    reason: true,
    done: `${table} is being paused.`,
  }),
  "resume-table": (table) => ({
    title: `Resume ${table}?`,
    verb: "Resume and copy anew",
    says: ["Its changes were passed over while it was paused, so it is copied anew.", ...ANEW],
    path: "/resume",
    body: { tables: [table] },
    done: `${table} is asked to be resumed; its copy begins within seconds.`,
  }),
  "resync-table": (table) => ({
    title: `Copy ${table} anew?`,
    verb: "Copy anew",
    says: ANEW,
    path: "/resync",
    body: { tables: [table] },
    done: `${table} is asked to be copied anew; that begins within seconds.`,
  }),
  redrive: (queue, { letters, queueOf, pausedWorker }) => ({
    title: `Send all dead letters of ${queueOf(queue)} home?`,
    verb: "Send all home",
    says: [
      `${letters === 1 ? "The one letter goes" : `About ${letters} letters go`} back into the queue, and the worker tries each anew. It does no`
        + " harm if one has had its effect before.",
      "What they failed of has to be mended first, or they come back here.",
      ...pausedWorker,
    ],
    path: `/dlq/${queue}/redrive`,
    body: {},
    done: `The dead letters of ${queueOf(queue)} are on their way home; the log tells if that ends early.`,
  }),
  "redrive-one": (letter, { queue, queueOf, pausedWorker }) => ({
    title: "Send this letter home?",
    verb: "Send it home",
    says: [
      `The letter ${letter} goes back into ${queueOf(queue)}, and the worker tries it anew. It does no harm if it has had its effect before.`,
      "What it failed of has to be mended first, or it comes back here.",
      ...pausedWorker,
    ],
    path: `/dlq/${queue}/redrive`,
    body: { filter: { event_id: letter } },
    done: `The letter ${letter} is on its way home.`,
  }),
};

/** The deed of a button. */
export const deed = (act, subject, known) => DEEDS[act](subject, known);
