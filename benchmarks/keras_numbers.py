"""Write what Keras computes in training mode to ``tests/data/keras_batch_norm.json``.

The project does not depend on Keras; to repeat the numbers, in an environment of its own:

    pip install keras==3.15.1 tensorflow-cpu==2.21.0
    KERAS_BACKEND=tensorflow python benchmarks/keras_numbers.py

Only the TensorFlow backend computes in float64: on torch, a layer of dtype float64 rounds to
float32 and returns that.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np

TARGET = Path(__file__).parent.parent / "tests" / "data" / "keras_batch_norm.json"

CASES: list[dict[str, Any]] = [
    {"shape": [6, 3], "axis": -1, "momentum": 0.99, "epsilon": 1e-3, "dtype": "float64"},
    {"shape": [2, 3, 2, 3], "axis": 1, "momentum": 0.9, "epsilon": 1e-5, "dtype": "float64"},
    {"shape": [2, 2, 3, 3], "axis": -1, "momentum": 0.5, "epsilon": 1e-3, "dtype": "float64"},
    {"shape": [2, 2, 3, 3], "axis": -1, "momentum": 0.99, "epsilon": 1e-3, "dtype": "float32"},
    {"shape": [2, 2, 2, 2, 3], "axis": 2, "momentum": 0.9, "epsilon": 1e-2, "dtype": "float64"},
]


def trained(case: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """Two batches in a row through one layer, with all that went in and came out."""
    channels = case["shape"][case["axis"]]
    options = {name: case[name] for name in ("axis", "momentum", "epsilon", "dtype")}
    layer = keras.layers.BatchNormalization(**options)
    layer.build(case["shape"])
    start = [np.round(rng.uniform(0.5, 2.0, channels), 3).astype(case["dtype"]) for _ in range(4)]
    layer.set_weights(start)  # gamma, beta, moving mean, moving variance
    batches = [np.round(rng.normal(0.5, 2.0, case["shape"]), 3) for _ in range(2)]
    outputs = [layer(batch.astype(case["dtype"]), training=True) for batch in batches]
    return case | {
        "start": [weight.tolist() for weight in start],
        "batches": [batch.tolist() for batch in batches],
        "outputs": [keras.ops.convert_to_numpy(output).tolist() for output in outputs],
        "moving": [weight.tolist() for weight in layer.get_weights()[2:]],
    }


def main() -> None:
    assert keras.backend.result_type("float64") == "float64", "use the TensorFlow backend"
    rng = np.random.default_rng(20240607)
    made_with = {"keras": keras.__version__, "backend": keras.backend.backend()}
    numbers = made_with | {"cases": [trained(case, rng) for case in CASES]}
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    TARGET.write_text(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    main()
