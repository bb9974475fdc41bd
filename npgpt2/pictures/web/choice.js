// From logits to the next token, and the generated text with its alternatives.

const SHOWN = 20; // most probable tokens
const PLAIN = { temperature: 1, top_k: null, top_p: null, min_p: null };

/** The last distribution, and sliders that change it as npgpt2/generation/sampling.py does. */
function distribution(record) {
  const logits = Float64Array.from(record.tables.last.data);
  const settings = record.settings;
  const before = chances(logits, PLAIN);
  const best = ranked(before, SHOWN);
  const bars = of("div", { class: "bars" });
  const verdict = of("p", { role: "status", class: "verdict" });
  function redraw() {
    const probs = chances(logits, settings);
    const taken = settings.temperature > 0 ? draw(probs, settings.uniform) : best[0];
    const most = Math.max(probs[best[0]], before[best[0]]);
    const ids = best.includes(taken) ? best : [...best, taken];
    const rows = ids.map((id) => {
      const words = `${plain(logits[id], 2)} → ${percent(probs[id])}`;
      const row = bar(named(record, id), probs[id] / most, words, { "data-id": id });
      const pale = of("b"); // the probability before the filters
      pale.style.width = `${(100 * before[id]) / most}%`;
      row.querySelector(".track").prepend(pale);
      row.classList.toggle("taken", id === taken);
      row.classList.toggle("out", probs[id] === 0);
      return row;
    });
    bars.replaceChildren(...rows);
    const left = probs.reduce((sum, p) => sum + (p > 0), 0);
    const how = say(settings.temperature > 0 ? "drawn" : "greedy");
    verdict.replaceChildren(
      `${say("left", { left: count(left), all: count(logits.length) })} ${how} `,
      of("strong", {}, named(record, taken)),
      ` (id ${taken}).`,
    );
  }
  const sliders = knobs(settings, logits.length).map((knob) => slider(knob, redraw));
  redraw();
  const words = say("choice_words", { vocabulary: count(logits.length) });
  const drawn = of("div", { class: "two" }, bars, of("div", { class: "sliders" }, sliders));
  return step(record, say("choice"), words, [headName(record)], verdict, drawn);
}

/** The sliders, each from `min` (default 0) to `max`; one end means off, stored as null. */
function knobs(settings, vocabulary) {
  const counts = [1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000];
  const ks = [...new Set([...counts, settings.top_k ?? 1])]
    .filter((k) => k < vocabulary)
    .sort((a, b) => a - b);
  const chosen = ks.indexOf(settings.top_k);
  const set = (name, off) => (value) => (settings[name] = value === off ? null : value);
  const digits = (off) => (value) => (value === off ? say("off") : value.toFixed(2));
  return [
    {
      name: "temperature", max: 2, step: 0.01, value: settings.temperature, set: set("temperature"),
      text: (value) => (value > 0 ? value.toFixed(2) : `0 (${say("greedy_short")})`),
    },
    {
      name: "top_k", max: ks.length, step: 1, value: chosen < 0 ? ks.length : chosen,
      set: (value) => (settings.top_k = ks[value] ?? null),
      text: (value) => (value < ks.length ? count(ks[value]) : say("off")),
    },
    {
      name: "top_p", min: 0.01, max: 1, step: 0.01, value: settings.top_p ?? 1,
      set: set("top_p", 1), text: digits(1),
    },
    {
      name: "min_p", max: 1, step: 0.01, value: settings.min_p ?? 0,
      set: set("min_p", 0), text: digits(0),
    },
    {
      name: "uniform", max: 0.999, step: 0.001, value: settings.uniform,
      set: set("uniform"), text: (value) => value.toFixed(3),
    },
  ];
}

function slider({ name, min = 0, max, step, value, set, text }, changed) {
  const output = of("output");
  const input = of("input", { type: "range", id: `set-${name}`, name, min, max, step });
  const show = (now) => {
    output.textContent = text(now);
    input.setAttribute("aria-valuetext", output.textContent);
  };
  input.addEventListener("input", () => {
    set(Number(input.value));
    show(Number(input.value));
    changed();
  });
  input.value = value;
  show(value);
  const words = of("small", { class: "faint" }, say(`${name}_words`));
  return of("label", {}, of("code", {}, name.replace("_", "-")), input, output, words);
}

/** The generated text; each token with the alternatives that were likely. */
function continuation(record) {
  const { written, prompt, pieces } = record.about;
  const [ids, probs, chosen] = ["ids", "probs", "chosen"].map((n) => record.tables[`written.${n}`]);
  const all = range(ids.shape[1]);
  const panel = of("div", { class: "bars" });
  const buttons = written.ids.map((id, n) => {
    const about = { class: "token written", type: "button", onclick: () => show(n) };
    const button = of("button", about, named(record, id));
    hint(button, () => all.slice(0, 6).map((k) =>
      of("div", {}, named(record, ids.at(n, k)), ` ${percent(probs.at(n, k))}`)));
    return button;
  });
  function show(n) {
    const id = written.ids[n];
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === n));
    const likely = all.map((k) => [ids.at(n, k), probs.at(n, k)]);
    if (!likely.some(([other]) => other === id)) likely.push([id, chosen.at(n)]);
    const most = likely[0][1] || 1;
    const row = ([other, p]) => {
      const line = bar(named(record, other), p / most, percent(p));
      line.classList.toggle("taken", other === id);
      return line;
    };
    panel.replaceChildren(...likely.map(row));
  }
  if (buttons.length) show(0);
  const move = buttons.length > 0 && roving([buttons], 0, 0);
  const tokens = of("div", { class: "tokens", onkeydown: move || (() => {}) }, buttons);
  const text = of("blockquote", { dir: "auto" }, prompt, of("b", {}, textOf(written.ids, pieces)));
  const why = say(`finish_${written.finish}`, { count: written.ids.length });
  return step(record, say("written"), say("written_words", { why }), [], text, tokens, panel);
}
