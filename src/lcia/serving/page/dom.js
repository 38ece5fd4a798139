// Small pieces of pages. Text is only ever set as text.

export function element(tag, properties = {}, ...children) {
  const { dataset, ...own } = properties;
  const made = Object.assign(document.createElement(tag), own);
  Object.assign(made.dataset, dataset);
  made.append(...children.filter((child) => child !== null));
  return made;
}

// The colour of a group: the same everywhere, by the number in its id.
export const tone = (group) => (group ? String(((Number(group.slice(1)) - 1) % 8) + 1) : "0");

export const groupTag = (group, name) =>
  element("span", { className: "group", dataset: { tone: tone(group) } }, name ?? "base model");

export const number = (value, digits = 1) => (value === null ? "–" : value.toFixed(digits));
