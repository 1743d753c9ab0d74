// The inner loop on a GPU: a block per task. The mathematics, and what the letters mean, are those of
// csrc/core/inner_loop_kernel.h; the order of the sums is that of the tiles here.
//
// Work is split three ways.
// - Products of all rows with the shared first weight (X W_0^T before the loop, Z-bar^T X and Z-bar W_0 after it) are
//   torch's: large matrix products. The kernels read the first and leave Z-bar, the gradient in those sums.
// - A task whose support fits a chunk of rows, and for which that is less work, takes the Gram form of the first
//   layer: its S x S inner products once, then K steps on S x S, S x H and H x H blocks.
// - The others (large supports, rates for every parameter) hold a first weight of their own, and their support comes in
//   chunks. What a step sums over the support is summed over the chunks, so that no size depends on the support.
// The two kinds are two launches of one kernel, each with a program of its own: which operations follow each other is
// data, see inner_loop_program.h. An operation is a product, which one thread describes and all take part in, then what
// is done with its values. Each is in the kernel once, in line: for what it calls, a kernel keeps a stack. The launches
// have workspaces of their own sizes; a block goes through every gridDim-th task, the largest first, and skips those of
// the other kind. Which block has which task, and so the order of all sums, depends on the sizes and the device alone:
// two runs are bit-equal, and there are no atomics.
//
// A task's matrices are compact and row-major. They are taken from the block's shared memory as long as it lasts, in
// order of how often they are used, then from the block's part of a global workspace, which the second-level cache
// holds. All products go through tiles of 32 x 64 outputs and 16 terms in shared memory, 4 x 4 outputs a thread: for 16
// multiply-adds a thread reads 2 x 16 bytes there, which allows half of the float peak, whatever the strides of the
// operands. The backward pass runs the steps again and keeps them: nothing is kept of all tasks between the passes.
//
// Cost of a step in Gram form for a head D-H-H-1: S^2 H + 3 S H^2 multiply-adds, its adjoint S^2 H + 6 S H^2 and the
// step taken again, and S^2 H more where the support has a gradient; compulsory traffic is one reading of X, X W_0^T
// and the queries' own. With S = 20, D = 256, H = 64, K = 5 that is 1.4 M multiply-adds on 30 KB, 47 a byte, where an
// H100 has 10: bound by arithmetic. Planned is a third of the float peak once all multiprocessors have four blocks:
// half by the tiles, less their edges and the barriers between them. It is not more because the matrices are small: 20
// rows are 20 of a tile's 32, and with 8 x 4 outputs a thread, where shared memory allows two thirds, 20 x 64 outputs
// are work for 48 of 128 threads. Tensor cores take floats as TF32, so three products for each if second derivatives
// are to stay exact to a float, on tiles that are no fuller.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "device.cuh"
#include "inner_loop.h"
#include "inner_loop_program.h"

namespace metarec::cuda {

constexpr int kThreads = 128, kWarps = kThreads / 32;
// Blocks that a multiprocessor has at a time, by the registers that a thread may have without spilling.
template <class Real>
constexpr int kBlocksEach = sizeof(Real) == 4 ? 4 : 3;
constexpr int kTileRows = 32, kTileColumns = 64, kTileDepth = 16;
constexpr std::int64_t kQueryRows = 64;   // queries of a task are handled so many at a time
constexpr std::int64_t kChunkRows = 128;  // and so many rows of a support

// Hands out a block's memory, or counts it where there is none.
template <class Real>
struct Arena {
  Real* fast;
  std::int64_t fast_left;
  Real* slow;
  std::int64_t used;

  __host__ __device__ void take(Real*& to, std::int64_t count) {
    if (count <= fast_left) {
      to = fast;
      fast += count;
      fast_left -= count;
      return;
    }
    to = slow == nullptr ? nullptr : slow + used;
    used += count;
  }
};

// Calls body(i) for each i < count, by all threads of the block.
template <class Body>
__device__ __forceinline__ void each(std::int64_t count, const Body& body) {
#pragma unroll 1
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) body(i);
}

// The same for the values of a matrix: body(i, row, column), a warp per row.
template <class Body>
__device__ __forceinline__ void each(std::int64_t rows, std::int64_t columns, const Body& body) {
#pragma unroll 1
  for (std::int64_t row = threadIdx.x / 32; row < rows; row += kWarps) {
#pragma unroll 1
    for (std::int64_t column = threadIdx.x % 32; column < columns; column += 32) {
      body(row * columns + column, row, column);
    }
  }
}

template <class Real>
__device__ __forceinline__ Real warp_sum(Real value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sum of all threads' values, to all of them.
template <class Real>
__device__ __forceinline__ Real block_sum(Real value) {
  METAREC_SHARED(parts, Real[kWarps]);
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  Real total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += parts[warp];
  __syncthreads();
  return total;
}

// The sum of body(i) for each i < count.
template <class Real, class Body>
__device__ __forceinline__ Real sum_of(std::int64_t count, const Body& body) {
  Real total = 0;
#pragma unroll 1
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) total += body(i);
  return block_sum(total);
}

// A matrix with any strides. Sizes of a layer and of a chunk fit 32 bits, so that an index takes one multiplication.
template <class Real>
struct Strided {
  const Real* values;
  int row, column;

  Strided() = default;
  __device__ Strided(const Real* values, std::int64_t row, std::int64_t column)
      : values(values), row(static_cast<int>(row)), column(static_cast<int>(column)) {}

  __device__ Real at(int i, int j) const {
    return values[static_cast<std::int64_t>(i) * row + static_cast<std::int64_t>(j) * column];
  }
};

// to [rows, columns] = base + bias + shift + factor * (left right) diag(column_scale); the terms are multiplied by
// depth_scale. What is null is left out.
template <class Real>
struct Product {
  Strided<Real> left, right;
  Real* to;
  int rows, columns, depth;
  Real factor;
  const Real *base, *bias, *column_scale, *depth_scale;
  Real shift;

  __device__ Real term(int i, int k, int j) const {
    const Real value = left.at(i, k) * right.at(k, j);
    return depth_scale == nullptr ? value : value * depth_scale[k];
  }

  __device__ void write(int i, int j, Real total) const {
    const std::int64_t at = static_cast<std::int64_t>(i) * columns + j;
    total *= column_scale == nullptr ? factor : factor * column_scale[j];
    total += shift;
    if (bias != nullptr) total += bias[j];
    if (base != nullptr) total += base[at];
    to[at] = total;
  }
};

template <class Real>
struct alignas(4 * sizeof(Real)) Quad {
  Real value[4];
};

// A part of an operand, [depth][rows or columns], with room against bank conflicts.
template <class Real, int kWidth>
struct Tile {
  Quad<Real> quads[kTileDepth][kWidth / 4 + 1];
};

// What a thread brings of the tiles along an operand: neighbouring threads read neighbouring values. Strides are
// multiplied once, and each value read is one addition away from the one before.
template <class Real, int kWidth>
struct TileReader {
  static constexpr int kEach = kTileDepth * kWidth / kThreads;
  const Real* at;
  std::int64_t step;
  int width;  // from the tile's first row or column to the last
  bool depth_first;

  __device__ TileReader(const Real* from, int across_stride, int depth_stride, int first, int count)
      : width(count - first), depth_first(depth_stride == 1) {
    at = from + static_cast<std::int64_t>(first + across(0)) * across_stride +
         static_cast<std::int64_t>(depth(0)) * depth_stride;
    step = static_cast<std::int64_t>(depth_first ? across_stride : depth_stride) *
           (kThreads / (depth_first ? kTileDepth : kWidth));
  }

  // Where value number `i` of a thread goes.
  __device__ int depth(int i) const {
    const int thread = static_cast<int>(threadIdx.x);
    return depth_first ? thread % kTileDepth : thread / kWidth + i * (kThreads / kWidth);
  }
  __device__ int across(int i) const {
    const int thread = static_cast<int>(threadIdx.x);
    return depth_first ? thread / kTileDepth + i * (kThreads / kTileDepth) : thread % kWidth;
  }

