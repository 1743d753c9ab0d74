#include "cosine_topk.h"

#include <algorithm>
#include <optional>
#include <tuple>
#include <type_traits>

#include "metarec/cosine_topk.h"
#include "torch.h"

namespace metarec::ops {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

std::tuple<Tensor, Tensor, Tensor, Tensor> prepare(Tensor items, bool cosine, bool compact) {
  const CurrentStream stream(items);
  items = dense(items);
  const std::int64_t count = items.size(0), dim = items.size(1);
  const std::int64_t groups = compact ? cuda::ceil_div(count, kCodeGroup) : 0;
  const Tensor norms = new_empty(items, {count}, ScalarType::Double);
  const Tensor largest_norm = new_zeros(items, {1}, ScalarType::Double);
  const Tensor codes = new_empty(items, {groups, (dim + 1) / 2, kCodeGroup, 2}, ScalarType::Char);
  const Tensor bounds = new_empty(items, {groups, 2, kCodeGroup}, ScalarType::Float);
  with_stored(items, [&]<class Stored>(Stored) {
    cuda::vector_norms<cuda::Stream>(stream, data<Stored>(items), count, dim, mutable_data<double>(norms),
                                     mutable_data<double>(largest_norm));
    if constexpr (std::is_same_v<Arithmetic<Stored>, float>) {
      if (!compact) return;
      cuda::encode_items<cuda::Stream>(stream, data<Stored>(items), count, dim, data<double>(norms), cosine,
                                       mutable_data<std::int8_t>(codes), mutable_data<float>(bounds));
    }
  });
  return {norms, largest_norm, codes, bounds};
}

// The codes are for hosts: a device reads the items themselves in the time that its launches take.
std::tuple<Tensor, Tensor> topk(Tensor queries, Tensor items, Tensor norms, Tensor, Tensor, Tensor, std::int64_t k,
                                std::optional<Tensor> excluded_offsets, std::optional<Tensor> excluded_rows,
                                bool cosine) {
  const CurrentStream stream(queries);
  for (Tensor* tensor : {&queries, &items, &norms}) *tensor = dense(*tensor);
  const std::int64_t count = queries.size(0), dim = items.size(1);
  cuda::ExcludedRows excluded{nullptr, nullptr, 0};
  if (excluded_offsets && excluded_rows) {
    excluded_offsets = dense(*excluded_offsets);
    excluded_rows = dense(*excluded_rows);
    excluded = {data<std::int64_t>(*excluded_offsets), data<std::int64_t>(*excluded_rows), excluded_rows->numel()};
    cuda::check_excluded<cuda::Stream>(stream, excluded, count, items.size(0));
  }
  const Tensor scores = new_empty(queries, {count, k}, arithmetic_type(queries));
  const Tensor rows = new_empty(queries, {count, k}, ScalarType::Long);
  const Tensor query_norms = new_empty(queries, {count}, ScalarType::Double);
  const std::int64_t at_once = std::min(cuda::TopkLists::queries_at_once(k), count);
  const cuda::TopkLists lists(at_once, items.size(0), k);
  const Tensor sizes = new_empty(queries, {at_once, lists.ranges}, ScalarType::Long);
  const Tensor limits = new_empty(queries, {at_once}, ScalarType::Int);
  with_stored(queries, [&]<class Stored>(Stored) {
    using Real = Arithmetic<Stored>;
    using Place = cuda::ScoredRow<Real>;
    const Tensor places = new_empty(
        queries, {at_once, lists.ranges, lists.room, static_cast<std::int64_t>(sizeof(Place))}, ScalarType::Byte);
    cuda::vector_norms<cuda::Stream>(stream, data<Stored>(queries), count, dim, mutable_data<double>(query_norms),
                                     nullptr);
    for (std::int64_t first = 0; first < count; first += at_once) {
      const auto from_first = [&](const auto* pointer) { return pointer != nullptr ? pointer + first : nullptr; };
      const cuda::TopkSearch<Stored> search{std::min(at_once, count - first),
                                          items.size(0),
                                          dim,
                                          k,
                                          data<Stored>(queries) + first * dim,
                                          data<Stored>(items),
                                          data<double>(query_norms) + first,
                                          data<double>(norms),
                                          cosine,
                                          {from_first(excluded.offsets), excluded.rows, excluded.count},
                                          lists,
                                          mutable_data<Place>(places),
                                          mutable_data<std::int64_t>(sizes),
                                          mutable_data<std::int32_t>(limits)};
      cuda::cosine_topk<cuda::Stream>(stream, search, mutable_data<Real>(scores) + first * k,
                                      mutable_data<std::int64_t>(rows) + first * k);
    }
  });
  return {scores, rows};
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CUDA, library) {
  library.impl("cosine_topk_prepare", TORCH_BOX(&metarec::ops::prepare));
  library.impl("cosine_topk", TORCH_BOX(&metarec::ops::topk));
}
