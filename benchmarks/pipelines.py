"""Run the examples of docs/pipelines.md in environments that have torch, Keras, TensorFlow or Olive.

    python benchmarks/pipelines.py torch=PYTHON tensorflow=PYTHON [--write]

Each argument names Keras' backend there and the interpreter, which needs pytest, hypothesis and what bnfold
needs (see exporters/requirements-*.txt). With --write the results go into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from pathlib import Path

import pages

ROOT = Path(__file__).parent.parent
_PACKAGES = ("torch", "onnxscript", "keras", "tensorflow_cpu", "tf2onnx", "olive_ai", "onnxruntime", "onnx")
_VERSIONS = """
import importlib.metadata as metadata, json, sys
found = {each.name.replace("-", "_"): each.version for each in metadata.distributions()}
print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))
"""


def result(backend: str, python: str) -> str:
    """One line: which examples passed, and with which versions."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KERAS_BACKEND": backend}
    asked = [python, "-c", _VERSIONS, *_PACKAGES]
    versions = json.loads(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)
    command = [python, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "tests/test_pipelines.py"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = [line.split("::")[-1] for line in done.stdout.splitlines() if line.startswith("PASSED")]
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    passed = ", ".join(name.removeprefix("test_") for name in sorted(lines))
    packages = ", ".join(f"{name.replace('_', '-')} {version}" for name, version in versions.items())
    return f"* {packages}: {passed} passed" + (f"; {failed} failed" if failed else "")


def main() -> None:
    """Print one line for each environment."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("environments", nargs="+", metavar="BACKEND=PYTHON")
    parser.add_argument("--write", action="store_true", help="put the lines into docs/pipelines.md")
    asked = parser.parse_args()
    made = "\n".join(result(*each.split("=", 1)) for each in asked.environments)
    print(made)
    if asked.write:
        pages.write("pipelines.md", "pipelines", made)


if __name__ == "__main__":
    main()
