"""Asks every built-in model through the openai package, whole and streamed, and meets its errors."""

import re
import subprocess
import sys

import openai

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


def serve(program, model):
    server = subprocess.Popen(
        [program, "serve", "--port", "0", "--model", model, "--api-key", "secret"],
        stderr=subprocess.PIPE,
        text=True,
    )
    url = None
    for line in server.stderr:
        if found := re.search(r"http://[\d.:]+", line):
            url = found.group()
        if "ready" in line:
            return server, url
    raise SystemExit(f"{model}: the server did not start")


def expect(error, call):
    try:
        call()
    except error as e:
        return e
    raise SystemExit(f"expected {error.__name__}")


def check(program, model):
    server, url = serve(program, model)
    try:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0)
        chat = lambda **more: client.chat.completions.create(model=model, messages=QUESTION, **more)
        assert [m.id for m in client.models.list()] == [model]
        whole = chat()
        assert whole.choices[0].message.content == ANSWER, whole
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage.completion_tokens == 12
        chunks = list(chat(stream=True, stream_options={"include_usage": True}))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == ANSWER, text
        assert chunks[-1].usage == whole.usage
        prompt = f"<|user|>\n{QUESTION[0]['content']}<|end|>\n<|assistant|>\n"
        completion = client.completions.create(model=model, prompt=prompt, max_tokens=32)
        assert completion.choices[0].text == ANSWER
        cut = chat(stop=["Paris"]).choices[0].message.content
        assert cut == "The capital of France is ", cut
        error = expect(openai.NotFoundError, lambda: client.completions.create(model="x", prompt="a"))
        assert error.type == "model_not_found"
        error = expect(openai.BadRequestError, lambda: chat(temperature=-1))
        assert error.param == "temperature"
        expect(openai.AuthenticationError, lambda: client.with_options(api_key="no").models.list())
    finally:
        server.terminate()
        server.stderr.read()
        assert server.wait(timeout=30) == 0
    print(f"openai {openai.__version__}, {model}: ok")


if __name__ == "__main__":
    for name in ["builtin:tiny-phi", "builtin:tiny-llada", "builtin:tiny-dream"]:
        check(sys.argv[1], name)
