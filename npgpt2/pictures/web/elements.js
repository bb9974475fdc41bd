// Elements of the page. Texts become text nodes: whatever a prompt holds, it is never markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element: `of("p", {class: "faint", onclick: f}, "text", child, …)`. */
function of(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same of SVG. */
function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

/** What is chosen: the token, block and head that all of the page shows. */
const state = { token: 0, layer: 0, head: 0 };
const listeners = new Set();

/** Choose something else; every part of the page that shows it is told. */
function choose(changes) {
  const before = JSON.stringify(state);
  Object.assign(state, changes);
  if (JSON.stringify(state) !== before) listeners.forEach((listener) => listener());
}

/** Draw a part now, and again whenever something else is chosen. */
function kept(draw) {
  listeners.add(draw);
  draw();
}

/** Moves a choice by the arrow keys: `move(dx, dy)`, for an element that has the focus. */
function arrows(move) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  return (event) => {
    const step = steps[event.key];
    if (!step || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    move(...step);
  };
}

function clamp(value, most) {
  return Math.max(0, Math.min(most, value));
}
