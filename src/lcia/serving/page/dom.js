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

// A thumb, up or down; drawn here, since not every machine has a font with one.
export function thumb(rating) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("class", rating > 0 ? "thumb" : "thumb down");
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", rating > 0 ? "good" : "bad");
  path.setAttribute("d", "M3 11h4v10H3zM9 21V11l4-8a2 2 0 0 1 2 2.4L14.2 10H19a2 2 0 0 1 2 2.4l-1.4 7A2 2 0 0 1 17.6 21z");
  svg.append(path);
  return svg;
}
