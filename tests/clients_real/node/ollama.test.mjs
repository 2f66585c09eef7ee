// The `ollama` package of npm.
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import test from "node:test";
import { Ollama } from "ollama";
import * as ask from "./servers.mjs";

const client = new Ollama({ host: ask.at.main });
const GREEDY = { temperature: 0, num_predict: 24 };
const tool = { type: "function", function: ask.FUNCTION };
const refused = (status, words) => (error) => {
  assert.equal(error.status_code, status);
  assert.match(error.message, words);
  return true;
};

test("models are listed, shown, loaded and unloaded", async () => {
  const names = (await client.list()).models.map((model) => model.name);
  assert.ok(names.includes("tiny-a:latest") && names.includes("mlxd-guide:latest"));
  const shown = await client.show({ model: ask.GUIDE });
  assert.ok(shown.capabilities.includes("tools"));
  assert.equal((await client.generate({ model: "tiny-b", prompt: "" })).done_reason, "load");
  assert.ok((await client.ps()).models.some((model) => model.name === "tiny-b:latest"));
  await client.generate({ model: "tiny-b", prompt: "", keep_alive: 0 });
  assert.ok(!(await client.ps()).models.some((model) => model.name === "tiny-b:latest"));
});

test("its version", async () => assert.ok((await client.version()).version));

test("models are copied and deleted", async () => {
  await client.copy({ source: ask.TINY, destination: "copied-in-node" });
  await client.delete({ model: "copied-in-node" });
  await assert.rejects(client.show({ model: "copied-in-node" }), refused(404, /not found/));
});

test("models are made of others", async () => {
  const made = await client.create({ model: "made-in-node", from: ask.TINY, system: "A fox." });
  assert.equal(made.status, "success");
  assert.match((await client.show({ model: "made-in-node" })).system, /A fox/);
  await client.delete({ model: "made-in-node" });
});

test("a pull and a push of what cannot be had", async () => {
  await assert.rejects(client.pull({ model: "nobody-at-all/nothing" }));
  await assert.rejects(async () => {
    await ask.collect(await client.pull({ model: "nobody-at-all/nothing", stream: true }));
  });
  await assert.rejects(client.push({ model: ask.TINY }));
});

test("a chat, streamed and whole", async () => {
  const request = { model: ask.GUIDE, messages: ask.said(ask.PORT) };
  const whole = await client.chat(request);
  const parts = await ask.collect(await client.chat({ ...request, stream: true }));
  assert.match(whole.message.content, /11435/);
  assert.equal(parts.map((part) => part.message.content).join(""), whole.message.content);
  assert.ok(parts.at(-1).eval_count > 0 && parts.at(-1).done);
});

test("a tool and its result", async () => {
  const messages = ask.said(ask.WEATHER);
  const first = await client.chat({ model: ask.GUIDE, messages, tools: [tool] });
  const [call] = first.message.tool_calls;
  assert.deepEqual(call.function.arguments, { city: "Paris" });
  const result = { role: "tool", tool_name: "get_weather", content: "It rains." };
  const all = [...messages, first.message, result];
  const last = await client.chat({ model: ask.GUIDE, messages: all, tools: [tool] });
  assert.equal(last.done_reason, "stop");
});

test("a schema is kept to", async () => {
  const options = { temperature: 0, num_predict: 200 };
  const answer = await client.chat({
    model: ask.TINY, messages: ask.said(ask.FOXES), format: ask.PERSON, options,
  });
  assert.deepEqual(Object.keys(JSON.parse(answer.message.content)), ["name", "age", "grown"]);
});

test("thinking", async () => {
  const request = { model: ask.THINKER, messages: ask.said(ask.FOXES), options: GREEDY };
  assert.ok((await client.chat({ ...request, think: true })).message.thinking);
  assert.ok(!(await client.chat({ ...request, think: false })).message.thinking);
});

test("a completion, streamed and whole", async () => {
  const request = { model: ask.GUIDE, prompt: ask.PORT };
  const whole = await client.generate(request);
  const parts = await ask.collect(await client.generate({ ...request, stream: true }));
  assert.equal(parts.map((part) => part.response).join(""), whole.response);
});

test("embeddings", async () => {
  const several = await client.embed({ model: ask.TINY, input: ["A fox", "A dog"] });
  assert.equal(several.embeddings.length, 2);
  const old = await client.embeddings({ model: ask.TINY, prompt: "A fox" });
  assert.equal(old.embedding.length, several.embeddings[0].length);
});

test("refusals", async () => {
  const request = { model: ask.TINY, messages: ask.said(ask.FOXES), options: GREEDY };
  for (const stream of [false, true]) {
    const change = { ...request, stream };
    await assert.rejects(client.chat({ ...change, model: "nobody" }), refused(404, /not found/));
    await assert.rejects(client.chat({ ...change, tools: [tool] }), refused(400, /tools/));
    const spent = new Ollama({ host: ask.at.spent });
    await assert.rejects(spent.chat(change), refused(429, /Rate limit exceeded/));
    const single = new Ollama({ host: ask.at.single });
    await ask.whileHeld(ask.at.single, () =>
      assert.rejects(single.chat(change), refused(503, /busy/)),
    );
  }
});

test("an image is refused", async () => {
  const file = path.join(os.tmpdir(), `mlxd-clients-${process.pid}.png`);
  fs.writeFileSync(file, Buffer.from(ask.PIXEL, "base64"));
  const messages = [{ role: "user", content: "What?", images: [file] }];
  try {
    await assert.rejects(client.chat({ model: ask.TINY, messages }), refused(400, /image/i));
  } finally {
    fs.rmSync(file);
  }
});

test("a stream that is aborted frees its slot", async () => {
  const options = { temperature: 0, num_predict: ask.LONG };
  const request = { model: ask.ENDLESS, messages: ask.said(ask.FOXES), options, stream: true };
  const stream = await client.chat(request);
  await assert.rejects(async () => {
    for await (const _ of stream) stream.abort();
  }, { name: "AbortError" });
  await ask.untilIdle(ask.at.main);
});

test("what fails in the middle", async () => {
  const hasty = new Ollama({ host: ask.at.hasty });
  await ask.load(ask.at.hasty, ask.ENDLESS);
  const options = { temperature: 0, num_predict: ask.LONG };
  const request = { model: ask.ENDLESS, messages: ask.said(ask.FOXES), options, stream: true };
  await assert.rejects(async () => ask.collect(await hasty.chat(request)));
});

test("nobody listens", async () => {
  await assert.rejects(new Ollama({ host: ask.DEAD }).list(), /fetch failed/);
});
