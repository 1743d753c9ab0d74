// The exact k best items of each query.
//
// A block takes a tile of queries and a range of items, and goes through the range tile by tile. Products of a tile are
// summed in registers in the precision of the table (of bfloat16 in float32), and never reach memory: the score that such a product says, plus a
// bound on its error, is held against the worst of the query's k best so far, and what may enter goes to the end of the
// query's list. When a list could not take another tile, a warp scores the newcomers in double precision, sorts the list
// and keeps the best. So the answers are exact whatever the tiles are, and equal scores come by row. A last pass ranks
// the lists of all ranges against each other: the place of an item is how many items are better.
//
// Operations: 2 d per pair. Bytes: the items once per tile of queries, which for 64 queries of float32 is 2 * 64 / 4 = 32
// operations per byte read, of which all blocks of a range share the caches; single queries read 4 d bytes per item and
// are bound by memory. A thread of the large tile makes 16 products of 8 values, read from shared memory as 2 vectors of
// 16 bytes. Lists cost little: of n items in random order k (1 + ln(n / k)) enter, and ranges tell one another their
// worst, which decides only what is left out. Plan: 60 % of the arithmetic's floor for many queries, 60 % of the copy
// rate for few.
#pragma once

#include <cstdint>

#include "cosine_topk.h"
#include "device.cuh"

namespace metarec::cuda {

constexpr int kTopkThreads = 256, kTopkWarps = kTopkThreads / kWarp;
constexpr int kDepth = 16;  // dimensions of a tile that lie in shared memory at once
constexpr int kPad = 8;     // so that rows begin in different banks, and where a pack may

constexpr int kCodeGroup = 16;

__device__ __forceinline__ double length_of(double norm) {
  return norm > kNormEpsilon ? norm : norm <= kNormEpsilon ? kNormEpsilon : norm;
}

template <class Real>
__device__ __forceinline__ bool better(const ScoredRow<Real>& left, const ScoredRow<Real>& right) {
  return left.score > right.score || (left.score == right.score && left.row < right.row);
}

// Floats as integers of the same order.
inline __device__ std::int32_t ordered(float value) {
  const std::int32_t bits = __float_as_int(value);
  return bits >= 0 ? bits : bits ^ 0x7fffffff;
}
inline __device__ float from_ordered(std::int32_t bits) { return __int_as_float(bits >= 0 ? bits : bits ^ 0x7fffffff); }

// The greatest float that is not above.
inline __device__ float not_above(float value) { return value; }
inline __device__ float not_above(double value) {
  const auto near = static_cast<float>(value);
  return near <= value ? near : nextafterf(near, -INFINITY);
}

// What a product of sums in `Real` says of a score: within `slack` of product * weight, where a vector's part of both is
//   weight = 1 / length for the cosine and 1 for the dot product, slack = norm * weight.
// A sum of d products is off by (d + 8) ulp of the product of the norms at most, with what weights and scores round.
// Norms far from 1 could overflow or lose digits: such a vector has no bound.
template <class Real>
struct Estimate {
  Real weight, slack;

  __device__ Estimate(double norm, bool cosine) {
    constexpr double least = sizeof(Real) == 4 ? 1e-15 : 1e-120, most = sizeof(Real) == 4 ? 1e18 : 1e120;
    weight = cosine ? static_cast<Real>(1 / length_of(norm)) : Real(1);
    slack = norm == 0 ? Real(0) : norm > least && norm < most ? static_cast<Real>(norm) * weight : Real(INFINITY);
  }
};

template <class Real>
__device__ Real sum_error(std::int64_t dim) {
  return static_cast<Real>(dim + 8) * (sizeof(Real) == 4 ? Real(0x1p-23) : Real(0x1p-52));
}

template <class Real>
__device__ __forceinline__ Real largest_of(const LaneGroup& warp, Real value) {
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = max(value, __shfl_xor_sync(warp.mask, value, distance));
  }
  return value;
}

