// The best rows of a table for a query, by sorting all scores, which are sums in double precision, rounded once.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <utility>
#include <vector>

#include "metarec/bfloat16.h"

// Scores and rows of the k best: the better first, of equal ones the smaller row; (-infinity, -1) where none is left.
template <class Stored, class Real = metarec::Arithmetic<Stored>>
std::vector<std::pair<Real, std::int64_t>> best_by_hand(const Stored* query, const std::vector<Stored>& items,
                                                        std::int64_t count, std::int64_t dim, std::int64_t k,
                                                        bool cosine, std::span<const std::int64_t> excluded) {
  constexpr Real nothing = -std::numeric_limits<Real>::infinity();
  const auto dot = [dim](const Stored* left, const Stored* right) {
    double total = 0;
    for (std::int64_t d = 0; d < dim; ++d) total += double{metarec::value_of(left[d])} * metarec::value_of(right[d]);
    return total;
  };
  const auto length = [&](const Stored* x) { return std::max(std::sqrt(dot(x, x)), 1e-12); };
  std::vector<std::pair<Real, std::int64_t>> all;
  for (std::int64_t row = 0; row < count; ++row) {
    if (std::ranges::find(excluded, row) != excluded.end()) continue;
    const Stored* item = items.data() + row * dim;
    const double product = dot(query, item);
    const auto score = static_cast<Real>(cosine ? product / (length(query) * length(item)) : product);
    if (score > nothing) all.emplace_back(score, row);
  }
  std::ranges::stable_sort(all, [](const auto& left, const auto& right) { return left.first > right.first; });
  all.resize(k, {nothing, -1});
  return all;
}
