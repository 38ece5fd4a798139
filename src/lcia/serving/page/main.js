import { getJson } from "./api.js";
import { showModels, waitFor } from "./chat.js";
import { showInbox } from "./inbox.js";
import { showStore } from "./store.js";

const $ = (id) => document.getElementById(id);
const views = ["chat", "store", "inbox"];

function show(view) {
  for (const name of views) {
    $(name).hidden = name !== view;
    $(`show-${name}`).ariaPressed = String(name === view);
  }
  if (view === "chat") $("prompt").focus();
  else if (view === "inbox") showInbox($("inbox"));
  else load();
}

const load = () => waitFor(showAll());

async function showAll() {
  const store = await getJson("/v1/store");
  document.title = store.name;
  $("name").textContent = store.name;
  $("version").textContent = `version ${store.version}`;
  $("show-inbox").hidden = !store.takes_feedback;
  showModels(store);
  showStore(store, $("store"));
}

for (const name of views) $(`show-${name}`).addEventListener("click", () => show(name));
load();
