// Tokens as readable text: spaces are visible, and so are bytes that are not a whole character.

const SIGNS = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍" };

// Unicode isolates: they keep bytes and characters of right-to-left words in order.
const [LEFT_TO_RIGHT, AS_IT_IS, ISOLATED] = ["\u2066", "\u2068", "\u2069"];

const hex = (byte) => byte.toString(16).padStart(2, "0");

/** A piece (a text, or bytes that are part of a character) as readable text. */
function shown(piece) {
  if (piece == null) return "?"; // an id that the vocabulary does not have
  if (Array.isArray(piece)) return `${LEFT_TO_RIGHT}‹${piece.map(hex).join(" ")}›${ISOLATED}`;
  if (piece === "") return "∅";
  return piece
    .replace(/[ \n\t\r]/g, (sign) => SIGNS[sign])
    .replace(/[\0-\x1f]/g, (sign) => String.fromCharCode(0x2400 + sign.charCodeAt(0)));
}

/** A piece by its id, isolated, so that right-to-left text does not reorder its neighbours. */
function named(record, id) {
  const piece = record.about.pieces[id]; // a page has only the pieces of the likeliest tokens
  return of("bdi", { class: "piece" }, piece === undefined ? `id ${id}` : shown(piece));
}

/** For each token, the characters that its bytes are part of; null if the token is whole. */
function wholes(pieces) {
  const coded = new TextEncoder();
  const parts = pieces.map((piece) =>
    typeof piece === "string" ? [...coded.encode(piece)] : (piece ?? []),
  );
  const bytes = parts.flat();
  let end = 0;
  return pieces.map((piece, i) => {
    let start = end;
    end += parts[i].length;
    if (!Array.isArray(piece)) return null;
    while (start > 0 && isInside(bytes[start])) start--;
    let stop = end;
    while (stop < bytes.length && isInside(bytes[stop])) stop++;
    return new TextDecoder().decode(new Uint8Array(bytes.slice(start, stop)));
  });
}

function isInside(byte) {
  return (byte & 0xc0) === 0x80; // a continuation byte of UTF-8
}

/** Row names: a token that is part of a character is preceded by that character. */
function rowNames({ about: { ids, pieces } }) {
  const whole = wholes(ids.map((id) => pieces[id]));
  const before = whole.map((text) => (text ? AS_IT_IS + text + ISOLATED : ""));
  return ids.map((id, i) => before[i] + shown(pieces[id]));
}

/** The prompt, and its tokens as a row of buttons; the selected one is pressed. */
function tokenRow(record) {
  const { ids, prompt } = record.about;
  const names = rowNames(record);
  const buttons = ids.map((id, i) => {
    const onclick = () => choose({ token: i });
    const name = of("bdi", {}, names[i]);
    const about = { class: "token", type: "button", onclick };
    const button = of("button", about, name, of("small", {}, id));
    hint(button, () => [
      of("b", {}, name.cloneNode(true)), ` ${say("position")} ${i}, id ${id}`,
      i > 0 && of("div", {}, say("given", { p: percent(record.tables.given.at(i - 1)) })),
    ]);
    return button;
  });
  const move = arrows((dx) => {
    choose({ token: clamp(state.token + dx, ids.length - 1) });
    buttons[state.token].focus();
  });
  const about = { class: "tokens", role: "group", "aria-label": say("tokens"), onkeydown: move };
  const row = of("div", about, buttons);
  follow(row, ["token"], () => buttons.forEach((button, i) => {
    button.setAttribute("aria-pressed", i === state.token);
    button.tabIndex = i === state.token ? 0 : -1; // Tab reaches one, the arrow keys the others
  }));
  return [of("blockquote", { dir: "auto" }, prompt), row];
}

/** The text of a list of tokens. */
function textOf(ids, pieces) {
  const coded = new TextEncoder();
  const bytes = ids.flatMap((id) => {
    const piece = pieces[id] ?? "";
    return typeof piece === "string" ? [...coded.encode(piece)] : piece;
  });
  return new TextDecoder().decode(new Uint8Array(bytes));
}

/** Show a tooltip while the pointer or the focus is on an element. */
function hint(element, words) {
  const show = () => {
    const tip = document.getElementById("tip");
    tip.replaceChildren();
    fill(tip, {}, words());
    tip.hidden = false;
    const box = element.getBoundingClientRect();
    const left = clamp(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8);
    const over = box.bottom + tip.offsetHeight + 8 > innerHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${over ? Math.max(0, box.top - tip.offsetHeight - 6) : box.bottom + 6}px`;
  };
  const hide = () => (document.getElementById("tip").hidden = true);
  for (const event of ["pointerenter", "focus"]) element.addEventListener(event, show);
  for (const event of ["pointerleave", "blur"]) element.addEventListener(event, hide);
  element.setAttribute("aria-describedby", "tip");
}
