// The cosine of pairs of rows on CUDA, and the gradient of a table. All pointers are the device's.
#pragma once

#include "metarec/bfloat16.h"
#include "stream.h"

namespace metarec::cuda {

template <class Stored>
struct CosineTables {
  std::int64_t dim, left_count, right_count;
  const Stored* left;   // [left_count, dim]
  const Stored* right;  // [right_count, dim]
};

// What a gradient of the left table is made of. The pairs have been sorted by their rows of it, stably.
template <class Stored>
struct CosineGradientTerms {
  using Real = Arithmetic<Stored>;
  CosineTables<Stored> tables;
  Rows right_rows;          // [pairs], as all of the next three in the order of the pairs
  const Real* of_scores;
  const Real* scores;
  const Real* inverse_norms;
  std::int64_t pairs;
  const std::int32_t* sorted_rows;  // [pairs], rows of the left table, ascending
  const std::int64_t* order;        // [pairs], the pair that stands there
  const std::int64_t* result_rows;  // [pairs], the result's row for each place, or null where that is the sorted row
  Stored* result;                   // [rows, dim], of which those are written that have a pair
  Real* tile_sums;                  // workspace of this size:
};

constexpr int kCosineTile = 64;
constexpr std::int64_t cosine_tile_sums(std::int64_t dim, std::int64_t pairs) {
  return ceil_div(pairs, kCosineTile) * 2 * (dim + 1);
}

// Launch is Stream, or what the tests have in its place.
template <class Launch, class Stored>
void cosine_scores(const Launch& launch, const CosineTables<Stored>& tables, Rows left_rows, Rows right_rows,
                   std::int64_t pairs, Arithmetic<Stored>* scores, Arithmetic<Stored>* inverse_norms);

template <class Launch, class Stored>
void cosine_scores_gradient(const Launch& launch, const CosineGradientTerms<Stored>& terms);

}  // namespace metarec::cuda
