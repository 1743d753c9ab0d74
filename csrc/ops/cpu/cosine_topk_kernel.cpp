#include "metarec/cosine_topk.h"

#include <optional>
#include <tuple>
#include <type_traits>

#include "../tensor.h"

namespace metarec::ops {
namespace {

using torch::stable::new_empty;

constexpr Similarity similarity_of(bool cosine) { return cosine ? Similarity::cosine : Similarity::dot; }

std::tuple<Tensor, Tensor, Tensor, Tensor> prepare(Tensor items, bool cosine, bool compact) {
  items = dense(items);
  const std::int64_t count = items.size(0), dim = items.size(1);
  const std::int64_t groups = compact ? (count + kCodeGroup - 1) / kCodeGroup : 0;
  const Tensor norms = new_empty(items, {count}, ScalarType::Double);
  const Tensor largest_norm = new_empty(items, {1}, ScalarType::Double);
  const Tensor codes = new_empty(items, {groups, (dim + 1) / 2, kCodeGroup, 2}, ScalarType::Char);
  const Tensor bounds = new_empty(items, {groups, 2, kCodeGroup}, ScalarType::Float);
  with_stored(items, [&]<class Stored>(Stored) {
    mutable_values<double>(largest_norm)[0] =
        item_norms<Stored>(dim, values<Stored>(items), mutable_values<double>(norms), torch_threads());
    if constexpr (std::is_same_v<Arithmetic<Stored>, float>) {
      if (!compact) return;
      encode_items<Stored>(dim, values<Stored>(items), values<double>(norms), similarity_of(cosine),
                           mutable_values<std::int8_t>(codes), mutable_values<float>(bounds), torch_threads());
    }
  });
  return {norms, largest_norm, codes, bounds};
}

std::tuple<Tensor, Tensor> topk(Tensor queries, Tensor items, Tensor norms, Tensor largest_norm, Tensor codes,
                                Tensor code_bounds, std::int64_t k, std::optional<Tensor> excluded_offsets,
                                std::optional<Tensor> excluded_rows, bool cosine) {
  for (Tensor* tensor : {&queries, &items, &norms, &largest_norm, &codes, &code_bounds}) *tensor = dense(*tensor);
  Excluded excluded;
  if (excluded_offsets && excluded_rows) {
    excluded_offsets = dense(*excluded_offsets);
    excluded_rows = dense(*excluded_rows);
    excluded = {values<std::int64_t>(*excluded_offsets), values<std::int64_t>(*excluded_rows)};
  }
  const Tensor scores = new_empty(queries, {queries.size(0), k}, arithmetic_type(queries));
  const Tensor rows = new_empty(queries, {queries.size(0), k}, ScalarType::Long);
  with_stored(queries, [&]<class Stored>(Stored) {
    const ItemTable<Stored> table{items.size(1), values<Stored>(items), values<double>(norms),
                                  values<double>(largest_norm)[0], values<std::int8_t>(codes),
                                  values<float>(code_bounds)};
    cosine_topk<Stored>(values<Stored>(queries), table, k, excluded, similarity_of(cosine),
                        mutable_values<Arithmetic<Stored>>(scores), mutable_values<std::int64_t>(rows),
                        torch_threads());
  });
  return {scores, rows};
}

}  // namespace
}  // namespace metarec::ops

STABLE_TORCH_LIBRARY_IMPL(metarec, CPU, library) {
  library.impl("cosine_topk_prepare", TORCH_BOX(&metarec::ops::prepare));
  library.impl("cosine_topk", TORCH_BOX(&metarec::ops::topk));
}
