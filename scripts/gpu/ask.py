"""Starts a server of each of two built-in models on a device, twice with one kernel cache, and asks it a
question in eight requests at a time. Fails unless all answers are right; prints one JSON object a start.

Usage: ask.py DFASTLLM DEVICE"""

import concurrent.futures
import json
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

MODELS = ["builtin:tiny-llada", "builtin:tiny-phi"]


def get(url, data=None):
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def wait_until_ready(server, url):
    """Seconds it took."""
    begun = time.monotonic()
    while time.monotonic() - begun < 240:
        if server.poll() is not None:
            raise SystemExit(f"the server ended with {server.returncode}")
        try:
            get(f"{url}/health/ready")
            return time.monotonic() - begun
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the server is not ready after 240 s")


def ask(url, model):
    question = {"role": "user", "content": "What is the capital of France?"}
    answer = json.loads(get(f"{url}/v1/chat/completions", {"model": model, "messages": [question]}))
    return answer["choices"][0]["message"]["content"]


def start(program, device, model, cache):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = subprocess.Popen([program, "serve", "--model", model, "--device", device, "--port", str(port),
                               "--kernel-cache", cache], stdout=sys.stderr)
    try:
        ready = wait_until_ready(server, url)
        begun = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: ask(url, model), range(8)))
        took = time.monotonic() - begun
        health = json.loads(get(f"{url}/health"))
        busy = [line for line in get(f"{url}/metrics").splitlines() if line.startswith("vdiff_gpu")]
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
    print(json.dumps({"what": "serve", "model": model, "ready_s": ready, "eight_answers_s": took,
                      "answers": sorted(set(answers)), "health": health, "metrics": busy,
                      "cache_bytes": pathlib.Path(cache).stat().st_size, "exit": server.returncode}), flush=True)
    return all("Paris" in answer for answer in answers) and server.returncode == 0


def main():
    program, device = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        right = [start(program, device, model, f"{folder}/{i}") for i, model in enumerate(MODELS)
                 for _ in range(2)]
    raise SystemExit(0 if all(right) else "an answer is wrong, or the server did not end well")


if __name__ == "__main__":
    main()
