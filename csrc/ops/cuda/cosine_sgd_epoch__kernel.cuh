// An epoch of stochastic gradient descent, in the order of the CPU's: to rounding the same numbers, and for one seed the
// same bits.
//
// The order. A shuffle goes through its places one after the other, but what it brings to each can be found for all at
// once. The value that place p takes stood at its partner q; that is what the last swap before put there, from a place
// after p, or the first one there. So each place lists the swaps that it is the partner of, which are ln(n / q) for q of
// n, and a value is followed back from swap to swap, once on average. Links are made by atomic exchange of integers: the
// lists come in any order, and what is found is the same. Some 30 bytes per row and rating; the rest is sorting.
//
// The steps. A warp has the ratings of a block, which share rows with no other block of the round: a launch per round, and
// its blocks on as many multiprocessors. Of the ratings that come next, up to eight that share no row are taken at once,
// four lanes each: products, then the slopes one after the other, for each moves the scale and the bias that the next one
// is predicted by, then the moves. Four lanes read up to 64 floats of both rows, or 128 values of 16 bits, into registers,
// by accesses of 16 bytes, and move them there; longer rows are read twice.
//
// A rating takes 12 bytes in order and, of d floats, 16 d from and to the cache: the rows of a block, (users + items) /
// groups * 4 d bytes, stay in the first level during its round; in 16 bits both are half. It takes 12 d operations by
// cosine and 8 d by dot product. Neither decides: the grid of blocks is the CPU's, at most 64 warps, and each waits.
// Eight ratings wait once for their rows, the sums over four lanes, a root and two divisions, some 600 cycles in all
// with d = 64; and each for the slope before, 12 cycles or with a logistic one 100. Where five share no row that is some
// 130 cycles per rating and block: of 10^6 ratings, in 32 groups, 2.5 ms. A share of the bandwidth cannot be aimed at,
// and of the chain of slopes alone 60 % only by the logistic loss. What is planned is the time of 16 to 64 cores.
#pragma once

#include <limits>

#include "cosine_sgd_epoch_.h"
#include "device.cuh"

namespace metarec::cuda {

constexpr int kOrderThreads = 128;
constexpr std::int32_t kNoSwap = std::numeric_limits<std::int32_t>::max();
constexpr int kStepLanes = 4, kStepsAtOnce = kWarp / kStepLanes;
constexpr int kStepPacks = 4;  // of a row that a lane holds in registers

// A shuffle of its own: what stands at [begin, end).
struct ShuffledPart {
  std::int64_t begin, end;
  std::uint64_t stream;
};

// Users and items.
struct RowParts {
  std::int64_t users, rows;
  std::uint64_t seed;

  __device__ ShuffledPart of(std::int64_t place) const {
    return place < users ? ShuffledPart{0, users, kUserStream} : ShuffledPart{users, rows, kItemStream};
  }
};

// The blocks of ratings.
struct BlockParts {
  const std::int16_t* blocks;
  const std::int32_t* begins;
  std::uint64_t seed;

  __device__ ShuffledPart of(std::int64_t place) const {
    const std::int16_t block = blocks[place];
    return {begins[block], begins[block + 1], kBlockStreams + static_cast<std::uint64_t>(block)};
  }
};

template <class Parts>
__device__ __forceinline__ std::int64_t partner_of(const Parts& parts, std::int64_t place) {
  const ShuffledPart part = parts.of(place);
  return part.begin + Shuffle(parts.seed, part.stream).partner(place - part.begin, part.end - part.begin);
}

template <class Parts>
__global__ void __launch_bounds__(kOrderThreads) link_swaps(Parts parts, std::int64_t places, Swaps swaps) {
  const std::int64_t place = std::int64_t{blockIdx.x} * kOrderThreads + threadIdx.x;
  if (place >= places) return;
  swaps.previous[place] = atomicExch(swaps.last + partner_of(parts, place), static_cast<std::int32_t>(place));
}

// Where the value stood before the shuffle that stands at a place after it. Swaps go from the last place to the first: the
// one that put a value at `from` before the swap of `before` is the nearest after that.
template <class Parts>
__device__ __forceinline__ std::int64_t shuffled_from(const Parts& parts, const Swaps& swaps, std::int64_t place) {
  std::int64_t from = partner_of(parts, place), before = place;
  while (true) {
    std::int32_t nearest = kNoSwap;
    for (std::int32_t swap = swaps.last[from]; swap >= 0; swap = swaps.previous[swap]) {
      if (swap > before) nearest = min(nearest, swap);
    }
    if (nearest == kNoSwap) return from;
    from = before = nearest;
  }
}

template <class Count>
__global__ void __launch_bounds__(kOrderThreads) count_ratings(SgdEntries entries, Count* counts) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kOrderThreads + threadIdx.x;
  if (i >= entries.count) return;
  atomicAdd(counts + entries.user[i], 1);
  atomicAdd(counts + entries.users + entries.item[i], 1);
}

