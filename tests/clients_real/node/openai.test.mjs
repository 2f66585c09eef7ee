// The `openai` package of npm.
import assert from "node:assert/strict";
import test from "node:test";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import * as ask from "./servers.mjs";

const at = (baseURL, more = {}) => new OpenAI({ baseURL, apiKey: "any", maxRetries: 0, ...more });
const client = at(ask.v1.main);
const Fox = z.object({ colour: z.enum(["red", "white"]), tame: z.boolean() });
const chat = (of, options) =>
  of.chat.completions.create({ model: ask.TINY, messages: ask.said(ask.FOXES), ...options });

test("models", async () => {
  const ids = (await ask.collect(client.models.list())).map((model) => model.id);
  assert.ok(ids.includes(ask.TINY) && ids.includes(ask.GUIDE));
  assert.equal((await client.models.retrieve(ask.TINY)).id, ask.TINY);
  await assert.rejects(client.models.retrieve("nobody"), OpenAI.NotFoundError);
});

test("a chat, streamed and whole", async () => {
  const request = { model: ask.GUIDE, messages: ask.said(ask.PORT) };
  const whole = await chat(client, request);
  const usage = { stream_options: { include_usage: true } };
  const chunks = await ask.collect(await chat(client, { ...request, stream: true, ...usage }));
  const text = chunks.map((chunk) => chunk.choices[0]?.delta.content ?? "").join("");
  assert.match(text, /11435/);
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(chunks.at(-1).usage, whole.usage);
});

test("several choices", async () => {
  const answer = await chat(client, { n: 3, seed: 1, max_tokens: 12 });
  assert.equal(new Set(answer.choices.map((choice) => choice.message.content)).size, 3);
});

test("the stream helper and its events", async () => {
  const stream = client.chat.completions.stream({
    model: ask.GUIDE, messages: ask.said(ask.PORT),
  });
  const pieces = [];
  stream.on("content", (piece) => pieces.push(piece));
  assert.equal(await stream.finalContent(), pieces.join(""));
});

test("typed answers", async () => {
  const format = zodResponseFormat(Fox, "fox");
  const request = { model: ask.TINY, messages: ask.said(ask.FOXES), response_format: format };
  const answer = await client.chat.completions.parse({ ...request, max_tokens: ask.ENOUGH });
  assert.ok(Fox.safeParse(answer.choices[0].message.parsed).success);
  const short = client.chat.completions.parse({ ...request, max_tokens: 2 });
  await assert.rejects(short, OpenAI.LengthFinishReasonError ?? Error);
});

test("the package runs a tool by itself", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools({
    model: ask.GUIDE,
    messages: ask.said(ask.WEATHER),
    max_tokens: ask.ENOUGH,
    tools: [
      {
        type: "function",
        function: {
          ...ask.FUNCTION,
          parse: JSON.parse,
          function: (given) => {
            asked.push(given.city);
            return "It rains.";
          },
        },
      },
    ],
  });
  await runner.finalContent();
  assert.equal(asked[0], "Paris");
});

test("a tool is demanded of a random model", async () => {
  for (const choice of ["required", { type: "function", function: { name: "get_weather" } }]) {
    const bounded = { type: "function", function: { ...ask.FUNCTION, parameters: ask.BOUNDED } };
    const request = { model: ask.TOOLBOX, tools: [bounded], tool_choice: choice, max_tokens: 400 };
    const answer = await chat(client, { ...request, parallel_tool_calls: false });
    const [call] = answer.choices[0].message.tool_calls;
    assert.equal(typeof JSON.parse(call.function.arguments).city, "string");
  }
});

test("completions", async () => {
  const answer = await client.completions.create({
    model: ask.TINY, prompt: ["Foxes", "Dogs"], max_tokens: 5,
  });
  assert.equal(answer.choices.length, 2);
  const stream = await client.completions.create({
    model: ask.TINY, prompt: "Foxes", max_tokens: 5, stream: true,
  });
  assert.ok((await ask.collect(stream)).length > 0);
});

