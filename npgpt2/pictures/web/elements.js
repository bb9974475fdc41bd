// Elements of the page. Texts become text nodes: the text of a prompt is never parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

/** Create an HTML element: `of("p", {class: "faint", onclick: f}, "text", child, …)`. */
function of(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** Create an SVG element. */
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

/** The selection: the token, block and head that the whole page shows. */
const state = { token: 0, layer: 0, head: 0 };
const parts = new Set(); // parts of the page that follow the selection

/** Draw a part now, and again when one of `keys` changes, as long as the part is on the page. */
function follow(place, keys, draw) {
  parts.add({ place, keys, draw });
  draw();
}

/** Select a token, a block or a head, and redraw the parts that follow it. */
function choose(choice) {
  const changed = Object.keys(choice).filter((key) => choice[key] !== state[key]);
  Object.assign(state, choice);
  for (const part of [...parts]) {
    if (!part.place.isConnected) parts.delete(part);
    else if (part.keys.some((key) => changed.includes(key))) part.draw();
  }
}

/** A keydown handler that calls `move(dx, dy)` for the arrow keys. */
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

/** Scroll `place`, and nothing else, until `element` inside it is visible. */
function reveal(place, element) {
  requestAnimationFrame(() => {
    const [outer, inner] = [place.getBoundingClientRect(), element.getBoundingClientRect()];
    place.scrollLeft += inner.left + inner.width / 2 - outer.left - outer.width / 2;
    place.scrollTop += inner.top + inner.height / 2 - outer.top - outer.height / 2;
  });
}

/** 0 … n − 1. */
function range(n) {
  return Array.from({ length: n }, (_, i) => i);
}

function clamp(value, most) {
  return between(0, value, most);
}

function between(least, value, most) {
  return Math.max(least, Math.min(most, value));
}