template <class Count>
__global__ void __launch_bounds__(kOrderThreads) place_rows(RowParts parts, Swaps swaps, const Count* __restrict__ counts,
                                                            std::int32_t* __restrict__ shuffled,
                                                            Count* __restrict__ shuffled_counts) {
  const std::int64_t place = std::int64_t{blockIdx.x} * kOrderThreads + threadIdx.x;
  if (place >= parts.rows) return;
  const std::int64_t row = shuffled_from(parts, swaps, place);
  shuffled[place] = static_cast<std::int32_t>(row);
  shuffled_counts[place] = counts[row];
}

template <class Launch>
void shuffle_rows(const Launch& launch, const SgdEntries& entries, const Swaps& swaps, std::int32_t* counts,
                  std::int32_t* shuffled, std::int32_t* shuffled_counts) {
  if (entries.count == 0) return;
  const RowParts parts{entries.users, entries.rows(), entries.seed};
  const Grid each_row{ceil_div(entries.rows(), kOrderThreads), kOrderThreads};
  launch(Grid{ceil_div(entries.count, kOrderThreads), kOrderThreads}, count_ratings<std::int32_t>, entries, counts);
  launch(each_row, link_swaps<RowParts>, parts, entries.rows(), swaps);
  launch(each_row, place_rows<std::int32_t>, parts, swaps, counts, shuffled, shuffled_counts);
}

template <class Group>
__global__ void __launch_bounds__(kOrderThreads)
    group_rows(SgdEntries entries, std::int64_t rows, std::int64_t count, const std::int32_t* __restrict__ shuffled,
               const std::int32_t* __restrict__ shuffled_counts, const std::int64_t* __restrict__ sums,
               Group* __restrict__ groups) {
  const std::int64_t place = std::int64_t{blockIdx.x} * kOrderThreads + threadIdx.x;
  if (place >= rows) return;
  const std::int64_t before = sums[place] - shuffled_counts[place] - (place < entries.users ? 0 : entries.count);
  groups[shuffled[place]] = static_cast<Group>(sgd_group(before, count, entries.count));
}

template <class Block>
__global__ void __launch_bounds__(kOrderThreads)
    block_ratings(SgdEntries entries, std::int64_t count, const std::int32_t* __restrict__ groups,
                  Block* __restrict__ blocks) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kOrderThreads + threadIdx.x;
  if (i >= entries.count) return;
  blocks[i] = static_cast<Block>(groups[entries.user[i]] * count + groups[entries.users + entries.item[i]]);
}

template <class Launch>
void find_blocks(const Launch& launch, const SgdEntries& entries, const std::int32_t* shuffled,
                 const std::int32_t* shuffled_counts, const std::int64_t* sums, std::int32_t* groups,
                 std::int16_t* blocks) {
  if (entries.count == 0) return;
  launch(Grid{ceil_div(entries.rows(), kOrderThreads), kOrderThreads}, group_rows<std::int32_t>, entries, entries.rows(),
         entries.groups(), shuffled, shuffled_counts, sums, groups);
  launch(Grid{ceil_div(entries.count, kOrderThreads), kOrderThreads}, block_ratings<std::int16_t>, entries,
         entries.groups(), groups, blocks);
}

// A thread for each place between two ratings, which is where blocks begin.
template <class Begin>
__global__ void __launch_bounds__(kOrderThreads) find_begins(const std::int16_t* __restrict__ blocks, std::int64_t count,
                                                             std::int64_t block_count, Begin* __restrict__ begins) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kOrderThreads + threadIdx.x;
  if (i > count) return;
  const std::int64_t last = i == count ? block_count : blocks[i];
  for (std::int64_t block = i == 0 ? 0 : blocks[i - 1] + 1; block <= last; ++block) begins[block] = static_cast<Begin>(i);
}

// Puts the ratings of each block in random order.
template <class Real, bool kLogistic>
__global__ void __launch_bounds__(kOrderThreads)
    place_ratings(SgdEntries entries, SgdBlocks<Real> blocks, const Real* __restrict__ values) {
  const std::int64_t place = std::int64_t{blockIdx.x} * kOrderThreads + threadIdx.x;
  if (place >= entries.count) return;
  const BlockParts parts{blocks.blocks, blocks.begins, entries.seed};
  const std::int64_t entry = blocks.order[shuffled_from(parts, blocks.swaps, place)];
  const Real value = values[entry];
  if constexpr (kLogistic) {
    METAREC_DEVICE_CHECK(value >= 0 && value <= 1, "cosine_sgd_epoch_: ratings must be from 0 to 1 for the logistic loss");
  } else {
    METAREC_DEVICE_CHECK(value - value == 0, "cosine_sgd_epoch_: ratings must be finite");
  }
  blocks.ratings[place] = {entries.user[entry], entries.item[entry], value};
}

