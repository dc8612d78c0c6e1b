"""Runs vLLM's `bench serve` on a server of ours and reads its report: every request has to succeed,
and its counts have to be the server's own."""

import json
import pathlib
import re
import subprocess
import sys

from serving import KEY, LLADA, PHI, equal, serving, timed

ROOT = pathlib.Path(__file__).parents[2]
CONCURRENCY, REQUESTS, PROMPT, ANSWER = 16, 160, 64, 32


def counter(server, name):
    text = server.ask("/metrics")[1]
    return sum(float(v) for v in re.findall(rf"^{name}(?:\{{.*\}})? ([\d.e+]+)$", text, re.M))


def run(server, bench, folder, backend, *flags):
    result = folder / "result.json"
    result.unlink(missing_ok=True)
    before = counter(server, "vdiff_generation_tokens_total")
    done = subprocess.run(
        [bench, "bench", "serve", "--backend", backend, "--base-url", server.url,
         "--model", server.model, "--tokenizer", str(ROOT / "models/builtin"),
         "--dataset-name", "random", "--random-input-len", str(PROMPT),
         "--random-output-len", str(ANSWER), "--num-prompts", str(REQUESTS),
         "--max-concurrency", str(CONCURRENCY), "--ignore-eos", "--disable-tqdm",
         "--save-result", "--result-dir", str(folder), "--result-filename", result.name,
         "--no-steady-state", *flags],
        capture_output=True, text=True, timeout=240)
    if done.returncode != 0 or not result.exists():
        raise SystemExit(f"{server.model} {backend}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    report = json.loads(result.read_text())
    what = f"{server.model} {backend}"
    equal((report["completed"], report["failed"]), (REQUESTS, 0), f"{what}: requests")
    tokens = counter(server, "vdiff_generation_tokens_total") - before
    equal(tokens, REQUESTS * ANSWER, f"{what}: tokens by the server's count")
    equal(report["total_output_tokens"], REQUESTS * ANSWER, f"{what}: tokens by the client's")
    return f"{what} {report['output_throughput']:.0f} tokens/s"


def main():
    program, bench, folder = sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3])
    with timed(f"vllm-rs bench serve, {CONCURRENCY} at a time") as notes:
        for model in PHI, LLADA:
            with serving(program, model, "--api-key", KEY) as server:
                notes.append(run(server, bench, folder, "openai", "--prompt-token-ids"))
                notes.append(run(server, bench, folder, "openai-chat"))


if __name__ == "__main__":
    main()
