// The page at /: it sends a prompt to /v1/completions and shows the answer as it arrives.

const $ = (id) => document.getElementById(id);
let running = null; // AbortController of the running request

/** The data of each server-sent event. */
async function* eventsOf(body) {
  const reader = body.getReader(); // Safari does not iterate over a stream
  const decoder = new TextDecoder();
  let held = "";
  for (let piece; !(piece = await reader.read()).done; ) {
    const events = (held + decoder.decode(piece.value, { stream: true })).split("\n\n");
    held = events.pop();
    yield* events.map((event) => event.replace(/^data: /, ""));
  }
}

function request() {
  const given = (id) => ($(id).value === "" ? undefined : Number($(id).value));
  return {
    prompt: $("prompt").value,
    max_tokens: given("max_tokens"),
    temperature: given("temperature"),
    top_p: given("top_p"),
    seed: given("seed"),
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** Show the prompt and an empty answer; returns the answer's element. */
function begin(prompt) {
  const given = document.createElement("span");
  given.className = "given";
  given.textContent = prompt;
  const written = document.createElement("span");
  $("answer").replaceChildren(given, written);
  return written;
}

const WHY = { stop: "the model ended the text", length: "the token limit is reached" };

async function write() {
  running?.abort();
  const mine = (running = new AbortController());
  const asked = request();
  const answer = begin(asked.prompt);
  const began = performance.now();
  let why = "";
  $("stop").disabled = false;
  $("state").textContent = "waiting …";
  try {
    const response = await fetch("v1/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(asked),
      signal: mine.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of eventsOf(response.body)) {
      if (event === "[DONE]") break;
      const { choices, usage, error } = JSON.parse(event);
      if (error) throw new Error(error.message);
      for (const choice of choices) {
        answer.append(choice.text);
        why = WHY[choice.finish_reason] ?? why;
        $("state").textContent = "generating …";
      }
      if (usage) {
        const seconds = (performance.now() - began) / 1000;
        $("state").textContent = `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s: ${why}`;
      }
    }
  } catch (problem) {
    if (running !== mine) return; // a newer request has replaced this one
    $("state").textContent = mine.signal.aborted ? "stopped" : problem.message;
  }
  if (running === mine) {
    running = null;
    $("stop").disabled = true;
  }
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  write();
});
$("stop").addEventListener("click", () => running?.abort());
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) write();
});
