// One step of an optimiser on every row that has gradients.
//
// The entries of a row are a run of the sorted list. A group of lanes, one per 16 bytes of a row up to a whole warp, takes
// a chunk of the list and makes the step of every run that begins there. A run that goes on is completed from sums of
// heads: of each chunk, and of each chunk of chunks, what belongs to a run that began before. So a gradient is read once,
// a row and its state are read and written once, a popular row is shared by many groups, and every sum has an order that
// depends on the list alone: no atomics, the same bits each time.
//
// Bytes, per gradient of d floats with a share r of distinct rows: 4 d + 12 for the gradient and its place, and r 8 d
// (Adam: r 24 d) for table and state; heads add at most 8 d / 32. Fewer than one operation per byte: memory decides. Where
// d allows accesses are of 16 bytes (two of a pack of state beside one of BFloat16), those of a row are whole sectors,
// and four gradients of a run are on their way at a time. Planned: 70 % of the bandwidth from some 10^5 gradients on;
// fewer do not fill the device. Row-wise Adagrad sums a run twice, for the square and for the step; the second time it
// lies in the first-level cache. Of BFloat16, per gradient 2 d + 12, and r 4 d (Adam: r 20 d); sums and state are
// floats.
#pragma once

#include "device.cuh"
#include "embedding_update_.h"
#include "metarec/random.h"

namespace metarec::cuda {

constexpr int kUpdateThreads = 128;

// Sums of what belongs to a run that began before: first[c] of chunk c of the entries, second[c] of chunk c of the
// first. Others are not written.
template <class Real>
struct Heads {
  Real* first;   // [chunks, dim]
  Real* second;  // [chunks of chunks, dim]

  template <class Stored>
  explicit Heads(const RowUpdates<Stored>& updates)
      : first(updates.heads), second(updates.heads + ceil_div(updates.count, kUpdateChunk) * updates.dim) {}
};

// Where the run of entry i ends, at most `limit`.
__device__ __forceinline__ std::int64_t run_end(const std::int32_t* rows, std::int64_t i, std::int64_t limit) {
  const std::int32_t row = rows[i];
  do ++i;
  while (i < limit && rows[i] == row);
  return i;
}

// Adds vectors [begin, end), one after the other, at a pack of columns. `order` says which vectors, or null: these.
template <int kWidth, class Stored, class Real = Arithmetic<Stored>>
__device__ __forceinline__ void add_vectors(Pack<Real, kWidth>& total, const Stored* values, const std::int64_t* order,
                                            std::int64_t begin, std::int64_t end, std::int64_t dim,
                                            std::int64_t column) {
#pragma unroll 4
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t at = order != nullptr ? order[i] : i;
    const auto pack = *reinterpret_cast<const Pack<Stored, kWidth>*>(values + at * dim + column);
#pragma unroll
    for (int w = 0; w < kWidth; ++w) total.values[w] += load(pack.values[w]);
  }
}

// A group of lanes per chunk of entries.
template <class Stored, int kWidth>
__global__ void __launch_bounds__(kUpdateThreads)
    sum_heads(RowUpdates<Stored> updates, Heads<Arithmetic<Stored>> heads, int lanes) {
  using Real = Arithmetic<Stored>;
  const LaneGroup group(lanes);
  const std::int64_t chunk = (std::int64_t{blockIdx.x} * kUpdateThreads + threadIdx.x) / lanes;
  const std::int64_t begin = chunk * kUpdateChunk;
  if (chunk == 0 || begin >= updates.count || updates.rows[begin] != updates.rows[begin - 1]) return;
  const std::int64_t end = run_end(updates.rows, begin, min(begin + kUpdateChunk, updates.count));
  for (std::int64_t column = group.lane * kWidth; column < updates.dim; column += lanes * kWidth) {
    Pack<Real, kWidth> total{};
    add_vectors(total, updates.gradients, updates.order, begin, end, updates.dim, column);
    *reinterpret_cast<Pack<Real, kWidth>*>(heads.first + chunk * updates.dim + column) = total;
  }
}

// A group of lanes per chunk of heads. A head belongs to a run where its chunk begins with it.
template <class Stored, int kWidth>
__global__ void __launch_bounds__(kUpdateThreads)
    sum_heads_of_heads(RowUpdates<Stored> updates, Heads<Arithmetic<Stored>> heads, int lanes) {
  using Real = Arithmetic<Stored>;
  const LaneGroup group(lanes);
  const std::int64_t chunk = (std::int64_t{blockIdx.x} * kUpdateThreads + threadIdx.x) / lanes;
  const std::int64_t begin = chunk * kUpdateChunk;
  if (chunk == 0 || begin * kUpdateChunk >= updates.count) return;
  const std::int32_t row = updates.rows[begin * kUpdateChunk - 1];
  const auto goes_on = [&](std::int64_t head) {
    return head * kUpdateChunk < updates.count && updates.rows[head * kUpdateChunk] == row;
  };
  std::int64_t end = begin;
  while (end < begin + kUpdateChunk && goes_on(end)) ++end;
  if (end == begin) return;
  for (std::int64_t column = group.lane * kWidth; column < updates.dim; column += lanes * kWidth) {
    Pack<Real, kWidth> total{};
    add_vectors<kWidth, Real>(total, heads.first, nullptr, begin, end, updates.dim, column);
    *reinterpret_cast<Pack<Real, kWidth>*>(heads.second + chunk * updates.dim + column) = total;
  }
}

