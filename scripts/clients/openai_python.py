"""Asks every built-in model through the openai package: every group of fields, whole and streamed,
and every class of error."""

import sys

import openai

from serving import DREAM, KEY, LLADA, MODELS, PHI, equal, expect, near, serving, timed, until

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
PROMPT = f"<|user|>\n{QUESTION[0]['content']}<|end|>\n<|assistant|>\n"


class Checks:
    def __init__(self, server):
        self.server, self.model = server, server.model
        self.client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)

    def chat(self, messages=QUESTION, **more):
        return self.client.chat.completions.create(model=self.model, messages=messages, **more)

    def complete(self, prompt=PROMPT, **more):
        more = {"max_tokens": 32, **more}
        return self.client.completions.create(model=self.model, prompt=prompt, **more)

    def models(self):
        equal([m.id for m in self.client.models.list()], [self.model], "models")
        equal(self.client.models.retrieve(self.model).id, self.model, "model")

    def chats(self):
        whole = self.chat()
        choice = whole.choices[0]
        equal((choice.message.content, choice.finish_reason), (ANSWER, "stop"), "chat")
        equal(choice.message.role, "assistant", "role")
        equal(whole.usage.completion_tokens, 12, "completion_tokens")
        equal(whole.usage.total_tokens, whole.usage.prompt_tokens + 12, "total_tokens")
        parts = [{"type": "text", "text": QUESTION[0]["content"][:9]},
                 {"type": "text", "text": QUESTION[0]["content"][9:]}]
        joined = self.chat([{"role": "user", "content": parts}])
        equal(joined.choices[0].message.content, ANSWER, "content parts")
        talk = [{"role": "developer", "content": "Be short."}, *QUESTION]
        said = self.chat([{"role": "system", "content": "Be short."}, *QUESTION])
        equal(self.chat(talk).choices[0].message, said.choices[0].message, "developer is system")
        cut = self.chat(max_completion_tokens=3).choices[0]
        equal((cut.finish_reason, ANSWER.startswith(cut.message.content)), ("length", True), "cut")

    def streams(self):
        whole = self.chat()
        chunks = list(self.chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        equal(text, ANSWER, "streamed chat")
        equal((chunks[-1].choices, chunks[-1].usage), ([], whole.usage), "last chunk")
        equal({c.usage for c in chunks[:-1]}, {None}, "usage of other chunks")
        equal(len({(c.id, c.created, c.model) for c in chunks}), 1, "ids of chunks")
        equal(chunks[0].choices[0].delta.role, "assistant", "first chunk")
        ends = [c.choices[0].finish_reason for c in chunks if c.choices]
        equal([e for e in ends if e], ["stop"], "ends")
        plain = list(self.chat(stream=True))
        equal([c for c in plain if c.usage or not c.choices], [], "usage nobody asked for")
        told = list(self.complete(stream=True, echo=True, n=2, seed=3,
                                  stream_options={"include_usage": True}))
        texts = ["", ""]
        for chunk in told[:-1]:
            for choice in chunk.choices:
                texts[choice.index] += choice.text
        equal(texts, [PROMPT + ANSWER] * 2, "streamed completions")
        with self.client.chat.completions.stream(model=self.model, messages=QUESTION) as stream:
            equal(stream.get_final_completion().choices[0].message.content, ANSWER, "helper")

    def completions(self):
        choice = self.complete().choices[0]
        equal((choice.text, choice.finish_reason), (ANSWER, "stop"), "completion")
        equal(len(self.complete(max_tokens=None).choices), 1, "null is absent")
        both = self.complete([PROMPT, "<|user|>\nHello<|end|>\n<|assistant|>\n"], n=2)
        equal([c.index for c in both.choices], [0, 1, 2, 3], "indices of a batch")
        equal([c.text for c in both.choices[:2]], [ANSWER] * 2, "texts of a batch")
        again = self.complete(extra_body={"return_token_ids": True}).choices[0]
        ids = self.complete(echo=True, max_tokens=0, logprobs=0).choices[0].logprobs.tokens
        equal("".join(ids), PROMPT, "the prompt's tokens")
        equal(len(again.token_ids), 12, "token_ids")
        asked = self.complete(echo=True)
        equal(asked.choices[0].text, PROMPT + ANSWER, "echo")

    def token_ids(self):
        ids = self.complete(PROMPT, max_tokens=4, extra_body={"return_token_ids": True})
        first = ids.choices[0].token_ids
        alone = self.complete(first, max_tokens=0, echo=True).choices[0].text
        equal(alone, ids.choices[0].text, "token ids are their text")
        batch = self.complete([first, first[:2]], max_tokens=0, echo=True)
        equal([alone.startswith(c.text) for c in batch.choices], [True, True], "lists of ids")

    def logprobs(self):
        content = self.chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
        equal("".join(t.token for t in content if not t.token.startswith("<|")), ANSWER, "tokens")
        for token in content:
            top = sorted((t.logprob for t in token.top_logprobs), reverse=True)
            equal((len(top), max(top)), (3, token.logprob), "greedy tokens are most probable")
            equal(bytes(token.bytes).decode(), token.token, "bytes")
        scored = self.complete(echo=True, logprobs=2, max_tokens=1).choices[0].logprobs
        equal((scored.token_logprobs[0], scored.top_logprobs[0]), (None, None), "first token")
        for token, logprob, top in list(zip(scored.tokens, scored.token_logprobs,
                                            scored.top_logprobs))[1:]:
            equal(top[token] <= max(top.values()) and logprob <= 0, True, "scores")
        equal(scored.text_offset[0], 0, "text_offset")
        joined = "".join(scored.tokens)
        equal([joined[:o] + t for o, t in zip(scored.text_offset, scored.tokens)],
              [joined[:o + len(t)] for o, t in zip(scored.text_offset, scored.tokens)], "offsets")

    def sampling(self):
        story = [{"role": "user", "content": "Tell me a story about Noah and a green boat."}]
        draw = lambda **more: self.chat(story, temperature=1, top_p=0.95, max_tokens=48, **more)
        texts = lambda answer: [c.message.content for c in answer.choices]
        equal(texts(draw(seed=7, n=3)), texts(draw(seed=7, n=3)), "equal seeds")
        equal(len(set(texts(draw(seed=7, n=3)))) > 1, True, "choices differ")
        equal(texts(draw(seed=8)), [texts(draw(seed=7, n=2))[1]], "choice i draws with seed + i")
        first = self.chat(extra_body={"return_token_ids": True}).choices[0].token_ids[0]
        banned = self.chat(logit_bias={str(first): -100}, extra_body={"return_token_ids": True})
        equal(first in banned.choices[0].token_ids, False, "logit_bias")
        greedy = self.chat(temperature=0, extra_body={"top_k": 1, "min_p": 0.1})
        equal(greedy.choices[0].message.content, ANSWER, "top_k and min_p")
        if self.model == PHI:
            plain = self.chat([{"role": "user", "content": "Count from 30 to 41."}])
            odd = self.chat([{"role": "user", "content": "Count from 30 to 41."}],
                            frequency_penalty=2, presence_penalty=2)
            changed = plain.choices[0].message.content != odd.choices[0].message.content
            equal(changed, True, "penalties")

    def stops(self):
        cut = self.chat(stop=["Paris"]).choices[0]
        equal((cut.message.content, cut.finish_reason), ("The capital of France is ", "stop"), "stop")
        equal(self.chat(stop="of F").choices[0].message.content, "The capital ", "stop")
        parts = [c.choices[0].delta.content or "" for c in self.chat(stop="Paris", stream=True)]
        equal("".join(parts), "The capital of France is ", "streamed stop")

    def errors(self):
        refused = lambda **more: expect(openai.BadRequestError, lambda: self.chat(**more))
        for field, value in [("temperature", -1), ("top_p", 1.5), ("n", 0), ("n", 129),
                             ("max_tokens", -1), ("stop", [""]), ("seed", "x"), ("top_logprobs", 3),
                             ("logit_bias", {"x": 1}), ("presence_penalty", 3)]:
            error = refused(**{field: value})
            equal((error.param, error.type), (field, "invalid_request_error"), f"{field} {value}")
            equal((error.status_code, error.code), (400, "invalid_value"), f"{field} {value}")
        error = refused(extra_body={"guided_json": {}})
        equal((error.param, error.code), ("guided_json", "unsupported_parameter"), "unknown field")
        error = refused(max_tokens=10_000_000)
        equal((error.param, error.code), ("max_tokens", "context_length_exceeded"), "too long")
        error = refused(messages=[{"role": "robot", "content": "x"}])
        equal(error.param, "messages[0].role", "role")
        error = expect(openai.BadRequestError, lambda: self.complete(""))
        equal((error.type, error.param), ("validation_error", "prompt"), "empty prompt")
        other = lambda: self.client.completions.create(model="x", prompt="a")
        error = expect(openai.NotFoundError, other)
        equal((error.type, error.param, error.code), ("model_not_found", "model", "404"), "model")
        expect(openai.NotFoundError, lambda: self.client.models.retrieve("x"))
        keyless = self.client.with_options(api_key="no")
        error = expect(openai.AuthenticationError, lambda: keyless.models.list())
        equal(error.code, "invalid_api_key", "key")
        equal(bool(error.request_id), True, "request_id")

    def departures(self):
        """Clients that leave: by themselves, by their own deadline, or cancelled by name."""
        running = lambda: self.server.ask("/health")[1]["running"]
        endless = {"ignore_eos": True}
        stream = self.chat(stream=True, max_tokens=200, extra_body=endless)
        next(iter(stream))
        stream.close()
        until(lambda: running() == 0, "a closed stream still runs")
        hasty = self.client.with_options(timeout=0.05)
        long = lambda client: client.completions.create(
            model=self.model, prompt=PROMPT, max_tokens=200, n=64, extra_body=endless)
        expect(openai.APITimeoutError, lambda: long(hasty))
        until(lambda: running() == 0, "an abandoned request still runs")
        stream = self.client.completions.create(
            model=self.model, prompt=PROMPT, max_tokens=480, n=128, stream=True,
            extra_body=endless, extra_headers={"x-request-id": "mine"})
        status, answer = self.server.ask("/v1/requests/mine", key=KEY, method="DELETE")
        equal((status, answer["cancelled"]), (200, True), "cancelled by name")
        error = expect(openai.APIError, lambda: list(stream))
        equal(error.code, "request_cancelled", "the stream says so")

    def diffusion(self):
        if self.model == PHI:
            error = expect(openai.BadRequestError,
                           lambda: self.chat(extra_body={"diffusion": {"steps": 4}}))
            equal(error.param, "diffusion.steps", "diffusion fields")
            return
        answer = self.chat(extra_body={"diffusion": {"preset": "turbo", "trace": True}})
        equal(answer.choices[0].message.content, ANSWER, "turbo")
        steps = answer.choices[0].trace
        equal(sum(len(s["committed"]) for s in steps) >= 12, True, "trace")
        near(answer.usage.tokens_per_forward, 12 / answer.usage.forwards, 1e-9, "usage")
        filled = self.complete(suffix=" is Paris.", max_tokens=8)
        equal(len(filled.choices[0].text) > 0, True, "suffix")


with timed(f"openai for Python {openai.__version__}") as notes:
    for name in MODELS:
        with serving(sys.argv[1], name, "--api-key", KEY) as server:
            checks = Checks(server)
            groups = [getattr(checks, g) for g in vars(Checks) if not g.startswith("_")]
            groups = [g for g in groups if g.__name__ not in ("chat", "complete")]
            for group in groups:
                try:
                    group()
                except BaseException:
                    print(f"{name}: {group.__name__}", file=sys.stderr)
                    raise
    notes.append(f"{len(MODELS)} models, {len(groups)} groups of fields")
