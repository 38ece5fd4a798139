// openai for JavaScript: a conversation that keeps the answers as they come.
import OpenAI from "openai";
import { LONG, URL, failsWith, tell } from "./told.mjs";

const client = new OpenAI({ baseURL: URL, apiKey: "none", maxRetries: 0 });
const user = { role: "user", content: "Say the letter of the colour.\n\ngreen 7" };
const chat = (messages, more = {}) =>
  client.chat.completions.create({ model: "assistant", messages, max_tokens: 4096, ...more });

await tell({
  answer: async () => (await chat([user])).usage.total_tokens > 0,
  stream: async () => {
    let last;
    const options = { stream: true, stream_options: { include_usage: true } };
    for await (const piece of await chat([user], options)) last = piece;
    return last.usage.completion_tokens > 0;
  },
  conversation: async () => {
    const first = (await chat([user])).choices[0].message;
    return (await chat([user, first, { role: "user", content: "and red 1" }])).usage;
  },
  text: async () => (await client.completions.create({ model: "base", prompt: ["a", "b"] })).choices[1],
  models: async () => {
    for await (const model of client.models.list())
      if ((await client.models.retrieve(model.id)).id !== model.id) return false;
    return true;
  },
  too_long: async () =>
    failsWith(
      (error) => error.code === "context_length_exceeded",
      () => chat([{ role: "user", content: LONG }]),
    ),
});
