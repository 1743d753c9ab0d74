"""What the tests of all encoders share."""

import json

import pytest


@pytest.fixture
def stored():
    """A function that gives an encoder as an artifact brings it back: its table written as JSON, read, and restored."""

    def restore(encoder):
        return type(encoder).from_table(json.loads(json.dumps(encoder.table())))

    return restore
