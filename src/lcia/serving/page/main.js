import { getJson } from "./api.js";
import { showModels, waitFor } from "./chat.js";
import { showStore } from "./store.js";

const $ = (id) => document.getElementById(id);
const views = ["chat", "store"];

function show(view) {
  for (const name of views) {
    $(name).hidden = name !== view;
    $(`show-${name}`).ariaPressed = String(name === view);
  }
  if (view === "chat") $("prompt").focus();
  else load();
}

const load = () => waitFor(showAll());

async function showAll() {
  const store = await getJson("/v1/store");
  document.title = store.name;
  $("name").textContent = store.name;
  $("version").textContent = `version ${store.version}`;
  showModels(store);
  showStore(store, $("store"));
}

for (const name of views) $(`show-${name}`).addEventListener("click", () => show(name));
load();
