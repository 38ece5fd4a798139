// The inbox: what people said, side by side with what was answered, decided with a key each.

import { getJson } from "./api.js";
import { element, groupTag, thumb } from "./dom.js";

const KEYS = "j k: next, previous · a: accept · r: reject · e: edit · l: learn what is accepted";
const EMPTY = { entries: [], counts: {}, at: 0 };

let state = EMPTY;
let place = null;
let message = "";

export async function showInbox(target) {
  place = target;
  try {
    const found = await getJson("/v1/lcia/inbox");
    const waiting = found.data.filter((entry) => entry.state !== "taught");
    state = { entries: waiting, counts: found.counts, at: Math.min(state.at, Math.max(0, waiting.length - 1)) };
  } catch (error) {
    state = EMPTY;
    message = error.message;
  }
  draw();
}

async function act(path, body = {}) {
  try {
    const done = await getJson(`/v1/lcia/inbox/${path}`, { body });
    message = done.data ? done.data.map((job) => `Job ${job.id} learns ${job.user_provided_suffix}.`).join(" ") : "";
  } catch (error) {
    message = error.message;
  }
  await showInbox(place);
}

function move(step) {
  state.at = Math.max(0, Math.min(state.entries.length - 1, state.at + step));
  draw();
}

async function decide(name) {
  const entry = state.entries[state.at];
  if (!entry) return;
  await act(`${entry.id}/${name}`);
  if (!message) move(1);
}

function edit() {
  const entry = state.entries[state.at];
  const side = place.querySelector(".side.said");
  if (!entry || !side) return;
  const area = element("textarea", { rows: 3, value: entry.correction ?? "", ariaLabel: "Correction" });
  const form = element("form", {}, area, element("button", {}, "Save"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const prompt = entry.prompt ? {} : { prompt: entry.comment ?? "" };
    act(`${entry.id}/edit`, { correction: area.value, ...prompt });
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") draw();
    if (event.key === "Enter" && !event.shiftKey) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  side.replaceChildren(element("h3", {}, "Correction"), form);
  area.focus();
}

function draw() {
  const { entries, counts, at } = state;
  const told = Object.entries(counts).map(([name, count]) => `${count} ${name}`).join(", ");
  const list = element(
    "ol",
    { className: "entries" },
    ...entries.map((entry, i) => {
      const asked = entry.prompt?.at(-1).content ?? entry.comment ?? "(no prompt)";
      const line = element("button", { type: "button", onclick: () => move(i - at) }, asked.replace(/\s+/g, " ").slice(0, 60));
      if (i === at) line.ariaCurrent = "true";
      return element("li", { dataset: { state: entry.state } }, line, element("span", { className: "muted" }, entry.mark ?? entry.state));
    }),
  );
  place.replaceChildren(
    element("section", {}, element("h2", {}, "Inbox"), element("p", { className: "muted" }, told), element("p", { className: "muted" }, KEYS), element("p", { className: "problem", role: "status" }, message)),
    ...(entries.length ? [element("section", { className: "inbox" }, list, one(entries[at]))] : []),
  );
}

function one(entry) {
  const side = (title, kind, ...content) =>
    element("div", { className: `side ${kind}` }, element("h3", {}, title), ...content);
  const button = (label, name) => element("button", { type: "button", onclick: () => decide(name) }, label);
  const asked = (entry.prompt ?? []).map((turn) => element("p", {}, element("span", { className: "muted" }, `${turn.role} `), turn.content));
  const sign = entry.rating ? [thumb(entry.rating), " "] : [];
  return element(
    "article",
    { className: "entry" },
    element("p", {}, groupTag(entry.group, entry.group), element("span", { className: "muted" }, ` version ${entry.version ?? "–"} · ${entry.state}`), entry.mark ? element("strong", {}, ` ${entry.mark}`) : null),
    element("div", { className: "asked" }, ...asked),
    element("div", { className: "sides" }, side("Answered", "given", element("p", {}, entry.answer ?? "(not kept)")), side("Correction", "said", element("p", {}, ...sign, entry.correction ?? entry.comment ?? ""))),
    element("p", { className: "row" }, button("Accept", "accept"), button("Reject", "reject"), element("button", { type: "button", onclick: edit }, "Edit"), element("button", { type: "button", className: "quiet", onclick: () => act("learn") }, "Learn what is accepted")),
  );
}

const ACTIONS = { j: () => move(1), k: () => move(-1), a: () => decide("accept"), r: () => decide("reject"), e: edit, l: () => act("learn") };

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName);
  if (!place || place.hidden || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const action = ACTIONS[event.key];
  if (action) {
    event.preventDefault();
    action();
  }
});