  // Reads a tile with so many terms, the next at the next call; `scales` of its terms may be null.
  __device__ __forceinline__ void read(Real (&values)[kEach], int terms, const Real* scales, int depth_stride) {
    const Real* value = at;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const bool inside = depth(i) < terms && across(i) < width;
      values[i] = inside ? *value : Real(0);
      if (scales != nullptr && inside) values[i] *= scales[depth(i)];
      value += step;
    }
    at += static_cast<std::int64_t>(depth_stride) * kTileDepth;
  }

  __device__ __forceinline__ void store(const Real (&values)[kEach], Tile<Real, kWidth>& tile) const {
#pragma unroll
    for (int i = 0; i < kEach; ++i) tile.quads[depth(i)][across(i) / 4].value[across(i) % 4] = values[i];
  }
};

template <class Real>
__device__ __forceinline__ void multiply_by_tiles(const Product<Real>& product) {
  using Left = TileReader<Real, kTileRows>;
  using Right = TileReader<Real, kTileColumns>;
  METAREC_SHARED(left, Tile<Real, kTileRows>);
  METAREC_SHARED(right, Tile<Real, kTileColumns>);
  const int own_row = static_cast<int>(threadIdx.x) / 16, own_column = static_cast<int>(threadIdx.x) % 16;
#pragma unroll 1
  for (int row = 0; row < product.rows; row += kTileRows) {
#pragma unroll 1
    for (int column = 0; column < product.columns; column += kTileColumns) {
      Left left_reader(product.left.values, product.left.row, product.left.column, row, product.rows);
      Right right_reader(product.right.values, product.right.column, product.right.row, column, product.columns);
      Real next_left[Left::kEach], next_right[Right::kEach], total[4][4] = {};
      // Reads what the next tiles are made of; it arrives while the present ones are multiplied.
      int terms = product.depth;
      const Real* scales = product.depth_scale;
      const auto fetch = [&] {
        left_reader.read(next_left, terms, scales, product.left.column);
        right_reader.read(next_right, terms, nullptr, product.right.row);
        terms -= kTileDepth;
        if (scales != nullptr) scales += kTileDepth;
      };
      fetch();
#pragma unroll 1
      while (true) {
        left_reader.store(next_left, left);
        right_reader.store(next_right, right);
        __syncthreads();
        const bool last = terms <= 0;
        if (!last) fetch();
#pragma unroll
        for (int depth = 0; depth < kTileDepth; ++depth) {
          const Quad<Real> a = left.quads[depth][own_row], b = right.quads[depth][own_column];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int j = 0; j < 4; ++j) total[i][j] += a.value[i] * b.value[j];
          }
        }
        __syncthreads();
        if (last) break;
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int to_row = row + 4 * own_row + i, to_column = column + 4 * own_column + j;
          if (to_row < product.rows && to_column < product.columns) product.write(to_row, to_column, total[i][j]);
        }
      }
    }
  }
}

template <class Real>
__device__ __forceinline__ void multiply_thin(const Product<Real>& product) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  if (product.columns <= 2) {  // a warp per output
    const std::int64_t count = static_cast<std::int64_t>(product.rows) * product.columns;
#pragma unroll 1
    for (std::int64_t i = thread / 32; i < count; i += kWarps) {
      const int row = static_cast<int>(product.columns == 2 ? i / 2 : i), column = product.columns == 2 ? i % 2 : 0;
      Real total = 0;
#pragma unroll 1
      for (int k = lane; k < product.depth; k += 32) total += product.term(row, k, column);
      total = warp_sum(total);
      if (lane == 0) product.write(row, column, total);
    }
  } else {  // a thread per output; of few rows, a row at a time
    const int wide = product.rows <= 2 ? kThreads : 32;
#pragma unroll 1
    for (int row = thread / wide; row < product.rows; row += kThreads / wide) {
#pragma unroll 1
      for (int column = thread % wide; column < product.columns; column += wide) {
        Real total = 0;
#pragma unroll 1
        for (int k = 0; k < product.depth; ++k) total += product.term(row, k, column);
        product.write(row, column, total);
      }
    }
  }
}

template <class Real>
__device__ __forceinline__ void multiply(const Product<Real>& product) {
  if (product.rows == 0) return;
  if (product.rows <= 2 || product.columns <= 2 || product.depth <= 2) return multiply_thin(product);
  multiply_by_tiles(product);
}

// to[column] += factor * (sum over the rows of body(row, column))
template <class Real, class Body>
__device__ __forceinline__ void add_rows(Real* to, Real factor, std::int64_t rows, std::int64_t columns,
                                         const Body& body) {
  each(columns, [&](std::int64_t column) {
    Real total = 0;
    for (std::int64_t row = 0; row < rows; ++row) total += body(row, column);
    to[column] += factor * total;
  });
}

template <class Real>
__device__ __forceinline__ void fill(Real* to, std::int64_t count, Real value) {
  each(count, [&](std::int64_t i) { to[i] = value; });
}

// f(z), f'(z) and f''(z)
template <class Real>
__device__ __forceinline__ void activation_terms(Activation activation, Real z, Real& value, Real& slope,
                                                 Real& curve) {
  if (activation == Activation::relu) {
    value = z > 0 ? z : Real(0);
  } else if (activation == Activation::tanh) {
    value = std::tanh(z);
    slope = 1 - value * value;
    curve = -2 * value * slope;
  } else {
    const Real below = std::erfc(-z * Real(0.70710678118654752440)) / 2;
    const Real density = std::exp(-z * z / 2) * Real(0.39894228040143267794);
    value = z * below;
    slope = below + z * density;
    curve = density * (2 - z * z);
  }
}

// Gradient of a loss and what its own gradient takes: second derivatives in the outputs and in the target.
template <class Real>
struct LossTerms {
  Real gradient[2], curvature[2][2], by_target[2];
};

template <class Real>
__device__ __forceinline__ LossTerms<Real> loss_terms(Loss loss, const Real* z, Real target) {
  if (loss == Loss::squared) return {{z[0] - target, 0}, {{1, 0}, {0, 0}}, {-1, 0}};
  if (loss == Loss::logistic) {
    const Real chance = 1 / (1 + std::exp(-z[0]));
    return {{chance - target, 0}, {{chance * (1 - chance), 0}, {0, 0}}, {-1, 0}};
  }
  const Real precision = std::exp(-z[1]), error = z[0] - target, pushed = error * precision;
  return {
      {pushed, (1 - error * pushed) / 2}, {{precision, -pushed}, {-pushed, error * pushed / 2}}, {-precision, pushed}};
}

template <class Real>
__device__ std::int64_t rows_of(const RaggedRows<Real>& rows, std::int64_t task, std::int64_t tasks) {
  const std::int64_t from = rows.offsets[task], to = rows.offsets[task + 1];
  METAREC_DEVICE_CHECK(
      from >= 0 && from <= to && to <= rows.count && (task > 0 || from == 0) && (task + 1 < tasks || to == rows.count),
      "inner_loop: offsets must ascend from 0 to the number of rows");
  return to - from;
}

// Whether a task takes the Gram form: S^2 D + Q S (D + H) + K S^2 H multiply-adds against those of its own first
// weight, (2 K - 1) S D H + Q D H.
template <class Real>
__device__ bool takes_gram(const Network<Real>& network, std::int64_t rows, std::int64_t queries) {
  if (!network.gram_exact() || rows > kChunkRows) return false;
  const std::int64_t in = network.in(0), out = network.out(0), steps = network.steps;
  const std::int64_t gram = rows * rows * (in + steps * out) + queries * rows * (in + out);
  return rows == 0 || steps == 0 || gram < (2 * steps - 1) * rows * in * out + queries * in * out;
}

// The parts of a pass over rows, each [rows, width of the layer].
template <class Real>
struct Pass {
  Real* begin;
  std::int64_t rows;
};

// One task, in shared memory, and how far the block is with it.
template <class Real>
struct Task {
  Network<Real> network;
  RaggedRows<Real> support, query;  // of this task; sums is null where inputs only are known
  const Real *targets, *weights;
  std::int64_t rows, query_rows, steps, chunk;
  std::int64_t left_out;  // a row of the support that does not count, or -1
  int first;              // the first layer with weights of its own: 1 in Gram form, else 0
  bool keep_weights, keep_passes;
  bool shares;  // whether the ratings' weights are divided by their sum
  Real divisor;
  const Real* first_bias;  // of the first layer in Gram form, which adds `shift` to the inner products for its steps
  Real shift;

