// Scores of pairs and gradients of groups of pairs, for one instruction set.
//
// Scores: both rows of a pair are read once, and give the product and the two squared norms in one pass; rows of later
// pairs are on their way meanwhile: 512 bytes per pair for 64 floats, from memory where the tables exceed the cache,
// and 6 operations per dimension. The floor has each distinct row and its norm once, and 2 operations per pair and
// dimension; nothing that is read is stored but 8 bytes per pair.
//
// Gradient of a table: with c = u.v / (|u| |v|) and g = dL/dc, that of u is
//   sum of g v / (|u| |v|) - (sum of g c) u / |u|^2  over its pairs.
// The pairs are grouped by u, so that the first sum is formed in registers while one row v per pair is read, and u
// itself once: 256 bytes per pair for 64 floats, 2 operations per dimension, and 12 bytes of its terms, which lie side
// by side because pairs of a group are scattered. No gradient per pair exists anywhere; plain gathers write and read
// three rows per pair for each side.
#include "simd.h"

#include "row_sums_kernel.h"

namespace metarec::METAREC_ISA {
namespace {

template <class Stored, class Real>
void score_pairs(const Gathered<Stored>& pairs, std::int64_t begin, std::int64_t end, Real* scores,
                 Real* inverse_norms) {
  const std::int64_t dim = pairs.dim;
  const auto bytes = static_cast<std::size_t>(dim) * sizeof(Stored);
  for (std::int64_t pair = begin; pair < end; ++pair) {
    if (pair + kAhead < end) {
      prefetch(pairs.left, pairs.left_rows[pair + kAhead] * bytes, bytes);
      prefetch(pairs.right, pairs.right_rows[pair + kAhead] * bytes, bytes);
    }
    const Stored* left = pairs.left + pairs.left_rows[pair] * dim;
    const Stored* right = pairs.right + pairs.right_rows[pair] * dim;
    Vector<Real> products = {}, left_squares = {}, right_squares = {};
    Real product = 0, left_square = 0, right_square = 0;
    for_each_value<Real>(0, dim, [&]<class Value>(std::int64_t i) {
      const auto u = load_as<Value>(left + i), v = load_as<Value>(right + i);
      if constexpr (sizeof(Value) > sizeof(Real)) {
        products += u * v, left_squares += u * u, right_squares += v * v;
      } else {
        product += u * v, left_square += u * u, right_square += v * v;
      }
    });
    product += sum<Real>(products);
    const Real left_norm = std::sqrt(left_square + sum<Real>(left_squares));
    const Real right_norm = std::sqrt(right_square + sum<Real>(right_squares));
    constexpr Real epsilon = kNormEpsilon;
    inverse_norms[pair] = 1 / (std::max(left_norm, epsilon) * std::max(right_norm, epsilon));
    scores[pair] = product * inverse_norms[pair];
  }
}

// The right rows of pairs, weighted.
template <class Stored, class Real>
struct WeightedRows {
  const GradientTerms<Stored, Real>& terms;

  template <class Body>
  [[gnu::always_inline]] void with_row(std::uint32_t pair, const Body& body) const {
    body(terms.right + terms.pairs[pair].right_row * terms.dim);
  }
  Real weight(std::uint32_t pair) const { return terms.pairs[pair].weight; }
  [[gnu::always_inline]] void prefetch_entry(std::uint32_t pair) const {
    prefetch(terms.pairs.get(), pair * sizeof(terms.pairs[0]), sizeof(terms.pairs[0]));
  }
  [[gnu::always_inline]] void prefetch_row(std::uint32_t pair) const {
    const auto bytes = static_cast<std::size_t>(terms.dim) * sizeof(Stored);
    prefetch(terms.right, terms.pairs[pair].right_row * bytes, bytes);
  }
};

// Writes the sum of the weighted rows of a range of entries and then, one value more, that of g c.
template <class Stored, class Real>
void sum_terms(const GradientTerms<Stored, Real>& terms, const RowGroups& groups, RowGroups::Range range, Real* sums) {
  sum_rows<Real>(WeightedRows<Stored, Real>{terms}, groups.entries(), range.begin, range.end, terms.dim, sums);
  Real along = 0;
  for (std::uint32_t i = range.begin; i < range.end; ++i) along += terms.pairs[groups.entries()[i]].along;
  sums[terms.dim] = along;
}

template <class Stored, class Real>
void sum_pieces(const GradientTerms<Stored, Real>& terms, const RowGroups& groups, std::int64_t begin,
                std::int64_t end, Real* sums) {
  for (std::int64_t piece = begin; piece < end; ++piece) {
    sum_terms(terms, groups, groups.pieces()[static_cast<std::size_t>(piece)], sums + piece * (terms.dim + 1));
  }
}

template <class Stored, class Real>
void finish_gradient(const Stored* vector, std::int64_t dim, const Real* sums, Stored* result) {
  Vector<Real> squares = {};
  Real square = 0;
  for_each_value<Real>(0, dim, [&]<class Value>(std::int64_t i) {
    const auto value = load_as<Value>(vector + i);
    if constexpr (sizeof(Value) > sizeof(Real)) {
      squares += value * value;
    } else {
      square += value * value;
    }
  });
  square += sum<Real>(squares);
  const bool has_direction = !(std::sqrt(square) <= Real(kNormEpsilon));
  const Real along = sums[dim] / square;
  for_each_value<Real>(0, dim, [&]<class Value>(std::int64_t i) {
    const auto value = load_as<Value>(vector + i), total = load_as<Value>(sums + i);
    store_as<Value>(result + i, has_direction ? total - along * value : Value{});
  });
}

// Computes the gradients of a range of groups; that of group i is written to destination(i).
template <class Stored, class Real, class Destination>
void group_gradients(const GradientTerms<Stored, Real>& terms, const RowGroups& groups, const Real* piece_sums,
                     std::int64_t begin, std::int64_t end, const Destination& destination) {
  const std::int64_t dim = terms.dim;
  std::vector<Real> sums(static_cast<std::size_t>(dim) + 1);
  for (std::int64_t group = begin; group < end; ++group) {
    const RowGroups::Range pieces = groups.pieces_of(group);
    if (pieces.begin == pieces.end) {
      sum_terms(terms, groups, {groups.begin(group), groups.end(group)}, sums.data());
    } else {
      std::fill(sums.begin(), sums.end(), Real(0));
      for (std::uint32_t piece = pieces.begin; piece < pieces.end; ++piece) {
        const Real* from = piece_sums + piece * (dim + 1);
        for (std::int64_t i = 0; i <= dim; ++i) sums[static_cast<std::size_t>(i)] += from[i];
      }
    }
    const Stored* vector = terms.left + std::int64_t{groups.rows()[static_cast<std::size_t>(group)]} * dim;
    finish_gradient(vector, dim, sums.data(), destination(group));
  }
}

}  // namespace
}  // namespace metarec::METAREC_ISA
