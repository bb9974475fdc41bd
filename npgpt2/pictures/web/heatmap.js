// Arrays as colours. Both scales change in lightness, so that they are read without colours, too.

const COLOURS = {
  light: { zero: [253, 253, 252], up: [[107, 168, 218], [8, 48, 107]], down: [[240, 163, 75], [110, 50, 0]], none: [222, 222, 217] },
  dark: { zero: [22, 24, 28], up: [[47, 110, 170], [214, 236, 255]], down: [[170, 95, 20], [255, 222, 178]], none: [48, 51, 58] },
};

function isDark() {
  const chosen = document.documentElement.style.colorScheme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** A share from −1 to 1 of the scale → red, green and blue. */
function colour(share, { zero, up, down } = COLOURS[isDark() ? "dark" : "light"]) {
  const [middle, end] = share < 0 ? down : up;
  const far = Math.min(1, Math.abs(share));
  const [from, to, part] = far < 0.5 ? [zero, middle, 2 * far] : [middle, end, 2 * far - 1];
  return from.map((level, i) => Math.round(level + part * (to[i] - level)));
}

/** A colour for CSS, and black or white to be read on it. */
function shade(share) {
  const [red, green, blue] = colour(share);
  const light = 0.299 * red + 0.587 * green + 0.114 * blue;
  return { background: `rgb(${red} ${green} ${blue})`, text: light > 140 ? "#000" : "#fff" };
}

/**
 * A map of numbers with its names, its legend, and a line that says the number under the pointer or
 * the cursor keys.
 *
 * @param map.rows, map.columns  names of rows, and how many columns
 * @param map.at(row, column)    a number; null where there is none
 * @param map.says(row, column)  words on it
 * @param map.signed             from −top to top; otherwise from 0
 * @param map.size               pixels from the first row to the last, at most
 * @param map.top                what has the full colour; by default what 98 % do not surpass
 */
function heatmap(map) {
  const { rows, columns } = map;
  const square = columns === rows.length;
  const height = Math.max(square ? 2 : 4, Math.min(square ? 22 : 15, (map.size ?? 330) / rows.length));
  const canvas = of("canvas", { width: columns, height: rows.length, tabindex: 0, role: "img", "aria-label": map.label });
  const row = of("div", { class: "row" });
  const cell = of("div", { class: "cell", hidden: true });
  const line = of("output", { class: "readout" });
  const names = rows.map((name) => of("span", {}, height < 9 ? "" : name));
  names.forEach((name) => (name.style.height = name.style.lineHeight = `${height}px`));
  const field = of("div", { class: "field" }, canvas, row, cell);
  canvas.style.height = `${rows.length * height}px`;
  canvas.classList.toggle("fine", columns > 400);
  field.style.maxWidth = `${columns * (square ? height : 18)}px`;
  const top = map.top ?? usual(map);
  paint(canvas, map, top);

  let at = [state.token, 0];
  function point(r, c) {
    at = [clamp(r, rows.length - 1), clamp(c, columns - 1)];
    line.textContent = map.says(...at);
    cell.hidden = false;
    place(cell, at[0] / rows.length, at[1] / columns, 1 / rows.length, 1 / columns);
  }
  canvas.addEventListener("pointermove", (event) => point(...under(event)));
  canvas.addEventListener("click", () => map.chosen !== null && choose({ token: at[0] }));
  canvas.addEventListener("focus", () => point(...at));
  canvas.addEventListener("keydown", arrows((dx, dy) => point(at[0] + dy, at[1] + dx)));
  function under({ offsetX, offsetY }) {
    return [Math.floor((offsetY / canvas.clientHeight) * rows.length), Math.floor((offsetX / canvas.clientWidth) * columns)];
  }
  place(row, state.token / rows.length, 0, 1 / rows.length, 1);
  return of("div", { class: "heat" },
    of("div", { class: "names", "aria-hidden": "true" }, names), field,
    of("div", { class: "below" }, legend(map, top), line));
}

function place(box, top, left, height, width) {
  const values = { top, left, height, width };
  for (const [side, value] of Object.entries(values)) box.style[side] = `${100 * value}%`;
}

function paint(canvas, { rows, columns, at }, top) {
  const shades = isDark() ? SHADES.dark : SHADES.light;
  const image = new ImageData(columns, rows.length);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0, r = 0; r < rows.length; r++) {
    for (let c = 0; c < columns; c++, i++) {
      const value = at(r, c);
      pixels[i] = value === null ? shades.none : shades[255 + Math.round(255 * clampShare(value / top))];
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function clampShare(share) {
  return share < -1 ? -1 : share > 1 ? 1 : share;
}

/** The scales as pixels: shares from −1 to 1 in 511 steps, computed once. */
const SHADES = Object.fromEntries(Object.entries(COLOURS).map(([name, scheme]) => {
  const pixel = ([red, green, blue]) => new Uint32Array(new Uint8Array([red, green, blue, 255]).buffer)[0];
  const shades = Uint32Array.from({ length: 511 }, (_, i) => pixel(colour(i / 255 - 1, scheme)));
  return [name, Object.assign(shades, { none: pixel(scheme.none) })];
}));

/** What 98 % of the numbers do not surpass: a few that stand far out do not pale the rest. */
function usual({ rows, columns, at }) {
  const some = [];
  const stride = Math.max(1, Math.floor((rows.length * columns) / 4000));
  for (let i = 0; i < rows.length * columns; i += stride) {
    some.push(Math.abs(at(Math.floor(i / columns), i % columns) ?? 0));
  }
  some.sort((a, b) => a - b);
  return some[Math.floor(0.98 * (some.length - 1))] || some[some.length - 1] || 1;
}

/** The scale itself, with its numbers. */
function legend({ signed, unit = brief }, top) {
  const steps = 48;
  const bar = of("canvas", { width: steps, height: 1, "aria-hidden": "true" });
  paint(bar, { rows: [0], columns: steps, at: (_, c) => (signed ? (2 * c) / (steps - 1) - 1 : c / (steps - 1)) }, 1);
  return of("span", { class: "legend" }, signed ? `−${unit(top)}` : unit(0), bar, unit(top));
}
