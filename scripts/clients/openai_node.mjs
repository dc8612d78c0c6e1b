// Asks one server through the openai package for Node. Usage: openai_node.mjs URL MODEL KEY

import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.NODE_FOLDER}/`);
const { OpenAI } = require("openai");
const { VERSION: version } = require("openai/version");

const [url, model, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const answer = "The capital of France is Paris.";
const prompt = `<|user|>\n${messages[0].content}<|end|>\n<|assistant|>\n`;
const start = Date.now();

const chat = more => client.chat.completions.create({ model, messages, ...more });
const complete = more => client.completions.create({ model, prompt, max_tokens: 32, ...more });

/** The error a promise has to end with. */
async function refused(type, promise) {
  try {
    await promise;
  } catch (error) {
    assert.ok(error instanceof type, `${error}`);
    return error;
  }
  assert.fail(`expected ${type.name}`);
}

async function models() {
  assert.deepEqual((await client.models.list()).data.map(m => m.id), [model]);
}

async function chats() {
  const whole = await chat();
  assert.equal(whole.choices[0].message.content, answer);
  assert.equal(whole.choices[0].finish_reason, "stop");
  assert.equal(whole.usage.completion_tokens, 12);
  let text = "", usage = null;
  const stream = await chat({ stream: true, stream_options: { include_usage: true } });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage;
  }
  assert.equal(text, answer);
  assert.deepEqual(usage, whole.usage);
  const helper = client.chat.completions.stream({ model, messages });
  assert.equal((await helper.finalChatCompletion()).choices[0].message.content, answer);
  const content = messages[0].content.split(" ").map((w, i) => ({ type: "text", text: i ? ` ${w}` : w }));
  const joined = await chat({ messages: [{ role: "user", content }] });
  assert.equal(joined.choices[0].message.content, answer);
  const tokens = (await chat({ logprobs: true, top_logprobs: 2 })).choices[0].logprobs.content;
  assert.ok(tokens.every(t => t.top_logprobs.length === 2 && t.logprob <= 0));
}

async function completions() {
  const both = await complete({ prompt: [prompt, prompt], n: 2, echo: true, seed: 1 });
  assert.deepEqual(both.choices.map(c => c.index), [0, 1, 2, 3]);
  assert.ok(both.choices.every(c => c.text === prompt + answer));
  assert.equal((await complete({ stop: ["Paris"] })).choices[0].text, "The capital of France is ");
  let text = "";
  for await (const chunk of await complete({ stream: true })) text += chunk.choices[0].text;
  assert.equal(text, answer);
  const scored = (await complete({ echo: true, logprobs: 1, max_tokens: 0 })).choices[0].logprobs;
  assert.equal(scored.token_logprobs[0], null);
  assert.equal(scored.tokens.join(""), prompt);
}

async function errors() {
  const bad = await refused(OpenAI.BadRequestError, chat({ temperature: -1 }));
  assert.deepEqual([bad.status, bad.param, bad.code], [400, "temperature", "invalid_value"]);
  const unknown = await refused(OpenAI.NotFoundError, complete({ model: "x" }));
  assert.equal(unknown.type, "model_not_found");
  const strange = new OpenAI({ baseURL: `${url}/v1`, apiKey: "no", maxRetries: 0 });
  await refused(OpenAI.AuthenticationError, strange.models.list());
  assert.ok(bad.requestID);
}

/** Streams that their reader leaves. */
async function departures() {
  const stream = await chat({ stream: true, max_tokens: 200, ignore_eos: true });
  for await (const _ of stream) break;
  const deadline = Date.now() + 30000;
  for (;;) {
    const health = await (await fetch(`${url}/health`)).json();
    if (health.running === 0) break;
    assert.ok(Date.now() < deadline, "an abandoned stream still runs");
  }
}

for (const check of [models, chats, completions, errors, departures]) await check();
console.log(`openai for Node ${version}, ${model}: ok, ${((Date.now() - start) / 1000).toFixed(1)} s`);
