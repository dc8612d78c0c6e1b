"""Runs lm-eval's `generate_until` and `loglikelihood` over our own questions through the API and
compares its scores, and every likelihood, with what the server's answers give when scored here."""

import json
import logging
import pathlib
import shutil
import sys

import lm_eval
from lm_eval.tasks import TaskManager

from questions import is_right
from serving import KEY, LLADA, PHI, equal, near, serving, timed

ROOT = pathlib.Path(__file__).parents[2]
CHOICES = 4
PROMPT = "<|user|>\n{}<|end|>\n<|assistant|>\n"
CHOICE_TASK = "dfastllm_choices"
TEXT_TASK = "dfastllm_answers"


def questions():
    files = sorted((ROOT / "tests/fixtures/eval").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def choices(questions, limit):
    """Questions with one right answer, beside the answers to others of their kind."""
    chosen = []
    for i, question in enumerate(questions):
        same = [q for q in questions if q["task"] == question["task"] and q["match"] == "exact"]
        if question["match"] != "exact" or len(same) < CHOICES:
            continue
        at = same.index(question)
        texts = [same[(at + k) % len(same)]["expected"] for k in range(CHOICES)]
        gold = i % CHOICES
        texts[0], texts[gold] = texts[gold], texts[0]
        if len(set(texts)) == CHOICES:
            chosen.append({**question, "choices": texts, "gold": gold})
    return chosen[:limit]


def write_tasks(folder, texts, chosen):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "scripts/clients/questions.py", folder)
    for name, docs, more in [
        (TEXT_TASK, texts, "output_type: generate_until\ndoc_to_target: '{{expected}}'\n"
         "generation_kwargs: {until: ['<|end|>'], max_gen_toks: 128, temperature: 0}\n"
         "process_results: !function questions.process_results\n"),
        (CHOICE_TASK, chosen, "output_type: multiple_choice\ndoc_to_target: gold\n"
         "doc_to_choice: choices\ntarget_delimiter: ''\n"),
    ]:
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
        head = (f"task: {name}\ndataset_path: json\ntest_split: test\n"
                f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
                "doc_to_text: \"<|user|>\\n{{prompt}}<|end|>\\n<|assistant|>\\n\"\n"
                "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n")
        (folder / f"{name}.yaml").write_text(head + more)


def own_texts(server, texts):
    right = []
    for question in texts:
        body = {"model": server.model, "max_tokens": 128, "temperature": 0,
                "messages": [{"role": "user", "content": question["prompt"]}]}
        status, answer = server.ask("/v1/chat/completions", body, KEY)
        equal(status, 200, answer)
        right.append(is_right(question, answer["choices"][0]["message"]["content"]))
    return right


def own_likelihoods(server, question):
    """Of every choice, from the text of the prompt: the tokens that begin behind the question. White
    space at its end belongs to the answer: so says lm-eval."""
    context = PROMPT.format(question["prompt"])
    body = {"model": server.model, "prompt": [context + c for c in question["choices"]],
            "max_tokens": 0, "echo": True, "logprobs": 1}
    status, answer = server.ask("/v1/completions", body, KEY)
    equal(status, 200, answer)
    found = [choice["logprobs"] for choice in answer["choices"]]
    start = len(context.rstrip())
    return [sum(p for p, at in zip(f["token_logprobs"], f["text_offset"]) if at >= start)
            for f in found]


def check(program, model, texts, chosen, folder):
    with serving(program, model, "--api-key", KEY) as server:
        write_tasks(folder, texts, chosen)
        arguments = {"model": model, "base_url": f"{server.url}/v1/completions", "max_retries": 1,
                     "num_concurrent": 8, "max_length": 512,
                     "tokenizer_backend": "remote", "auth_token": KEY}
        results = lm_eval.simple_evaluate(
            model="local-completions", model_args=arguments, tasks=[TEXT_TASK, CHOICE_TASK],
            task_manager=TaskManager(include_path=str(folder), include_defaults=False),
            bootstrap_iters=0, log_samples=True, verbosity="ERROR")
        score = lambda task: results["results"][task]["acc,none"]
        right = own_texts(server, texts)
        near(score(TEXT_TASK), sum(right) / len(right), 1e-12, f"{model}: answers")
        best = []
        samples = sorted(results["samples"][CHOICE_TASK], key=lambda sample: sample["doc_id"])
        equal(len(samples), len(chosen), "samples")
        for sample, question in zip(samples, chosen):
            own = own_likelihoods(server, question)
            told = [float(resp[0][0]) for resp in sample["resps"]]
            for ours, theirs in zip(own, told):
                near(theirs, ours, 1e-9, f"{model}: likelihood for {question['id']}")
            best.append(own.index(max(own)) == question["gold"])
        near(score(CHOICE_TASK), sum(best) / len(best), 1e-12, f"{model}: choices")
        return (f"{model} {100 * score(TEXT_TASK):.1f} % of {len(texts)} answers and "
                f"{100 * score(CHOICE_TASK):.1f} % of {len(chosen)} choices")


def main():
    logging.getLogger().setLevel(logging.ERROR)
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2]).absolute()
    asked = questions()
    with timed(f"lm-eval {lm_eval.__version__}") as notes:
        notes.append(check(program, PHI, asked, choices(asked, None), folder))
        # A diffusion model reads a text once for every token it scores.
        notes.append(check(program, LLADA, asked, choices(asked, 8), folder))


if __name__ == "__main__":
    main()
