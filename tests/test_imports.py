"""What an import pulls in: nothing that a user did not ask for yet."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "onnxruntime", "scipy", "rich", "matplotlib")


def _loaded_by(code: str) -> set[str]:
    probe = f"import sys\n{code}\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def test_import_is_light() -> None:
    """``import bnfold`` loads neither numpy nor onnx, let alone the heavy ones."""
    assert not _loaded_by("import bnfold") & {*HEAVY, "numpy", "onnx", "onnx_ir", "click"}


def test_help_needs_click_alone() -> None:
    """``bnfold --help`` imports no more than click does."""
    code = "import bnfold.cli\ntry:\n    bnfold.cli.cli.main(['--help'])\nexcept SystemExit:\n    pass"
    assert not _loaded_by(code) & {*HEAVY, "numpy", "onnx", "onnx_ir"}


def test_folding_needs_no_optional_package() -> None:
    """Folding without verification works without torch, ONNX Runtime, scipy and rich."""
    assert not _loaded_by("import bnfold\nbnfold.fold\nbnfold.FoldPass()") & set(HEAVY)


def test_functions_stay_functions() -> None:
    """``bnfold.fold`` and ``bnfold.verify`` are the functions, however often they are asked for."""
    import bnfold
    import bnfold.folding
    import bnfold.verification

    for _ in range(2):
        assert callable(bnfold.fold)
        assert callable(bnfold.verify)
    assert all(getattr(bnfold, name) is not None for name in bnfold.__all__)