  Real *history, *coefficients, *total;  // weights and C after steps, gradient of a step
  Real *gram_matrix, *passes, *query_pass, *query_products;
  Real *bar, *next_bar, *scaled_bar, *initial_bar;  // of the weights
  Real *sum_bar[kLayers], *grad_bar[kLayers], *input_bar[kLayers];
  Real *coefficients_bar, *gram_bar, *product_bar, *query_products_bar;

  // The task's parts of what a launch reads and writes; null where that is not wanted.
  Real *predictions, *kept_support, *kept_coefficients, *kept_parameters;
  const Real *whole, *grad;  // predictions by the whole support, and the gradient in those of the task
  Real *support_bar, *targets_bar, *weights_bar, *support_sums_bar, *query_bar, *query_sums_bar;
  Real* sums;  // of the block

  Instruction instruction;  // at hand
  int next;                 // place of the one after it
  Product<Real> product;    // the instruction's, without rows where it has none
  std::int64_t k;           // step
  std::int64_t from, query_from, kept_from, count;  // rows of chunks; count those of the pass
  Pass<Real> pass;

  // --- By one thread ---

  __host__ __device__ bool gram() const { return first == 1; }
  __host__ __device__ std::int64_t own_size() const { return network.parameter_count() - network.offsets[first]; }

  // Places all matrices; `adjoint` is null in a forward pass, and `coefficients` are given where they are kept.
  __host__ __device__ void place(Arena<Real>& arena, const InnerAdjoint<Real>* adjoint) {
    const std::int64_t own = own_size(), hidden = network.out(0), kept = gram() ? rows : 0;
    const std::int64_t queries = query_rows < kQueryRows ? query_rows : kQueryRows;
    const bool steps_back = adjoint != nullptr && adjoint->of_steps();
    const bool second = adjoint != nullptr && adjoint->order == Order::second;
    const bool inputs_back = adjoint != nullptr && gram() && adjoint->of_inputs();
    chunk = rows < kChunkRows ? rows : kChunkRows;
    keep_weights = steps_back;
    keep_passes = steps_back && rows <= kChunkRows;
    if (gram()) arena.take(gram_matrix, rows * rows);
    for (int l = 0; l < network.layers; ++l) {
      if (steps_back) arena.take(grad_bar[l], chunk * network.out(l));
      if (second) arena.take(sum_bar[l], chunk * network.out(l));
      input_bar[l] = nullptr;
      if (l > 0 && adjoint != nullptr) {
        arena.take(input_bar[l], (second && chunk > queries ? chunk : queries) * network.in(l));
      }
    }
    coefficients_bar = gram_bar = product_bar = next_bar = scaled_bar = initial_bar = bar = nullptr;
    if (adjoint != nullptr) arena.take(bar, own);
    if (second) arena.take(next_bar, own);
    if (adjoint != nullptr && gram()) arena.take(coefficients_bar, kept * hidden);
    if (!keep_passes) arena.take(passes, chunk * network.pass_columns);
    arena.take(total, own);
    arena.take(history, own * (keep_weights ? network.steps : 1));
    if (gram()) arena.take(coefficients, kept * hidden * (keep_weights ? network.steps : 1));
    if (steps_back && network.scaled()) arena.take(scaled_bar, own);
    if (second && network.pull != 0) arena.take(initial_bar, own);
    if (inputs_back) arena.take(gram_bar, rows * rows);
    place_queries(arena);
    if (adjoint != nullptr && gram()) arena.take(query_products_bar, queries * kept);
    if (keep_passes) arena.take(passes, chunk * network.pass_columns * network.steps);
    if (inputs_back) arena.take(product_bar, rows * network.in(0));
  }

  __host__ __device__ void place_queries(Arena<Real>& arena) {
    const std::int64_t queries = query_rows < kQueryRows ? query_rows : kQueryRows;
    arena.take(query_pass, queries * network.query_columns);
    if (gram()) arena.take(query_products, queries * (rows < kChunkRows ? rows : kChunkRows));
  }

  // How much a block needs for any task of a kind.
  static std::int64_t workspace(const InnerProblem<Real>& problem, bool gram, const InnerAdjoint<Real>* adjoint) {
    Task task;
    task.network = problem.network;
    task.first = gram ? 1 : 0;
    task.query_rows = problem.query.count;
    const auto of = [&](std::int64_t rows) {
      Arena<Real> arena = {nullptr, 0, nullptr, 0};
      task.rows = rows;
      task.place(arena, adjoint);
      return arena.used;
    };
    const std::int64_t most = problem.support.count;
    // A support of one chunk keeps its passes, a larger one does not.
    if (most <= kChunkRows || gram) return of(std::min(most, kChunkRows));
    return std::max(of(kChunkRows), of(most));
  }

  // Takes up a task and says whether it is of this launch's kind.
  __device__ bool begin(const InnerProblem<Real>& problem, const WorkOn<Real>& on, std::int64_t task, Real* fast) {
    const std::int64_t row = problem.support.offsets[task], asked = problem.query.offsets[task];
    network = problem.network;
    rows = rows_of(problem.support, task, problem.tasks);
    query_rows = rows_of(problem.query, task, problem.tasks);
    if (takes_gram(network, rows, query_rows) != problem.gram) return false;
    first = problem.gram ? 1 : 0;
    steps = rows == 0 ? 0 : network.steps;
    support = {problem.support.inputs + row * network.in(0), problem.support.sums + row * network.out(0), nullptr,
               rows};
    query = {problem.query.inputs + asked * network.in(0), problem.query.sums + asked * network.out(0), nullptr,
             query_rows};
    targets = problem.targets + row;
    weights = problem.weights + row;
    first_bias = network.parameters + network.weight_size(0);
    shift = network.input_scales == nullptr ? Real(1) : network.input_scales[network.in(0)];
    kept_support = kept_coefficients = kept_parameters = nullptr;
    if (on.compact()) {
      kept_support = on.state.rows + row * network.in(0);
      kept_coefficients = on.state.coefficients + row * network.out(0);
    }
    if (on.work == Work::state) kept_parameters = on.state.parameters + task * on.state.size(network);
    if (on.work == Work::reverse) begin_adjoint(on.adjoint, row, asked);
    Arena<Real> arena = arena_of(problem, fast);
    place(arena, on.reverse());
    start(on, -1, asked);
    return true;
  }

  __device__ void begin_adjoint(const InnerAdjoint<Real>& adjoint, std::int64_t row, std::int64_t asked) {
    const auto at = [](auto* values, std::int64_t index) { return values == nullptr ? nullptr : values + index; };
    const std::int64_t width = network.in(0), hidden = network.out(0);
    grad = adjoint.grad + asked * network.outputs();
    support_bar = at(adjoint.support, row * width);
    targets_bar = at(adjoint.targets, row);
    weights_bar = at(adjoint.weights, row);
    support_sums_bar = adjoint.support_sums + row * hidden;
    query_bar = at(adjoint.query, asked * width);
    query_sums_bar = adjoint.query_sums + asked * hidden;
    sums = adjoint.sums + blockIdx.x * adjoint.layout.size;
  }

  // Takes up a head adapted before, as after a step.
  __device__ bool recall(const InnerProblem<Real>& problem, const WorkOn<Real>& on, std::int64_t task, Real* fast) {
    const AdaptedHeads<Real>& state = on.state;
    const bool compact = state.compact;
    const std::int64_t row = compact ? problem.support.offsets[task] : 0, asked = problem.query.offsets[task];
    network = problem.network;
    first = compact ? 1 : 0;
    rows = compact ? rows_of(problem.support, task, problem.tasks) : 0;
    query_rows = rows_of(problem.query, task, problem.tasks);
    steps = 1;
    keep_weights = false;
    support = {state.rows + row * network.in(0), nullptr, nullptr, rows};
    query = {problem.query.inputs + asked * network.in(0),
             compact ? problem.query.sums + asked * network.out(0) : nullptr, nullptr, query_rows};
    coefficients = state.coefficients + row * network.out(0);
    first_bias = state.parameters + task * state.size(network);
    history = state.parameters + task * state.size(network) + (compact ? network.out(0) : 0);
    shift = 0;
    Arena<Real> arena = arena_of(problem, fast);
    place_queries(arena);
    start(on, steps, asked);
    return true;
  }

  __device__ Arena<Real> arena_of(const InnerProblem<Real>& problem, Real* fast) const {
    return {fast, problem.fast_size, problem.workspace + blockIdx.x * problem.workspace_size, 0};
  }

