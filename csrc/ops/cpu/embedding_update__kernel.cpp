#include <optional>
#include <string>
#include <vector>

#include "../tensor.h"
#include "metarec/embedding_update.h"

namespace metarec::ops {
namespace {

template <class Real>
UpdateRule<Real> rule_of(const std::string& name, const std::vector<Tensor>& state, double beta1, double beta2,
                         double eps) {
  if (name == "adam") {
    return LazyAdam<Real>{beta1, beta2, eps, mutable_values<Real>(state[0]), mutable_values<Real>(state[1]),
                          mutable_values<std::int32_t>(state[2])};
  }
  if (name == "adagrad") return RowwiseAdagrad<Real>{eps, mutable_values<Real>(state[0])};
  return Sgd{};
}

void update(Tensor table, std::vector<Tensor> state, Tensor rows, Tensor gradients, std::string rule, double lr,
            double l2, double weight_decay, double beta1, double beta2, double eps, std::optional<std::int64_t> seed) {
  rows = dense(rows);
  gradients = dense(gradients);
  with_stored(table, [&]<class Stored>(Stored) {
    embedding_update<Stored>({table.size(1), table.size(0), mutable_values<Stored>(table), seed}, rows_of(rows),
                             values<Stored>(gradients),
                             rule_of<Arithmetic<Stored>>(rule, state, beta1, beta2, eps), {lr, l2, weight_decay},
                             torch_threads());
  });
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CPU, library) {
  library.impl("embedding_update_", TORCH_BOX(&metarec::ops::update));
}
