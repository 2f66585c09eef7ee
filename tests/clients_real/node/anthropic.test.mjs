// The `@anthropic-ai/sdk` package of npm.
import assert from "node:assert/strict";
import test from "node:test";
import Anthropic from "@anthropic-ai/sdk";
import * as ask from "./servers.mjs";

const at = (baseURL, more = {}) =>
  new Anthropic({ baseURL, apiKey: "any", maxRetries: 0, ...more });
const client = at(ask.at.main);
const tool = { name: "get_weather", description: "The weather", input_schema: ask.PARAMETERS };
const create = (of, options) =>
  of.messages.create({
    model: ask.TINY, messages: ask.said(ask.FOXES), max_tokens: 12, ...options,
  });
const guide = { model: ask.GUIDE, messages: ask.said(ask.PORT), max_tokens: ask.ENOUGH };

test("messages, streamed and whole", async () => {
  const whole = await create(client, guide);
  assert.match(whole.content[0].text, /11435/);
  assert.equal(whole.stop_reason, "end_turn");
  const stream = client.messages.stream(guide);
  const pieces = [];
  stream.on("text", (piece) => pieces.push(piece));
  const last = await stream.finalMessage();
  assert.equal(last.content[0].text, whole.content[0].text);
  assert.equal(pieces.join(""), whole.content[0].text);
  assert.deepEqual(last.usage.output_tokens, whole.usage.output_tokens);
  const events = await ask.collect(await create(client, { ...guide, stream: true }));
  assert.equal(events.at(-1).type, "message_stop");
});

test("counted tokens are the used ones", async () => {
  const { model, messages } = guide;
  const counted = await client.messages.countTokens({ model, messages, tools: [tool] });
  const used = await create(client, { ...guide, tools: [tool] });
  assert.equal(counted.input_tokens, used.usage.input_tokens);
});

test("models", async () => {
  const ids = (await ask.collect(client.models.list())).map((model) => model.id);
  assert.ok(ids.includes(ask.TINY) && ids.includes(ask.GUIDE));
  assert.equal((await client.models.retrieve(ask.TINY)).type, "model");
  await assert.rejects(client.models.retrieve("nobody"), Anthropic.NotFoundError);
});

test("a tool and its result", async () => {
  const request = { ...guide, messages: ask.said(ask.WEATHER), tools: [tool] };
  const first = await create(client, request);
  const call = first.content.find((block) => block.type === "tool_use");
  assert.deepEqual(call.input, { city: "Paris" });
  const result = { type: "tool_result", tool_use_id: call.id, content: "It rains." };
  const messages = [
    ...request.messages,
    { role: "assistant", content: first.content },
    { role: "user", content: [result] },
  ];
  assert.equal((await create(client, { ...request, messages })).stop_reason, "end_turn");
  const streamed = await client.messages.stream(request).finalMessage();
  assert.deepEqual(
    streamed.content.find((block) => block.type === "tool_use").input, { city: "Paris" },
  );
});

test("a tool is demanded of a random model", async () => {
  const tools = [{ ...tool, input_schema: ask.BOUNDED }];
  const request = { model: ask.TOOLBOX, tools, max_tokens: 400 };
  for (const choice of [{ type: "any" }, { type: "tool", name: "get_weather" }]) {
    const tool_choice = { ...choice, disable_parallel_tool_use: true };
    const answer = await create(client, { ...request, tool_choice });
    assert.equal(answer.stop_reason, "tool_use");
  }
});

test("a schema is kept to", async () => {
  const format = { type: "json_schema", schema: ask.PERSON };
  const answer = await create(client, { max_tokens: ask.ENOUGH, output_config: { format } });
  assert.deepEqual(Object.keys(JSON.parse(answer.content[0].text)), ["name", "age", "grown"]);
});

test("thinking", async () => {
  const thinking = { type: "enabled", budget_tokens: 1024 };
  const answer = await create(client, { model: ask.THINKER, thinking });
  assert.equal(answer.content[0].type, "thinking");
});

test("refusals", async () => {
  for (const stream of [false, true]) {
    await assert.rejects(create(client, { messages: [], stream }), Anthropic.BadRequestError);
    await assert.rejects(create(client, { model: "nobody", stream }), Anthropic.NotFoundError);
    await assert.rejects(create(at(ask.at.spent), { stream }), Anthropic.RateLimitError);
    await ask.whileHeld(ask.at.single, () =>
      assert.rejects(create(at(ask.at.single), { stream }), (error) => {
        assert.ok(error instanceof Anthropic.InternalServerError);
        assert.equal(error.error.error.type, "overloaded_error");
        return true;
      }),
    );
  }
  const long = create(at(ask.at.single), { messages: ask.said("x".repeat(100_000)) });
  await assert.rejects(long, { status: 413 });
});

test("an image is refused", async () => {
  const source = { type: "base64", media_type: "image/png", data: ask.PIXEL };
  const messages = ask.said([{ type: "image", source }]);
  await assert.rejects(create(client, { messages }), Anthropic.BadRequestError);
});

test("what fails in the middle", async () => {
  await ask.load(ask.at.hasty, ask.ENDLESS);
  const request = { model: ask.ENDLESS, temperature: 0, max_tokens: ask.LONG, stream: true };
  const broken = async () => ask.collect(await create(at(ask.at.hasty), request));
  await assert.rejects(broken, Anthropic.APIError);
});

test("who waits no longer, aborts, or finds nobody", async () => {
  const request = { model: ask.ENDLESS, temperature: 0, max_tokens: ask.LONG };
  const hurried = at(ask.at.main, { timeout: 300 });
  await assert.rejects(create(hurried, request), Anthropic.APIConnectionTimeoutError);
  const stream = client.messages.stream({ ...request, messages: ask.said(ask.FOXES) });
  stream.once("text", () => stream.abort());
  await assert.rejects(stream.done(), Anthropic.APIUserAbortError);
  await ask.untilIdle(ask.at.main);
  await assert.rejects(create(at(ask.DEAD)), Anthropic.APIConnectionError);
});
