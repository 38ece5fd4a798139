// Requests to the server, and the key they carry.

const dialog = document.getElementById("key");
const input = document.getElementById("key-input");
const problem = document.getElementById("key-problem");

async function askForKey(message) {
  if (message) problem.textContent = message;
  input.value = "";
  dialog.showModal();
  await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  sessionStorage.setItem("key", input.value);
}

export async function request(path, { body, signal } = {}) {
  for (let attempt = 0; ; attempt++) {
    const key = sessionStorage.getItem("key");
    const response = await fetch(path, {
      method: body ? "POST" : "GET",
      headers: {
        ...(body && { "Content-Type": "application/json" }),
        ...(key && { Authorization: `Bearer ${key}` }),
      },
      body: body && JSON.stringify(body),
      signal,
    });
    if (response.status === 401) {
      await askForKey(attempt || key ? "That key is not accepted." : null);
    } else if (response.ok) {
      return response;
    } else {
      const told = await response.json().catch(() => null);
      throw new Error(told?.error?.message ?? `The server answers ${response.status}.`);
    }
  }
}

export const getJson = async (path, options) => (await request(path, options)).json();

// Yields the events of a streamed answer.
export async function* stream(body, signal) {
  const response = await request("/v1/chat/completions", {
    body: { ...body, stream: true, stream_options: { include_usage: true } },
    signal,
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const piece = JSON.parse(data);
      if (piece.error) throw new Error(piece.error.message);
      yield piece;
    }
  }
}
