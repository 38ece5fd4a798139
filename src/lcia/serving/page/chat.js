// The conversation: questions, streamed answers, and why each group answered.

import { getJson, stream } from "./api.js";
import { element, groupTag, number, thumb, tone } from "./dom.js";

const $ = (id) => document.getElementById(id);
const [log, prompt, send, model, follow] = ["log", "prompt", "send", "model", "follow"].map($);

const REASONS = {
  reached: "its instructions match",
  content: "its instructions match, and what the question is about",
  below_nearest: "nothing matches well, so the nearest group answers",
  below_latest: "nothing matches well, so the latest group answers",
  below_base: "nothing matches well, so the base model answers",
  no_groups: "nothing is learned yet",
  requested: "you chose it",
};

let turns = [];
let running = null;
let names = {};
let known = null;
let takesFeedback = false;

// Questions wait for the store's groups, and tell if they cannot be had.
export const waitFor = (loading) => {
  known = loading;
};

export function showModels(store) {
  takesFeedback = store.takes_feedback;
  names = Object.fromEntries(store.groups.map((group) => [group.id, group.name]));
  const chosen = model.value;
  const groups = store.groups.map((group) => [
    group.name,
    `${group.name} (${group.tasks.join(", ")})`,
  ]);
  const options = [["assistant", "the group that fits"], ...groups, ["base", "base model"]];
  model.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  if (chosen) model.value = chosen;
  $("examples").replaceChildren(
    ...store.examples.slice(0, 6).map((example) =>
      element(
        "button",
        { type: "button", onclick: () => ask(example.prompt) },
        element("span", { className: "muted" }, example.task),
        example.prompt.replace(/\n\s*\n/g, "\n"),
      ),
    ),
  );
}

async function ask(text) {
  if (running || !text.trim()) return;
  $("welcome").hidden = true;
  log.append(element("div", { className: "question" }, text));
  const answer = element("div", { className: "text", ariaBusy: "true" });
  const why = element("div", { className: "why" });
  log.append(element("article", { className: "answer" }, answer, why));
  const asked = { role: "user", content: text };
  const messages = follow.checked ? [...turns, asked] : [asked];
  running = new AbortController();
  setBusy(true);
  try {
    await known;
    await receive({ model: model.value, messages }, answer, why);
    turns.push(asked, { role: "assistant", content: answer.textContent });
  } catch (error) {
    const stopped = error.name === "AbortError";
    why.append(element("span", { className: stopped ? "muted" : "problem" }, stopped ? "stopped" : error.message));
  } finally {
    answer.ariaBusy = "false";
    running = null;
    setBusy(false);
  }
}

async function receive(body, answer, why) {
  const started = performance.now();
  let id = null;
  for await (const piece of stream(body, running.signal)) {
    id = piece.id;
    if (piece.lcia) explain(piece.lcia, body.messages, why);
    const text = piece.choices[0]?.delta.content;
    if (text) answer.append(text);
    if (piece.usage) {
      const seconds = (performance.now() - started) / 1000;
      const pace = `${piece.usage.completion_tokens} tokens, ${number(seconds)} s`;
      why.append(element("span", { className: "muted pace" }, pace));
    }
    scroll();
  }
  if (!answer.textContent) answer.append(element("span", { className: "muted" }, "(no text)"));
  if (takesFeedback && id) why.after(feedbackOn(id, body.messages, answer.textContent));
}

function explain(told, messages, why) {
  const share = told.similarity === null ? null : `${Math.round(100 * told.similarity)} %`;
  const back = told.turns_back ? ", as the conversation it follows" : "";
  const reason = `${REASONS[told.reason]}${back}${share ? ` · ${share}` : ""}`;
  why.append(groupTag(told.group, names[told.group]));
  if (told.reason === "requested") {
    why.append(element("span", { className: "muted" }, reason));
    return;
  }
  const details = element("div", { className: "details" });
  const toggle = element("button", { type: "button", className: "reason", ariaExpanded: "false" }, reason);
  toggle.onclick = async () => {
    if (!details.childElementCount) await showDetails(messages, details);
    details.hidden = toggle.ariaExpanded === "true";
    toggle.ariaExpanded = String(!details.hidden);
  };
  details.hidden = true;
  why.append(toggle);
  why.after(details);
}

async function showDetails(messages, details) {
  const found = await getJson("/v1/route", { body: { messages } });
  const line = (label, text) =>
    element("p", {}, element("span", { className: "muted" }, label), text);
  const bars = Object.entries(found.similarities).slice(0, 5).map(([group, value]) => {
    const bar = element("span", { className: "bar", dataset: { tone: tone(group) } });
    bar.style.setProperty("--share", value);
    return element("li", {}, groupTag(group, names[group]), bar, `${Math.round(100 * value)} %`);
  });
  const terms = Object.keys(found.terms).slice(0, 8).join(", ");
  details.replaceChildren(
    line(found.instruction_found ? "Instruction read" : "No known instruction; compared", found.instruction),
    ...(found.matched ? [line("Closest one learned", found.matched)] : []),
    ...(terms ? [line("Words in both", terms)] : []),
    element("ul", {}, ...bars),
  );
}

function setBusy(busy) {
  send.textContent = busy ? "Stop" : "Send";
  send.classList.toggle("stop", busy);
  scroll();
}

const scroll = () => log.scrollTo({ top: log.scrollHeight });

function fit() {
  prompt.style.setProperty("height", "auto");
  prompt.style.setProperty("height", `${Math.min(prompt.scrollHeight, 220)}px`);
}

prompt.addEventListener("input", fit);
prompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    $("composer").requestSubmit();
  }
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) {
    running.abort();
    return;
  }
  const text = prompt.value;
  prompt.value = "";
  fit();
  ask(text);
});
$("clear").addEventListener("click", () => {
  running?.abort();
  turns = [];
  log.replaceChildren($("welcome"));
  $("welcome").hidden = false;
  prompt.focus();
});

// What people say about an answer, below it: good, bad, or what it should have been.
function feedbackOn(id, messages, text) {
  const told = element("span", { className: "muted", role: "status" });
  const box = element("div", { className: "feedback" });
  const send = async (said) => {
    try {
      await getJson("/v1/feedback", { body: { id, ...said } });
      told.textContent = said.correction ? "Thank you. It waits in the inbox." : "Thank you.";
      return true;
    } catch (error) {
      told.textContent = error.message;
      return false;
    }
  };
  const button = (label, title, onclick) =>
    element("button", { type: "button", title, ariaLabel: title, onclick }, label);
  const mark = (chosen, rating) => async () => {
    if (await send({ rating })) chosen().ariaPressed = "true";
  };
  const good = button(thumb(1), "Good answer", mark(() => good, 1));
  const bad = button(thumb(-1), "Bad answer", mark(() => bad, -1));
  const correct = button("Correct this answer", "Correct this answer", () => {
    form.hidden = !form.hidden;
    if (!form.hidden) area.focus();
  });
  const area = element("textarea", { rows: 2, value: text, ariaLabel: "What should have been answered" });
  const form = element("form", { hidden: true }, area, element("button", {}, "Send correction"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const correction = area.value.trim();
    if (correction && (await send({ rating: -1, correction, prompt: messages }))) form.hidden = true;
  });
  box.append(good, bad, correct, told, form);
  return box;
}
