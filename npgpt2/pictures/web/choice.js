// From logits to the token that was written, and what might have stood in its place.

/** The last distribution, and the sliders that change it: as npgpt2/sampling.py computes it. */
function distribution(record) {
  const { about, tables } = record;
  const logits = Float64Array.from(tables.last.data);
  const used = about.options;
  const settings = record.settings ?? { ...used }; // a live page writes on by them
  settings.uniform = about.written.uniforms?.[0] ?? 0.5;
  const before = chances(logits, { temperature: 1, top_k: null, top_p: null, min_p: null });
  const best = Array.from(before.keys()).sort((a, b) => before[b] - before[a] || a - b).slice(0, 20);
  const [bars, words] = [of("div", { class: "bars" }), of("p", { role: "status", class: "verdict" })];
  function redraw() {
    const probs = chances(logits, settings);
    const taken = settings.temperature > 0 ? draw(probs, settings.uniform) : best[0];
    const most = Math.max(probs[best[0]], before[best[0]]);
    const all = best.includes(taken) ? best : [...best, taken];
    bars.replaceChildren(...all.map((id) => {
      const row = bar(named(record, id), probs[id] / most, percent(probs[id]), { "data-id": id });
      const raw = of("b", {}); // what it was before the filters
      raw.style.width = `${(100 * before[id]) / most}%`;
      row.querySelector(".track").prepend(raw);
      if (id === taken) row.classList.add("taken");
      if (probs[id] === 0) row.classList.add("out");
      return row;
    }));
    const left = probs.reduce((sum, p) => sum + (p > 0), 0);
    words.replaceChildren(say("left", { left: count(left), all: count(logits.length) }), " ",
      say(settings.temperature > 0 ? "drawn" : "greedy"), " ", of("strong", {}, named(record, taken)), ` (id ${taken}).`);
  }
  const ks = [...new Set([1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, used.top_k ?? 1])]
    .filter((k) => k < logits.length).sort((a, b) => a - b);
  const sliders = of("div", { class: "sliders" },
    slider("temperature", 0, 2, 0.01, settings.temperature, (v) => (settings.temperature = v), (v) => (v === 0 ? `0 (${say("greedy_short")})` : v.toFixed(2))),
    slider("top_k", 0, ks.length, 1, settings.top_k === null ? ks.length : ks.indexOf(settings.top_k), (v) => (settings.top_k = ks[v] ?? null), (v) => (v < ks.length ? count(ks[v]) : say("off"))),
    slider("top_p", 0.01, 1, 0.01, settings.top_p ?? 1, (v) => (settings.top_p = v < 1 ? v : null), (v) => (v < 1 ? v.toFixed(2) : say("off"))),
    slider("min_p", 0, 1, 0.01, settings.min_p ?? 0, (v) => (settings.min_p = v > 0 ? v : null), (v) => (v > 0 ? v.toFixed(2) : say("off"))),
    slider("uniform", 0, 0.999, 0.001, settings.uniform, (v) => (settings.uniform = v), (v) => v.toFixed(3)));
  function slider(name, min, max, step, value, set, text) {
    const output = of("output", {}, text(value));
    const input = of("input", { type: "range", name, min, max, step, oninput: () => {
      set(Number(input.value));
      output.textContent = text(Number(input.value));
      input.setAttribute("aria-valuetext", output.textContent);
      redraw();
    } });
    input.value = value;
    input.setAttribute("aria-valuetext", output.textContent);
    return of("label", {}, of("code", {}, name.replace("_", "-")), input, output, of("small", { class: "faint" }, say(`${name}_words`)));
  }
  redraw();
  return step(record, say("choice"), say("choice_words", { vocabulary: count(logits.length) }), [headName(record)],
    words, of("div", { class: "two" }, bars, sliders));
}

/** The text that was written; each token with the others that were likely. */
function continuation(record) {
  const { written } = record.about;
  const [ids, probs, chosen] = ["ids", "probs", "chosen"].map((name) => record.tables[`written.${name}`]);
  const panel = of("div", { class: "bars" });
  const buttons = written.ids.map((id, n) => {
    const button = of("button", { class: "token written", type: "button", onclick: () => show(n) }, named(record, id));
    hint(button, () => [of("b", {}, named(record, id)), ` ${percent(chosen.at(n))}`, ...Array.from({ length: Math.min(6, ids.shape[1]) }, (_, k) =>
      of("div", {}, named(record, ids.at(n, k)), ` ${percent(probs.at(n, k))}`))]);
    return button;
  });
  function show(n) {
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === n));
    const likely = Array.from({ length: ids.shape[1] }, (_, k) => [ids.at(n, k), probs.at(n, k)]);
    const id = written.ids[n];
    if (!likely.some(([other]) => other === id)) likely.push([id, chosen.at(n)]);
    const most = likely[0][1] || 1;
    panel.replaceChildren(...likely.map(([other, p]) => bar(named(record, other), p / most, percent(p), other === id ? { class: "bar taken" } : {})));
  }
  if (written.ids.length) show(0);
  const text = of("div", { class: "tokens" }, of("span", { class: "faint" }, say("after_prompt")), buttons);
  return step(record, say("written"), say("written_words", { why: say(`finish_${written.finish}`) }), [], text, panel);
}