  __device__ void start(const WorkOn<Real>& on, std::int64_t step, std::int64_t asked) {
    predictions = on.results + asked * network.outputs();
    whole = nullptr;
    left_out = -1;
    k = step;
    query_from = -kQueryRows;
    next = 0;
  }

  // Sets out to do without a row of the support, to find its effects.
  __device__ void leave_out(const WorkOn<Real>& on, std::int64_t row, std::int64_t pairs_before, std::int64_t asked) {
    left_out = row;
    whole = on.whole + asked * network.outputs();
    predictions = on.results + (pairs_before + row * query_rows) * network.outputs();
  }

  // --- Views ---

  __device__ Real* part(int part, int l) const { return pass.begin + pass.rows * network.columns[part][l]; }
  // The pass of step k over a chunk of the support.
  __device__ Pass<Real> step_pass() const {
    return {passes + (keep_passes ? k * chunk * network.pass_columns : 0), chunk};
  }
  // Of the rate of value `i` of layer l's block.
  __device__ Real scale(int l, std::int64_t i) const {
    const Real *outputs = network.output_scales, *inputs = network.input_scales;
    if (l == 0 && outputs != nullptr) {
      const std::int64_t weights = network.weight_size(0), in = network.in(0);
      return i < weights ? outputs[i / in] * inputs[i % in] : outputs[i - weights] * inputs[in];
    }
    if (network.scales == nullptr) return Real(1);
    return network.scales[network.offsets[l] - (outputs == nullptr ? 0 : network.size(0)) + i];
  }
  __device__ std::int64_t own_offset(int l) const { return network.offsets[l] - network.offsets[first]; }
  // The weights of the layers from `first` on after k steps.
  __device__ const Real* own_weights(std::int64_t k) const {
    return k == 0 ? network.parameters + network.offsets[first] : history + (keep_weights ? (k - 1) * own_size() : 0);
  }
  __device__ const Real* weight(std::int64_t k, int l) const {
    return l < first ? network.parameters : own_weights(k) + own_offset(l);
  }
  __device__ Real* coefficients_after(std::int64_t k) const {
    return coefficients + (keep_weights ? (k - 1) * rows * network.out(0) : 0);
  }
  __device__ Real rate(int l) const { return network.rates[k * network.layers + l]; }
  __device__ Real share(std::int64_t j) const { return j == left_out ? Real(0) : weights[j] / divisor; }
  // What layer l is given, in a pass over the support and over queries.
  __device__ const Real* input(int l) const {
    return l == 0 ? support.inputs + from * network.in(0) : part(kOut, l - 1);
  }
  __device__ const Real* query_input(int l) const {
    return l == 0 ? query.inputs + query_from * network.in(0) : part(kOut, l - 1);
  }
  // The gradient in the sums of layer l of some queries.
  __device__ const Real* query_grad(int l) const {
    return l == network.top() ? grad + query_from * network.outputs() : input_bar[l + 1];
  }
  // Of these queries' inputs, and of this chunk's of the support.
  __device__ Real* own_query_bar() const { return query_bar + query_from * network.in(0); }
  __device__ Real* own_support_bar() const { return support_bar + from * network.in(0); }
  // What step k pushes back: V = s o W-bar.
  __device__ const Real* pushed_bar(int l) const { return (scaled_bar == nullptr ? bar : scaled_bar) + own_offset(l); }
  // Where the sum over tasks of a parameter's gradient is, or of its scale's.
  __device__ Real* sum_at(const SumsLayout& layout, int l, std::int64_t i, bool of_scale = false) const {
    const std::int64_t split = network.weight_size(0), index = network.offsets[l] + i;
    if (index < split) return sums + (of_scale ? layout.first_scales : layout.first) + index;
    return sums + (of_scale ? layout.rest_scales : layout.rest) + index - split;
  }

  // --- Products of layer l ---

  __device__ void set_product(const Strided<Real>& left, const Strided<Real>& right, Real* to, std::int64_t rows,
                              std::int64_t columns, std::int64_t depth, Real factor = 1, const Real* base = nullptr) {
    const auto size = [](std::int64_t value) { return static_cast<int>(value); };
    product = {left, right, to, size(rows), size(columns), size(depth), factor, base, nullptr, nullptr, nullptr, 0};
  }

  // z = h W^T + b of a block (weight, bias)
  __device__ void affine(int l, const Real* block, const Real* h, Real* z) {
    const std::int64_t in = network.in(l), out = network.out(l);
    set_product({h, in, 1}, {block, 1, in}, z, count, out, in);
    product.bias = block + out * in;
  }

  // to = base + factor * g W
  __device__ void push(int l, const Real* block, const Real* g, Real factor, Real* to, const Real* base) {
    const std::int64_t in = network.in(l), out = network.out(l);
    set_product({g, out, 1}, {block, in, 1}, to, count, in, out, factor, base);
  }

  // The weight of a block: to = base + g^T h
  __device__ void outer(int l, const Real* g, const Real* h, Real* to, const Real* base) {
    const std::int64_t in = network.in(l), out = network.out(l);
    set_product({g, 1, out}, {h, in, 1}, to, out, in, count, 1, base);
  }

  // The inner products of rows with support rows from `begin` on
  __device__ void gram_with(const Real* x, std::int64_t many, std::int64_t begin, std::int64_t some, Real* to) {
    const std::int64_t in = network.in(0);
    set_product({x, in, 1}, {support.inputs + begin * in, 1, in}, to, many, some, in);
    product.depth_scale = network.input_scales;
    product.shift = shift;
  }

  // to = base + bias - products C
  __device__ void correct(const Real* products, const Real* c, std::int64_t some, Real* to, const Real* base,
                          const Real* bias) {
    const std::int64_t out = network.out(0);
    set_product({products, some, 1}, {c, out, 1}, to, count, out, some, -1, base);
    product.bias = bias;
  }

  // --- Instructions: what one thread does first ---

  // Goes to the next instruction that is not about where to go.
  __device__ void fetch(const Program& program) {
    do {
      instruction = program.instructions[next++];
      follow();
    } while (instruction.op < Op::done);
    describe_product();
  }

  __device__ void follow() {
    const int place = instruction.operand;
    switch (instruction.op) {
      case Op::next_step:
        from = -chunk;
        if (++k >= steps) next = place;
        break;
      case Op::step_before:
        from = -chunk;
        if (--k < 0) next = place;
        break;
      case Op::next_rows:
        from += chunk;
        count = rows - from < chunk ? rows - from : chunk;
        pass = step_pass();
        if (from >= rows) next = place;
        break;
      case Op::next_queries:
        query_from += kQueryRows;
        kept_from = -kChunkRows;
        count = query_rows - query_from < kQueryRows ? query_rows - query_from : kQueryRows;
        pass = {query_pass, count};
        if (query_from >= query_rows) next = place;
        break;
      case Op::next_kept_rows:
        kept_from += kChunkRows;
        if (steps == 0 || kept_from >= rows) next = place;
        break;
      case Op::again:
        next = place;
        break;
      case Op::unless_kept:
        if (keep_passes) next = place;
        break;
      case Op::swap_bars: {
        Real* old = bar;
        bar = next_bar;
        next_bar = old;
        break;
      }
      default:
        break;
    }
  }

