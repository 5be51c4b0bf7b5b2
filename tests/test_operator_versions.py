"""The newest onnx declares no version of an operator with a rule that nobody has looked at."""

from __future__ import annotations

import onnx
import pytest

from bnfold.core.rule import registered


def declared(op_type: str, deprecated: bool) -> set[int]:
    """Every version of a standard operator, or those that are not deprecated."""
    schemas = [s for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == ("", op_type)]
    return {schema.since_version for schema in schemas if deprecated or not schema.deprecated}


@pytest.mark.parametrize("op_type", sorted(registered()))
def test_every_version_is_known(op_type: str) -> None:
    """A rule knows every version from its first one on; earlier forms mean something else and are refused."""
    known = set(registered()[op_type].versions)
    assert {version for version in declared(op_type, deprecated=False) if version >= min(known)} <= known
    assert known <= declared(op_type, deprecated=True)
