// The arrays of a record. Values are rounded for display: integers divided by a power of ten.

/** An array of any shape. `at` returns a value, `text` the same value with its decimals. */
class Table {
  constructor(data, shape, decimals = 0, unit = 1) {
    Object.assign(this, { data, shape, decimals, unit });
  }

  at(...index) {
    return this.data[index.reduce((sum, i, axis) => sum * this.shape[axis] + i, 0)] / this.unit;
  }

  text(...index) {
    return plain(this.at(...index), this.decimals);
  }
}

/** A number with the given decimals and a real minus sign. */
function plain(value, decimals) {
  const text = value.toFixed(Math.max(0, decimals));
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

/** 0.1234 → "12.34 %": probabilities are stored to a hundredth of a percent. */
function percent(value) {
  return `${(100 * value).toFixed(2)} %`;
}

function whole(value) {
  return `${brief(100 * value)} %`;
}

function brief(value, digits = 2) {
  return String(Number(value.toPrecision(digits)));
}

const COUNTS = new Intl.NumberFormat("en-US");

function count(value) {
  return COUNTS.format(value);
}

/** Unpack the data of `Record.packed` in record.py: base64 → tables by name. */
async function unpack(packed, layout) {
  const letters = atob(packed);
  const bytes = new Uint8Array(letters.length); // a loop: `Uint8Array.from` takes ten times as long
  for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
  const inflated = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(inflated).arrayBuffer();
  const tables = {};
  let start = 0;
  for (const [name, shape, width, decimals] of layout) {
    const size = shape.reduce((product, length) => product * length, 1);
    const end = start + size * (width || 4);
    const data = width
      ? unfold(new Uint8Array(buffer, start, end - start), width, size)
      : new Float32Array(buffer.slice(start, end));
    tables[name] = new Table(data, shape, decimals, 10 ** decimals);
    start = end;
  }
  return tables;
}

/** Byte planes, lowest first → integers. 0, 1, 2, 3 … decode to 0, −1, 1, −2 … (zigzag). */
function unfold(planes, width, size) {
  const data = new Int32Array(size);
  for (let plane = 0; plane < width; plane++) {
    for (let i = 0; i < size; i++) data[i] |= planes[plane * size + i] << (8 * plane);
  }
  for (let i = 0; i < size; i++) data[i] = (data[i] >>> 1) ^ -(data[i] & 1);
  return data;
}
