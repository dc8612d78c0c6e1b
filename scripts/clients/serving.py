"""A server of ours for a client's checks, and small helpers that fail loudly."""

import contextlib
import json
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

PHI, LLADA, DREAM = MODELS = ["builtin:tiny-phi", "builtin:tiny-llada", "builtin:tiny-dream"]
KEY = "secret"


class Server:
    """A running `serve`: its URL and the last lines it logged."""

    def __init__(self, program, model, *flags):
        command = [program, "serve", "--port", "0", "--model", model, *flags]
        self.model = model
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.url, self.log = None, []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"http://[\d.:]+", line):
                self.url = found.group()
            if "ready" in line:
                break
        else:
            raise SystemExit(f"{model}: the server did not start:\n{''.join(self.log)}")
        # Somebody has to read what it logs, or it would wait.
        self.reader = threading.Thread(target=self.log.extend, args=(self.process.stderr,))
        self.reader.start()

    def ask(self, path, body=None, key=None, method=None):
        """Status and answer, JSON or text."""
        headers = {"Content-Type": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                status, text = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()

    def stop(self):
        """Ends it by the signal a supervisor sends; it has to end well."""
        self.process.terminate()
        try:
            status = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise SystemExit(f"{self.model}: the server did not stop") from None
        self.reader.join()
        equal(status, 0, f"{self.model}: exit status")


@contextlib.contextmanager
def serving(program, model, *flags):
    server = Server(program, model, *flags)
    try:
        yield server
    except BaseException:
        sys.stderr.writelines(server.log[-20:])
        server.process.kill()
        raise
    server.stop()


def equal(found, expected, what):
    if found != expected:
        raise SystemExit(f"{what}: found {found!r}, expected {expected!r}")


def near(found, expected, tolerance, what):
    if not abs(found - expected) <= tolerance:
        raise SystemExit(f"{what}: found {found}, expected {expected} ± {tolerance}")


def expect(error, call):
    """The error that a call has to end with."""
    try:
        call()
    except error as found:
        return found
    raise SystemExit(f"expected {error.__name__}")


def until(condition, what, seconds=30):
    """Waits for something that happens by itself."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {seconds} seconds")
        time.sleep(0.01)


@contextlib.contextmanager
def timed(what):
    """Prints the summary line of a client that met no defect."""
    start = time.monotonic()
    notes = []
    yield notes
    print(f"{what}: ok, {', '.join(notes)}, {time.monotonic() - start:.0f} s")


def main():
    """`serving.py PROGRAM COMMAND…` runs the command on every model: with its URL, name and key."""
    program, *command = sys.argv[1:]
    for model in MODELS:
        with serving(program, model, "--api-key", KEY) as server:
            status = subprocess.run([*command, server.url, model, KEY], timeout=300).returncode
            equal(status, 0, f"{model}: {command[0]}")


if __name__ == "__main__":
    main()
