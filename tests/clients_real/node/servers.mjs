// The daemons, what the clients ask of them, and somebody who holds a slot.
import http from "node:http";

export const at = JSON.parse(process.env.MLXD_CLIENTS);
export const v1 = Object.fromEntries(Object.entries(at).map(([name, url]) => [name, `${url}/v1`]));

export const TINY = "tiny-a";
export const ENDLESS = "endless";
export const GUIDE = "mlxd-guide";
export const TOOLBOX = "toolbox";
export const THINKER = "thinker";
export const PORT = "What port does mlxd use?";
export const WEATHER = "What is the weather in Paris?";
export const FOXES = "Tell me something about foxes.";
export const LONG = 8000;
export const ENOUGH = 200;

export const PARAMETERS = {
  type: "object",
  required: ["city"],
  properties: { city: { type: "string", description: "its name" } },
};
// For a random model, which would never end a text by itself.
export const BOUNDED = {
  ...PARAMETERS,
  properties: { city: { type: "string", maxLength: 12 } },
};
export const FUNCTION = {
  name: "get_weather",
  description: "Get the current weather of a city",
  parameters: PARAMETERS,
};
export const PERSON = {
  type: "object",
  properties: {
    name: { type: "string", maxLength: 12 },
    age: { type: "integer", minimum: 0, maximum: 99 },
    grown: { type: "boolean" },
  },
  required: ["name", "age", "grown"],
  additionalProperties: false,
};
export const PIXEL =
  "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR4nGNgYGBgAAAABQABpfZFQAAAAABJRU5ErkJggg==";
export const DEAD = "http://127.0.0.1:9";

export const said = (content) => [{ role: "user", content }];

export async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

export async function health(url) {
  return (await fetch(`${url}/health`)).json();
}

export async function untilIdle(url) {
  const deadline = Date.now() + 60_000;
  while ((await health(url)).active_requests > 0) {
    if (Date.now() > deadline) throw new Error("it is never idle");
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

export async function load(url, model) {
  await fetch(`${url}/api/generate`, { method: "POST", body: JSON.stringify({ model }) });
}

// Somebody else's stream runs, and is not read, while `act` does.
export async function whileHeld(url, act) {
  await untilIdle(url);
  const options = { temperature: 0, num_predict: LONG };
  const body = JSON.stringify({ model: ENDLESS, prompt: "Foxes", options });
  const request = http.request(`${url}/api/generate`, { method: "POST" });
  request.on("error", () => {});
  const begun = new Promise((resolve, reject) => {
    request.on("response", (response) => {
      response.on("error", () => {});
      response.once("readable", () => resolve());
      response.once("end", () => reject(new Error("it ended")));
    });
  });
  request.end(body);
  await begun;
  try {
    return await act();
  } finally {
    request.destroy();
    await untilIdle(url);
  }
}

// As a crash would end it.
export async function killWorker(url, model) {
  for (const worker of (await health(url)).workers) {
    if (worker.model === model && worker.pid) process.kill(worker.pid, "SIGKILL");
  }
}
