// What people say about an answer, below it: good, bad, or what it should have been.

import { getJson } from "./api.js";
import { element, thumb } from "./dom.js";

export function feedbackOn(id, messages, text) {
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