// Keeps the k best of a list of `size` items, of which the first `chosen` have their scores, and gives how many they are.
// For one warp. Newcomers that are excluded, minus infinity or no number go to the end.
template <class Stored, class Real>
__device__ std::int64_t choose(const TopkSearch<Stored>& search, std::int64_t query, ScoredRow<Real>* list,
                               std::int64_t chosen, std::int64_t size) {
  const LaneGroup warp(kWarp);
  const int lane = warp.lane;
  const Stored* const left = search.query_values + query * search.dim;
  std::int64_t kept = chosen;
  for (std::int64_t i = chosen; i < size; ++i) {
    const std::int64_t row = list[i].row;
    const Stored* const right = search.item_values + row * search.dim;
    double product = 0;
    for (std::int64_t d = lane; d < search.dim; d += kWarp) {
      product += static_cast<double>(load(left[d])) * static_cast<double>(load(right[d]));
    }
    product = warp.sum(product);
    bool lost = false;
    if (search.excluded.offsets != nullptr) {
      const std::int64_t stop = search.excluded.offsets[query + 1];
      for (std::int64_t at = search.excluded.offsets[query] + lane; at < stop; at += kWarp) {
        lost |= search.excluded.rows[at] == row;
      }
      lost = __any_sync(warp.mask, lost);
    }
    const auto score = static_cast<Real>(
        search.cosine
            ? product / (length_of(search.query_norms[query]) * length_of(search.item_norms[row]))
            : product);
    lost |= !(score > -Real(INFINITY));
    __syncwarp();
    if (lane == 0 && !lost) list[kept] = {score, row};
    kept += lost ? 0 : 1;
    __syncwarp();
  }
  std::int64_t width = 1;
  while (width < kept) width *= 2;
  for (std::int64_t i = kept + lane; i < width; i += kWarp) list[i] = {-Real(INFINITY), INT64_MAX};
  __syncwarp();
  // A bitonic sort: no branch depends on the values.
  for (std::int64_t run = 2; run <= width; run *= 2) {
    for (std::int64_t step = run / 2; step > 0; step /= 2) {
      for (std::int64_t i = lane; i < width / 2; i += kWarp) {
        const std::int64_t low = i / step * step * 2 + i % step, high = low + step;
        const ScoredRow<Real> first = list[low], second = list[high];
        if (better(second, first) == ((low & run) == 0)) {
          list[low] = second;
          list[high] = first;
        }
      }
      __syncwarp();
    }
  }
  return min(kept, search.k);
}

// The shared memory of a block of `search_items`.
template <class Real, int kQueries, int kItems>
struct alignas(64) TopkTile {
  Real queries[kDepth][kQueries + kPad];
  Real items[kDepth][kItems + kPad];
  Real query_weight[kQueries], query_slack[kQueries], worst[kQueries];
  Real item_weight[kItems], item_slack[kItems];
  std::int32_t size[kQueries], chosen[kQueries];
};

// Loads kDepth dimensions from `depth` on of `kRows` vectors from `first` on, turned; what is missing is zero.
template <int kRows, int kWidth, class Stored>
__device__ void load_turned(const Stored* values, std::int64_t count, std::int64_t dim, std::int64_t first,
                            std::int64_t depth, Arithmetic<Stored> (*turned)[kRows + kPad]) {
  constexpr int packs = kDepth / kWidth;
  for (int i = static_cast<int>(threadIdx.x); i < kRows * packs; i += kTopkThreads) {
    const int row = i / packs, column = i % packs * kWidth;
    Pack<Stored, kWidth> pack{};
    if (first + row < count && depth + column < dim) {
      pack = *reinterpret_cast<const Pack<Stored, kWidth>*>(values + (first + row) * dim + depth + column);
    }
    for (int w = 0; w < kWidth; ++w) turned[column + w][row] = load(pack.values[w]);
  }
}

