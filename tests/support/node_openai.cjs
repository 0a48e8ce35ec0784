// What OpenAI's client for Node makes of a server: node node_openai.cjs URL, one line of JSON out.
const OpenAI = require("openai");

const tools = ["f", "g"].map((name) => ({
  type: "function",
  function: {
    name,
    parameters: { type: "object", properties: { x: { type: "integer" } }, required: ["x"] },
  },
}));
const chat = { model: "tiny", messages: [{ role: "user", content: "abc" }], temperature: 0 };

async function text(client) {
  const whole = await client.chat.completions.create({ ...chat, max_tokens: 4 });
  let streamed = "";
  const stream = await client.chat.completions.create({
    ...chat, max_tokens: 4, stream: true, stream_options: { include_usage: true },
  });
  let usage = null;
  for await (const chunk of stream) {
    streamed += chunk.choices[0]?.delta?.content ?? "";
    usage = chunk.usage ?? usage;
  }
  const plain = await client.completions.create({
    model: "tiny", prompt: "a", max_tokens: 3, temperature: 0,
  });
  return {
    whole: whole.choices[0].message.content,
    streamed,
    tokens: usage.completion_tokens,
    plain: plain.choices[0].text,
  };
}

async function calls(client) {
  const whole = await client.chat.completions.create({ ...chat, tools, max_tokens: 200 });
  const runner = client.chat.completions.stream({ ...chat, tools, max_tokens: 200 });
  const final = await runner.finalChatCompletion();
  return [whole, final].map((answer) => ({
    finish: answer.choices[0].finish_reason,
    calls: answer.choices[0].message.tool_calls.map((c) => [
      c.function.name, JSON.parse(c.function.arguments),
    ]),
  }));
}

async function responses(client) {
  const ask = { model: "tiny", input: "abc", max_output_tokens: 4, temperature: 0 };
  const whole = await client.responses.create(ask);
  const kinds = [];
  let streamed = "";
  for await (const event of await client.responses.create({ ...ask, stream: true })) {
    kinds.push(event.type);
    streamed += event.type === "response.output_text.delta" ? event.delta : "";
  }
  const again = await client.responses.retrieve(whole.id);
  return { whole: whole.output_text, again: again.output_text, streamed, last: kinds.at(-1) };
}

async function others(client) {
  const models = [];
  for await (const model of client.models.list()) models.push(model.id);
  const vectors = await client.embeddings.create({ model: "tiny", input: ["ab", "c"] });
  let status = 0;
  try {
    await client.chat.completions.create({ ...chat, model: "nobody" });
  } catch (error) {
    status = error instanceof OpenAI.NotFoundError ? error.status : -1;
  }
  return { models, dimensions: vectors.data.map((v) => v.embedding.length), status };
}

const parts = { text, calls, responses, others };
const [url, part] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "k", maxRetries: 0 });
parts[part](client).then(
  (found) => console.log(JSON.stringify(found)),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
