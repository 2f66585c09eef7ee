// The AI SDK (`ai`), over each of its providers that can be pointed at mlxd.
import assert from "node:assert/strict";
import test from "node:test";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import {
  APICallError, Output, embed, embedMany, generateText, isStepCount, streamText, tool,
} from "ai";
import { createOllama } from "ai-sdk-ollama";
import { z } from "zod";
import * as ask from "./servers.mjs";

const Fox = z.object({ colour: z.enum(["red", "white"]), tame: z.boolean() });
const anthropic = createAnthropic({ baseURL: ask.v1.main, apiKey: "any" });
const compatible = (baseURL) =>
  createOpenAICompatible({ name: "mlxd", baseURL, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL: ask.v1.main, apiKey: "any" });
const ollama = createOllama({ baseURL: ask.at.main });
const providers = {
  compatible: compatible(ask.v1.main),
  "openai chat": (model) => openai.chat(model),
  "openai responses": (model) => openai.responses(model),
  anthropic,
  ollama,
};

for (const [name, provider] of Object.entries(providers)) {
  test(`${name}: streamed and whole`, async () => {
    const request = { model: provider(ask.GUIDE), prompt: ask.PORT };
    const whole = await generateText(request);
    assert.match(whole.text, /11435/);
    assert.ok(whole.usage.outputTokens > 0);
    const streamed = streamText(request);
    const pieces = await ask.collect(streamed.textStream);
    assert.equal(pieces.join(""), whole.text);
    assert.equal(await streamed.finishReason, "stop");
  });

  test(`${name}: a tool is called and its result goes on`, async () => {
    const asked = [];
    const weather = tool({
      description: "Get the current weather of a city",
      inputSchema: z.object({ city: z.string().describe("its name") }),
      execute: async ({ city }) => {
        asked.push(city);
        return "It rains.";
      },
    });
    const answer = await generateText({
      model: provider(ask.GUIDE),
      prompt: ask.WEATHER,
      tools: { get_weather: weather },
      stopWhen: isStepCount(3),
      maxOutputTokens: ask.ENOUGH,
    });
    assert.equal(asked[0], "Paris");
    assert.ok(answer.steps.length > 1);
  });

  test(`${name}: a typed answer of a random model`, async () => {
    const answer = await generateText({
      model: provider(ask.TOOLBOX),
      prompt: ask.FOXES,
      output: Output.object({ schema: Fox }),
      maxOutputTokens: 400,
    });
    assert.ok(Fox.safeParse(answer.output).success);
  });

  test(`${name}: an unknown model`, async () => {
    const request = { model: provider("nobody"), prompt: ask.FOXES, maxRetries: 0 };
    await assert.rejects(generateText(request), /nobody/);
  });
}

test("compatible: refusals keep their status", async () => {
  const request = { prompt: ask.FOXES, maxRetries: 0 };
  const asked = generateText({ ...request, model: compatible(ask.v1.spent)(ask.TINY) });
  await assert.rejects(asked, (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, 429);
    assert.match(error.message, /Rate limit exceeded/);
    return true;
  });
  await ask.whileHeld(ask.at.single, async () => {
    const busy = generateText({ ...request, model: compatible(ask.v1.single)(ask.TINY) });
    await assert.rejects(busy, { statusCode: 503, isRetryable: true });
  });
});

test("compatible: too often is waited out", async () => {
  const model = compatible(ask.v1.brief)(ask.TINY);
  for (let count = 0; count < 2; count += 1) {
    await generateText({ model, prompt: ask.FOXES, maxRetries: 3, maxOutputTokens: 1 });
  }
});

test("embeddings", async () => {
  const models = [
    providers.compatible.embeddingModel(ask.TINY),
    openai.embedding(ask.TINY),
    ollama.embedding(ask.TINY),
  ];
  for (const model of models) {
    assert.ok((await embed({ model, value: "A fox" })).embedding.length > 0);
    const several = await embedMany({ model, values: ["A fox", "A dog"] });
    assert.equal(several.embeddings.length, 2);
  }
});

test("compatible: an aborted stream frees its slot", async () => {
  const controller = new AbortController();
  const stream = streamText({
    model: providers.compatible(ask.ENDLESS),
    prompt: ask.FOXES,
    maxOutputTokens: ask.LONG,
    abortSignal: controller.signal,
    onError: () => {},
  });
  for await (const _ of stream.textStream) controller.abort();
  await ask.untilIdle(ask.at.main);
});
