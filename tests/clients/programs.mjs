// Programs that call a server through a client as it is published: programs.mjs NAME URL.
// Each tells which of its calls worked: one line of JSON a call.
import OpenAI from "openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
const URL = process.argv[3];
const LONG = "one two three four ".repeat(2000);

async function tell(calls) {
  for (const [call, make] of Object.entries(calls)) {
    let wrong = null;
    try {
      const result = await make();
      if (!result) wrong = `returned ${result}`;
    } catch (error) {
      wrong = String(error).slice(0, 500);
    }
    console.log(JSON.stringify({ call, wrong }));
  }
}

async function failsWith(matches, call) {
  try {
    await call();
  } catch (error) {
    if (matches(error)) return true;
    throw error;
  }
  return false;
}

// openai for JavaScript: a conversation that keeps the answers as they come.
async function openai_js() {
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
}

// @ai-sdk/openai-compatible, through generateText and streamText.
async function ai_sdk() {
  const lcia = createOpenAICompatible({ name: "lcia", baseURL: URL, apiKey: "none", includeUsage: true });
  const user = { role: "user", content: "Say the letter of the colour.\n\ngreen 7" };
  const ask = (messages, more = {}) =>
    generateText({ model: lcia("assistant"), messages, maxRetries: 0, maxOutputTokens: 1000, ...more });

  await tell({
    answer: async () => (await ask([user])).usage.totalTokens > 0,
    stream: async () => {
      const errors = [];
      const result = streamText({
        model: lcia("assistant"),
        messages: [user],
        onError: ({ error }) => errors.push(error),
      });
      for await (const _ of result.textStream);
      if (errors.length) throw errors[0];
      return (await result.usage).outputTokens > 0;
    },
    conversation: async () => {
      const first = await ask([user]);
      const messages = [user, ...first.response.messages, { role: "user", content: "and red 1" }];
      return (await ask(messages)).usage;
    },
    text: async () =>
      (await generateText({ model: lcia.completionModel("base"), prompt: "a", maxRetries: 0 })).usage,
    too_long: async () =>
      failsWith(
        (error) => /maximum context length/.test(error.message),
        () => ask([{ role: "user", content: LONG }]),
      ),
  });
}

await { openai_js, ai_sdk }[process.argv[2]]();
