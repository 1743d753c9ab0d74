#include "embedding_update_.h"

#include <optional>
#include <string>
#include <vector>

#include "torch.h"

namespace metarec::ops {
namespace {

void update(Tensor table, std::vector<Tensor> state, Tensor rows, Tensor gradients, std::string rule, double lr,
            double l2, double weight_decay, double beta1, double beta2, double eps, std::optional<std::int64_t> seed) {
  const CurrentStream stream(table);
  rows = dense(rows);
  gradients = dense(gradients);
  const auto [sorted, order] = sorted_rows(stream, rows, table.size(0));
  const std::int64_t dim = table.size(1), count = rows.numel();
  const Tensor heads = torch::stable::new_empty(table, {cuda::update_heads(dim, count)}, arithmetic_type(table));
  with_stored(table, [&]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    const cuda::RowUpdates<Stored> updates{dim,
                                           count,
                                           mutable_data<Stored>(table),
                                           data<std::int32_t>(sorted),
                                           data<std::int64_t>(order),
                                           data<Stored>(gradients),
                                           {lr, l2, weight_decay},
                                           seed.value_or(-1),
                                           mutable_data<Real>(heads)};
    const auto step = [&](const auto& chosen) { cuda::embedding_update<cuda::Stream>(stream, updates, chosen); };
    if (rule == "adam") {
      step(cuda::AdamRule<Real>(beta1, beta2, eps, mutable_data<Real>(state[0]), mutable_data<Real>(state[1]),
                                mutable_data<std::int32_t>(state[2])));
    } else if (rule == "adagrad") {
      step(cuda::AdagradRule<Real>{static_cast<Real>(eps), mutable_data<Real>(state[0])});
    } else {
      step(cuda::SgdRule<Real>{});
    }
  });
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CUDA, library) {
  library.impl("embedding_update_", TORCH_BOX(&metarec::ops::update));
}
