// Scores of pairs, and the gradient of a table.
//
// Scores: a group of lanes takes a pair. Each lane reads 16 bytes of both rows at once, neighbouring lanes neighbouring
// bytes, so that a row of 64 floats is two full sectors for each of 16 lanes and all of a pair's reads are on their way
// together; product and squared norms are summed over the lanes by shuffles. Nothing is read twice. Bytes per pair: two
// rows (512 for 64 floats), the two row numbers and 8 for the results; about 6 operations per dimension, a fifth of
// what the arithmetic could do in that time. (The floor has a distinct row, and its norm, once: what tables larger than
// the caches read again is lost of it.) With 2,048 threads on a multiprocessor 64 KiB are on their way, four times what
// covers the latency of memory, so that only rows shorter than a sector of 32 bytes leave the share of the bandwidth
// below 80 %.
//
// Gradient: with c = u.v / (|u| |v|) and g = dL/dc, that of u is
//   sum of g v / (|u| |v|) - (sum of g c) u / |u|^2  over its pairs.
// The pairs come sorted by u and are cut into tiles of kCosineTile. A group of lanes sums a tile: its lanes fetch the
// terms of as many pairs at once, and then the rows v one after the other, four on their way, into registers. A row u
// whose pairs all lie in one tile is finished there. The others leave a sum in each of their tiles (at most two per
// tile: its first row and its last), which a block per row then adds up. Popular rows are so spread over the device, no
// float is added atomically, and the order of every sum depends on the list of pairs alone. Bytes per pair: one row v
// (256 for 64 floats), 12 for the place in the sorted list, and four terms of 4 to 8 bytes, each from a sector of its
// own, but these arrays are small and stay in the second-level cache; per distinct row u one read and one write. 2
// operations per dimension of a pair, one for two bytes. Planned: 60 to 70 % of the bandwidth, the terms and the change
// of rows being what is lost.
#pragma once

#include "cosine_scores.h"
#include "device.cuh"

namespace metarec::cuda {

constexpr int kScoreThreads = 256, kTileThreads = 128;
// A block that adds up the sums of tiles: columns of the row, and how many tiles are added at once.
constexpr int kColumns = kWarp, kTilesAtOnce = 8;

template <class Stored, int kVector>
__global__ void __launch_bounds__(kScoreThreads)
    score_pairs(CosineTables<Stored> tables, Rows left_rows, Rows right_rows, std::int64_t pairs, int lanes,
                Arithmetic<Stored>* __restrict__ scores, Arithmetic<Stored>* __restrict__ inverse_norms) {
  using Real = Arithmetic<Stored>;
  using Packed = Pack<Stored, kVector>;
  const LaneGroup group(lanes);
  const std::int64_t pair = (std::int64_t{blockIdx.x} * kScoreThreads + threadIdx.x) / lanes;
  if (pair >= pairs) return;
  const std::int64_t left_row = row_at(left_rows, pair), right_row = row_at(right_rows, pair);
  METAREC_DEVICE_CHECK(left_row >= 0 && left_row < tables.left_count,
                       "cosine_scores: a row of the first table is not in it");
  METAREC_DEVICE_CHECK(right_row >= 0 && right_row < tables.right_count,
                       "cosine_scores: a row of the second table is not in it");
  const Stored* left = tables.left + left_row * tables.dim;
  const Stored* right = tables.right + right_row * tables.dim;
  Real product = 0, left_square = 0, right_square = 0;
  for (std::int64_t i = group.lane * kVector; i < tables.dim; i += lanes * kVector) {
    const Packed us = *reinterpret_cast<const Packed*>(left + i), vs = *reinterpret_cast<const Packed*>(right + i);
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      const Real u = load(us.values[j]), v = load(vs.values[j]);
      product += u * v, left_square += u * u, right_square += v * v;
    }
  }
  product = group.sum(product), left_square = group.sum(left_square), right_square = group.sum(right_square);
  if (group.lane > 0) return;
  constexpr Real epsilon = kNormEpsilon;
  const Real inverse = 1 / (max(sqrt(left_square), epsilon) * max(sqrt(right_square), epsilon));
  inverse_norms[pair] = inverse;
  scores[pair] = product * inverse;
}

// Where the gradient of the row at a place of the sorted list stands.
template <class Stored>
__device__ Stored* result_of(const CosineGradientTerms<Stored>& terms, std::int64_t place) {
  return terms.result + (terms.result_rows ? terms.result_rows[place] : terms.sorted_rows[place]) * terms.tables.dim;
}

