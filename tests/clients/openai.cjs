// OpenAI's library for Node.

const assert = require("node:assert/strict");
const { OpenAI } = require("openai");

const HELLO = [{ role: "user", content: "hello" }];
const PERSON = {
  type: "object",
  properties: { name: { type: "string" }, age: { type: "integer" } },
  required: ["name", "age"],
  additionalProperties: false,
};
const WEATHER = {
  type: "function",
  function: {
    name: "weather",
    description: "The weather in a city",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};

const client = (url) => new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 20_000 });
const chats = (url) => client(url).chat.completions;
const asking = (content) => ({ model: "echo", messages: [{ role: "user", content }] });

exports.chat = async function chat(url) {
  const answer = await chats(url).create({ model: "echo", messages: HELLO, max_completion_tokens: 100 });
  assert.equal(answer.choices[0].message.content, "user: hello");
  assert.equal(answer.choices[0].finish_reason, "stop");
  assert.equal(answer.usage.total_tokens, 22);
  assert.match(answer._request_id, /^req-/);
};

exports.stream = async function stream(url) {
  const options = { stream: true, stream_options: { include_usage: true } };
  const chunks = [];
  for await (const chunk of await chats(url).create({ ...asking("hello"), ...options })) chunks.push(chunk);
  const last = chunks.pop();
  assert.equal(chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join(""), "user: hello");
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  assert.equal(last.usage.total_tokens, 22);
};

exports.tools = async function tools(url) {
  const asked = { ...asking("weather"), tools: [WEATHER] };
  const { message, finish_reason } = (await chats(url).create(asked)).choices[0];
  assert.equal(finish_reason, "tool_calls");
  const [call] = message.tool_calls;
  assert.deepEqual(JSON.parse(call.function.arguments), { city: "Köln" });
  asked.messages.push(message, { role: "tool", tool_call_id: call.id, content: "12 degrees" });
  assert.equal((await chats(url).create(asked)).choices[0].message.content, "It is mild.");
};

exports.tools_run = async function tools_run(url) {
  const weather = ({ city }) => `12 degrees in ${city}`;
  const tool = { type: "function", function: { ...WEATHER.function, function: weather, parse: JSON.parse } };
  for (const stream of [false, true]) {
    const runner = chats(url).runTools({ ...asking("weather twice"), tools: [tool], stream });
    assert.equal(await runner.finalContent(), "It is mild.");
    assert.equal(runner.messages.filter((message) => message.role === "tool").length, 2);
  }
};

exports.tool_choice = async function tool_choice(url) {
  for (const choice of ["required", { type: "function", function: { name: "weather" } }]) {
    const answer = await chats(url).create({ ...asking("weather"), tools: [WEATHER], tool_choice: choice });
    assert.equal(answer.choices[0].message.tool_calls[0].function.name, "weather");
  }
};

exports.json_schema = async function json_schema(url) {
  const format = { type: "json_schema", json_schema: { name: "person", schema: PERSON, strict: true } };
  const answer = await chats(url).parse({ ...asking("Who was Ada?"), response_format: format });
  assert.deepEqual(JSON.parse(answer.choices[0].message.content), { name: "Ada", age: 36 });
};

exports.embeddings = async function embeddings(url) {
  const answer = await client(url).embeddings.create({ model: "echo", input: ["one", "two", "one"] });
  const [first, second, third] = answer.data.map((entry) => entry.embedding);
  assert.deepEqual(first, third);
  assert.notDeepEqual(first, second);
  assert.ok(first.length > 0 && first.every(Number.isFinite));
};

exports.models = async function models(url) {
  const names = [];
  for await (const model of client(url).models.list()) names.push(model.id);
  assert.deepEqual(names, ["echo"]);
};

exports.errors = async function errors(url) {
  const { NotFoundError, BadRequestError, RateLimitError, APIError } = OpenAI;
  await assert.rejects(chats(url).create({ model: "gpt-99", messages: HELLO }), NotFoundError);
  await assert.rejects(chats(url).create({ ...asking("hello"), top_p: 7 }), (error) => {
    return error instanceof BadRequestError && error.param === "top_p";
  });
  await assert.rejects(chats(url).create(asking("overload")), RateLimitError);
  await assert.rejects(async () => {
    for await (const _ of await chats(url).create({ ...asking("boom"), stream: true }));
  }, APIError);
};
