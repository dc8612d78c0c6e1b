"""Lets schemathesis make up requests from /openapi.json, right and wrong ones: none may be answered
with a status, a content type or a body that the document does not know, and none with a 5xx.

A server that is stopping or loading says 503, which the document knows; it is not met here."""

import json
import pathlib
import subprocess
import sys

from serving import KEY, LLADA, PHI, equal, serving, timed, until

CHECKS = ",".join([
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "missing_required_header",
    "unsupported_method", "allow_header_conformance", "ignored_auth",
])
# The longest answer a made-up request may ask for is as long as the context: a small one.
SMALL = ["--max-model-len", "64", "--max-num-seqs", "8", "--max-queue", "64"]


def event(data):
    """The document describes an event's data, as OpenAPI 3.1 is used; schemathesis wants OpenAPI
    3.2's events."""
    json_data = {"contentMediaType": "application/json", "contentSchema": data}
    either = {"type": "string", "anyOf": [{"const": "[DONE]"}, json_data]}
    return {"type": "object", "required": ["data"], "properties": {"data": either}}


def document(server, folder):
    """The server's own document, with the name of its model: others would only ever be a 404."""
    status, found = server.ask("/openapi.json")
    equal(status, 200, "/openapi.json")
    for schema in found["components"]["schemas"].values():
        for part in [schema, *schema.get("allOf", [])]:
            if "model" in part.get("properties", {}):
                part["properties"]["model"]["enum"] = [server.model, "other"]
    for response in (r for path in found["paths"].values() for operation in path.values()
                     for r in operation["responses"].values()):
        if events := response.get("content", {}).get("text/event-stream"):
            events["schema"] = event(events["schema"])
    found["paths"]["/v1/models/{id}"]["get"]["parameters"][0]["schema"]["enum"] = [server.model, "a/b"]
    file = folder / "openapi.json"
    file.write_text(json.dumps(found))
    return file


def main():
    program, folder, seconds = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3]
    with timed("schemathesis") as notes:
        for model in PHI, LLADA:
            with serving(program, model, "--api-key", KEY, *SMALL) as server:
                described = document(server, folder)
                report = folder / "report.json"
                report.unlink(missing_ok=True)
                done = subprocess.run(
                    [folder / "bin/st", "run", described, "--url", server.url, "--checks", CHECKS,
                     "--header", f"Authorization: Bearer {KEY}", "--max-time", seconds,
                     "--max-examples", "60",
                     "--phases", "examples,coverage,fuzzing", "--request-timeout", "60",
                     "--seed", "1", "--no-color", "--report", "json",
                     "--report-json-path", report],
                    capture_output=True, text=True, timeout=int(seconds) * 4 + 120, cwd=folder)
                if done.returncode != 0:
                    raise SystemExit(f"{model}: schemathesis\n{done.stdout[-8000:]}{done.stderr}")
                # It still answers as it did.
                until(lambda: server.ask("/health")[1]["status"] == "healthy", f"{model}: health")
                said = [l for l in done.stdout.splitlines() if "Test cases" in l or "generated" in l]
                notes.append(f"{model} {' '.join(said[-1].split()) if said else 'ok'}")


if __name__ == "__main__":
    main()