// Blocks: tiles of queries times ranges of items. A thread makes kQueryStep x kItemStep products of a tile.
template <class Stored, int kQueries, int kItems, int kQueryStep, int kItemStep, int kWidth>
__global__ void __launch_bounds__(kTopkThreads, 2) search_items(TopkSearch<Stored> search) {
  using Real = Arithmetic<Stored>;
  static_assert(kQueries / kQueryStep * (kItems / kItemStep) == kTopkThreads);
  using Tile = TopkTile<Real, kQueries, kItems>;
  METAREC_SHARED(tile, Tile);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t first_query = std::int64_t{blockIdx.x} * kQueries, range = blockIdx.y;
  const int its_queries = static_cast<int>(min(std::int64_t{kQueries}, search.queries - first_query));
  const auto list_of = [&](int query) {
    return search.places + ((first_query + query) * search.lists.ranges + range) * search.lists.room;
  };
  // Keeps the best of the lists that could not take `more` items: in the end, of all.
  const auto choose_where_full = [&](std::int64_t more) {
    for (int query = warp; query < its_queries; query += kTopkWarps) {
      const std::int32_t size = tile.size[query];
      if (size + more <= search.lists.room) continue;
      const std::int64_t kept = choose(search, first_query + query, list_of(query), tile.chosen[query], size);
      if (lane == 0) {
        tile.size[query] = tile.chosen[query] = static_cast<std::int32_t>(kept);
        if (kept == search.k) {
          tile.worst[query] = list_of(query)[kept - 1].score;
          atomicMax(search.limits + first_query + query, ordered(not_above(tile.worst[query])));
        }
      }
    }
  };
  for (int query = thread; query < kQueries; query += kTopkThreads) {
    const bool there = query < its_queries;
    const Estimate<Real> estimate(there ? search.query_norms[first_query + query] : 0, search.cosine);
    tile.query_weight[query] = estimate.weight;
    tile.query_slack[query] = estimate.slack * sum_error<Real>(search.dim);
    tile.worst[query] = there ? -Real(INFINITY) : Real(INFINITY);
    tile.size[query] = tile.chosen[query] = 0;
  }
  const int query_at = thread / (kItems / kItemStep) * kQueryStep, item_at = thread % (kItems / kItemStep) * kItemStep;
  const std::int64_t end = search.items * (range + 1) / search.lists.ranges;
  for (std::int64_t first = search.items * range / search.lists.ranges; first < end; first += kItems) {
    __syncthreads();
    for (int query = thread; query < its_queries; query += kTopkThreads) {
      const auto limit = static_cast<Real>(from_ordered(search.limits[first_query + query]));
      tile.worst[query] = max(tile.worst[query], limit);
    }
    for (int item = thread; item < kItems; item += kTopkThreads) {
      const Estimate<Real> estimate(first + item < end ? search.item_norms[first + item] : 0, search.cosine);
      tile.item_weight[item] = estimate.weight;
      tile.item_slack[item] = estimate.slack;
    }
    Real products[kQueryStep][kItemStep] = {};
    for (std::int64_t depth = 0; depth < search.dim; depth += kDepth) {
      __syncthreads();
      load_turned<kQueries, kWidth>(search.query_values, search.queries, search.dim, first_query, depth, tile.queries);
      load_turned<kItems, kWidth>(search.item_values, end, search.dim, first, depth, tile.items);
      __syncthreads();
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const auto left = *reinterpret_cast<const Pack<Real, kQueryStep>*>(&tile.queries[d][query_at]);
        const auto right = *reinterpret_cast<const Pack<Real, kItemStep>*>(&tile.items[d][item_at]);
#pragma unroll
        for (int q = 0; q < kQueryStep; ++q) {
#pragma unroll
          for (int i = 0; i < kItemStep; ++i) products[q][i] += left.values[q] * right.values[i];
        }
      }
    }
    __syncthreads();
#pragma unroll
    for (int q = 0; q < kQueryStep; ++q) {
      const int query = query_at + q;
#pragma unroll
      for (int i = 0; i < kItemStep; ++i) {
        const int item = item_at + i;
        const Real score = products[q][i] * tile.query_weight[query] * tile.item_weight[item];
        const bool below = score + tile.query_slack[query] * tile.item_slack[item] < tile.worst[query];
        if (below || first + item >= end || query >= its_queries) continue;
        const std::int32_t place = atomicAdd(&tile.size[query], 1);
        list_of(query)[place].row = first + item;
      }
    }
    __syncthreads();
    choose_where_full(first + kItems < end ? kItems : search.lists.room + 1);
  }
  __syncthreads();
  for (int query = thread; query < its_queries; query += kTopkThreads) {
    search.sizes[(first_query + query) * search.lists.ranges + range] = tile.size[query];
  }
}