// The mean of what the blocks of a round leave. All lanes of the warp call.
template <class Real>
__device__ __forceinline__ SgdHead<Real> mean_head(const SgdHead<Real>* heads, std::int64_t groups) {
  const LaneGroup warp(kWarp);
  SgdHead<Real> total{0, 0};
  for (std::int64_t group = warp.lane; group < groups; group += kWarp) {
    total.scale += heads[group].scale, total.bias += heads[group].bias;
  }
  return {warp.sum(total.scale) / static_cast<Real>(groups), warp.sum(total.bias) / static_cast<Real>(groups)};
}

// What a lane has of the rows of a rating.
template <class Stored, int kWidth>
struct HeldRows {
  static constexpr std::int64_t kStride = kStepLanes * kWidth, kColumns = kStepPacks * kStride;
  Pack<Stored, kWidth> left[kStepPacks], right[kStepPacks];

  __device__ __forceinline__ void read(const Stored* lefts, const Stored* rights, std::int64_t column,
                                       std::int64_t dim) {
#pragma unroll
    for (int p = 0; p < kStepPacks; ++p) {
      const std::int64_t at = column + p * kStride;
      left[p] = right[p] = {};
      if (at >= dim) continue;
      left[p] = *reinterpret_cast<const Pack<Stored, kWidth>*>(lefts + at);
      right[p] = *reinterpret_cast<const Pack<Stored, kWidth>*>(rights + at);
    }
  }

  __device__ __forceinline__ void write(Stored* lefts, Stored* rights, std::int64_t column, std::int64_t dim) const {
#pragma unroll
    for (int p = 0; p < kStepPacks; ++p) {
      const std::int64_t at = column + p * kStride;
      if (at >= dim) continue;
      *reinterpret_cast<Pack<Stored, kWidth>*>(lefts + at) = left[p];
      *reinterpret_cast<Pack<Stored, kWidth>*>(rights + at) = right[p];
    }
  }

  // Calls function(left value, right value, how many columns they are after the lane's first).
  template <class Function>
  __device__ __forceinline__ void for_each(const Function& function) {
#pragma unroll
    for (int p = 0; p < kStepPacks; ++p) {
#pragma unroll
      for (int w = 0; w < kWidth; ++w) function(left[p].values[w], right[p].values[w], p * kStride + w);
    }
  }
};

// What a step makes of a value, as it is stored: in 16 bits rounded by the noise of the row.
template <class Stored>
__device__ __forceinline__ Stored store_moved(Arithmetic<Stored> value, const RowNoise& noise, std::int64_t column) {
  if constexpr (std::is_same_v<Stored, BFloat16>) {
    return store<Stored>(value, noise(column));
  } else {
    return value;
  }
}

// What the prediction of a rating needs beside the head.
template <class Real>
struct StepTerms {
  Real similarity, biases, value;
};

// Where a rating stands when its turn comes.
template <class Real>
struct StepSlope {
  Real predicted, slope, scale;
};

// Goes on from rating to rating, and gives what belongs to the one of this lane.
template <bool kLogistic, class Real>
__device__ __forceinline__ StepSlope<Real> follow_slopes(const StepTerms<Real>* terms, int count, int own, Real head_lr,
                                                         SgdHead<Real>& head) {
  StepSlope<Real> of_own{};
#pragma unroll
  for (int i = 0; i < kStepsAtOnce; ++i) {
    const StepTerms<Real> term = terms[i];
    if (i >= count) break;
    const Real predicted = head.scale * term.similarity + (head.bias + term.biases);
    Real slope = predicted - term.value;
    if constexpr (kLogistic) {
      const Real tail = exp(-fabs(predicted));
      slope = (predicted >= 0 ? 1 : tail) / (1 + tail) - term.value;
    }
    if (i == own) of_own = {predicted, slope, head.scale};
    head.scale -= head_lr * slope * term.similarity;
    head.bias -= head_lr * slope;
  }
  return of_own;
}

