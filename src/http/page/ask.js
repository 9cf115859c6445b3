// How the page asks the process, and as whom.
//
// The token lives in this tab's session storage: not in an address, where it would be logged, and not in a cookie, which a
// browser would send for any page that asks. Only this page's own scripts can read it, and they send it in a header.

/** So long may an answer take, in milliseconds. */
const PATIENCE = 20000;
const TOKEN = "walhouse-token";
const ACTOR = "walhouse-actor";

let token = sessionStorage.getItem(TOKEN) ?? "";

/** No token, or one that the process does not take. */
export class Unauthorized extends Error {}

export const hasToken = () => token !== "";

/** Keeps a token for as long as the tab is open; an empty one is forgotten. */
export function keepToken(text) {
  token = text;
  if (text) sessionStorage.setItem(TOKEN, text);
  else sessionStorage.removeItem(TOKEN);
}

/** Whom the audit log is told of, as they call themselves; empty if they have not. */
export const actor = () => sessionStorage.getItem(ACTOR) ?? "";
export const keepActor = (name) => sessionStorage.setItem(ACTOR, name);

/** A header takes bytes: those of UTF-8. */
const bytesOf = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** What the API answers; with a `body` it is asked to do something. */
export async function ask(path, body) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const options = { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE) };
  if (body !== undefined) {
    headers["content-type"] = "application/json";
    if (actor()) headers["x-walhouse-actor"] = bytesOf(actor());
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  }
  const answer = await fetch(`/api/v1${path}`, options);
  if (answer.status === 401) throw new Unauthorized("walhouse does not take the token");
  const said = await answer.json();
  if (!answer.ok) throw Object.assign(new Error(said.error ?? `it answers ${answer.status}`), { status: answer.status });
  return said;
}

/** Why something was not answered, for people: a browser tells of a refused connection in words of its own. */
export const why = (error) => ({ TimeoutError: "no answer in time", TypeError: "no connection" })[error.name] ?? error.message;