  __device__ void describe_product() {
    const int l = instruction.operand;
    const std::int64_t width = network.in(0), hidden = network.out(0);
    product.rows = 0;
    switch (instruction.op) {
      case Op::gram:
        if (steps > 0) gram_with(support.inputs, rows, 0, rows, gram_matrix);
        break;
      case Op::sums:
        if (k == 0) break;
        if (gram()) {
          correct(gram_matrix, coefficients_after(k), rows, part(kOut, 0), support.sums + from * hidden, first_bias);
        } else {
          affine(0, weight(k, 0), input(0), part(kOut, 0));
        }
        break;
      case Op::affine:
        affine(l, weight(k, l), input(l), part(kOut, l));
        break;
      case Op::push:
        push(l, weight(k, l), part(kGrad, l), 1, part(kPushed, l - 1), nullptr);
        break;
      case Op::outer: {
        Real* to = total + own_offset(l);
        outer(l, part(kGrad, l), input(l), to, from == 0 ? nullptr : to);
        break;
      }
      case Op::query_sums:
        if (!gram() && steps > 0) affine(0, weight(steps, 0), query_input(0), part(kOut, 0));
        break;
      case Op::query_products:
        gram_with(query_input(0), count, kept_from, kept_rows(), query_products);
        break;
      case Op::query_correction:
        correct(query_products, coefficients_after(steps) + kept_from * hidden, kept_rows(), part(kOut, 0),
                part(kOut, 0), nullptr);
        break;
      case Op::query_outer: {
        Real* to = bar + own_offset(l);
        outer(l, query_grad(l), query_input(l), to, to);
        break;
      }
      case Op::query_push:
        push(l, weight(steps, l), query_grad(l), 1, l == 0 ? own_query_bar() : input_bar[l], nullptr);
        break;
      case Op::query_coefficients_bar:
        if (steps == 0) break;
        set_product({query_products, 1, rows}, {query_grad(0), hidden, 1}, coefficients_bar, rows, hidden, count, -1,
                    coefficients_bar);
        break;
      case Op::query_products_bar:
        if (steps == 0) break;
        set_product({query_grad(0), hidden, 1}, {coefficients_after(steps), 1, hidden}, query_products_bar, count,
                    rows, hidden, -1);
        break;
      case Op::query_bar:
        if (steps == 0) break;
        set_product({query_products_bar, rows, 1}, {support.inputs, width, 1}, own_query_bar(), count, width, rows);
        product.column_scale = network.input_scales;
        break;
      case Op::query_inputs_bar:
        if (steps == 0) break;
        set_product({query_products_bar, 1, rows}, {query_input(0), width, 1}, product_bar, rows, width, count, 1,
                    product_bar);
        break;
      case Op::gradients_bar:
        affine(l, pushed_bar(l), input(l), grad_bar[l]);
        break;
      case Op::push_gradients: {
        Real* to = l == 0 ? own_support_bar() : input_bar[l];
        push(l, pushed_bar(l), part(kGrad, l), -rate(l), to, l == 0 ? to : nullptr);
        break;
      }
      case Op::outer_gradients: {
        Real* to = next_bar + own_offset(l);
        outer(l, part(kGrad, l), grad_bar[l - 1], to, to);
        break;
      }
      case Op::rise_gradients: {
        const std::int64_t in = network.in(l), out = network.out(l);
        set_product({grad_bar[l - 1], in, 1}, {weight(k, l), 1, in}, grad_bar[l], count, out, in, 1, grad_bar[l]);
        break;
      }
      case Op::outer_sums: {
        Real* to = next_bar + own_offset(l);
        outer(l, sum_bar[l], input(l), to, to);
        break;
      }
      case Op::push_sums: {
        Real* to = l == 0 ? own_support_bar() : input_bar[l];
        push(l, weight(k, l), sum_bar[l], 1, to, to);
        break;
      }
      case Op::correct_bar:
        if (k > 0) correct(gram_matrix, sum_bar[0], rows, coefficients_bar, coefficients_bar, nullptr);
        break;
      case Op::gram_bar:
        if (k == 0) break;
        set_product({sum_bar[0], hidden, 1}, {coefficients_after(k), 1, hidden}, gram_bar, rows, rows, hidden, -1,
                    gram_bar);
        break;
      case Op::gram_rows_bar:
        if (steps > 0) add_gram_bar(rows, 1);
        break;
      case Op::gram_columns_bar:
        if (steps > 0) add_gram_bar(1, rows);
        break;
      default:
        break;
    }
  }

  __device__ std::int64_t kept_rows() const { return rows - kept_from < kChunkRows ? rows - kept_from : kChunkRows; }

  __device__ void add_gram_bar(std::int64_t row, std::int64_t column) {
    const std::int64_t width = network.in(0);
    set_product({gram_bar, row, column}, {support.inputs, width, 1}, product_bar, rows, width, rows, 1, product_bar);
  }

  // --- Instructions: what all threads do then, behind the product; they meet afterwards ---

  __device__ __forceinline__ void finish_instruction(const WorkOn<Real>& on) const {
    const int l = instruction.operand;
    const InnerAdjoint<Real>& adjoint = on.adjoint;
    switch (instruction.op) {
      case Op::sums:
        if (k == 0) start_sums(support.sums + from * network.out(0));
        break;
      case Op::activate:
        activate(l);
        break;
      case Op::loss:
        find_loss_gradients();
        break;
      case Op::push:
        __syncthreads();
        through_activation(l - 1, product.to, part(kGrad, l - 1));
        break;
      case Op::outer:
      case Op::query_outer:
      case Op::outer_sums:
        add_biases();
        break;
      case Op::advance_coefficients:
        advance_coefficients(k == 0 ? nullptr : coefficients_after(k), coefficients_after(k + 1));
        break;
      case Op::keep_coefficients: {
        Real* kept = kept_coefficients + from * network.out(0);
        advance_coefficients(k == 0 ? nullptr : kept, kept);
        break;
      }
      case Op::advance_weights:
        advance_weights();
        break;
      case Op::query_sums:
        if (gram() || steps == 0) start_sums(query.sums + query_from * network.out(0));
        break;
      case Op::predict:
        predict();
        break;
      case Op::write_state:
        write_state();
        break;
      case Op::clear_bars:
        clear_bars();
        break;
      case Op::query_push:
        __syncthreads();
        if (l > 0) through_activation(l - 1, input_bar[l], input_bar[l]);
        break;
      case Op::query_shared_sums:
        share_query_sums(adjoint.layout);
        break;
      case Op::query_bar:
        if (steps == 0) fill(own_query_bar(), count * network.in(0), Real(0));
        break;
      case Op::query_inputs_bar:
        if (steps > 0 && adjoint.layout.inputs >= 0) {
          add_bias_scale_bar(query_products_bar, count * rows, sums + adjoint.layout.inputs);
        }
        break;
      case Op::start_bars:
        start_bars(adjoint.order == Order::second);
        break;
      case Op::gradients_bar:
        __syncthreads();
        reverse_update(adjoint, l);
        break;
      case Op::coefficients_bar:
        reverse_coefficients(adjoint);
        break;
      case Op::curve:
        curve(l);
        break;
      case Op::loss_bar:
        reverse_loss();
        break;
      case Op::push_sums:
        __syncthreads();
        if (l > 0) descend(l);
        break;
      case Op::shared_sums:
        share_sums(adjoint.layout);
        break;
      case Op::finish_rates:
        finish_rates(adjoint.layout, l);
        break;
      case Op::inputs_bar:
        if (steps > 0) finish_inputs(adjoint);
        break;
      case Op::gram_columns_bar:
        __syncthreads();
        if (steps > 0) finish_support();
        break;
      case Op::weights_bar:
        finish_weights();
        break;
      case Op::add_bars:
        add_bars(adjoint.layout, l);
        break;
      default:
        break;
    }
  }

  // Divides the ratings' weights by their sum, where `mean`.
  __device__ __forceinline__ void rate_support(bool mean) {
    const Real whole_weight =
        sum_of<Real>(mean ? rows : 0, [&](std::int64_t j) { return j == left_out ? Real(0) : weights[j]; });
    if (threadIdx.x == 0) {
      shares = mean;
      divisor = mean && whole_weight > 0 ? whole_weight : Real(1);
    }
    __syncthreads();
  }

  // z = the sums that are given, with the bias
  __device__ __forceinline__ void start_sums(const Real* given) const {
    Real* to = part(kOut, 0);
    each(count, network.out(0),
         [&](std::int64_t i, std::int64_t, std::int64_t o) { to[i] = given[i] + first_bias[o]; });
  }

  __device__ __forceinline__ void activate(int l) const {
    Real *out = part(kOut, l), *slopes = part(kSlope, l), *curves = part(kCurve, l);
    const bool curved = network.curved();
    each(count * network.out(l), [&](std::int64_t i) {
      Real value, slope = 0, curve = 0;
      activation_terms(network.activation, out[i], value, slope, curve);
      out[i] = value;
      if (!curved) return;
      slopes[i] = slope;
      curves[i] = curve;
    });
  }

  // to = value o f'(z_l)
  __device__ __forceinline__ void through_activation(int l, const Real* values, Real* to) const {
    const bool curved = network.curved();
    const Real *out = part(kOut, l), *slopes = part(kSlope, l);
    each(count * network.out(l), [&](std::int64_t i) {
      to[i] = curved ? values[i] * slopes[i] : out[i] > 0 ? values[i] : Real(0);
    });
  }