// How many of the ratings at hand, one per group of lanes, can be taken at once: those before the first that shares a row
// with one before it.
template <class Real>
__device__ __forceinline__ int count_apart(const SgdRating<Real>& rating, std::int64_t left) {
  const int lane = static_cast<int>(threadIdx.x) % kStepLanes, own = static_cast<int>(threadIdx.x) / kStepLanes;
  bool shares = own >= left;
  for (int other = lane; other < kStepsAtOnce + lane; other += kStepLanes) {
    const std::int32_t user = __shfl_sync(~0u, rating.user, other * kStepLanes);
    const std::int32_t item = __shfl_sync(~0u, rating.item, other * kStepLanes);
    shares |= other < own && (user == rating.user || item == rating.item);
  }
  const unsigned sharing = __ballot_sync(~0u, shares);
  return sharing == 0 ? kStepsAtOnce : (__ffs(static_cast<int>(sharing)) - 1) / kStepLanes;
}

// Makes the steps of the blocks of a round, a warp each.
template <class Stored, bool kCosine, bool kLogistic, int kWidth>
__global__ void __launch_bounds__(kWarp)
    run_blocks(SgdModel<Stored> model, SgdBlocks<Arithmetic<Stored>> blocks, SgdRates<Arithmetic<Stored>> rates,
               std::uint64_t seed, std::int64_t groups, std::int64_t round, std::int64_t diagonal) {
  using Real = Arithmetic<Stored>;
  using Held = HeldRows<Stored, kWidth>;
  constexpr Real epsilon = static_cast<Real>(kNormEpsilon);
  METAREC_SHARED(terms, StepTerms<Real>[kStepsAtOnce]);
  const LaneGroup lanes(kStepLanes);
  const int own = static_cast<int>(threadIdx.x) / kStepLanes;
  const std::int64_t group = blockIdx.x, block = sgd_block(group, diagonal, groups), dim = model.dim;
  const std::int64_t begin = blocks.begins[block], end = blocks.begins[block + 1];
  const auto rating_at = [&](std::int64_t i) { return i < end ? blocks.ratings[i] : SgdRating<Real>{}; };
  SgdHead<Real> head = round == 0 ? *model.head : mean_head(blocks.heads + (round - 1) * groups, groups);
  double losses = 0;
  SgdRating<Real> rating = rating_at(begin + own);
  for (std::int64_t at = begin; at < end;) {
    const int count = count_apart(rating, end - at);
    const std::int64_t place = at - begin + own;
    const RowNoise left_noise(seed, sgd_step_stream(block, place, kUserStream));
    const RowNoise right_noise(seed, sgd_step_stream(block, place, kItemStream));
    at += count;
    const SgdRating<Real> next = rating_at(at + own);

    // Those that must wait are read all the same: so they are in the cache when their turn comes.
    Stored* const left = model.users + rating.user * dim;
    Stored* const right = model.items + rating.item * dim;
    Real& left_bias = model.user_biases[rating.user];
    Real& right_bias = model.item_biases[rating.item];
    const Real left_before = left_bias, right_before = right_bias;
    Held rows;
    Real product = 0, left_square = 0, right_square = 0;
    for (std::int64_t column = lanes.lane * kWidth; column < dim; column += Held::kColumns) {
      rows.read(left, right, column, dim);
      rows.for_each([&](Stored u_stored, Stored v_stored, std::int64_t) {
        const Real u = load(u_stored), v = load(v_stored);
        product += u * v;
        if constexpr (kCosine) left_square += u * u, right_square += v * v;
      });
    }
    Real similarity = lanes.sum(product), inverse_norms = 1;
    bool left_turns = true, right_turns = true;
    if constexpr (kCosine) {
      left_square = lanes.sum(left_square), right_square = lanes.sum(right_square);
      const Real left_norm = sqrt(left_square), right_norm = sqrt(right_square);
      left_turns = left_norm > epsilon, right_turns = right_norm > epsilon;
      inverse_norms = 1 / (max(left_norm, epsilon) * max(right_norm, epsilon));
      similarity *= inverse_norms;
    }
    if (lanes.lane == 0) terms[own] = {similarity, left_before + right_before, rating.value};
    __syncwarp();
    const StepSlope<Real> step = follow_slopes<kLogistic>(terms, count, own, rates.head_lr, head);

    if (own < count) {
      const Real along = rates.lr * step.slope * step.scale;
      Real left_kept = rates.kept, right_kept = rates.kept, left_moved = -along * inverse_norms, right_moved = left_moved;
      if constexpr (kCosine) {
        if (left_turns) left_kept += along * similarity / left_square; else left_moved = 0;
        if (right_turns) right_kept += along * similarity / right_square; else right_moved = 0;
      }
      for (std::int64_t column = lanes.lane * kWidth; column < dim; column += Held::kColumns) {
        if (dim > Held::kColumns) rows.read(left, right, column, dim);
        rows.for_each([&](Stored& u_stored, Stored& v_stored, std::int64_t after) {
          const Real u = load(u_stored), v = load(v_stored);
          u_stored = store_moved<Stored>(left_kept * u + left_moved * v, left_noise, column + after);
          v_stored = store_moved<Stored>(right_kept * v + right_moved * u, right_noise, column + after);
        });
        rows.write(left, right, column, dim);
      }
      if (lanes.lane == 0) {
        left_bias = rates.kept * left_before - rates.lr * step.slope;
        right_bias = rates.kept * right_before - rates.lr * step.slope;
        if constexpr (kLogistic) {
          losses += static_cast<double>(max(step.predicted, Real(0)) + log1p(exp(-fabs(step.predicted))) -
                                        rating.value * step.predicted);
        } else {
          losses += static_cast<double>(step.slope * step.slope / 2);
        }
      }
    }
    rating = next;
    __syncwarp();
  }
  losses = LaneGroup(kWarp).sum(losses);
  if (threadIdx.x > 0) return;
  blocks.heads[round * groups + group] = head;
  blocks.losses[round * groups + group] = losses;
}

