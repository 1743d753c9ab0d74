// An epoch of stochastic gradient descent on a factorisation, on CUDA, in the order of the CPU's. All pointers are the
// device's.
//
// An epoch is three calls in this order, and between them two of torch's: the running sums of `shuffled_counts`, and a
// stable sort of `blocks`.
#pragma once

#include "metarec/cosine_sgd_epoch.h"
#include "metarec/sgd_order.h"
#include "stream.h"

namespace metarec::cuda {

// Whom the ratings are of. Users and items are numbered together: an item's number is its row and `users`.
struct SgdEntries {
  std::int64_t users, items, count;
  std::uint64_t seed;
  const std::int32_t* user;  // [count], rows of their tables
  const std::int32_t* item;  // [count]

  std::int64_t rows() const { return users + items; }
  std::int64_t groups() const { return sgd_groups(count); }
};

// The swaps of a shuffle: for each place, lists of those that change it with a later one. Workspace.
struct Swaps {
  std::int32_t* last;      // [places], -1 before
  std::int32_t* previous;  // [places]
};

// Puts users, and items after them, in random order, and counts the ratings of each.
template <class Launch>
void shuffle_rows(const Launch& launch, const SgdEntries& entries, const Swaps& swaps, std::int32_t* counts,
                  std::int32_t* shuffled, std::int32_t* shuffled_counts);  // [rows] each; counts are 0 before

// Cuts the shuffled rows into groups, and gives the block of each rating. `sums` are the running ones of the counts, the
// own included.
template <class Launch>
void find_blocks(const Launch& launch, const SgdEntries& entries, const std::int32_t* shuffled,
                 const std::int32_t* shuffled_counts, const std::int64_t* sums, std::int32_t* groups,  // [rows] each
                 std::int16_t* blocks);                                                                // [count]

template <class Real>
struct SgdRating {
  std::int32_t user, item;
  Real value;
};

template <class Real>
struct SgdHead {
  Real scale, bias;
};

template <class Stored>
struct SgdModel {
  using Real = Arithmetic<Stored>;

  std::int64_t dim;
  Stored *users, *items;            // [users, dim], [items, dim]
  Real *user_biases, *item_biases;  // [users], [items]
  SgdHead<Real>* head;
};

template <class Real>
struct SgdRates {
  Real lr, kept, head_lr;  // kept: what the penalty leaves of a value in a step

  explicit SgdRates(const SgdOptions& options)
      : lr(static_cast<Real>(options.lr)), kept(static_cast<Real>(1 - options.lr * options.l2)),
        head_lr(static_cast<Real>(options.head_lr.value_or(options.lr))) {}
};

// The ratings by blocks, and in these in random order. Workspace but for the first two.
template <class Real>
struct SgdBlocks {
  const std::int16_t* blocks;  // [count], ascending
  const std::int64_t* order;   // [count], the rating that stands there
  Swaps swaps;                 // of `count` places
  std::int32_t* begins;        // [groups^2 + 1]
  SgdRating<Real>* ratings;    // [count]
  SgdHead<Real>* heads;        // [groups, groups], of each round and in it of each block, at its end
  double* losses;              // the same
};

// Makes the steps, and gives the mean loss.
template <class Launch, class Stored>
void cosine_sgd_epoch(const Launch& launch, const SgdModel<Stored>& model, const SgdEntries& entries,
                      const Arithmetic<Stored>* values, const SgdBlocks<Arithmetic<Stored>>& blocks,
                      const SgdOptions& options, double* loss);

}  // namespace metarec::cuda
