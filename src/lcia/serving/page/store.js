// What the assistant learned: scores, groups, the accuracy matrix, versions.

import { element, groupTag, number } from "./dom.js";

const section = (title, ...children) =>
  element("section", {}, element("h2", {}, title), ...children);

const figure = (label, value, unit) =>
  element("div", { className: "figure" }, element("dt", {}, label), element("dd", {}, value, element("small", {}, unit)));

function groups(store) {
  const cards = store.groups.map((group) =>
    element(
      "article",
      { className: "card" },
      element("h3", {}, groupTag(group.id, group.name), group.retired ? " retired" : ""),
      element("p", {}, group.tasks.join(", ")),
      ...group.instructions.map((text) => element("blockquote", {}, text)),
    ),
  );
  return section("Groups", element("div", { className: "cards" }, ...cards));
}

function matrix({ tasks, rows }) {
  const head = element("tr", {}, element("th", {}, "after learning"), ...tasks.map((task) => element("th", { scope: "col" }, task.replace(/_/g, "_\u200b"))));
  const body = rows.map((row, t) => {
    const cells = row.map((value, i) => {
      const cell = element("td", { className: t === i + 1 ? "new" : "" }, value === null ? "" : number(value, 0));
      if (value !== null) {
        cell.classList.add("score");
        cell.classList.toggle("hot", value > 55);
        cell.style.setProperty("--share", value / 100);
      }
      return cell;
    });
    return element("tr", {}, element("th", { scope: "row" }, t ? tasks[t - 1] : "nothing"), ...cells);
  });
  const table = element("table", { className: "heat" }, element("thead", {}, head), element("tbody", {}, ...body));
  return section(
    "Scores on every task, in percent",
    element("p", { className: "muted" }, "A row is a moment, a column a task. Outlined: right after the task was learned. What fades below the outline was forgotten."),
    element("div", { className: "scroll" }, table),
  );
}

function versions(store) {
  const names = Object.fromEntries(store.groups.map((group) => [group.id, group.name]));
  const rows = store.versions.map((version) =>
    element(
      "li",
      {},
      element("b", {}, String(version.number)),
      element("span", {}, version.task ?? version.note ?? ""),
      version.group ? groupTag(version.group, names[version.group] ?? version.group) : element("span"),
      element("span", { className: "muted" }, version.average_accuracy === null ? "" : `${number(version.average_accuracy)} % on average`),
    ),
  );
  return section("Versions", element("ol", { className: "versions" }, ...rows));
}

export function showStore(store, main) {
  const facts = element(
    "dl",
    {},
    figure("Average accuracy", number(store.average_accuracy), " %"),
    figure("Forgotten", number(store.forgetting), " points"),
    figure("Tasks", String(store.matrix.tasks.length), ""),
    figure("Groups", String(store.groups.length), ""),
  );
  const made = element("p", { className: "muted" }, `${store.model}, version ${store.version}`);
  main.replaceChildren(section(store.name, made, facts), groups(store), matrix(store.matrix), versions(store));
}