// The part of the gradient of u that no pair changes: has it a direction, and the factor of -u.
template <class Real>
struct Along {
  bool has_direction;
  Real factor;
  __device__ Along(Real along, Real square)
      : has_direction(!(sqrt(square) <= Real(kNormEpsilon))), factor(along / square) {}
  __device__ Real gradient(Real sum, Real u) const { return has_direction ? sum - factor * u : Real(0); }
};

template <class Stored, int kVector>
__global__ void __launch_bounds__(kTileThreads, 4) sum_tiles(CosineGradientTerms<Stored> terms, int lanes) {
  using Real = Arithmetic<Stored>;
  using Packed = Pack<Stored, kVector>;
  const LaneGroup group(lanes);
  const std::int64_t dim = terms.tables.dim;
  const std::int64_t tile = (std::int64_t{blockIdx.x} * kTileThreads + threadIdx.x) / lanes;
  const std::int64_t begin = tile * kCosineTile, end = min(begin + kCosineTile, terms.pairs);
  if (begin >= end) return;
  const std::int64_t column = (std::int64_t{blockIdx.y} * lanes + group.lane) * kVector;
  const bool inside = column < dim;

  Real sums[kVector] = {}, along = 0;
  std::int64_t first = begin;  // place of the current row's first pair in this tile
  std::int32_t row = terms.sorted_rows[begin];

  const auto finish_row = [&](std::int64_t after) {
    const bool came_in = first == begin && begin > 0 && terms.sorted_rows[begin - 1] == row;
    const bool goes_on = after == end && end < terms.pairs && terms.sorted_rows[end] == row;
    if (came_in || goes_on) {
      Real* to = terms.tile_sums + (tile * 2 + (came_in ? 0 : 1)) * (dim + 1);
      for (int j = 0; j < kVector && inside; ++j) to[column + j] = sums[j];
      if (column == 0) to[dim] = along;
      return;
    }
    const Stored* u = terms.tables.left + row * dim;
    Real square = 0;
    for (std::int64_t i = group.lane * kVector; i < dim; i += lanes * kVector) {
      const Packed us = *reinterpret_cast<const Packed*>(u + i);
#pragma unroll
      for (int j = 0; j < kVector; ++j) square += load(us.values[j]) * load(us.values[j]);
    }
    const Along<Real> direction(along, group.sum(square));
    if (!inside) return;
    const Packed us = *reinterpret_cast<const Packed*>(u + column);
    Packed written;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      written.values[j] = store<Stored>(direction.gradient(sums[j], load(us.values[j])));
    }
    *reinterpret_cast<Packed*>(result_of(terms, first) + column) = written;
  };

  for (std::int64_t batch = begin; batch < end; batch += lanes) {
    // Every lane fetches the terms of a pair of its own, and hands them round.
    const std::int64_t own = batch + group.lane;
    Real own_weight = 0, own_along = 0;
    std::int64_t own_right = 0;
    std::int32_t own_row = row;
    if (own < end) {
      const std::int64_t pair = terms.order[own];
      const Real g = terms.of_scores[pair];
      own_weight = g * terms.inverse_norms[pair];
      own_along = g * terms.scores[pair];
      own_right = row_at(terms.right_rows, pair);
      own_row = terms.sorted_rows[own];
      METAREC_DEVICE_CHECK(own_right >= 0 && own_right < terms.tables.right_count,
                           "cosine_scores: a row of the second table is not in it");
    }
    const int count = static_cast<int>(min(end - batch, std::int64_t{lanes}));
    for (int i = 0; i < count; i += 4) {
      Packed ahead[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {  // beyond the last pair, row 0 of a table that has one
        const std::int64_t right = group.of(own_right, i + k);
        if (inside) ahead[k] = *reinterpret_cast<const Packed*>(terms.tables.right + right * dim + column);
      }
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Real weight = group.of(own_weight, i + k), more = group.of(own_along, i + k);
        const std::int32_t next = group.of(own_row, i + k);
        if (i + k >= count) break;
        if (next != row) {
          finish_row(batch + i + k);
          row = next, first = batch + i + k, along = 0;
          for (int j = 0; j < kVector; ++j) sums[j] = 0;
        }
        along += more;
        if (inside) {
#pragma unroll
          for (int j = 0; j < kVector; ++j) sums[j] += weight * load(ahead[k].values[j]);
        }
      }
    }
  }
  finish_row(end);
}