test("embeddings, in base64 and as numbers", async () => {
  const request = { model: ask.TINY, input: "A fox" };
  const [usual] = (await client.embeddings.create(request)).data;
  const [plain] = (await client.embeddings.create({ ...request, encoding_format: "float" })).data;
  assert.equal(usual.embedding.length, plain.embedding.length);
  usual.embedding.forEach((value, place) => {
    assert.ok(Math.abs(value - plain.embedding[place]) < 1e-6);
  });
  const short = await client.embeddings.create({ ...request, dimensions: 8 });
  assert.equal(short.data[0].embedding.length, 8);
});

test("responses, streamed and whole", async () => {
  const request = { model: ask.GUIDE, input: ask.PORT };
  const whole = await client.responses.create(request);
  assert.match(whole.output_text, /11435/);
  const events = await ask.collect(await client.responses.create({ ...request, stream: true }));
  assert.equal(events[0].type, "response.created");
  assert.equal(events.at(-1).type, "response.completed");
  const helper = client.responses.stream(request);
  assert.equal((await helper.finalResponse()).output_text, whole.output_text);
  const stored = await client.responses.retrieve(whole.id);
  assert.equal(stored.output_text, whole.output_text);
  await client.responses.delete(whole.id);
  await assert.rejects(client.responses.retrieve(whole.id), OpenAI.NotFoundError);
});

test("responses of a type", async () => {
  const answer = await client.responses.parse({
    model: ask.TINY,
    input: ask.FOXES,
    text: { format: zodTextFormat(Fox, "fox") },
    max_output_tokens: ask.ENOUGH,
  });
  assert.ok(Fox.safeParse(answer.output_parsed).success);
});

test("refusals", async () => {
  for (const stream of [false, true]) {
    const bad = chat(client, { temperature: 3, stream });
    await assert.rejects(bad, (error) => {
      assert.ok(error instanceof OpenAI.BadRequestError);
      assert.equal(error.param, "temperature");
      return true;
    });
    await assert.rejects(chat(client, { model: "nobody", stream }), OpenAI.NotFoundError);
    await assert.rejects(chat(at(ask.v1.spent), { stream }), OpenAI.RateLimitError);
    await ask.whileHeld(ask.at.single, () =>
      assert.rejects(chat(at(ask.v1.single), { stream }), (error) => {
        assert.ok(error instanceof OpenAI.InternalServerError);
        assert.equal(error.status, 503);
        return true;
      }),
    );
  }
  await assert.rejects(client.images.generate({ prompt: "a fox" }), OpenAI.NotFoundError);
});

test("an image is refused", async () => {
  const url = `data:image/png;base64,${ask.PIXEL}`;
  const messages = [{ role: "user", content: [{ type: "image_url", image_url: { url } }] }];
  await assert.rejects(chat(client, { messages }), OpenAI.BadRequestError);
});

test("too often is waited out by the package", async () => {
  const patient = at(ask.v1.brief, { maxRetries: 2 });
  for (let count = 0; count < 2; count += 1) await chat(patient, { max_tokens: 1 });
});

test("what fails in the middle", async () => {
  await ask.load(ask.at.hasty, ask.ENDLESS);
  const request = { model: ask.ENDLESS, temperature: 0, max_tokens: ask.LONG };
  await assert.rejects(chat(at(ask.v1.hasty), request), { status: 504 });
  const broken = async () =>
    ask.collect(await chat(at(ask.v1.hasty), { ...request, stream: true }));
  await assert.rejects(broken, OpenAI.APIError);
});

test("a worker dies in the middle", async () => {
  await ask.untilIdle(ask.at.single);
  const request = { model: ask.ENDLESS, temperature: 0, max_tokens: ask.LONG, stream: true };
  const stream = await chat(at(ask.v1.single), request);
  let killed = false;
  await assert.rejects(async () => {
    for await (const _ of stream) {
      if (!killed) await ask.killWorker(ask.at.single, ask.ENDLESS);
      killed = true;
    }
  }, OpenAI.APIError);
});

test("who waits no longer, aborts, or finds nobody", async () => {
  const request = { model: ask.ENDLESS, temperature: 0, max_tokens: ask.LONG };
  const hurried = at(ask.v1.main, { timeout: 300 });
  await assert.rejects(chat(hurried, request), OpenAI.APIConnectionTimeoutError);
  const stream = await chat(client, { ...request, stream: true });
  for await (const _ of stream) break;
  await ask.untilIdle(ask.at.main);
  await assert.rejects(at(`${ask.DEAD}/v1`).models.list(), OpenAI.APIConnectionError);
});