// Writes each item of the lists to its place, a thread per place of a list.
template <class Stored>
__global__ void __launch_bounds__(kTopkThreads)
    rank_lists(TopkSearch<Stored> search, Arithmetic<Stored>* scores, std::int64_t* rows) {
  using Real = Arithmetic<Stored>;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kTopkThreads + threadIdx.x;
  const std::int64_t ranges = search.lists.ranges, room = search.lists.room;
  const std::int64_t query = thread / (ranges * search.k), range = thread / search.k % ranges;
  const std::int64_t at = thread % search.k;
  if (query >= search.queries) return;
  const std::int64_t* const sizes = search.sizes + query * ranges;
  const ScoredRow<Real>* const lists = search.places + query * ranges * room;
  std::int64_t all = 0;
  for (std::int64_t other = 0; other < ranges; ++other) all += sizes[other];
  if (range == 0 && at >= all) {
    scores[query * search.k + at] = -Real(INFINITY);
    rows[query * search.k + at] = -1;
  }
  if (at >= sizes[range]) return;
  const ScoredRow<Real> own = lists[range * room + at];
  std::int64_t place = at;
  for (std::int64_t other = 0; other < ranges; ++other) {
    if (other == range) continue;
    std::int64_t low = 0, high = sizes[other];
    while (low < high) {
      const std::int64_t middle = (low + high) / 2;
      if (better(lists[other * room + middle], own)) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    place += low;
  }
  if (place < search.k) {
    scores[query * search.k + place] = own.score;
    rows[query * search.k + place] = own.row;
  }
}

// A thread per offset and per row.
template <class Offset>
__global__ void __launch_bounds__(kTopkThreads)
    check_each_excluded(const Offset* offsets, const Offset* rows, std::int64_t count, std::int64_t queries,
                        std::int64_t items) {
  const std::int64_t at = std::int64_t{blockIdx.x} * kTopkThreads + threadIdx.x;
  if (at <= queries) {
    METAREC_DEVICE_CHECK(at > 0 ? offsets[at] >= offsets[at - 1] : offsets[at] == 0,
                         "cosine_topk: excluded offsets must begin at 0 and not fall");
    METAREC_DEVICE_CHECK(at < queries || offsets[at] == count,
                         "cosine_topk: excluded offsets must end at the number of rows");
  }
  if (at < count) {
    METAREC_DEVICE_CHECK(rows[at] >= 0 && rows[at] < items, "cosine_topk: an excluded row is not in the table");
  }
}

// A warp per vector. What is largest is found by the bits, which order as numbers of at least 0 do.
template <class Stored>
__global__ void __launch_bounds__(kTopkThreads)
    norm_of_each(const Stored* values, std::int64_t count, std::int64_t dim, double* norms, unsigned long long* largest) {
  const LaneGroup warp(kWarp);
  const std::int64_t row = std::int64_t{blockIdx.x} * kTopkWarps + threadIdx.x / kWarp;
  if (row >= count) return;
  double squares = 0;
  for (std::int64_t d = warp.lane; d < dim; d += kWarp) {
    const auto value = static_cast<double>(load(values[row * dim + d]));
    squares += value * value;
  }
  const double norm = sqrt(warp.sum(squares));
  if (warp.lane != 0) return;
  norms[row] = norm;
  if (largest != nullptr && norm > 0) atomicMax(largest, static_cast<unsigned long long>(__double_as_longlong(norm)));
}

// A warp per item, and per place of the last group where none is.
template <class Stored>
__global__ void __launch_bounds__(kTopkThreads, 4)
    encode_each_item(const Stored* values, std::int64_t count, std::int64_t dim, const double* norms, bool cosine,
                 std::int8_t* codes, float* bounds) {
  const LaneGroup warp(kWarp);
  const std::int64_t row = std::int64_t{blockIdx.x} * kTopkWarps + threadIdx.x / kWarp, group = row / kCodeGroup, pairs = (dim + 1) / 2;
  const int member = static_cast<int>(row % kCodeGroup);
  if (group >= (count + kCodeGroup - 1) / kCodeGroup) return;
  const auto value = [&](std::int64_t d) {
    return row < count && d < dim ? static_cast<double>(load(values[row * dim + d])) : 0.0;
  };
  double largest = 0;
  bool finite = true;
  for (std::int64_t d = warp.lane; d < dim; d += kWarp) {
    finite = finite && isfinite(value(d));
    largest = max(largest, fabs(value(d)));
  }
  finite = __all_sync(warp.mask, finite);
  largest = finite ? largest_of(warp, largest) : 0;
  const double scale = largest / 127;
  double squares = 0;
  for (std::int64_t d = warp.lane; d < 2 * pairs; d += kWarp) {
    const double code = largest > 0 ? rint(value(d) / scale) : 0;
    if (finite) squares += (value(d) - scale * code) * (value(d) - scale * code);
    codes[((group * pairs + d / 2) * kCodeGroup + member) * 2 + d % 2] = static_cast<std::int8_t>(code);
  }
  const double error = finite ? sqrt(warp.sum(squares)) : INFINITY;
  if (warp.lane != 0) return;
  const double length = cosine && finite && row < count ? length_of(norms[row]) : 1;
  bounds[(group * 2) * kCodeGroup + member] = static_cast<float>(scale / length);
  bounds[(group * 2 + 1) * kCodeGroup + member] = static_cast<float>(error / length);
}

// Lets every query take any score.
template <class Limit>
__global__ void __launch_bounds__(kTopkThreads) begin_search(Limit* limits, std::int64_t queries) {
  const std::int64_t query = std::int64_t{blockIdx.x} * kTopkThreads + threadIdx.x;
  if (query < queries) limits[query] = ordered(-INFINITY);
}

template <class Launch, class Stored>
void cosine_topk(const Launch& launch, const TopkSearch<Stored>& search, Arithmetic<Stored>* scores,
                 std::int64_t* rows) {
  if (search.queries == 0 || search.k == 0) return;
  const auto threads = [](std::int64_t count) { return Grid{ceil_div(count, kTopkThreads), kTopkThreads}; };
  launch(threads(search.queries), begin_search<std::int32_t>, search.limits, search.queries);
  const auto with_width = [&]<int kWidth>(std::integral_constant<int, kWidth>) {
    if (search.queries <= kFewQueries) {
      launch(Grid{1, kTopkThreads, search.lists.ranges}, search_items<Stored, kFewQueries, kFewItems, 8, 1, kWidth>,
             search);
    } else {
      launch(Grid{ceil_div(search.queries, kManyQueries), kTopkThreads, search.lists.ranges},
             search_items<Stored, kManyQueries, kManyItems, 4, 4, kWidth>, search);
    }
  };
  if (has_wide_rows(search.query_values, search.dim) && has_wide_rows(search.item_values, search.dim)) {
    with_width(std::integral_constant<int, kWidest<Stored>>{});
  } else {
    with_width(std::integral_constant<int, 1>{});
  }
  launch(threads(search.queries * search.lists.ranges * search.k), rank_lists<Stored>, search, scores, rows);
}

template <class Launch>
void check_excluded(const Launch& launch, const ExcludedRows& excluded, std::int64_t queries, std::int64_t items) {
  launch(Grid{ceil_div(std::max(queries + 1, excluded.count), kTopkThreads), kTopkThreads},
         check_each_excluded<std::int64_t>, excluded.offsets, excluded.rows, excluded.count, queries, items);
}

template <class Launch, class Stored>
void vector_norms(const Launch& launch, const Stored* values, std::int64_t count, std::int64_t dim, double* norms,
                  double* largest) {
  if (count == 0) return;
  launch(Grid{ceil_div(count, kTopkWarps), kTopkThreads}, norm_of_each<Stored>, values, count, dim, norms,
         reinterpret_cast<unsigned long long*>(largest));
}

template <class Launch, class Stored>
void encode_items(const Launch& launch, const Stored* values, std::int64_t count, std::int64_t dim,
                  const double* norms, bool cosine, std::int8_t* codes, float* bounds) {
  if (count == 0) return;
  const std::int64_t places = ceil_div(count, kCodeGroup) * kCodeGroup;
  launch(Grid{ceil_div(places, kTopkWarps), kTopkThreads}, encode_each_item<Stored>, values, count, dim, norms, cosine,
         codes, bounds);
}

}  // namespace metarec::cuda
