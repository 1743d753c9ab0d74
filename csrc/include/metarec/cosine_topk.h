// The exact k best items of each query, by cosine or dot product.
#pragma once

#include <cstdint>
#include <span>

#include "metarec/bfloat16.h"
#include "metarec/parallel.h"
#include "metarec/similarity.h"

namespace metarec {

// How many items lie side by side in the compact codes.
inline constexpr std::int64_t kCodeGroup = 16;

// Items to search, as float, double or BFloat16. Without codes the answers are the same, and single queries slower.
template <class Stored>
struct ItemTable {
  std::int64_t dim;
  std::span<const Stored> items;        // [count, dim]
  std::span<const double> norms;        // [count]
  double largest_norm;
  std::span<const std::int8_t> codes;   // [groups, ceil(dim / 2), kCodeGroup, 2], or empty
  std::span<const float> code_bounds;   // [groups, 2, kCodeGroup]: scale and error of each code, or empty

  std::int64_t count() const { return static_cast<std::int64_t>(norms.size()); }
};

// Rows that a query must not get: query b never gets rows[offsets[b]] ... rows[offsets[b + 1] - 1].
struct Excluded {
  std::span<const std::int64_t> offsets;  // [queries + 1], or empty
  std::span<const std::int64_t> rows;
};

// Computes the norms of items, and gives the largest.
template <class Stored>
double item_norms(std::int64_t dim, std::span<const Stored> items, std::span<double> norms,
                  const Parallel& parallel = {});

// Computes the compact codes of items of float or BFloat16, for one similarity.
template <class Stored>
void encode_items(std::int64_t dim, std::span<const Stored> items, std::span<const double> norms,
                  Similarity similarity, std::span<std::int8_t> codes, std::span<float> code_bounds,
                  const Parallel& parallel = {});

// Writes the k best items of each query, best first, equal scores by lower row; what is missing is row -1.
template <class Stored>
void cosine_topk(std::span<const Stored> queries, const ItemTable<Stored>& table, std::int64_t k,
                 const Excluded& excluded, Similarity similarity, std::span<Arithmetic<Stored>> scores,
                 std::span<std::int64_t> rows, const Parallel& parallel = {});

}  // namespace metarec
