// @ai-sdk/openai-compatible, through generateText and streamText.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";
import { LONG, URL, failsWith, tell } from "./told.mjs";

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
