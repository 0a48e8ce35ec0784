"""Schemathesis over the server's own OpenAPI document: no 500, no undeclared status, body or type.

    python scripts/check_openapi.py                 a server over a tiny random model
    python scripts/check_openapi.py --examples 200 --seed 1

The server is a process of its own. Schemathesis sends what the document allows and what it doesn't,
follows answers to the routes that need them, and holds every answer to the document. Exit status 1
when anything is found, or the engine had to be started again. Needs the extra `interop`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.served_process import serving, tiny_chat_gguf

# Left out are the checks that a document must say all that is wrong with a body (a prompt may be
# too long, a grammar may not compile), and that a key is needed: this server has none.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "use_after_free",
    "ensure_resource_availability",
)


def check(url: str, examples: int, seed: int) -> int:
    """Schemathesis's exit status."""
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json",
        "--checks", ",".join(CHECKS), "--max-examples", str(examples), "--seed", str(seed),
        "--mode", "all", "--request-timeout", "60", "--suppress-health-check", "all",
        "--generation-database", "none", "--no-color",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        return subprocess.run(command, check=False, cwd=directory).returncode


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--examples", type=int, default=50, help="Of each route and phase.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        model = tiny_chat_gguf(Path(directory) / "tiny.gguf")
        with serving(model, "--kv-tokens", "1024") as server:
            found = check(server.url, arguments.examples, arguments.seed)
            health = httpx.get(f"{server.url}/health").json()
            if health != {"status": "ok", "restarts": 0, "reason": None}:
                print(f"the engine did not bear it: {health}")
                found = 1
    return min(1, found)


if __name__ == "__main__":
    sys.exit(main())
