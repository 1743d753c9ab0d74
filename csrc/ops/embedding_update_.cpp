#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(metarec, library) {
  library.def(
      "embedding_update_(Tensor(a!) table, Tensor(b!)[] state, Tensor rows, Tensor gradients, str rule, float lr, "
      "float l2, float weight_decay, float beta1, float beta2, float eps, int? seed) -> ()");
}
