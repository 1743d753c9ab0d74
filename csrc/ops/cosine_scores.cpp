#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(metarec, library) {
  library.def(
      "cosine_scores(Tensor left, Tensor right, Tensor left_rows, Tensor right_rows, bool sparse_grad) "
      "-> (Tensor, Tensor)");
  library.def(
      "cosine_scores_gradient(Tensor gradient, Tensor scores, Tensor inverse_norms, Tensor left, Tensor right, "
      "Tensor left_rows, Tensor right_rows) -> Tensor");
  library.def(
      "cosine_scores_row_gradient(Tensor gradient, Tensor scores, Tensor inverse_norms, Tensor left, Tensor right, "
      "Tensor left_rows, Tensor right_rows) -> (Tensor, Tensor)");
}
