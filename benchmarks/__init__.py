"""Times what metarec does beside what others offer for it: ``python -m benchmarks.ops``."""

import os

# Peers that use OpenBLAS are to run at their best: with its own choice of kernels, made when it is loaded.
for _name in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
    os.environ.pop(_name, None)
