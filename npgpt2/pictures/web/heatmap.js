// Arrays as colours. Both scales also change in lightness, so they work without colours.

const COLOURS = {
  light: {
    zero: [253, 253, 252],
    up: [[107, 168, 218], [8, 48, 107]],
    down: [[240, 163, 75], [110, 50, 0]],
    none: [222, 222, 217],
  },
  dark: {
    zero: [22, 24, 28],
    up: [[47, 110, 170], [214, 236, 255]],
    down: [[170, 95, 20], [255, 222, 178]],
    none: [48, 51, 58],
  },
};

function isDark() {
  const chosen = document.documentElement.style.colorScheme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

/** A share of the scale, from −1 to 1 → [red, green, blue]. */
function colour(share, { zero, up, down } = COLOURS[isDark() ? "dark" : "light"]) {
  const [middle, end] = share < 0 ? down : up;
  const far = Math.min(1, Math.abs(share));
  const [from, to, part] = far < 0.5 ? [zero, middle, 2 * far] : [middle, end, 2 * far - 1];
  return from.map((level, i) => Math.round(level + part * (to[i] - level)));
}

/** [CSS colour, black or white]: the text colour with more contrast (≥ 4.5 : 1, WCAG). */
function shade(share) {
  const levels = colour(share);
  const linear = (level) =>
    level <= 10 ? level / 3294.6 : ((level / 255 + 0.055) / 1.055) ** 2.4;
  const [red, green, blue] = levels.map(linear);
  const luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  return [`rgb(${levels.join(" ")})`, luminance > 0.179 ? "#000" : "#fff"];
}

/**
 * A heatmap with row names, a legend, and a line that shows the value under the pointer or at the
 * position of the arrow keys.
 *
 * @param map.rows, map.columns  names of the rows, number of columns
 * @param map.at(row, column)    a value; null where there is none
 * @param map.says(row, column)  the text of that line
 * @param map.signed             the scale goes from −top to top; otherwise from 0
 * @param map.size               maximum height in pixels
 * @param map.top                value with the full colour; default: the 98th percentile
 * @param map.root               colour by the square root, so that small shares are visible
 * @param map.pointed(row)       callback: the row under the pointer
 */
function heatmap(map) {
  const { rows, columns } = map;
  const square = columns === rows.length;
  const [least, most] = square ? [2, 22] : [4, 15];
  const height = between(least, (map.size ?? 330) / rows.length, most);
  const about = { tabindex: 0, role: "img", "aria-label": map.label };
  const canvas = of("canvas", { width: columns, height: rows.length, ...about });
  const row = of("div", { class: "row" });
  const cell = of("div", { class: "cell", hidden: true });
  const line = of("output", { class: "readout" });
  const names = rows.map((name) => of("span", {}, height < 9 ? "" : name));
  for (const { style } of names) style.height = style.lineHeight = `${height}px`;
  for (const { style } of names) style.fontSize = `${Math.min(11, height)}px`;
  const field = of("div", { class: "field" }, canvas, row, cell);
  canvas.style.height = `${rows.length * height}px`;
  canvas.classList.toggle("fine", columns > 400);
  field.style.maxWidth = `${columns * (square ? height : 18)}px`;
  const top = map.top ?? usual(map);
  paint(canvas, map, top);

  let at = [0, 0];
  function point(r, c) {
    at = [clamp(r, rows.length - 1), clamp(c, columns - 1)];
    line.textContent = map.says(...at);
    map.pointed?.(at[0]);
    cell.hidden = false;
    place(cell, at[0] / rows.length, at[1] / columns, 1 / rows.length, 1 / columns);
  }
  for (const kind of ["pointerdown", "pointermove"])
    canvas.addEventListener(kind, (event) => point(...under(event)));
  canvas.addEventListener("click", () => choose({ token: at[0] }));
  canvas.addEventListener("focus", () => point(...at));
  canvas.addEventListener("keydown", arrows((dx, dy) => point(at[0] + dy, at[1] + dx)));
  function under({ offsetX, offsetY }) {
    const [down, right] = [offsetY / canvas.clientHeight, offsetX / canvas.clientWidth];
    return [Math.floor(down * rows.length), Math.floor(right * columns)];
  }
  follow(field, ["token"], () => {
    at[0] = state.token; // where the arrow keys start
    place(row, state.token / rows.length, 0, 1 / rows.length, 1);
  });
  const labels = of("div", { class: "names", "aria-hidden": "true" }, names);
  const below = of("div", { class: "below" }, legend(map, top), line);
  return of("div", { class: "heat" }, labels, field, below);
}

function place(box, top, left, height, width) {
  const values = { top, left, height, width };
  for (const [side, value] of Object.entries(values)) box.style[side] = `${100 * value}%`;
}

function paint(canvas, { rows, columns, at, root }, top) {
  const shades = isDark() ? SHADES.dark : SHADES.light;
  const image = new ImageData(columns, rows.length);
  const pixels = new Uint32Array(image.data.buffer);
  for (let i = 0, r = 0; r < rows.length; r++) {
    for (let c = 0; c < columns; c++, i++) {
      const value = at(r, c);
      const share = root ? Math.sqrt(value / top) : value / top;
      const step = 255 + Math.round(255 * between(-1, share, 1));
      pixels[i] = value === null ? shades.none : shades[step];
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** The colour scales as pixels: shares from −1 to 1 in 511 steps, computed once. */
const SHADES = Object.fromEntries(Object.entries(COLOURS).map(([name, scheme]) => {
  const pixel = (levels) => new Uint32Array(new Uint8Array([...levels, 255]).buffer)[0];
  const shades = Uint32Array.from(range(511), (i) => pixel(colour(i / 255 - 1, scheme)));
  return [name, Object.assign(shades, { none: pixel(scheme.none) })];
}));

/** The 98th percentile of the absolute values: a few outliers do not fade the rest. */
function usual({ rows, columns, at }) {
  const some = [];
  const stride = Math.floor((rows.length * columns) / 4000) | 1; // odd, so that it reaches every column
  for (let i = 0; i < rows.length * columns; i += stride) {
    some.push(Math.abs(at(Math.floor(i / columns), i % columns) ?? 0));
  }
  some.sort((a, b) => a - b);
  return some[Math.floor(0.98 * (some.length - 1))] || some[some.length - 1] || 1;
}

/** The colour scale with its end values; with `root`, also the value in the middle. */
function legend({ signed, root, unit = brief }, top) {
  const columns = 49;
  const bar = of("canvas", { width: columns, height: 1, "aria-hidden": "true" });
  const at = (_, c) => (signed ? c / 24 - 1 : c / 48);
  paint(bar, { rows: [0], columns, at }, 1);
  const middle = root && of("span", {}, unit(top / 4));
  const scale = of("span", { class: "scale" }, bar, middle);
  return of("span", { class: "legend" }, signed ? `−${unit(top)}` : unit(0), scale, unit(top));
}