  __device__ __forceinline__ void find_loss_gradients() const {
    const int top = network.top();
    const std::int64_t outputs = network.outputs();
    const Real* z = part(kOut, top);
    Real* to = part(kGrad, top);
    each(count, [&](std::int64_t j) {
      const LossTerms<Real> terms = loss_terms(network.loss, z + j * outputs, targets[from + j]);
      const Real weight = share(from + j);
      to[j * outputs] = weight * terms.gradient[0];
      if (outputs == 2) to[j * outputs + 1] = weight * terms.gradient[1];
    });
  }

  // The bias of a block whose weight is the product g^T h: the sums of g.
  __device__ __forceinline__ void add_biases() const {
    const std::int64_t out = product.rows, many = product.depth;
    const Real* g = product.left.values;
    Real* bias = product.to + out * product.columns;
    const bool fresh = product.base == nullptr;
    each(out, [&](std::int64_t o) {
      Real sum = fresh ? Real(0) : bias[o];
      for (std::int64_t j = 0; j < many; ++j) sum += g[j * out + o];
      bias[o] = sum;
    });
  }

  // C <- (1 - a p) C + a G_0 diag(u)
  __device__ __forceinline__ void advance_coefficients(const Real* now, Real* to) const {
    const Real a = rate(0), left = 1 - a * network.pull;
    const Real *gradients = part(kGrad, 0), *scales = network.output_scales;
    each(count, network.out(0), [&](std::int64_t i, std::int64_t, std::int64_t o) {
      Real change = a * gradients[i];
      if (scales != nullptr) change *= scales[o];
      to[i] = now == nullptr ? change : change + left * now[i];
    });
  }

  __device__ __forceinline__ void advance_weights() const {
#pragma unroll 1
    for (int l = first; l < network.layers; ++l) {
      const Real *now = weight(k, l), *gradient = total + own_offset(l),
                 *initial = network.parameters + network.offsets[l];
      Real* to = history + (keep_weights ? k * own_size() : 0) + own_offset(l);
      const Real a = rate(l);
      each(network.size(l), [&](std::int64_t i) {
        const Real value = now[i];
        to[i] = value - a * scale(l, i) * (gradient[i] + network.pull * (value - initial[i]));
      });
    }
  }

  // The predictions; of effects, what they are less than those by the whole support.
  __device__ __forceinline__ void predict() const {
    const std::int64_t outputs = network.outputs(), begin = query_from * outputs;
    const Real* out = part(kOut, network.top());
    each(count * outputs, [&](std::int64_t i) {
      predictions[begin + i] = whole == nullptr ? out[i] : whole[begin + i] - out[i];
    });
  }

  // Writes what serving needs of the adapted head: what the Gram form adds to, or all of it.
  __device__ __forceinline__ void write_state() const {
    const std::int64_t width = network.in(0), hidden = network.out(0), size = network.parameter_count();
    const bool compact = kept_coefficients != nullptr;
    const std::int64_t skipped = compact ? network.weight_size(0) : 0;
    const Real* own = own_weights(steps);
    if (compact) {
      each(rows, width, [&](std::int64_t i, std::int64_t, std::int64_t column) {
        const Real value = support.inputs[i];
        kept_support[i] = network.input_scales == nullptr ? value : value * network.input_scales[column];
      });
      if (steps == 0 || gram()) {
        const Real* c = steps == 0 ? nullptr : coefficients_after(steps);
        each(rows * hidden, [&](std::int64_t i) { kept_coefficients[i] = c == nullptr ? Real(0) : c[i]; });
      }
    }
    const std::int64_t begin = network.offsets[first];
    each(size - skipped, [&](std::int64_t i) {
      if (skipped + i >= begin) kept_parameters[i] = own[skipped + i - begin];
    });
    if (!gram()) return;
    __syncthreads();
    each(hidden, [&](std::int64_t o) {
      Real taken = 0;
      for (std::int64_t j = 0; j < rows; ++j) taken += kept_coefficients[j * hidden + o];
      kept_parameters[o] = first_bias[o] - shift * taken;
    });
  }

  // --- The way back ---

  __device__ __forceinline__ void clear_bars() const {
    const std::int64_t width = network.in(0), hidden = network.out(0);
    const auto clear = [](Real* values, std::int64_t many) {
#pragma unroll 1
      for (std::int64_t i = threadIdx.x; values != nullptr && i < many; i += kThreads) values[i] = 0;
    };
    clear(bar, own_size());
    clear(initial_bar, own_size());
    clear(support_sums_bar, rows * hidden);
    clear(coefficients_bar, rows * hidden);
    clear(gram_bar, rows * rows);
    clear(product_bar, rows * width);
    clear(support_bar, rows * width);
    clear(targets_bar, rows);
    clear(weights_bar, rows);
  }

  // The gradient in the sums that torch computed of some queries.
  __device__ __forceinline__ void share_query_sums(const SumsLayout& layout) const {
    const std::int64_t hidden = network.out(0);
    Real* to = query_sums_bar + query_from * hidden;
    const Real* above = query_grad(0);
    const bool shared = gram();
    each(count * hidden, [&](std::int64_t i) { to[i] = shared ? above[i] : Real(0); });
    if (!shared) return;
    add_rows(sums + layout.rest, Real(1), count, hidden,
             [&](std::int64_t j, std::int64_t o) { return above[j * hidden + o]; });
  }

  // v_b-bar += the sum of P-bar
  __device__ __forceinline__ void add_bias_scale_bar(const Real* products_bar, std::int64_t many,
                                                     Real* inputs_bar) const {
    const Real sum = sum_of<Real>(many, [&](std::int64_t i) { return products_bar[i]; });
    if (threadIdx.x == 0) inputs_bar[network.in(0)] += sum;
  }

  // V, and W-bar as the pull leaves it.
  __device__ __forceinline__ void start_bars(bool second) const {
#pragma unroll 1
    for (int l = first; l < network.layers; ++l) {
      const std::int64_t offset = own_offset(l);
      const Real back = rate(l) * network.pull;
      each(network.size(l), [&](std::int64_t i) {
        const Real own = bar[offset + i], pushed = own * scale(l, i);
        if (scaled_bar != nullptr) scaled_bar[offset + i] = pushed;
        if (!second) return;
        next_bar[offset + i] = own - back * pushed;
        if (initial_bar != nullptr) initial_bar[offset + i] += back * pushed;
      });
    }
  }

  // Of the gradients G of layer l, and of its rate.
  __device__ __forceinline__ void reverse_update(const InnerAdjoint<Real>& adjoint, int l) const {
    const std::int64_t size = count * network.out(l);
    const Real *gradients = part(kGrad, l), a = rate(l);
    Real* to = grad_bar[l];
    if (adjoint.layout.rates >= 0) {
      add_rate_bar(adjoint.layout, l, -sum_of<Real>(size, [&](std::int64_t i) { return gradients[i] * to[i]; }));
    }
    if (adjoint.order == Order::second) each(size, [&](std::int64_t i) { to[i] *= -a; });
  }

  __device__ __forceinline__ void add_rate_bar(const SumsLayout& layout, int l, Real value) const {
    if (threadIdx.x == 0) sums[layout.rates + k * network.layers + l] += value;
  }

  __device__ __forceinline__ void reverse_coefficients(const InnerAdjoint<Real>& adjoint) const {
    const SumsLayout& layout = adjoint.layout;
    const std::int64_t out = network.out(0);
    const Real *gradients = part(kGrad, 0), *c = k == 0 ? nullptr : coefficients_after(k),
               *scales = network.output_scales;
    const Real a = rate(0), pull = network.pull;
    if (layout.rates >= 0) {
      add_rate_bar(layout, 0, sum_of<Real>(rows * out, [&](std::int64_t i) {
                     const Real change = scales == nullptr ? gradients[i] : gradients[i] * scales[i % out];
                     return coefficients_bar[i] * (c == nullptr ? change : change - pull * c[i]);
                   }));
    }
    if (layout.outputs >= 0) {
      add_rows(sums + layout.outputs, a, rows, out,
               [&](std::int64_t j, std::int64_t o) { return coefficients_bar[j * out + o] * gradients[j * out + o]; });
    }
    if (adjoint.order != Order::second) return;
    __syncthreads();
    Real* to = grad_bar[0];
    each(rows, out, [&](std::int64_t i, std::int64_t, std::int64_t o) {
      const Real own = coefficients_bar[i];
      to[i] = scales == nullptr ? a * own : a * own * scales[o];
      coefficients_bar[i] = (1 - a * pull) * own;
    });
  }