// Adds up the sums of the tiles of a row that lies in several; a block for each tile, which has work where a row begins
// in that tile and goes on after it.
template <class Stored>
__global__ void __launch_bounds__(kColumns* kTilesAtOnce) finish_rows(CosineGradientTerms<Stored> terms) {
  using Real = Arithmetic<Stored>;
  const std::int64_t dim = terms.tables.dim, tile = blockIdx.x;
  const std::int64_t begin = tile * kCosineTile, after = begin + kCosineTile;
  if (after >= terms.pairs) return;
  const std::int32_t row = terms.sorted_rows[after];
  if (terms.sorted_rows[after - 1] != row) return;
  if (begin > 0 && terms.sorted_rows[begin - 1] == row) return;

  // The place after the row's last pair, by bisection.
  std::int64_t low = after, high = terms.pairs;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (terms.sorted_rows[middle] == row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  const std::int64_t tiles = (low - 1) / kCosineTile - tile + 1;

  const int x = static_cast<int>(threadIdx.x) % kColumns, y = static_cast<int>(threadIdx.x) / kColumns;
  METAREC_SHARED(partial, Real[kTilesAtOnce][kColumns + 1]);
  METAREC_SHARED(partial_along, Real[kTilesAtOnce]);
  const auto sums_of = [&](std::int64_t i) {
    return terms.tile_sums + ((tile + i) * 2 + (i == 0 ? 1 : 0)) * (dim + 1);
  };
  const std::int64_t column = std::int64_t{blockIdx.y} * kColumns + x;
  Real sum = 0, along = 0;
  for (std::int64_t i = y; i < tiles; i += kTilesAtOnce) {
    const Real* from = sums_of(i);
    if (column < dim) sum += from[column];
    if (x == 0) along += from[dim];
  }
  partial[y][x] = sum;
  if (x == 0) partial_along[y] = along;
  __syncthreads();
  if (y > 0) return;

  sum = along = 0;
  for (int i = 0; i < kTilesAtOnce; ++i) sum += partial[i][x], along += partial_along[i];
  const Stored* u = terms.tables.left + row * dim;
  Real square = 0;
  for (std::int64_t i = x; i < dim; i += kColumns) square += load(u[i]) * load(u[i]);
  const Along<Real> direction(along, LaneGroup(kWarp).sum(square));
  if (column < dim) result_of(terms, after)[column] = store<Stored>(direction.gradient(sum, load(u[column])));
}

// Calls function(constant) with how many values of a row are read at once.
template <class Stored, class Function>
void with_vector(const CosineTables<Stored>& tables, const Function& function) {
  if (has_wide_rows(tables.left, tables.dim) && has_wide_rows(tables.right, tables.dim)) {
    function(std::integral_constant<int, kWidest<Stored>>{});
  } else {
    function(std::integral_constant<int, 1>{});
  }
}

template <class Launch, class Stored>
void cosine_scores(const Launch& launch, const CosineTables<Stored>& tables, Rows left_rows, Rows right_rows,
                   std::int64_t pairs, Arithmetic<Stored>* scores, Arithmetic<Stored>* inverse_norms) {
  if (pairs == 0) return;
  with_vector(tables, [&]<int kVector>(std::integral_constant<int, kVector>) {
    const int lanes = lanes_for(ceil_div(tables.dim, kVector));
    launch(Grid{ceil_div(pairs * lanes, kScoreThreads), kScoreThreads}, score_pairs<Stored, kVector>, tables,
           left_rows, right_rows, pairs, lanes, scores, inverse_norms);
  });
}

template <class Launch, class Stored>
void cosine_scores_gradient(const Launch& launch, const CosineGradientTerms<Stored>& terms) {
  const std::int64_t dim = terms.tables.dim, tiles = ceil_div(terms.pairs, kCosineTile);
  if (terms.pairs == 0 || dim == 0) return;
  with_vector(terms.tables, [&]<int kVector>(std::integral_constant<int, kVector>) {
    const int lanes = lanes_for(ceil_div(dim, kVector));
    launch(Grid{ceil_div(tiles * lanes, kTileThreads), kTileThreads, ceil_div(dim, lanes * kVector)},
           sum_tiles<Stored, kVector>, terms, lanes);
  });
  launch(Grid{tiles, kColumns * kTilesAtOnce, ceil_div(dim, kColumns)}, finish_rows<Stored>, terms);
}

}  // namespace metarec::cuda
