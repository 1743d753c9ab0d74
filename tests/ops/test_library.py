import pytest
import torch

from metarec.ops import reference
from metarec.ops.library import NATIVE

OPS = [name for name in reference.__all__ if getattr(torch.ops.metarec, name, None) is not None]


@pytest.mark.skipif(not NATIVE, reason="without native kernels the schema is the reference's own")
@pytest.mark.parametrize("name", OPS)
def test_a_reference_has_the_schema_of_its_op(name):
    schema = getattr(torch.ops.metarec, name).default._schema
    changed = [argument.name for argument in schema.arguments if argument.is_write]
    inferred = torch.library.infer_schema(getattr(reference, name), mutates_args=changed)
    wanted = torch._C.parse_schema(f"metarec::{name}{inferred}")
    for own, others in ((schema.arguments, wanted.arguments), (schema.returns, wanted.returns)):
        assert [(value.name, str(value.type)) for value in own] == [
            (value.name, str(value.type)) for value in others
        ]
