// The openai package of Node.js: chat, responses, tools (its own runner too), embeddings, and errors.
"use strict";

const { OpenAI } = require("openai");

const { CLIENT_URL, CLIENT_KEY, CLIENT_MODEL } = process.env;
const { CLIENT_EMBEDDINGS_URL, CLIENT_EMBEDDINGS_MODEL } = process.env;
const { CLIENT_ENDLESS_URL, CLIENT_ENDLESS_MODEL } = process.env;
const QUESTION = "How warm is it in Paris and Rome?";
const WEATHER = { Paris: 21, Rome: 25 };
const CITY = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const TOOL = { name: "get_weather", description: "Degrees in a city", parameters: CITY };
const FORMAT = {
  type: "json_schema",
  json_schema: {
    name: "weather",
    strict: true,
    schema: {
      type: "object",
      properties: { city: { const: "Paris" }, degrees: { const: 21 } },
      required: ["city", "degrees"],
      additionalProperties: false,
    },
  },
};

const options = { apiKey: CLIENT_KEY, maxRetries: 0 };
const client = new OpenAI({ baseURL: `${CLIENT_URL}/v1`, ...options });
const messages = [{ role: "user", content: QUESTION }];
const asked = { model: CLIENT_MODEL, messages };
const degrees = (text) => String(WEATHER[JSON.parse(text).city]);

async function all(stream) {
  const events = [];
  for await (const event of stream) events.push(event);
  return events;
}

const checks = {
  async models() {
    const models = await all(await client.models.list());
    return models.map((model) => model.id).sort();
  },

  chat: () => client.chat.completions.create(asked),

  chat_stream: async () =>
    all(
      await client.chat.completions.create({
        ...asked,
        stream: true,
        stream_options: { include_usage: true },
      }),
    ),

  async chat_tools() {
    const said = [...messages];
    const answers = [];
    for (;;) {
      const answer = await client.chat.completions.create({
        model: CLIENT_MODEL,
        messages: said,
        tools: [{ type: "function", function: TOOL }],
      });
      answers.push(answer);
      const { message } = answer.choices[0];
      if (!message.tool_calls?.length) return answers;
      said.push(message);
      for (const call of message.tool_calls)
        said.push({
          role: "tool",
          tool_call_id: call.id,
          content: degrees(call.function.arguments),
        });
    }
  },

  async chat_tool_runner_stream() {
    const runner = client.chat.completions.runTools({
      ...asked,
      stream: true,
      tools: [{ type: "function", function: { ...TOOL, function: degrees } }],
    });
    return [await runner.finalContent(), runner.messages, await runner.totalUsage()];
  },

  async chat_parsed() {
    const answer = await client.chat.completions.parse({ ...asked, response_format: FORMAT });
    return JSON.parse(answer.choices[0].message.content);
  },

  response: () => client.responses.create({ model: CLIENT_MODEL, input: QUESTION }),

  response_stream: async () =>
    all(await client.responses.create({ model: CLIENT_MODEL, input: QUESTION, stream: true })),

  async response_tools() {
    const said = [...messages];
    const answers = [];
    for (;;) {
      const answer = await client.responses.create({
        model: CLIENT_MODEL,
        input: said,
        tools: [{ type: "function", strict: false, ...TOOL }],
      });
      answers.push(answer);
      const calls = answer.output.filter((item) => item.type === "function_call");
      if (calls.length === 0) return answers;
      said.push(...answer.output);
      for (const { call_id, arguments: text } of calls)
        said.push({ type: "function_call_output", call_id, output: degrees(text) });
    }
  },

  embeddings() {
    const embedder = new OpenAI({ baseURL: `${CLIENT_EMBEDDINGS_URL}/v1`, ...options });
    return embedder.embeddings.create({
      model: CLIENT_EMBEDDINGS_MODEL,
      input: ["hello model", "test"],
    });
  },

  async cancelled_stream() {
    const endless = client.withOptions({ baseURL: `${CLIENT_ENDLESS_URL}/v1` });
    const stream = await endless.chat.completions.create({
      model: CLIENT_ENDLESS_MODEL,
      messages,
      stream: true,
    });
    const seen = [];
    for await (const chunk of stream) {
      seen.push(chunk);
      if (seen.length === 5) break; // which closes the connection
    }
    return [seen, await client.chat.completions.create(asked)];
  },

  too_long: () =>
    client.chat.completions.create({
      model: CLIENT_MODEL,
      messages: [{ role: "user", content: "hello ".repeat(10000) }],
    }),

  wrong_key: () => client.withOptions({ apiKey: "wrong" }).chat.completions.create(asked),

  unknown_model: () => client.chat.completions.create({ ...asked, model: "nobody" }),
};

async function result(check) {
  try {
    return await check();
  } catch (error) {
    const { status, code, message } = error;
    return { raised: error.constructor.name, status, code, message };
  }
}

async function main(names) {
  const results = {};
  for (const [name, check] of Object.entries(checks))
    if (names.length === 0 || names.includes(name)) results[name] = await result(check);
  process.stdout.write(JSON.stringify(results));
}

main(process.argv.slice(2));