// A run that begins in a chunk: its entries there, then first heads, then second ones.
struct Run {
  std::int64_t begin, end, first_begin, first_end, second_begin, second_end;

  __device__ Run(const std::int32_t* rows, std::int64_t count, std::int64_t start, std::int64_t chunk)
      : begin(start), end(run_end(rows, start, min((chunk + 1) * kUpdateChunk, count))), first_begin(chunk + 1),
        first_end(chunk + 1), second_begin(0), second_end(0) {
    const auto goes_on = [&](std::int64_t i) { return i < count && rows[i] == rows[start]; };
    if (end != (chunk + 1) * kUpdateChunk) return;
    while (first_end % kUpdateChunk != 0 && goes_on(first_end * kUpdateChunk)) ++first_end;
    if (first_end % kUpdateChunk != 0) return;
    second_begin = second_end = first_end / kUpdateChunk;
    while (goes_on(second_end * kUpdateChunk * kUpdateChunk)) ++second_end;
  }

  // The gradient of the row, penalty and all, at a pack of columns that holds `value`.
  template <int kWidth, class Stored, class Real = Arithmetic<Stored>>
  __device__ __forceinline__ Pack<Real, kWidth> gradient(const RowUpdates<Stored>& updates, const Heads<Real>& heads,
                                                         std::int64_t column, const Pack<Stored, kWidth>& value) const {
    Pack<Real, kWidth> total{};
    add_vectors(total, updates.gradients, updates.order, begin, end, updates.dim, column);
    add_vectors<kWidth, Real>(total, heads.first, nullptr, first_begin, first_end, updates.dim, column);
    add_vectors<kWidth, Real>(total, heads.second, nullptr, second_begin, second_end, updates.dim, column);
#pragma unroll
    for (int w = 0; w < kWidth; ++w) total.values[w] += updates.rates.l2 * load(value.values[w]);
    return total;
  }
};

template <class Real>
struct ScaledStep {
  Real rate;

  template <int kWidth>
  __device__ __forceinline__ Pack<Real, kWidth> operator()(std::int64_t, Pack<Real, kWidth> gradient) const {
#pragma unroll
    for (int w = 0; w < kWidth; ++w) gradient.values[w] *= rate;
    return gradient;
  }
};

template <class Real>
struct AdamStep {
  Real rate, root, beta1, rest1, beta2, rest2, eps;
  Real* means;    // of the row
  Real* squares;  // the same

  template <int kWidth>
  __device__ __forceinline__ Pack<Real, kWidth> operator()(std::int64_t column,
                                                           const Pack<Real, kWidth>& gradient) const {
    auto& mean = *reinterpret_cast<Pack<Real, kWidth>*>(means + column);
    auto& square = *reinterpret_cast<Pack<Real, kWidth>*>(squares + column);
    Pack<Real, kWidth> m = mean, s = square, change;
#pragma unroll
    for (int w = 0; w < kWidth; ++w) {
      const Real g = gradient.values[w];
      m.values[w] = beta1 * m.values[w] + rest1 * g;
      s.values[w] = beta2 * s.values[w] + rest2 * (g * g);
      change.values[w] = rate * m.values[w] / (root * sqrt(s.values[w]) + eps);
    }
    mean = m;
    square = s;
    return change;
  }
};

// Rules update what they keep of a row as a whole, and give the step of its columns. All lanes of the group call.
template <class Rule>
constexpr bool kNeedsSquares = false;
template <class Real>
constexpr bool kNeedsSquares<AdagradRule<Real>> = true;

template <class Real, class Stored>
__device__ ScaledStep<Real> begin_step(const SgdRule<Real>&, std::int32_t, const RowUpdates<Stored>& updates, Real,
                                       const LaneGroup&) {
  return {updates.rates.lr};
}

template <class Real, class Stored>
__device__ ScaledStep<Real> begin_step(const AdagradRule<Real>& rule, std::int32_t row,
                                       const RowUpdates<Stored>& updates, Real mean_square, const LaneGroup& group) {
  const Real total = rule.sums[row] + mean_square;
  __syncwarp(group.mask);
  if (group.lane == 0) rule.sums[row] = total;
  return {updates.rates.lr / (sqrt(total) + rule.eps)};
}

