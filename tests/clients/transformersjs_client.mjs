// transformers.js: node transformersjs_client.mjs FOLDER EXPECTED.json [browser]
//
// As Node loads it, or, with `browser`, as a page does: the library's build for browsers with
// WebAssembly, and the folder behind HTTP. Batches are padded left. Lies beside node_modules.
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { basename, dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const [folder, expectedFile, browser] = process.argv.slice(2);
const expected = JSON.parse(readFileSync(expectedFile, "utf8"));
const here = dirname(fileURLToPath(import.meta.url));

async function inNode() {
  const { env, pipeline } = await import("@huggingface/transformers");
  env.allowRemoteModels = false;
  env.localModelPath = dirname(resolve(folder));
  for (const [dtype, graph] of [["fp32", "model.onnx"], ["q8", "model_quantized.onnx"]]) {
    const generate = await pipeline("text-generation", basename(folder), { dtype });
    await hold("transformers.js, Node", graph, generate);
  }
}

async function inBrowser() {
  let graph; // the one that was asked for
  const server = createServer((request, response) => {
    response.setHeader("connection", "close");
    if (request.url.endsWith(".onnx")) graph = basename(request.url);
    try {
      response.end(readFileSync(resolve(folder, "." + request.url)));
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  Object.defineProperty(process, "release", { value: { name: "browser" } });
  const { env, pipeline } = await import(
    `${here}/node_modules/@huggingface/transformers/dist/transformers.web.js`
  );
  env.allowLocalModels = env.useFS = false;
  env.useFSCache = env.useBrowserCache = env.useWasmCache = false;
  env.remoteHost = `http://127.0.0.1:${server.address().port}`;
  env.remotePathTemplate = "";
  const { wasm } = env.backends.onnx;
  [wasm.wasmPaths, wasm.numThreads] = [`${here}/node_modules/onnxruntime-web/dist/`, 1];
  const q8 = existsSync(resolve(folder, "onnx/model_quantized.onnx"));
  for (const options of q8 ? [{}, { dtype: "q8" }] : [{}]) {
    const generate = await pipeline("text-generation", "folder", options);
    await hold("transformers.js, WASM", graph, generate);
  }
  server.close();
}

async function hold(client, graph, generate) {
  let line = client.padEnd(24) + graph.padEnd(25);
  for (const { case: name, prompts, prompt_ids, new: count, texts, written } of expected[graph]) {
    const options = { max_new_tokens: count, do_sample: false, return_full_text: false };
    const out = await generate(prompts, options);
    prompts.forEach((prompt, row) => {
      const at = `${client}, ${graph}, '${name}', row ${row}`;
      const ids = generate.tokenizer.encode(prompt);
      same(`${at}: the prompt's ids`, String(ids), String(prompt_ids[row]));
      const text = out[row][0].generated_text;
      same(`${at}: text`, text.slice(0, texts[row].length), texts[row]);
    });
    line += `${String(written.flat().length).padStart(9)} ok`;
  }
  console.log(line);
}

function same(what, got, wanted) {
  if (got === wanted) return;
  console.error(`${what} differ: got ${JSON.stringify(got)}, expected ${JSON.stringify(wanted)}`);
  process.exit(1);
}

try {
  await (browser ? inBrowser() : inNode());
} catch (error) {
  console.error(error.message); // without a page of the library's source
  process.exit(1);
}
