"""Asks for objects through instructor, by schema and as any JSON: what comes back has to fit the
schema, or be an object. The built-in models know no JSON, so what the fields say is not looked at."""

import json
import sys
from typing import Literal

import instructor
import openai
from instructor.core.exceptions import InstructorRetryException
from instructor.v2.core.errors import IncompleteOutputException
from pydantic import BaseModel, Field

from serving import KEY, MODELS, equal, serving, timed

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


class Capital(BaseModel):
    """Where a country is governed from."""

    city: str = Field(max_length=24)
    continent: Literal["Europe", "Asia", "Africa", "America"]
    is_large: bool
    population: int = Field(ge=0, le=99_999_999)


class Cities(BaseModel):
    """A nested list."""

    capitals: list[Capital] = Field(min_length=1, max_length=2)


class Flag(BaseModel):
    """Small: in JSON mode the schema is part of the prompt, and these models read 512 tokens."""

    yes: bool


# What is asked for in each mode.
ASKED = {instructor.Mode.JSON_SCHEMA: [Capital, Cities], instructor.Mode.JSON: [Flag]}


def ask(server, mode, schema):
    sent = []
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    client = instructor.from_openai(client, mode=mode)
    client.on("completion:kwargs", lambda *_, **given: sent.append(given))
    try:
        found = client.chat.completions.create(
            model=server.model, messages=QUESTION, response_model=schema, max_retries=0,
            max_tokens=256 if mode == instructor.Mode.JSON_SCHEMA else 64, temperature=0)
    except IncompleteOutputException:
        if mode == instructor.Mode.JSON:
            # A model that knows no JSON need not find the end of an object without a schema.
            return None
        raise
    except InstructorRetryException as error:
        kind = sent[0]["response_format"]["type"]
        if mode == instructor.Mode.JSON and error.last_completion:
            # Any object is a right answer to `json_object`; only what was cut need not be one.
            choice = error.last_completion.choices[0]
            cut = choice.finish_reason == "length"
            if cut or isinstance(json.loads(choice.message.content), dict):
                return None
        raise SystemExit(f"{server.model}, response_format {kind}: {error}") from None
    if mode == instructor.Mode.JSON_SCHEMA:
        equal(sent[0]["response_format"]["type"], "json_schema", "what was sent")
    # instructor has validated it; this is the object as a schema's reader sees it.
    schema.model_validate_json(found.model_dump_json())
    return found


def main():
    version = instructor.__version__
    with timed(f"instructor {version}") as notes:
        for model in MODELS:
            with serving(sys.argv[1], model, "--api-key", KEY) as server:
                for mode, schemas in ASKED.items():
                    for schema in schemas:
                        found = ask(server, mode, schema)
                        if mode == instructor.Mode.JSON_SCHEMA:
                            equal(isinstance(found, schema), True, f"{model} {mode}")
        notes.append(f"{len(MODELS)} models, {len(ASKED)} modes")


if __name__ == "__main__":
    main()
