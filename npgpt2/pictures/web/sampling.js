// The filters of npgpt2/generation/sampling.py, in the same order, in float64.
// A token that a filter removes gets the logit −∞.

function softmax(logits) {
  const top = Math.max(
    logits.reduce((a, b) => Math.max(a, b), -Infinity),
    -Number.MAX_VALUE,
  );
  const probs = logits.map((logit) => Math.exp(logit - top));
  const total = Math.max(
    probs.reduce((sum, p) => sum + p, 0),
    1,
  );
  return probs.map((p) => p / total);
}

function temperature(logits, t) {
  const top = logits.reduce((a, b) => Math.max(a, b), -Infinity);
  return logits.map((logit) => (logit - top) / t);
}

function falling(logits) {
  return logits.slice().sort().reverse(); // a Float64Array sorts by number
}

/** Keep the k largest logits, and all that equal the k-th. */
function topK(logits, k) {
  const least = falling(logits)[Math.min(k, logits.length) - 1];
  return logits.map((logit) => (logit < least ? -Infinity : logit));
}

/** Keep the fewest tokens whose total probability reaches p. */
function topP(logits, p) {
  if (p >= 1) return logits;
  const sorted = falling(logits);
  const probs = softmax(sorted);
  let crossing = 0;
  for (let sum = probs[0]; sum < p && crossing < probs.length - 1; sum += probs[crossing])
    crossing++;
  return logits.map((logit) => (logit < sorted[crossing] ? -Infinity : logit));
}

/** Keep tokens with at least p times the highest probability. */
function minP(logits, p) {
  const probs = softmax(logits);
  const least = p * probs.reduce((a, b) => Math.max(a, b));
  return logits.map((logit, i) => (probs[i] < least ? -Infinity : logit));
}

/** Apply the filters of `GenerationOptions.next_token`; null skips one. Not for greedy. */
function filtered(logits, options) {
  logits = temperature(logits, options.temperature);
  if (options.top_k !== null) logits = topK(logits, options.top_k);
  if (options.top_p !== null) logits = topP(logits, options.top_p);
  if (options.min_p !== null) logits = minP(logits, options.min_p);
  return logits;
}

/** Probabilities after the filters. Greedy: 1 for the first of the largest logits. */
function chances(logits, options) {
  if (options.temperature > 0) return softmax(filtered(logits, options));
  const best = logits.indexOf(logits.reduce((a, b) => Math.max(a, b)));
  return logits.map((_, i) => Number(i === best));
}

/** The ids of the most probable tokens, best first; of equal ones, the lower id first. */
function ranked(probs, many) {
  const ids = Array.from(probs.keys());
  return ids.sort((a, b) => probs[b] - probs[a] || a - b).slice(0, many);
}

/** The first id at which the sum of probabilities, in the order of ids, exceeds `uniform`. */
function draw(probs, uniform) {
  const running = probs.slice();
  for (let i = 1; i < running.length; i++) running[i] += running[i - 1];
  const target = uniform * running[running.length - 1];
  const token = running.findIndex((sum) => sum > target);
  const last = probs.findLastIndex((p) => p > 0); // rounding may go past the last
  return token < 0 ? last : Math.min(token, last);
}
