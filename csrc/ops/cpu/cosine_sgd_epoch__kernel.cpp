#include "metarec/cosine_sgd_epoch.h"

#include "../cosine_sgd_epoch_.h"
#include "../tensor.h"

namespace metarec::ops {
namespace {

Tensor epoch(Tensor users, Tensor items, Tensor user_biases, Tensor item_biases, Tensor head, Tensor user, Tensor item,
             Tensor rating, double lr, double l2, bool cosine, bool logistic, std::int64_t seed,
             double head_lr) {
  for (Tensor* tensor : {&user, &item, &rating}) *tensor = dense(*tensor);
  const SgdOptions options = sgd_options(lr, l2, cosine, logistic, seed, head_lr);
  const Tensor loss = torch::stable::new_empty(users, {}, ScalarType::Double);
  with_stored(users, [&]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    mutable_values<double>(loss)[0] = cosine_sgd_epoch<Stored>(
        {users.size(1), mutable_values<Stored>(users), mutable_values<Stored>(items),
         mutable_values<Real>(user_biases), mutable_values<Real>(item_biases), mutable_values<Real>(head)},
        {rows_of(user), rows_of(item), values<Real>(rating)}, options, torch_threads());
  });
  return loss;
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CPU, library) {
  library.impl("cosine_sgd_epoch_", TORCH_BOX(&metarec::ops::epoch));
}
