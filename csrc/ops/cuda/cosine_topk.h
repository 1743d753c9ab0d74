// The exact k best items of each query on CUDA. All pointers are the device's.
#pragma once

#include <algorithm>

#include "metarec/bfloat16.h"
#include "stream.h"

namespace metarec::cuda {

template <class Real>
struct ScoredRow {
  Real score;
  std::int64_t row;
};

// Rows that a query must not get: query b never gets rows[offsets[b]] ... rows[offsets[b + 1] - 1].
struct ExcludedRows {
  const std::int64_t* offsets;  // [queries + 1], or null
  const std::int64_t* rows;     // [count], in any order
  std::int64_t count;
};

// Queries are searched for in tiles: in small ones where there are few.
constexpr int kFewQueries = 8, kFewItems = 256, kManyQueries = 64, kManyItems = 64;

// Each query has a list for each range of the items, with room for so many: a power of two.
struct TopkLists {
  std::int64_t ranges, room;

  // Ranges are to fill a device, but long enough for a list to fill in a small part of its range.
  TopkLists(std::int64_t queries, std::int64_t items, std::int64_t k) : ranges(1), room(1) {
    constexpr std::int64_t least_range = 2048, blocks = 1024;
    const bool few = queries <= kFewQueries;
    while (room < k + 2 * (few ? kFewItems : kManyItems)) room *= 2;
    const std::int64_t tiles = ceil_div(std::max<std::int64_t>(queries, 1), few ? kFewQueries : kManyQueries);
    const std::int64_t fitting = most_places / (std::max<std::int64_t>(queries, 1) * room);
    ranges = std::max<std::int64_t>(std::min({items / least_range, ceil_div(blocks, tiles), fitting}), 1);
  }

  // How many queries are searched for at once, so that lists stay small beside a device's memory.
  static std::int64_t queries_at_once(std::int64_t k) {
    return std::max<std::int64_t>(most_places / (2 * k + 2 * kFewItems), kManyQueries);
  }

  static constexpr std::int64_t most_places = std::int64_t{1} << 24;
};

template <class Stored>
struct TopkSearch {
  std::int64_t queries, items, dim, k;
  const Stored* query_values;  // [queries, dim]
  const Stored* item_values;   // [items, dim]
  const double* query_norms;   // [queries]
  const double* item_norms;    // [items]
  bool cosine;
  ExcludedRows excluded;
  TopkLists lists;
  ScoredRow<Arithmetic<Stored>>* places;  // workspace: [queries, ranges, room]
  std::int64_t* sizes;                    // workspace: [queries, ranges]
  std::int32_t* limits;                   // workspace: [queries]
};

// Launch is Stream, or what the tests have in its place.
template <class Launch, class Stored>
void cosine_topk(const Launch& launch, const TopkSearch<Stored>& search, Arithmetic<Stored>* scores,
                 std::int64_t* rows);

// Stops the device where an offset or a row does not fit.
template <class Launch>
void check_excluded(const Launch& launch, const ExcludedRows& excluded, std::int64_t queries, std::int64_t items);

// Norms in double precision and, where it is asked for, the largest of them and of what stands in `largest`.
template <class Launch, class Stored>
void vector_norms(const Launch& launch, const Stored* values, std::int64_t count, std::int64_t dim, double* norms,
                  double* largest);

// The 8-bit codes of the host's search, so that a prepared table can move there. See metarec/cosine_topk.h.
template <class Launch, class Stored>
void encode_items(const Launch& launch, const Stored* values, std::int64_t count, std::int64_t dim,
                  const double* norms, bool cosine, std::int8_t* codes, float* bounds);

}  // namespace metarec::cuda