// 1 - beta^t by expm1, which keeps its digits where beta^t is near 1.
template <class Real, class Stored>
__device__ AdamStep<Real> begin_step(const AdamRule<Real>& rule, std::int32_t row, const RowUpdates<Stored>& updates,
                                     Real, const LaneGroup& group) {
  const std::int32_t step = rule.steps[row] + 1;
  __syncwarp(group.mask);
  if (group.lane == 0) rule.steps[row] = step;
  const auto count = static_cast<Real>(step);
  const Real rate = updates.rates.lr / -expm1(count * rule.log_beta1);
  const Real root = 1 / sqrt(-expm1(count * rule.log_beta2));
  const std::int64_t at = row * updates.dim;
  return {rate,       root,       rule.beta1, rule.rest1,      rule.beta2,
          rule.rest2, rule.eps, rule.means + at, rule.squares + at};
}

// What a value of a row is stored as.
template <class Stored>
struct RowRounding {
  __device__ RowRounding(const RowUpdates<Stored>&, std::int32_t) {}
  __device__ Stored operator()(Stored value, std::int64_t) const { return value; }
};

template <>
struct RowRounding<BFloat16> {
  bool stochastic;
  RowNoise noise;

  __device__ RowRounding(const RowUpdates<BFloat16>& updates, std::int32_t row)
      : stochastic(updates.seed >= 0), noise(static_cast<std::uint64_t>(updates.seed), static_cast<std::uint64_t>(row)) {}
  __device__ BFloat16 operator()(float value, std::int64_t column) const {
    return stochastic ? store<BFloat16>(value, noise(column)) : store<BFloat16>(value);
  }
};

// Makes the steps of the runs that begin in a chunk, a group of lanes per chunk.
template <class Stored, class Rule, int kWidth>
__global__ void __launch_bounds__(kUpdateThreads, 4)
    update_rows(RowUpdates<Stored> updates, Heads<Arithmetic<Stored>> heads, Rule rule, int lanes) {
  using Real = Arithmetic<Stored>;
  using Values = Pack<Stored, kWidth>;
  const LaneGroup group(lanes);
  const std::int64_t chunk = (std::int64_t{blockIdx.x} * kUpdateThreads + threadIdx.x) / lanes;
  const std::int64_t stop = min((chunk + 1) * kUpdateChunk, updates.count);
  std::int64_t start = chunk * kUpdateChunk;
  if (start >= stop) return;
  if (chunk > 0 && updates.rows[start] == updates.rows[start - 1]) start = run_end(updates.rows, start, stop);
  while (start < stop) {
    const Run run(updates.rows, updates.count, start, chunk);
    const std::int32_t row = updates.rows[start];
    Stored* const table = updates.table + row * updates.dim;
    Real square = 0;
    if constexpr (kNeedsSquares<Rule>) {
      for (std::int64_t column = group.lane * kWidth; column < updates.dim; column += lanes * kWidth) {
        const auto g = run.gradient(updates, heads, column, *reinterpret_cast<const Values*>(table + column));
#pragma unroll
        for (int w = 0; w < kWidth; ++w) square += g.values[w] * g.values[w];
      }
      square = group.sum(square) / static_cast<Real>(max(updates.dim, std::int64_t{1}));
    }
    const auto step = begin_step(rule, row, updates, square, group);
    const RowRounding<Stored> rounded(updates, row);
    for (std::int64_t column = group.lane * kWidth; column < updates.dim; column += lanes * kWidth) {
      Values& place = *reinterpret_cast<Values*>(table + column);
      Values value = place;
      const auto change = step(column, run.gradient(updates, heads, column, value));
#pragma unroll
      for (int w = 0; w < kWidth; ++w) {
        const Real kept = updates.rates.kept * load(value.values[w]);
        value.values[w] = rounded(kept - change.values[w], column + w);
      }
      place = value;
    }
    start = run.end;
  }
}

template <class Launch, class Stored, class Rule>
void embedding_update(const Launch& launch, const RowUpdates<Stored>& updates, const Rule& rule) {
  if (updates.count == 0) return;
  const Heads<Arithmetic<Stored>> heads(updates);
  const std::int64_t chunks = ceil_div(updates.count, kUpdateChunk);
  const auto with_width = [&]<int kWidth>(std::integral_constant<int, kWidth>) {
    const int lanes = lanes_for(ceil_div(updates.dim, kWidth));
    const auto grid = [&](std::int64_t groups) {
      return Grid{ceil_div(groups * lanes, kUpdateThreads), kUpdateThreads};
    };
    launch(grid(chunks), sum_heads<Stored, kWidth>, updates, heads, lanes);
    launch(grid(ceil_div(chunks, kUpdateChunk)), sum_heads_of_heads<Stored, kWidth>, updates, heads, lanes);
    launch(grid(chunks), update_rows<Stored, Rule, kWidth>, updates, heads, rule, lanes);
  };
  if (has_wide_rows(updates.table, updates.dim) && has_wide_rows(updates.gradients, updates.dim)) {
    with_width(std::integral_constant<int, kWidest<Stored>>{});
  } else {
    with_width(std::integral_constant<int, 1>{});
  }
}

}  // namespace metarec::cuda
