#include "cosine_sgd_epoch_.h"

#include "../cosine_sgd_epoch_.h"
#include "torch.h"

namespace metarec::ops {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

// A tensor for the swaps of a shuffle, and these.
Tensor empty_swaps(const Tensor& like, std::int64_t places) {
  return torch::stable::fill_(new_empty(like, {2, places}, ScalarType::Int), -1);
}

cuda::Swaps swaps_in(const Tensor& tensor) {
  auto* const last = mutable_data<std::int32_t>(tensor);
  return {last, last + tensor.size(1)};
}

// The block of each rating, sorted, and which rating stands where.
std::tuple<Tensor, Tensor> sorted_blocks(const cuda::Stream& stream, const cuda::SgdEntries& entries,
                                         const Tensor& like) {
  const auto row_values = [&] { return new_empty(like, {entries.rows()}, ScalarType::Int); };
  const Tensor swaps = empty_swaps(like, entries.rows()), counts = new_zeros(like, {entries.rows()}, ScalarType::Int);
  const Tensor shuffled = row_values(), shuffled_counts = row_values(), groups = row_values();
  cuda::shuffle_rows(stream, entries, swaps_in(swaps), mutable_data<std::int32_t>(counts),
                     mutable_data<std::int32_t>(shuffled), mutable_data<std::int32_t>(shuffled_counts));
  const Tensor sums = running_sums(shuffled_counts), blocks = new_empty(like, {entries.count}, ScalarType::Short);
  cuda::find_blocks(stream, entries, data<std::int32_t>(shuffled), data<std::int32_t>(shuffled_counts),
                    data<std::int64_t>(sums), mutable_data<std::int32_t>(groups), mutable_data<std::int16_t>(blocks));
  return stable_sort(blocks);
}

Tensor epoch(Tensor users, Tensor items, Tensor user_biases, Tensor item_biases, Tensor head, Tensor user, Tensor item,
             Tensor rating, double lr, double l2, bool cosine, bool logistic, std::int64_t seed, double head_lr) {
  const CurrentStream current(users);
  const cuda::Stream& stream = current;
  for (Tensor* tensor : {&user, &item, &rating}) *tensor = dense(*tensor);
  const SgdOptions options = sgd_options(lr, l2, cosine, logistic, seed, head_lr);
  const std::int64_t count = rating.numel(), rows = users.size(0) + items.size(0);
  STD_TORCH_CHECK(rows < std::int64_t{1} << 31 && count < std::int64_t{1} << 31,
                  "cosine_sgd_epoch_: on CUDA there are at most 2147483647 users and items, and as many ratings, got ",
                  rows, " and ", count);
  const Tensor user_rows = narrow_rows(stream, user, users.size(0));
  const Tensor item_rows = narrow_rows(stream, item, items.size(0));
  const cuda::SgdEntries entries{users.size(0),
                                 items.size(0),
                                 count,
                                 options.seed,
                                 data<std::int32_t>(user_rows),
                                 data<std::int32_t>(item_rows)};
  const auto [blocks, order] = sorted_blocks(stream, entries, users);
  const std::int64_t groups = entries.groups();
  const Tensor swaps = empty_swaps(users, count), begins = new_empty(users, {groups * groups + 1}, ScalarType::Int);
  const Tensor heads = new_empty(head, {groups * groups, 2});
  const Tensor losses = new_empty(users, {groups * groups}, ScalarType::Double);
  const Tensor loss = new_empty(users, {}, ScalarType::Double);
  with_stored(users, [&, &blocks = blocks, &order = order]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    using Rating = cuda::SgdRating<Real>;
    using Head = cuda::SgdHead<Real>;
    const Tensor ratings = new_empty(users, {count, static_cast<std::int64_t>(sizeof(Rating))}, ScalarType::Byte);
    const cuda::SgdModel<Stored> model{users.size(1),
                                       mutable_data<Stored>(users),
                                       mutable_data<Stored>(items),
                                       mutable_data<Real>(user_biases),
                                       mutable_data<Real>(item_biases),
                                       mutable_data<Head>(head)};
    const cuda::SgdBlocks<Real> in_blocks{data<std::int16_t>(blocks),
                                          data<std::int64_t>(order),
                                          swaps_in(swaps),
                                          mutable_data<std::int32_t>(begins),
                                          mutable_data<Rating>(ratings),
                                          mutable_data<Head>(heads),
                                          mutable_data<double>(losses)};
    cuda::cosine_sgd_epoch(stream, model, entries, data<Real>(rating), in_blocks, options, mutable_data<double>(loss));
  });
  return loss;
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CUDA, library) {
  library.impl("cosine_sgd_epoch_", TORCH_BOX(&metarec::ops::epoch));
}
