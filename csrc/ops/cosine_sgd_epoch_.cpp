#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(metarec, library) {
  library.def(
      "cosine_sgd_epoch_(Tensor(a!) users, Tensor(b!) items, Tensor(c!) user_biases, Tensor(d!) item_biases, "
      "Tensor(e!) head, Tensor user, Tensor item, Tensor rating, float lr, float l2, bool cosine, bool logistic, "
      "int seed, float head_lr) -> Tensor");
}
