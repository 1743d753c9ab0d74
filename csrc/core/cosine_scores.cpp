#include "metarec/cosine_scores.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include "metarec/similarity.h"
#include "row_groups.h"

namespace metarec {
namespace {

// Pairs whose rows have been checked.
template <class Stored>
struct Gathered {
  std::int64_t dim;
  const Stored* left;
  const Stored* right;
  const std::uint32_t* left_rows;
  const std::uint32_t* right_rows;
};

// What a gradient is the sum of, per pair.
template <class Stored, class Real>
struct GradientTerms {
  struct Pair {
    Real weight;  // of the right row: g / (|u| |v|)
    Real along;   // g c
    std::uint32_t right_row;
  };
  std::int64_t dim;
  const Stored* left;
  const Stored* right;
  std::unique_ptr<Pair[]> pairs;
};

}  // namespace
}  // namespace metarec

#define METAREC_KERNEL "cosine_scores_kernel.h"
#include "for_each_isa.h"

namespace metarec {
namespace {

constexpr std::int64_t kLeastPart = 512;
const std::string kLeftRows = "cosine_scores: rows of the first table";
const std::string kRightRows = "cosine_scores: rows of the second table";

std::int64_t parts_of(std::int64_t pairs, const Parallel& parallel) {
  return std::clamp<std::int64_t>(pairs / kLeastPart, 1, parallel.threads);
}

template <class Stored, class Real>
GradientTerms<Stored, Real> terms_of(const CosinePairs<Stored>& pairs, const CosineGradient<Real>& gradient,
                                     const Parallel& parallel) {
  const auto rows = checked_rows(pairs.right_rows, pairs.right_count, kRightRows, parallel);
  const std::int64_t count = std::ssize(gradient.scores), parts = parts_of(count, parallel);
  GradientTerms<Stored, Real> terms{pairs.dim, pairs.left.data(), pairs.right.data(), {}};
  using Pair = typename GradientTerms<Stored, Real>::Pair;
  terms.pairs = std::make_unique_for_overwrite<Pair[]>(static_cast<std::size_t>(count));
  parallel.run(parts, [&](std::int64_t part) {
    for (std::int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i) {
      const Real g = gradient.of_scores[i];
      terms.pairs[static_cast<std::size_t>(i)] = {g * gradient.inverse_norms[i], g * gradient.scores[i], rows[i]};
    }
  });
  return terms;
}

// Computes the gradients of all groups; that of group i is written to destination(i).
template <class Stored, class Destination>
void gradients(const CosinePairs<Stored>& pairs, const CosineGradient<Arithmetic<Stored>>& gradient,
               const RowGroups& groups, const Parallel& parallel, const Destination& destination) {
  using Real = Arithmetic<Stored>;
  const GradientTerms<Stored, Real> terms = terms_of(pairs, gradient, parallel);
  const std::int64_t pieces = std::ssize(groups.pieces());
  const auto piece_sums = std::make_unique_for_overwrite<Real[]>(static_cast<std::size_t>(pieces * (pairs.dim + 1)));
  if (pieces > 0) {
    const std::int64_t parts = std::min(pieces, parallel.threads);
    parallel.run(parts, [&](std::int64_t part) {
      METAREC_DISPATCH(
          sum_pieces(terms, groups, pieces * part / parts, pieces * (part + 1) / parts, piece_sums.get()));
    });
  }
  const std::int64_t parts = parts_of(std::ssize(groups.entries()), parallel);
  parallel.run(parts, [&](std::int64_t part) {
    constexpr std::int64_t group_cost = 2;  // reads the row, writes its gradient
    METAREC_DISPATCH(group_gradients(terms, groups, piece_sums.get(), groups.part_begin(part, parts, group_cost),
                                     groups.part_begin(part + 1, parts, group_cost), destination));
  });
}

}  // namespace

template <class Stored>
void cosine_scores(const CosinePairs<Stored>& pairs, std::span<Arithmetic<Stored>> scores,
                   std::span<Arithmetic<Stored>> inverse_norms, const Parallel& parallel) {
  const auto left_rows = checked_rows(pairs.left_rows, pairs.left_count, kLeftRows, parallel);
  const auto right_rows = checked_rows(pairs.right_rows, pairs.right_count, kRightRows, parallel);
  const Gathered<Stored> gathered{pairs.dim, pairs.left.data(), pairs.right.data(), left_rows.get(), right_rows.get()};
  const std::int64_t count = std::ssize(scores), parts = parts_of(count, parallel);
  parallel.run(parts, [&](std::int64_t part) {
    METAREC_DISPATCH(score_pairs(gathered, count * part / parts, count * (part + 1) / parts, scores.data(),
                                 inverse_norms.data()));
  });
}

template <class Stored>
void cosine_scores_row_gradient(const CosinePairs<Stored>& pairs, const CosineGradient<Arithmetic<Stored>>& gradient,
                                const std::function<RowValues<Stored>(std::int64_t count)>& allocate,
                                const Parallel& parallel) {
  const RowGroups groups(pairs.left_rows, pairs.left_count, kLeftRows, parallel);
  const RowValues<Stored> result = allocate(groups.count());
  std::ranges::copy(groups.rows(), result.rows.begin());
  gradients(pairs, gradient, groups, parallel,
            [&](std::int64_t group) { return result.values.data() + group * pairs.dim; });
}

template <class Stored>
void cosine_scores_gradient(const CosinePairs<Stored>& pairs, const CosineGradient<Arithmetic<Stored>>& gradient,
                            std::span<Stored> table, const Parallel& parallel) {
  const RowGroups groups(pairs.left_rows, pairs.left_count, kLeftRows, parallel);
  gradients(pairs, gradient, groups, parallel, [&](std::int64_t group) {
    return table.data() + std::int64_t{groups.rows()[static_cast<std::size_t>(group)]} * pairs.dim;
  });
}

#define METAREC_INSTANTIATE(Stored)                                                                            \
  template void cosine_scores(const CosinePairs<Stored>&, std::span<Arithmetic<Stored>>,                       \
                              std::span<Arithmetic<Stored>>, const Parallel&);                                 \
  template void cosine_scores_row_gradient(const CosinePairs<Stored>&, const CosineGradient<Arithmetic<Stored>>&, \
                                           const std::function<RowValues<Stored>(std::int64_t)>&,              \
                                           const Parallel&);                                                   \
  template void cosine_scores_gradient(const CosinePairs<Stored>&, const CosineGradient<Arithmetic<Stored>>&,  \
                                       std::span<Stored>, const Parallel&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
METAREC_INSTANTIATE(BFloat16)
#undef METAREC_INSTANTIATE

}  // namespace metarec