  // Back through G_l = pushed o f'(z_l), to both.
  __device__ __forceinline__ void curve(int l) const {
    const bool curved = network.curved();
    const Real *out = part(kOut, l), *slopes = part(kSlope, l), *curves = part(kCurve, l), *pushed = part(kPushed, l);
    Real *to = grad_bar[l], *sum = sum_bar[l];
    each(count * network.out(l), [&](std::int64_t i) {
      const Real own = to[i];
      if (curved) sum[i] = own * pushed[i] * curves[i];
      to[i] = curved ? own * slopes[i] : out[i] > 0 ? own : Real(0);
    });
  }

  __device__ __forceinline__ void reverse_loss() const {
    const int top = network.top();
    const std::int64_t outputs = network.outputs();
    const bool both = outputs == 2;
    const Real *z = part(kOut, top), *gradients_bar = grad_bar[top];
    Real* to = sum_bar[top];
    each(count, [&](std::int64_t j) {
      const LossTerms<Real> terms = loss_terms(network.loss, z + j * outputs, targets[from + j]);
      const Real weight = share(from + j), first_bar = gradients_bar[j * outputs],
                 second_bar = both ? gradients_bar[j * outputs + 1] : Real(0);
      to[j * outputs] = weight * (first_bar * terms.curvature[0][0] + second_bar * terms.curvature[1][0]);
      if (both) to[j * 2 + 1] = weight * (first_bar * terms.curvature[0][1] + second_bar * terms.curvature[1][1]);
      const auto along = [&](const Real(&values)[2]) { return first_bar * values[0] + second_bar * values[1]; };
      if (weights_bar != nullptr) weights_bar[from + j] += along(terms.gradient);
      if (targets_bar != nullptr) targets_bar[from + j] += weight * along(terms.by_target);
    });
  }

  // To the sums of the layer below l.
  __device__ __forceinline__ void descend(int l) const {
    const bool curved = network.curved();
    const Real *out = part(kOut, l - 1), *slopes = part(kSlope, l - 1), *own = input_bar[l];
    Real* below = sum_bar[l - 1];
    each(count * network.in(l), [&](std::int64_t i) {
      below[i] = curved ? below[i] + own[i] * slopes[i] : out[i] > 0 ? own[i] : Real(0);
    });
  }

  // The gradient in the sums that torch computed of the support.
  __device__ __forceinline__ void share_sums(const SumsLayout& layout) const {
    const std::int64_t hidden = network.out(0);
    const Real* own = sum_bar[0];
    each(rows * hidden, [&](std::int64_t i) { support_sums_bar[i] += own[i]; });
    add_rows(sums + layout.rest, Real(1), rows, hidden,
             [&](std::int64_t j, std::int64_t o) { return own[j * hidden + o]; });
  }

  // What the pull has of a rate's gradient, and the scales'.
  __device__ __forceinline__ void finish_rates(const SumsLayout& layout, int l) const {
    const std::int64_t offset = own_offset(l);
    const Real *now = weight(k, l), *initial = network.parameters + network.offsets[l], *pushed = pushed_bar(l);
    const Real pull = network.pull, a = rate(l);
    if (layout.rates >= 0 && pull != 0) {
      add_rate_bar(
          layout, l,
          -pull * sum_of<Real>(network.size(l), [&](std::int64_t i) { return pushed[i] * (now[i] - initial[i]); }));
    }
    if (layout.rest_scales < 0 || !network.scaled()) return;
    each(network.size(l), [&](std::int64_t i) {
      const Real gradient = total[offset + i] + pull * (now[i] - initial[i]);
      *sum_at(layout, l, i, true) -= a * bar[offset + i] * gradient;
    });
  }

  // Of the scales of the inputs, by what the inner products' rows have of them.
  __device__ __forceinline__ void finish_inputs(const InnerAdjoint<Real>& adjoint) const {
    const std::int64_t width = network.in(0);
    const Real* x = support.inputs;
    Real* to = sums + adjoint.layout.inputs;
    add_rows(to, Real(1), rows, width,
             [&](std::int64_t j, std::int64_t i) { return product_bar[j * width + i] * x[j * width + i]; });
    if (adjoint.order == Order::second) add_bias_scale_bar(gram_bar, rows * rows, to);
  }

  __device__ __forceinline__ void finish_support() const {
    const Real* scales = network.input_scales;
    each(rows, network.in(0), [&](std::int64_t i, std::int64_t, std::int64_t column) {
      const Real value = product_bar[i];
      support_bar[i] = scales == nullptr ? value : value * scales[column];
    });
  }

  // From the weights as used to those given.
  __device__ __forceinline__ void finish_weights() const {
    const Real shared = sum_of<Real>(shares ? rows : 0, [&](std::int64_t j) { return weights_bar[j] * share(j); });
    each(rows, [&](std::int64_t j) { weights_bar[j] = (weights_bar[j] - shared) / divisor; });
  }

  __device__ __forceinline__ void add_bars(const SumsLayout& layout, int l) const {
    const Real *own = bar + own_offset(l), *initial = initial_bar == nullptr ? nullptr : initial_bar + own_offset(l);
    each(network.size(l), [&](std::int64_t i) {
      *sum_at(layout, l, i) += own[i] + (initial == nullptr ? Real(0) : initial[i]);
    });
  }
};

// The block's n-th task, the largest first.
template <class Real>
__device__ std::int64_t nth_task(const InnerProblem<Real>& problem, std::int64_t n) {
  return problem.order == nullptr ? n : problem.order[n];
}

// The last task that begins at a row of the support or before it.
template <class Real>
__device__ std::int64_t task_of_row(const InnerProblem<Real>& problem, std::int64_t row) {
  std::int64_t number = 0, end = problem.tasks;
  while (end - number > 1) {
    const std::int64_t middle = (number + end) / 2;
    (problem.support.offsets[middle] <= row ? number : end) = middle;
  }
  return number;
}

// How many pairs of a support rating and a query the tasks before one have.
template <class Real>
__device__ __forceinline__ std::int64_t pairs_before(const InnerProblem<Real>& problem, std::int64_t task) {
  const std::int64_t *rows = problem.support.offsets, *queries = problem.query.offsets;
  return sum_of<std::int64_t>(
      task, [&](std::int64_t t) { return (rows[t + 1] - rows[t]) * (queries[t + 1] - queries[t]); });
}

// One kernel for all, so that what they share is compiled once. A block's shared memory holds the task at hand. What it
// takes up, one after the other, is a task or, for the effects, a rating of the support that its task is to do without.
template <class Real>
__global__ void __launch_bounds__(kThreads, kBlocksEach<Real>)
    work_on_tasks(const __grid_constant__ InnerProblem<Real> problem, const __grid_constant__ WorkOn<Real> on) {
  METAREC_DYNAMIC_SHARED(fast, Real);
  METAREC_SHARED(task, Task<Real>);
  METAREC_SHARED(taken, bool);
  const bool effects = on.work == Work::effects;
  const std::int64_t items = effects ? problem.support.count : problem.tasks;
#pragma unroll 1
  for (std::int64_t n = blockIdx.x; n < items; n += gridDim.x) {
    const std::int64_t number = effects ? task_of_row(problem, n) : nth_task(problem, n);
    const std::int64_t before = effects ? pairs_before(problem, number) : 0;
    __syncthreads();
    if (threadIdx.x == 0) {
      taken = on.work == Work::recall ? task.recall(problem, on, number, fast) : task.begin(problem, on, number, fast);
      if (effects && taken) {
        task.leave_out(on, n - problem.support.offsets[number], before, problem.query.offsets[number]);
      }
    }
    __syncthreads();
    if (!taken) continue;
    if (on.work != Work::recall) task.rate_support(problem.mean);
#pragma unroll 1
    while (true) {
      if (threadIdx.x == 0) task.fetch(on.program);
      __syncthreads();
      if (task.instruction.op == Op::done) break;
      multiply(task.product);
      task.finish_instruction(on);
      __syncthreads();
    }
  }
}


