#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(metarec, library) {
  library.def("cosine_topk_prepare(Tensor items, bool cosine, bool compact) -> (Tensor, Tensor, Tensor, Tensor)");
  library.def(
      "cosine_topk(Tensor queries, Tensor items, Tensor norms, Tensor largest_norm, Tensor codes, Tensor code_bounds, "
      "SymInt k, Tensor? excluded_offsets, Tensor? excluded_rows, bool cosine) -> (Tensor, Tensor)");
}