// A warp.
template <class Real>
__global__ void __launch_bounds__(kWarp) finish_epoch(SgdBlocks<Real> blocks, std::int64_t groups, std::int64_t count,
                                                      SgdHead<Real>* last, double* loss) {
  const LaneGroup warp(kWarp);
  const std::int64_t of_epoch = count > 0 ? groups * groups : 0;
  double losses = 0;
  for (std::int64_t i = warp.lane; i < of_epoch; i += kWarp) losses += blocks.losses[i];
  losses = warp.sum(losses);
  if (warp.lane == 0) *loss = losses / static_cast<double>(count);
  if (count == 0) return;
  const SgdHead<Real> head = mean_head(blocks.heads + (groups - 1) * groups, groups);
  if (warp.lane == 0) *last = head;
}

template <class Launch, class Stored>
void run_rounds(const Launch& launch, const SgdModel<Stored>& model, const SgdEntries& entries,
                const SgdBlocks<Arithmetic<Stored>>& blocks, const SgdOptions& options) {
  const std::int64_t groups = entries.groups();
  const SgdRates<Arithmetic<Stored>> rates(options);
  const auto with_kernel = [&](auto kernel) {
    std::int64_t round = 0;
    for (const std::int64_t diagonal : sgd_rounds(groups, entries.seed)) {
      launch(Grid{groups, kWarp}, kernel, model, blocks, rates, entries.seed, groups, round++, diagonal);
    }
  };
  const auto with_width = [&]<int kWidth>(std::integral_constant<int, kWidth>) {
    const bool logistic = options.loss == RatingLoss::logistic;
    if (options.similarity == Similarity::cosine) {
      with_kernel(logistic ? run_blocks<Stored, true, true, kWidth> : run_blocks<Stored, true, false, kWidth>);
    } else {
      with_kernel(logistic ? run_blocks<Stored, false, true, kWidth> : run_blocks<Stored, false, false, kWidth>);
    }
  };
  if (has_wide_rows(model.users, model.dim) && has_wide_rows(model.items, model.dim)) {
    with_width(std::integral_constant<int, kWidest<Stored>>{});
  } else {
    with_width(std::integral_constant<int, 1>{});
  }
}

template <class Launch, class Stored>
void cosine_sgd_epoch(const Launch& launch, const SgdModel<Stored>& model, const SgdEntries& entries,
                      const Arithmetic<Stored>* values, const SgdBlocks<Arithmetic<Stored>>& blocks,
                      const SgdOptions& options, double* loss) {
  using Real = Arithmetic<Stored>;
  const std::int64_t count = entries.count, groups = entries.groups();
  if (count > 0) {
    const Grid each{ceil_div(count, kOrderThreads), kOrderThreads};
    launch(Grid{ceil_div(count + 1, kOrderThreads), kOrderThreads}, find_begins<std::int32_t>, blocks.blocks, count,
           groups * groups, blocks.begins);
    launch(each, link_swaps<BlockParts>, BlockParts{blocks.blocks, blocks.begins, entries.seed}, count, blocks.swaps);
    const bool logistic = options.loss == RatingLoss::logistic;
    launch(each, logistic ? place_ratings<Real, true> : place_ratings<Real, false>, entries, blocks, values);
    run_rounds(launch, model, entries, blocks, options);
  }
  launch(Grid{1, kWarp}, finish_epoch<Real>, blocks, groups, count, model.head, loss);
}

}  // namespace metarec::cuda