template <class Real>
__global__ void __launch_bounds__(kThreads)
    sum_blocks(const __grid_constant__ SumsLayout layout, const __grid_constant__ BlockSums<Real> sums, Real* total) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= layout.size) return;
  Real value = 0;
  for (std::int64_t b = 0; i < layout.first && b < sums.gram_blocks; ++b) value += sums.gram[b * layout.size + i];
  for (std::int64_t b = 0; b < sums.own_blocks; ++b) value += sums.own[b * layout.size + i];
  total[i] = value;
}

template <class Real>
__global__ void __launch_bounds__(kThreads)
    share_gradients(const __grid_constant__ Network<Real> network, const __grid_constant__ SumsLayout layout,
                    const Real* total, const __grid_constant__ SharedGradients<Real> to) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t split = network.weight_size(0), all = network.parameter_count();
  const std::int64_t width = network.in(0), hidden = network.out(0);
  const auto summed = [&](std::int64_t p, std::int64_t first, std::int64_t rest) {
    return p < split ? total[first + p] : total[rest + p - split];
  };
  if (to.parameters != nullptr && i < all) {
    const Real own = summed(i, layout.first, layout.rest);
    const Real support = i < split && to.first_of_support != nullptr ? to.first_of_support[i] : Real(0);
    to.parameters[i] = own + support + (i < split ? to.first_of_query[i] : Real(0));
  }
  if (to.rates != nullptr && i < network.steps * network.layers) to.rates[i] = total[layout.rates + i];
  const std::int64_t skipped = network.output_scales == nullptr ? 0 : network.size(0);
  if (to.scales != nullptr && i < all - skipped) {
    to.scales[i] = summed(skipped + i, layout.first_scales, layout.rest_scales);
  }
  // Tasks with a first weight of their own have left the gradient of all its scales, s = u v^T.
  const Real *scales = total + layout.first_scales, *bias_scales = total + layout.rest_scales;
  if (to.output_scales != nullptr && i < hidden) {
    Real value = total[layout.outputs + i] + bias_scales[i] * network.input_scales[width];
    for (std::int64_t j = 0; j < width; ++j) value += scales[i * width + j] * network.input_scales[j];
    to.output_scales[i] = value;
  }
  if (to.input_scales != nullptr && i <= width) {
    Real value = total[layout.inputs + i];
    for (std::int64_t o = 0; o < hidden; ++o) {
      value += (i < width ? scales[o * width + i] : bias_scales[o]) * network.output_scales[o];
    }
    to.input_scales[i] = value;
  }
}

template <class Real>
__global__ void __launch_bounds__(kThreads) add_values(Real* to, const Real* from, std::int64_t count) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < count) to[i] += from[i];
}

// --- Launches ---

// As few blocks as fill the device share its shared memory, and no workspace of more than half a gigabyte is asked for.
template <class Real>
Cut cut_of(std::int64_t items, std::int64_t workspace_size, const Machine& machine) {
  // What the kernel declares, and a kilobyte that the system keeps.
  constexpr std::int64_t value_bytes = sizeof(Real), static_bytes = (2 * value_bytes + 1) << 10;
  static_assert(sizeof(Task<Real>) + sizeof(Tile<Real, kTileRows>) + sizeof(Tile<Real, kTileColumns>) + (1 << 7) <=
                static_bytes - (1 << 10));
  constexpr std::int64_t most_bytes = std::int64_t{1} << 29;
  const std::int64_t fitting = std::max<std::int64_t>(most_bytes / (value_bytes * workspace_size + 1), 1);
  Cut cut;
  cut.blocks = std::min({items, kBlocksEach<Real> * machine.multiprocessors, fitting});
  cut.workspace_size = workspace_size;
  const std::int64_t together = std::max<std::int64_t>(ceil_div(cut.blocks, machine.multiprocessors), 1);
  const std::int64_t bytes = std::min(machine.shared_bytes / together, machine.block_shared_bytes) - static_bytes;
  cut.fast_size = static_cast<int>(std::clamp<std::int64_t>(bytes / value_bytes, 0, workspace_size));
  return cut;
}

template <class Real>
Cuts inner_loop_cuts(const InnerProblem<Real>& problem, std::int64_t items, const InnerAdjoint<Real>* adjoint,
                     const Machine& machine) {
  const auto cut = [&](bool gram) {
    return cut_of<Real>(items, Task<Real>::workspace(problem, gram, adjoint), machine);
  };
  Cuts cuts;
  if (problem.network.gram_exact()) cuts.gram = cut(true);
  cuts.own = cut(false);
  return cuts;
}

template <class Real>
Cut inner_loop_state_cut(const InnerProblem<Real>& problem, bool compact, const Machine& machine) {
  Task<Real> task;
  Arena<Real> arena = {nullptr, 0, nullptr, 0};
  task.network = problem.network;
  task.first = compact ? 1 : 0;
  task.rows = problem.support.count;
  task.query_rows = problem.query.count;
  task.place_queries(arena);
  return cut_of<Real>(problem.tasks, arena.used, machine);
}

// Launches the work for both kinds of tasks; a launch without blocks has none of a kind.
template <class Launch, class Real>
void work_on_kind(const Launch& launch, InnerProblem<Real> problem, const Cut& cut, Real* workspace, WorkOn<Real> on,
                  bool gram) {
  if (cut.blocks == 0) return;
  problem.gram = gram;
  problem.workspace = workspace;
  problem.workspace_size = cut.workspace_size;
  problem.fast_size = cut.fast_size;
  on.program = Composer<Real>(problem.network, on, gram).compose();
  launch(Grid{cut.blocks, kThreads, 1, cut.fast_size * sizeof(Real)}, work_on_tasks<Real>, problem, on);
}

template <class Launch, class Real>
void work_on_both(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                  const WorkOn<Real>& on) {
  work_on_kind(launch, problem, cuts.gram, workspace, on, true);
  work_on_kind(launch, problem, cuts.own, workspace, on, false);
}

template <class Launch, class Real>
void inner_loop(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                Real* predictions) {
  work_on_both(launch, problem, cuts, workspace, WorkOn<Real>{Work::predict, predictions});
}

template <class Launch, class Real>
void inner_loop_backward(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                         InnerAdjoint<Real> adjoint, Real* gram_sums, Real* own_sums) {
  adjoint.sums = gram_sums;
  work_on_kind(launch, problem, cuts.gram, workspace, WorkOn<Real>{Work::reverse, nullptr, adjoint}, true);
  adjoint.sums = own_sums;
  work_on_kind(launch, problem, cuts.own, workspace, WorkOn<Real>{Work::reverse, nullptr, adjoint}, false);
}

template <class Launch, class Real>
void inner_loop_share(const Launch& launch, const Network<Real>& network, const SumsLayout& layout,
                      const BlockSums<Real>& sums, Real* total, const SharedGradients<Real>& to) {
  launch(Grid{ceil_div(layout.size, kThreads), kThreads}, sum_blocks<Real>, layout, sums, total);
  const std::int64_t most = std::max(layout.size, network.in(0) + 1);
  launch(Grid{ceil_div(most, kThreads), kThreads}, share_gradients<Real>, network, layout, total, to);
}

template <class Launch, class Real>
void inner_loop_state(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                      const AdaptedHeads<Real>& state) {
  work_on_both(launch, problem, cuts, workspace, WorkOn<Real>{Work::state, nullptr, {}, state});
}

template <class Launch, class Real>
void inner_loop_effects(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                        const Real* whole, Real* effects) {
  work_on_both(launch, problem, cuts, workspace, WorkOn<Real>{Work::effects, effects, {}, {}, whole});
}

template <class Launch, class Real>
void inner_loop_predict(const Launch& launch, InnerProblem<Real> problem, const Cut& cut, Real* workspace,
                        const AdaptedHeads<Real>& state, Real* predictions) {
  work_on_kind(launch, problem, cut, workspace, WorkOn<Real>{Work::recall, predictions, {}, state}, state.compact);
}

template <class Launch, class Real>
void inner_loop_add(const Launch& launch, Real* to, const Real* from, std::int64_t count) {
  if (count > 0) launch(Grid{ceil_div(count, kThreads), kThreads}, add_values<Real>, to, from, count);
}

}  // namespace metarec::cuda
