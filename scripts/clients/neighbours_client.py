"""Asks every built-in model through /v1/responses and /v1/messages, whole and streamed, with the
packages of those who made the two APIs, and meets errors."""

import sys

import anthropic
import openai

from serving import KEY, MODELS, expect, serving, timed

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."


def check_responses(url, model):
    client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
    ask = lambda **more: client.responses.create(model=model, input=QUESTION[0]["content"], **more)
    whole = ask(metadata={"a": "b"}, store=False)
    assert whole.output_text == ANSWER, whole
    assert (whole.status, whole.usage.output_tokens) == ("completed", 12)
    assert (whole.metadata, whole.store) == ({"a": "b"}, False)
    conversation = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
        *[item.model_dump() for item in whole.output],
        *QUESTION,
    ]
    again = client.responses.create(model=model, input=conversation, instructions="Be kind.")
    assert again.usage.input_tokens > whole.usage.input_tokens and again.output_text
    events = list(ask(stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [e.delta for e in events if e.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER, deltas
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens == 12
    with client.responses.stream(model=model, input=QUESTION[0]["content"]) as stream:
        for event in stream:
            if event.type == "response.output_text.done":
                assert event.text == ANSWER
        final = stream.get_final_response()
    assert final.output_text == ANSWER and final.usage.output_tokens == 12
    short = ask(max_output_tokens=3)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    scored = ask(include=["message.output_text.logprobs"], top_logprobs=2, max_output_tokens=3)
    assert len(scored.output[0].content[0].logprobs[0].top_logprobs) == 2
    error = expect(openai.BadRequestError, lambda: ask(previous_response_id="resp_1"))
    assert error.param == "previous_response_id"
    error = expect(openai.BadRequestError, lambda: ask(max_output_tokens=100_000))
    assert (error.param, error.code) == ("max_output_tokens", "context_length_exceeded")


def check_messages(url, model):
    client = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    given = {"model": model, "messages": QUESTION}
    ask = lambda **more: client.messages.create(**{"max_tokens": 64, **given, **more})
    whole = ask(system="", metadata={"user_id": "me"})
    assert whole.content[0].text == ANSWER, whole
    assert (whole.type, whole.role, whole.stop_reason) == ("message", "assistant", "end_turn")
    assert whole.usage.output_tokens == 12
    counted = client.messages.count_tokens(**given).input_tokens
    assert counted == whole.usage.input_tokens + whole.usage.cache_read_input_tokens
    with client.messages.stream(max_tokens=64, **given) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    assert (final.content[0].text, final.stop_reason) == (ANSWER, "end_turn")
    assert final.usage.output_tokens == 12
    kinds = [event.type for event in ask(stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"] and kinds[-1] == "message_stop"
    stopped = ask(stop_sequences=["Paris"])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "Paris")
    assert ask(max_tokens=3).stop_reason == "max_tokens"
    error = expect(anthropic.BadRequestError, lambda: ask(temperature=-1))
    assert error.body["error"]["type"] == "invalid_request_error" and error.request_id
    expect(anthropic.NotFoundError, lambda: ask(model="claude"))
    expect(anthropic.BadRequestError, lambda: ask(tools=[{"name": "f", "input_schema": {}}]))
    wrong = client.with_options(api_key="wrong")
    expect(anthropic.AuthenticationError, lambda: wrong.messages.create(max_tokens=1, **given))


def main():
    with timed(f"openai {openai.__version__}, anthropic {anthropic.__version__}") as notes:
        for model in MODELS:
            with serving(sys.argv[1], model, "--api-key", KEY) as server:
                check_responses(server.url, model)
                check_messages(server.url, model)
        notes.append(f"{len(MODELS)} models")


if __name__ == "__main__":
    main()
