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
// The two kinds are two launches of the same code, each with workspaces of its own size; a block goes through every
// gridDim-th task, the largest first, and skips those of the other kind. Which block has which task, and so the order
// of all sums, depends on the sizes and the device alone: two runs are bit-equal, and there are no atomics.
//
// A task's matrices are compact and row-major. They are taken from the block's shared memory as long as it lasts, in
// order of how often they are used, then from the block's part of a global workspace, which the second-level cache
// holds. All products go through tiles of 32 x 64 outputs and 16 terms in shared memory, 4 x 4 outputs a thread: for 16
// multiply-adds a thread reads 2 x 16 bytes there, which allows half of the float peak, whatever the strides of the
// operands. The backward pass runs the steps again and keeps them: nothing is kept of all tasks between the passes.
//
// Cost of a step in Gram form for a head D-H-H-1: S^2 H + 3 S H^2 multiply-adds, its adjoint 2 to 3 times as many;
// compulsory traffic is one reading of X, X W_0^T and the queries' own. With S = 20, D = 256, H = 64, K = 5 that is
// 1.4 M multiply-adds on 30 KB, 47 a byte, where an H100 has 10: bound by arithmetic. Planned is a third of the float
// peak once all multiprocessors have four blocks: half by the tiles, less their edges and the barriers between them.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "device.cuh"
#include "inner_loop.h"

namespace metarec::cuda {

constexpr int kThreads = 128, kWarps = kThreads / 32;
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

// Calls body(i) for each i < count, by all threads of the block, which meet afterwards.
template <class Body>
__device__ void each(std::int64_t count, const Body& body) {
#pragma unroll 1
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) body(i);
  __syncthreads();
}

// The same for the values of a matrix: body(i, row, column), a warp per row.
template <class Body>
__device__ void each(std::int64_t rows, std::int64_t columns, const Body& body) {
  for (std::int64_t row = threadIdx.x / 32; row < rows; row += kWarps) {
#pragma unroll 1
    for (std::int64_t column = threadIdx.x % 32; column < columns; column += 32) {
      body(row * columns + column, row, column);
    }
  }
  __syncthreads();
}

template <class Real>
__device__ Real warp_sum(Real value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// The sum of all threads' values, to all of them.
template <class Real>
__device__ __noinline__ Real block_sum(Real value) {
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
__device__ Real sum_of(std::int64_t count, const Body& body) {
  Real total = 0;
#pragma unroll 1
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) total += body(i);
  return block_sum(total);
}

// to [rows, columns] = base + bias + shift + factor * (left right) diag(column_scale), of operands with any strides;
// the terms are multiplied by depth_scale. What is null is left out.
template <class Real>
struct Product {
  const Real* left;
  std::int64_t left_row, left_depth;
  const Real* right;
  std::int64_t right_depth, right_column;
  Real* to;
  std::int64_t rows, columns, depth;
  Real factor = 1;
  const Real* base = nullptr;
  const Real* bias = nullptr;
  const Real* column_scale = nullptr;
  const Real* depth_scale = nullptr;
  Real shift = 0;

  __device__ Real left_at(std::int64_t i, std::int64_t k) const {
    const Real value = left[i * left_row + k * left_depth];
    return depth_scale == nullptr ? value : value * depth_scale[k];
  }
  __device__ Real right_at(std::int64_t k, std::int64_t j) const { return right[k * right_depth + j * right_column]; }

  __device__ void write(std::int64_t i, std::int64_t j, Real total) const {
    total *= column_scale == nullptr ? factor : factor * column_scale[j];
    total += shift;
    if (bias != nullptr) total += bias[j];
    if (base != nullptr) total += base[i * columns + j];
    to[i * columns + j] = total;
  }
};

template <class Real>
struct alignas(4 * sizeof(Real)) Quad {
  Real value[4];
};

// A part of an operand, [depth][rows or columns], with room against bank conflicts.
template <class Real, int kWidth>
struct Tile {
  static constexpr int kEach = kTileDepth * kWidth / kThreads;
  Quad<Real> quads[kTileDepth][kWidth / 4 + 1];

  // Where value number `i` of a thread goes: neighbouring threads read neighbouring values.
  static __device__ void place(bool depth_first, int i, int& depth, int& across) {
    const int number = static_cast<int>(threadIdx.x) + i * kThreads;
    depth = depth_first ? number % kTileDepth : number / kWidth;
    across = depth_first ? number / kTileDepth : number % kWidth;
  }
};

template <class Real>
__device__ __noinline__ void multiply_by_tiles(const Product<Real>& product) {
  using Left = Tile<Real, kTileRows>;
  using Right = Tile<Real, kTileColumns>;
  METAREC_SHARED(left, Left);
  METAREC_SHARED(right, Right);
  const bool left_first = product.left_depth == 1, right_first = product.right_depth == 1;
  const int own_row = static_cast<int>(threadIdx.x) / 16, own_column = static_cast<int>(threadIdx.x) % 16;
  for (std::int64_t row = 0; row < product.rows; row += kTileRows) {
    for (std::int64_t column = 0; column < product.columns; column += kTileColumns) {
      Real next_left[Left::kEach], next_right[Right::kEach], total[4][4] = {};
      // Reads what the next tiles are made of; it arrives while the present ones are multiplied.
      const auto fetch = [&](std::int64_t begin) {
#pragma unroll
        for (int i = 0; i < Left::kEach; ++i) {
          int depth, across;
          Left::place(left_first, i, depth, across);
          const bool inside = begin + depth < product.depth && row + across < product.rows;
          next_left[i] = inside ? product.left_at(row + across, begin + depth) : Real(0);
        }
#pragma unroll
        for (int i = 0; i < Right::kEach; ++i) {
          int depth, across;
          Right::place(right_first, i, depth, across);
          const bool inside = begin + depth < product.depth && column + across < product.columns;
          next_right[i] = inside ? product.right_at(begin + depth, column + across) : Real(0);
        }
      };
      fetch(0);
      for (std::int64_t begin = 0; begin < product.depth; begin += kTileDepth) {
#pragma unroll
        for (int i = 0; i < Left::kEach; ++i) {
          int depth, across;
          Left::place(left_first, i, depth, across);
          left.quads[depth][across / 4].value[across % 4] = next_left[i];
        }
#pragma unroll
        for (int i = 0; i < Right::kEach; ++i) {
          int depth, across;
          Right::place(right_first, i, depth, across);
          right.quads[depth][across / 4].value[across % 4] = next_right[i];
        }
        __syncthreads();
        if (begin + kTileDepth < product.depth) fetch(begin + kTileDepth);
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
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const std::int64_t to_row = row + 4 * own_row + i, to_column = column + 4 * own_column + j;
          if (to_row < product.rows && to_column < product.columns) product.write(to_row, to_column, total[i][j]);
        }
      }
    }
  }
  __syncthreads();
}

template <class Real>
__device__ __noinline__ void multiply_thin(const Product<Real>& product) {
  const std::int64_t count = product.rows * product.columns;
  if (product.columns <= 2) {  // a warp per output
    for (std::int64_t i = threadIdx.x / 32; i < count; i += kWarps) {
      const std::int64_t row = i / product.columns, column = i % product.columns;
      Real total = 0;
      for (std::int64_t k = threadIdx.x % 32; k < product.depth; k += 32) {
        total += product.left_at(row, k) * product.right_at(k, column);
      }
      total = warp_sum(total);
      if (threadIdx.x % 32 == 0) product.write(row, column, total);
    }
  } else {
    for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
      const std::int64_t row = i / product.columns, column = i % product.columns;
      Real total = 0;
      for (std::int64_t k = 0; k < product.depth; ++k) total += product.left_at(row, k) * product.right_at(k, column);
      product.write(row, column, total);
    }
  }
  __syncthreads();
}

template <class Real>
__device__ void multiply(const Product<Real>& product) {
  if (product.rows <= 2 || product.columns <= 2 || product.depth <= 2) return multiply_thin(product);
  multiply_by_tiles(product);
}

// to[column] += factor * (sum over the rows of body(row, column))
template <class Real, class Body>
__device__ void add_rows(Real* to, Real factor, std::int64_t rows, std::int64_t columns, const Body& body) {
  each(columns, [&](std::int64_t column) {
    Real total = 0;
    for (std::int64_t row = 0; row < rows; ++row) total += body(row, column);
    to[column] += factor * total;
  });
}

template <class Real>
__device__ __noinline__ void fill(Real* to, std::int64_t count, Real value) {
  each(count, [&](std::int64_t i) { to[i] = value; });
}

// f(z), f'(z) and f''(z)
template <class Real>
__device__ void activation_terms(Activation activation, Real z, Real& value, Real& slope, Real& curve) {
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
__device__ LossTerms<Real> loss_terms(Loss loss, const Real* z, Real target) {
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

// One task, in shared memory. Each method is called by all threads of the block and ends with a barrier.
template <class Real>
struct Task {
  Network<Real> network;
  RaggedRows<Real> support, query;  // of this task; sums is null where inputs only are known
  const Real *targets, *weights;
  std::int64_t rows, query_rows, steps, chunk;
  std::int64_t left_out;  // a row of the support that does not count, or -1
  int first;              // the first layer with weights of its own: 1 in Gram form, else 0
  bool keep_weights, keep_passes;
  Real divisor;
  const Real* first_bias;  // of the first layer in Gram form, which adds `shift` to the inner products for its steps
  Real shift;

  Real *history, *coefficients, *total;  // weights and C after steps, gradient of a step
  Real *gram_matrix, *passes, *query_pass, *query_products;
  Real *bar, *next_bar, *scaled_bar, *initial_bar;  // of the weights
  Real *sum_bar[kLayers], *grad_bar[kLayers], *input_bar[kLayers];
  Real *coefficients_bar, *gram_bar, *product_bar, *query_products_bar;

  // --- By one thread ---

  __host__ __device__ bool gram() const { return first == 1; }
  __host__ __device__ std::int64_t own_size() const { return network.parameter_count() - network.offsets[first]; }

  // Places all matrices; `adjoint` is null in a forward pass, and `coefficients` are given where they are kept.
  __host__ __device__ __noinline__ void place(Arena<Real>& arena, const InnerAdjoint<Real>* adjoint) {
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
  __device__ __noinline__ bool begin(const InnerProblem<Real>& problem, std::int64_t task,
                                     const InnerAdjoint<Real>* adjoint, Real* fast) {
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
    left_out = -1;
    first_bias = network.parameters + network.weight_size(0);
    shift = network.input_scales == nullptr ? Real(1) : network.input_scales[network.in(0)];
    Arena<Real> arena = {fast, problem.fast_size, problem.workspace + blockIdx.x * problem.workspace_size, 0};
    place(arena, adjoint);
    return true;
  }

  // Takes up a head adapted before, as after a step.
  __device__ void recall(const InnerProblem<Real>& problem, const AdaptedHeads<Real>& state, std::int64_t task,
                         Real* fast) {
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
    Arena<Real> arena = {fast, problem.fast_size, problem.workspace + blockIdx.x * problem.workspace_size, 0};
    place_queries(arena);
  }

  // --- Views ---

  __device__ Real* part(const Pass<Real>& pass, int part, int l) const {
    return pass.begin + pass.rows * network.columns[part][l];
  }
  // The pass of step k over a chunk of the support.
  __device__ Pass<Real> step_pass(std::int64_t k) const {
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
  __device__ Real rate(std::int64_t k, int l) const { return network.rates[k * network.layers + l]; }
  __device__ Real share(std::int64_t j) const { return j == left_out ? Real(0) : weights[j] / divisor; }
  __device__ const Real* input(const Pass<Real>& pass, int l, std::int64_t from) const {
    return l == 0 ? support.inputs + from * network.in(0) : part(pass, kOut, l - 1);
  }

  // --- Products of layer l ---

  // z = h W^T + b of a block (weight, bias)
  __device__ __noinline__ void affine(int l, const Real* block, const Real* h, std::int64_t count, Real* z) const {
    const std::int64_t in = network.in(l), out = network.out(l);
    Product<Real> product = {h, in, 1, block, 1, in, z, count, out, in};
    product.bias = block + out * in;
    multiply(product);
  }

  // to = base + factor * g W
  __device__ __noinline__ void push(int l, const Real* block, const Real* g, std::int64_t count, Real factor, Real* to,
                                    const Real* base) const {
    const std::int64_t in = network.in(l), out = network.out(l);
    multiply(Product<Real>{g, out, 1, block, in, 1, to, count, in, out, factor, base});
  }

  // The weight of a block: to = base + g^T h
  __device__ __noinline__ void outer_weight(int l, const Real* g, const Real* h, std::int64_t count, Real* to,
                                            const Real* base) const {
    const std::int64_t in = network.in(l), out = network.out(l);
    multiply(Product<Real>{g, 1, out, h, in, 1, to, out, in, count, Real(1), base});
  }

  // The block, to += g^T h, or to = g^T h where it is `fresh`
  __device__ __noinline__ void outer(int l, const Real* g, const Real* h, std::int64_t count, Real* to,
                                     bool fresh) const {
    const std::int64_t out = network.out(l);
    outer_weight(l, g, h, count, to, fresh ? nullptr : to);
    Real* bias = to + network.weight_size(l);
    each(out, [&](std::int64_t o) {
      Real total = fresh ? Real(0) : bias[o];
      for (std::int64_t j = 0; j < count; ++j) total += g[j * out + o];
      bias[o] = total;
    });
  }

  // The inner products of rows with support rows from `from` on
  __device__ __noinline__ void gram_with(const Real* x, std::int64_t count, std::int64_t from, std::int64_t some,
                                         Real* to) const {
    const std::int64_t in = network.in(0);
    Product<Real> product = {x, in, 1, support.inputs + from * in, 1, in, to, count, some, in};
    product.depth_scale = network.input_scales;
    product.shift = shift;
    multiply(product);
  }

  // to = base - products C
  __device__ __noinline__ void correct(const Real* products, const Real* c, std::int64_t count, std::int64_t some,
                                       Real* to, const Real* base, const Real* bias) const {
    const std::int64_t out = network.out(0);
    multiply(Product<Real>{products, some, 1, c, out, 1, to, count, out, some, Real(-1), base, bias});
  }

  // --- The loop ---

  // Divides the ratings' weights by their sum, where `mean`.
  __device__ __noinline__ void rate_support(bool mean) {
    const Real total =
        sum_of<Real>(mean ? rows : 0, [&](std::int64_t j) { return j == left_out ? Real(0) : weights[j]; });
    if (threadIdx.x == 0) divisor = mean && total > 0 ? total : Real(1);
    __syncthreads();
  }

  __device__ void prepare() const {
    if (gram() && steps > 0) gram_with(support.inputs, rows, 0, rows, gram_matrix);
  }

  // to = the sums that are given, with the bias
  __device__ __noinline__ void start_sums(const Real* sums, std::int64_t count, Real* to) const {
    const std::int64_t out = network.out(0);
    each(count, out, [&](std::int64_t i, std::int64_t, std::int64_t o) { to[i] = sums[i] + first_bias[o]; });
  }

  // The layers after the sums of the first one.
  __device__ __noinline__ void rise(std::int64_t k, std::int64_t count, const Pass<Real>& pass) const {
    for (int l = 1; l < network.layers; ++l) {
      Real *out = part(pass, kOut, l - 1), *slopes = part(pass, kSlope, l - 1), *curves = part(pass, kCurve, l - 1);
      const bool curved = network.curved();
      each(count * network.in(l), [&](std::int64_t i) {
        Real value, slope = 0, curve = 0;
        activation_terms(network.activation, out[i], value, slope, curve);
        out[i] = value;
        if (!curved) return;
        slopes[i] = slope;
        curves[i] = curve;
      });
      affine(l, weight(k, l), out, count, part(pass, kOut, l));
    }
  }

  // to = value o f'(z_l)
  __device__ __noinline__ void through_activation(const Pass<Real>& pass, int l, const Real* values, std::int64_t count,
                                                  Real* to) const {
    const bool curved = network.curved();
    const Real *out = part(pass, kOut, l), *slopes = part(pass, kSlope, l);
    each(count * network.out(l), [&](std::int64_t i) {
      to[i] = curved ? values[i] * slopes[i] : out[i] > 0 ? values[i] : Real(0);
    });
  }

  // Step k's pass over rows of the support, and its gradients.
  __device__ __noinline__ void propagate(std::int64_t k, std::int64_t from, std::int64_t count,
                                         const Pass<Real>& pass) const {
    Real* z = part(pass, kOut, 0);
    const Real* sums = support.sums + from * network.out(0);
    if (k == 0) {
      start_sums(sums, count, z);
    } else if (gram()) {
      correct(gram_matrix, coefficients_after(k), count, rows, z, sums, first_bias);
    } else {
      affine(0, weight(k, 0), input(pass, 0, from), count, z);
    }
    rise(k, count, pass);
    find_gradients(k, from, count, pass);
  }

  __device__ __noinline__ void find_gradients(std::int64_t k, std::int64_t from, std::int64_t count,
                                              const Pass<Real>& pass) const {
    const int top = network.top();
    const std::int64_t outputs = network.outputs();
    const Real* z = part(pass, kOut, top);
    Real* grad = part(pass, kGrad, top);
    each(count, [&](std::int64_t j) {
      const LossTerms<Real> terms = loss_terms(network.loss, z + j * outputs, targets[from + j]);
      for (std::int64_t o = 0; o < outputs; ++o) grad[j * outputs + o] = share(from + j) * terms.gradient[o];
    });
    for (int l = top; l > 0; --l) {
      Real* pushed = part(pass, kPushed, l - 1);
      push(l, weight(k, l), part(pass, kGrad, l), count, Real(1), pushed, nullptr);
      through_activation(pass, l - 1, pushed, count, part(pass, kGrad, l - 1));
    }
  }

  // Takes the steps. Those of a task that is not in Gram form leave C in `kept`, where that is wanted.
  __device__ __noinline__ void adapt(Real* kept = nullptr) const {
    for (std::int64_t k = 0; k < steps; ++k) {
      const Pass<Real> pass = step_pass(k);
      for (std::int64_t from = 0; from < rows; from += chunk) {
        const std::int64_t count = rows - from < chunk ? rows - from : chunk;
        propagate(k, from, count, pass);
        for (int l = first; l < network.layers; ++l) {
          outer(l, part(pass, kGrad, l), input(pass, l, from), count, total + own_offset(l), from == 0);
        }
        if (gram()) {
          advance_coefficients(k, count, pass, k == 0 ? nullptr : coefficients_after(k), coefficients_after(k + 1));
        } else if (kept != nullptr) {
          Real* own = kept + from * network.out(0);
          advance_coefficients(k, count, pass, k == 0 ? nullptr : own, own);
        }
      }
      advance_weights(k);
    }
  }

  // C <- (1 - a p) C + a G_0 diag(u)
  __device__ __noinline__ void advance_coefficients(std::int64_t k, std::int64_t count, const Pass<Real>& pass,
                                                    const Real* now, Real* next) const {
    const std::int64_t out = network.out(0);
    const Real a = rate(k, 0), left = 1 - a * network.pull;
    const Real* grad = part(pass, kGrad, 0);
    each(count, out, [&](std::int64_t i, std::int64_t, std::int64_t o) {
      Real change = a * grad[i];
      if (network.output_scales != nullptr) change *= network.output_scales[o];
      next[i] = now == nullptr ? change : change + left * now[i];
    });
  }

  __device__ __noinline__ void advance_weights(std::int64_t k) const {
    for (int l = first; l < network.layers; ++l) {
      const Real *now = weight(k, l), *gradient = total + own_offset(l),
                 *initial = network.parameters + network.offsets[l];
      Real* next = history + (keep_weights ? k * own_size() : 0) + own_offset(l);
      const Real a = rate(k, l);
      each(network.size(l), [&](std::int64_t i) {
        const Real value = now[i];
        next[i] = value - a * scale(l, i) * (gradient[i] + network.pull * (value - initial[i]));
      });
    }
  }

  // A pass over some queries by the head after all steps.
  __device__ __noinline__ Pass<Real> pass_over_queries(std::int64_t from, std::int64_t count) const {
    const Pass<Real> pass = {query_pass, count};
    const Real* x = query.inputs + from * network.in(0);
    Real* z = part(pass, kOut, 0);
    if (gram() || steps == 0) {
      start_sums(query.sums + from * network.out(0), count, z);
      if (steps > 0) correct_queries(x, count, coefficients_after(steps), z);
    } else {
      affine(0, weight(steps, 0), x, count, z);
    }
    rise(steps, count, pass);
    return pass;
  }

  // z -= (x Y^T + v_b) C, by chunks of the support
  __device__ __noinline__ void correct_queries(const Real* x, std::int64_t count, const Real* c, Real* z) const {
    for (std::int64_t row = 0; row < rows; row += kChunkRows) {
      const std::int64_t some = rows - row < kChunkRows ? rows - row : kChunkRows;
      gram_with(x, count, row, some, query_products);
      correct(query_products, c + row * network.out(0), count, some, z, z, nullptr);
    }
  }

  __device__ __noinline__ void predict(Real* predictions) const {
    const std::int64_t outputs = network.outputs();
    for (std::int64_t from = 0; from < query_rows; from += kQueryRows) {
      const std::int64_t count = query_rows - from < kQueryRows ? query_rows - from : kQueryRows;
      const Real* out = part(pass_over_queries(from, count), kOut, network.top());
      each(count * outputs, [&](std::int64_t i) { predictions[from * outputs + i] = out[i]; });
    }
  }

  // Writes what serving needs of the adapted head: what the Gram form adds to, or all of it.
  __device__ __noinline__ void write_state(Real* to_rows, Real* to_coefficients, Real* parameters) const {
    const std::int64_t width = network.in(0), hidden = network.out(0), size = network.parameter_count();
    const bool compact = to_rows != nullptr;
    const std::int64_t skipped = compact ? network.weight_size(0) : 0;
    const Real* own = own_weights(steps);
    if (compact) {
      each(rows, width, [&](std::int64_t i, std::int64_t, std::int64_t column) {
        const Real value = support.inputs[i];
        to_rows[i] = network.input_scales == nullptr ? value : value * network.input_scales[column];
      });
      if (steps == 0 || gram()) {
        const Real* c = steps == 0 ? nullptr : coefficients_after(steps);
        each(rows * hidden, [&](std::int64_t i) { to_coefficients[i] = c == nullptr ? Real(0) : c[i]; });
      }
    }
    const std::int64_t begin = network.offsets[first];
    each(size - skipped, [&](std::int64_t i) {
      if (skipped + i >= begin) parameters[i] = own[skipped + i - begin];
    });
    if (!gram()) return;
    each(hidden, [&](std::int64_t o) {
      Real taken = 0;
      for (std::int64_t j = 0; j < rows; ++j) taken += to_coefficients[j * hidden + o];
      parameters[o] = first_bias[o] - shift * taken;
    });
  }

  // --- The way back ---

  __device__ __noinline__ void reverse(const InnerAdjoint<Real>& adjoint, std::int64_t row, std::int64_t asked,
                                       bool mean) {
    const std::int64_t width = network.in(0), hidden = network.out(0), outputs = network.outputs();
    const bool second = adjoint.order == Order::second;
    Real* sums = adjoint.sums + blockIdx.x * adjoint.layout.size;
    Real* support_bar = adjoint.support == nullptr ? nullptr : adjoint.support + row * width;
    Real* weights_bar = adjoint.weights == nullptr ? nullptr : adjoint.weights + row;
    Real* targets_bar = adjoint.targets == nullptr ? nullptr : adjoint.targets + row;
    Real* sums_bar = adjoint.support_sums + row * hidden;
    fill(bar, own_size(), Real(0));
    fill(sums_bar, rows * hidden, Real(0));
    if (initial_bar != nullptr) fill(initial_bar, own_size(), Real(0));
    if (coefficients_bar != nullptr) fill(coefficients_bar, rows * hidden, Real(0));
    if (gram_bar != nullptr) fill(gram_bar, rows * rows, Real(0));
    if (product_bar != nullptr) fill(product_bar, rows * width, Real(0));
    if (support_bar != nullptr) fill(support_bar, rows * width, Real(0));
    if (targets_bar != nullptr) fill(targets_bar, rows, Real(0));
    if (weights_bar != nullptr) fill(weights_bar, rows, Real(0));
    for (std::int64_t from = 0; from < query_rows; from += kQueryRows) {
      const std::int64_t count = query_rows - from < kQueryRows ? query_rows - from : kQueryRows;
      reverse_queries(adjoint, from, count, adjoint.grad + (asked + from) * outputs,
                      adjoint.query == nullptr ? nullptr : adjoint.query + (asked + from) * width,
                      adjoint.query_sums + (asked + from) * hidden, sums);
    }
    for (std::int64_t k = steps; adjoint.of_steps() && k-- > 0;) {
      reverse_step(adjoint, k, support_bar, targets_bar, weights_bar, sums_bar, sums);
      if (second) swap_bars();
    }
    if (gram()) finish_inputs(adjoint.layout, second, support_bar, sums);
    if (weights_bar != nullptr && second) finish_weights(weights_bar, mean);
    for (int l = first; l < network.layers; ++l) {
      const Real *own = bar + own_offset(l), *initial = initial_bar == nullptr ? nullptr : initial_bar + own_offset(l);
      each(network.size(l), [&](std::int64_t i) {
        *sum_at(adjoint.layout, sums, l, i) += own[i] + (initial == nullptr ? Real(0) : initial[i]);
      });
    }
  }

  // Where the sum over tasks of a parameter's gradient is, or of its scale's.
  __device__ Real* sum_at(const SumsLayout& layout, Real* sums, int l, std::int64_t i, bool of_scale = false) const {
    const std::int64_t split = network.weight_size(0), index = network.offsets[l] + i;
    if (index < split) return sums + (of_scale ? layout.first_scales : layout.first) + index;
    return sums + (of_scale ? layout.rest_scales : layout.rest) + index - split;
  }

  __device__ void swap_bars() {
    if (threadIdx.x == 0) {
      Real* old = bar;
      bar = next_bar;
      next_bar = old;
    }
    __syncthreads();
  }

  // Back through some queries, to the adapted head.
  __device__ __noinline__ void reverse_queries(const InnerAdjoint<Real>& adjoint, std::int64_t from, std::int64_t count,
                                               const Real* grad, Real* query_bar, Real* query_sums_bar,
                                               Real* sums) const {
    const Pass<Real> pass = pass_over_queries(from, count);
    const std::int64_t hidden = network.out(0);
    const Real *above = grad, *x = query.inputs + from * network.in(0);
    for (int l = network.top(); l > 0; --l) {
      outer(l, above, part(pass, kOut, l - 1), count, bar + own_offset(l), false);
      push(l, weight(steps, l), above, count, Real(1), input_bar[l], nullptr);
      through_activation(pass, l - 1, input_bar[l], count, input_bar[l]);
      above = input_bar[l];
    }
    if (!gram()) {
      outer(0, above, x, count, bar, false);
      if (query_bar != nullptr) push(0, weight(steps, 0), above, count, Real(1), query_bar, nullptr);
      fill(query_sums_bar, count * hidden, Real(0));
      return;
    }
    each(count * hidden, [&](std::int64_t i) { query_sums_bar[i] = above[i]; });
    add_rows(sums + adjoint.layout.rest, Real(1), count, hidden,
             [&](std::int64_t j, std::int64_t o) { return above[j * hidden + o]; });
    if (steps == 0) {
      if (query_bar != nullptr) fill(query_bar, count * network.in(0), Real(0));
      return;
    }
    reverse_query_gram(adjoint, x, count, above, query_bar, sums);
  }

  __device__ __noinline__ void reverse_query_gram(const InnerAdjoint<Real>& adjoint, const Real* x, std::int64_t count,
                                                  const Real* above, Real* query_bar, Real* sums) const {
    const std::int64_t width = network.in(0), hidden = network.out(0);
    const Real* c = coefficients_after(steps);
    multiply(Product<Real>{query_products, 1, rows, above, hidden, 1, coefficients_bar, rows, hidden, count, Real(-1),
                           coefficients_bar});
    if (query_bar == nullptr && product_bar == nullptr) return;
    multiply(Product<Real>{above, hidden, 1, c, 1, hidden, query_products_bar, count, rows, hidden, Real(-1)});
    if (query_bar != nullptr) {
      Product<Real> product = {query_products_bar, rows, 1, support.inputs, width, 1, query_bar, count, width, rows};
      product.column_scale = network.input_scales;
      multiply(product);
    }
    if (product_bar == nullptr) return;
    multiply(
        Product<Real>{query_products_bar, 1, rows, x, width, 1, product_bar, rows, width, count, Real(1), product_bar});
    if (adjoint.layout.inputs >= 0) add_bias_scale_bar(query_products_bar, count * rows, sums + adjoint.layout.inputs);
  }

  // v_b-bar += the sum of P-bar
  __device__ void add_bias_scale_bar(const Real* products_bar, std::int64_t count, Real* inputs_bar) const {
    const Real sum = sum_of<Real>(count, [&](std::int64_t i) { return products_bar[i]; });
    if (threadIdx.x == 0) inputs_bar[network.in(0)] += sum;
    __syncthreads();
  }

  // Back through step k; of first order, only to its rates and scales.
  __device__ __noinline__ void reverse_step(const InnerAdjoint<Real>& adjoint, std::int64_t k, Real* support_bar,
                                            Real* targets_bar, Real* weights_bar, Real* sums_bar, Real* sums) const {
    const bool second = adjoint.order == Order::second, scales = adjoint.layout.rest_scales >= 0 && network.scaled();
    start_bars(k, second);
    const Pass<Real> pass = step_pass(k);
    for (std::int64_t from = 0; from < rows; from += chunk) {
      const std::int64_t count = rows - from < chunk ? rows - from : chunk;
      if (!keep_passes) propagate(k, from, count, pass);
      Real* inputs_bar = support_bar == nullptr ? nullptr : support_bar + from * network.in(0);
      reverse_updates(adjoint, k, from, count, pass, inputs_bar, sums);
      if (scales) {
        for (int l = first; l < network.layers; ++l) {
          outer(l, part(pass, kGrad, l), input(pass, l, from), count, total + own_offset(l), from == 0);
        }
      }
      if (!second) continue;
      rise_gradients(k, from, count, pass, targets_bar, weights_bar);
      descend_sums(adjoint, k, from, count, pass, inputs_bar, sums_bar, sums);
    }
    for (int l = first; l < network.layers; ++l) finish_rates(adjoint.layout, k, l, scales, sums);
  }

  // What step k pushes back: V = s o W-bar.
  __device__ const Real* pushed_bar(int l) const { return (scaled_bar == nullptr ? bar : scaled_bar) + own_offset(l); }

  // V, and W-bar as the pull leaves it.
  __device__ __noinline__ void start_bars(std::int64_t k, bool second) const {
    for (int l = first; l < network.layers; ++l) {
      const std::int64_t offset = own_offset(l);
      const Real back = rate(k, l) * network.pull;
      each(network.size(l), [&](std::int64_t i) {
        const Real own = bar[offset + i], pushed = own * scale(l, i);
        if (scaled_bar != nullptr) scaled_bar[offset + i] = pushed;
        if (!second) return;
        next_bar[offset + i] = own - back * pushed;
        if (initial_bar != nullptr) initial_bar[offset + i] += back * pushed;
      });
    }
  }

  // Back through the change of the weights, to the gradients G and what they were multiplied with.
  __device__ __noinline__ void reverse_updates(const InnerAdjoint<Real>& adjoint, std::int64_t k, std::int64_t from,
                                               std::int64_t count, const Pass<Real>& pass, Real* inputs_bar,
                                               Real* sums) const {
    const SumsLayout& layout = adjoint.layout;
    const bool second = adjoint.order == Order::second;
    for (int l = first; l < network.layers; ++l) {
      const std::int64_t size = count * network.out(l);
      const Real *grad = part(pass, kGrad, l), a = rate(k, l);
      Real* to = grad_bar[l];
      affine(l, pushed_bar(l), input(pass, l, from), count, to);
      if (layout.rates >= 0) {
        add_rate_bar(layout, k, l, -sum_of<Real>(size, [&](std::int64_t i) { return grad[i] * to[i]; }), sums);
      }
      if (!second) continue;
      each(size, [&](std::int64_t i) { to[i] *= -a; });
      if (l > 0) push(l, pushed_bar(l), grad, count, -a, input_bar[l], nullptr);
      if (l == 0 && inputs_bar != nullptr) push(0, pushed_bar(0), grad, count, -a, inputs_bar, inputs_bar);
    }
    if (gram()) reverse_coefficients(layout, k, pass, second, sums);
  }

  __device__ void add_rate_bar(const SumsLayout& layout, std::int64_t k, int l, Real value, Real* sums) const {
    if (threadIdx.x == 0) sums[layout.rates + k * network.layers + l] += value;
    __syncthreads();
  }

  __device__ __noinline__ void reverse_coefficients(const SumsLayout& layout, std::int64_t k, const Pass<Real>& pass,
                                                    bool second, Real* sums) const {
    const std::int64_t out = network.out(0);
    const Real *grad = part(pass, kGrad, 0), *c = k == 0 ? nullptr : coefficients_after(k),
               *scales = network.output_scales;
    const Real a = rate(k, 0), pull = network.pull;
    if (layout.rates >= 0) {
      const Real total = sum_of<Real>(rows * out, [&](std::int64_t i) {
        const Real change = scales == nullptr ? grad[i] : grad[i] * scales[i % out];
        return coefficients_bar[i] * (c == nullptr ? change : change - pull * c[i]);
      });
      add_rate_bar(layout, k, 0, total, sums);
    }
    if (layout.outputs >= 0) {
      add_rows(sums + layout.outputs, a, rows, out,
               [&](std::int64_t j, std::int64_t o) { return coefficients_bar[j * out + o] * grad[j * out + o]; });
    }
    if (!second) return;
    each(rows, out, [&](std::int64_t i, std::int64_t, std::int64_t o) {
      const Real own = coefficients_bar[i];
      grad_bar[0][i] = scales == nullptr ? a * own : a * own * scales[o];
      coefficients_bar[i] = (1 - a * pull) * own;
    });
  }

  // Back through the gradients, from the first layer to the loss.
  __device__ __noinline__ void rise_gradients(std::int64_t k, std::int64_t from, std::int64_t count,
                                              const Pass<Real>& pass, Real* targets_bar, Real* weights_bar) const {
    const int top = network.top();
    for (int l = 0; l < top; ++l) {
      Real *to = grad_bar[l], *sum = sum_bar[l];
      if (network.curved()) {
        const Real *pushed = part(pass, kPushed, l), *curves = part(pass, kCurve, l);
        each(count * network.out(l), [&](std::int64_t i) { sum[i] = to[i] * pushed[i] * curves[i]; });
      }
      through_activation(pass, l, to, count, to);
      Real* above = next_bar + own_offset(l + 1);
      outer_weight(l + 1, part(pass, kGrad, l + 1), to, count, above, above);
      const std::int64_t in = network.in(l + 1), out = network.out(l + 1);
      multiply(
          Product<Real>{to, in, 1, weight(k, l + 1), 1, in, grad_bar[l + 1], count, out, in, Real(1), grad_bar[l + 1]});
    }
    const std::int64_t outputs = network.outputs();
    const Real *z = part(pass, kOut, top), *gradients = grad_bar[top];
    each(count, [&](std::int64_t j) {
      const LossTerms<Real> terms = loss_terms(network.loss, z + j * outputs, targets[from + j]);
      const Real* own = gradients + j * outputs;
      for (std::int64_t o = 0; o < outputs; ++o) {
        Real curved = 0;
        for (std::int64_t i = 0; i < outputs; ++i) curved += own[i] * terms.curvature[i][o];
        sum_bar[top][j * outputs + o] = share(from + j) * curved;
        if (weights_bar != nullptr) weights_bar[from + j] += own[o] * terms.gradient[o];
        if (targets_bar != nullptr) targets_bar[from + j] += share(from + j) * own[o] * terms.by_target[o];
      }
    });
  }

  // Back through the sums, from the loss to the inputs.
  __device__ __noinline__ void descend_sums(const InnerAdjoint<Real>& adjoint, std::int64_t k, std::int64_t from,
                                            std::int64_t count, const Pass<Real>& pass, Real* inputs_bar,
                                            Real* sums_bar, Real* sums) const {
    for (int l = network.top(); l > 0; --l) {
      Real *own = input_bar[l], *below = sum_bar[l - 1];
      outer(l, sum_bar[l], part(pass, kOut, l - 1), count, next_bar + own_offset(l), false);
      push(l, weight(k, l), sum_bar[l], count, Real(1), own, own);
      through_activation(pass, l - 1, own, count, own);
      const bool curved = network.curved();
      each(count * network.in(l), [&](std::int64_t i) { below[i] = curved ? below[i] + own[i] : own[i]; });
    }
    if (!gram()) {
      outer(0, sum_bar[0], input(pass, 0, from), count, next_bar, false);
      if (inputs_bar != nullptr) push(0, weight(k, 0), sum_bar[0], count, Real(1), inputs_bar, inputs_bar);
      return;
    }
    const std::int64_t hidden = network.out(0);
    const Real* own = sum_bar[0];
    each(rows * hidden, [&](std::int64_t i) { sums_bar[i] += own[i]; });
    add_rows(sums + adjoint.layout.rest, Real(1), rows, hidden,
             [&](std::int64_t j, std::int64_t o) { return own[j * hidden + o]; });
    if (k == 0) return;
    correct(gram_matrix, own, rows, rows, coefficients_bar, coefficients_bar, nullptr);
    if (gram_bar == nullptr) return;
    multiply(Product<Real>{own, hidden, 1, coefficients_after(k), 1, hidden, gram_bar, rows, rows, hidden, Real(-1),
                           gram_bar});
  }

  // What the pull has of a rate's gradient, and the scales'.
  __device__ __noinline__ void finish_rates(const SumsLayout& layout, std::int64_t k, int l, bool scales,
                                            Real* sums) const {
    const std::int64_t offset = own_offset(l);
    const Real *now = weight(k, l), *initial = network.parameters + network.offsets[l], *pushed = pushed_bar(l);
    const Real pull = network.pull, a = rate(k, l);
    if (layout.rates >= 0 && pull != 0) {
      add_rate_bar(
          layout, k, l,
          -pull * sum_of<Real>(network.size(l), [&](std::int64_t i) { return pushed[i] * (now[i] - initial[i]); }),
          sums);
    }
    if (!scales) return;
    each(network.size(l), [&](std::int64_t i) {
      const Real gradient = total[offset + i] + pull * (now[i] - initial[i]);
      *sum_at(layout, sums, l, i, true) -= a * bar[offset + i] * gradient;
    });
  }

  // From the inner products to the inputs and their scales.
  __device__ __noinline__ void finish_inputs(const SumsLayout& layout, bool second, Real* support_bar,
                                             Real* sums) const {
    if (product_bar == nullptr || steps == 0) return;
    const std::int64_t width = network.in(0);
    const Real* x = support.inputs;
    if (second)
      multiply(Product<Real>{gram_bar, rows, 1, x, width, 1, product_bar, rows, width, rows, Real(1), product_bar});
    if (layout.inputs >= 0) {
      add_rows(sums + layout.inputs, Real(1), rows, width,
               [&](std::int64_t j, std::int64_t i) { return product_bar[j * width + i] * x[j * width + i]; });
      if (second) add_bias_scale_bar(gram_bar, rows * rows, sums + layout.inputs);
    }
    if (!second || support_bar == nullptr) return;
    multiply(Product<Real>{gram_bar, 1, rows, x, width, 1, product_bar, rows, width, rows, Real(1), product_bar});
    each(rows, width, [&](std::int64_t i, std::int64_t, std::int64_t column) {
      const Real value = product_bar[i];
      support_bar[i] = network.input_scales == nullptr ? value : value * network.input_scales[column];
    });
  }

  // From the weights as used to those given.
  __device__ void finish_weights(Real* weights_bar, bool mean) const {
    const Real shared = sum_of<Real>(mean ? rows : 0, [&](std::int64_t j) { return weights_bar[j] * share(j); });
    each(rows, [&](std::int64_t j) { weights_bar[j] = (weights_bar[j] - shared) / divisor; });
  }
};

// The block's n-th task, the largest first.
template <class Real>
__device__ std::int64_t nth_task(const InnerProblem<Real>& problem, std::int64_t n) {
  return problem.order == nullptr ? n : problem.order[n];
}

// Takes up a task, prepared for its steps; says whether this launch takes it.
template <class Real>
__device__ bool begin_task(Task<Real>& task, const InnerProblem<Real>& problem, std::int64_t number,
                           const InnerAdjoint<Real>* adjoint, Real* fast, std::int64_t left_out = -1) {
  METAREC_SHARED(taken, bool);
  __syncthreads();
  if (threadIdx.x == 0) {
    taken = task.begin(problem, number, adjoint, fast);
    task.left_out = left_out;
  }
  __syncthreads();
  if (!taken) return false;
  task.rate_support(problem.mean);
  task.prepare();
  return true;
}

enum class Work { predict, reverse, state, recall, effects };

// What a launch does, and what of the following that takes.
template <class Real>
struct WorkOn {
  Work work;
  Real* results = nullptr;  // predictions or effects
  InnerAdjoint<Real> adjoint = {};
  AdaptedHeads<Real> state = {};
  const Real* whole = nullptr;  // predictions by the whole support, for the effects
};

template <class Real>
__device__ __noinline__ void work_on_task(Task<Real>& task, const InnerProblem<Real>& problem, const WorkOn<Real>& on,
                                          std::int64_t number, Real* fast) {
  const Network<Real>& network = problem.network;
  const bool reverse = on.work == Work::reverse;
  if (!begin_task<Real>(task, problem, number, reverse ? &on.adjoint : nullptr, fast)) return;
  const bool compact = on.work == Work::state && on.state.compact;
  const std::int64_t row = problem.support.offsets[number];
  Real* coefficients = compact ? on.state.coefficients + row * network.out(0) : nullptr;
  task.adapt(coefficients);
  if (on.work == Work::predict) {
    task.predict(on.results + problem.query.offsets[number] * network.outputs());
  } else if (reverse) {
    task.reverse(on.adjoint, row, problem.query.offsets[number], problem.mean);
  } else {
    task.write_state(compact ? on.state.rows + row * network.in(0) : nullptr, coefficients,
                     on.state.parameters + number * on.state.size(network));
  }
}

template <class Real>
__device__ __noinline__ void predict_by_state(Task<Real>& task, const InnerProblem<Real>& problem,
                                              const WorkOn<Real>& on, std::int64_t number, Real* fast) {
  __syncthreads();
  if (threadIdx.x == 0) task.recall(problem, on.state, number, fast);
  __syncthreads();
  task.predict(on.results + problem.query.offsets[number] * problem.network.outputs());
}

// The effects of one rating, by its task's steps without it. Those of a task begin after those of the tasks before.
template <class Real>
__device__ __noinline__ void find_effects(Task<Real>& task, const InnerProblem<Real>& problem, const WorkOn<Real>& on,
                                          std::int64_t row, Real* fast) {
  const std::int64_t *offsets = problem.support.offsets, *query_offsets = problem.query.offsets;
  std::int64_t number = 0, end = problem.tasks;  // the last task that begins at the row or before it
  while (end - number > 1) {
    const std::int64_t middle = (number + end) / 2;
    (offsets[middle] <= row ? number : end) = middle;
  }
  const std::int64_t left_out = row - offsets[number], outputs = problem.network.outputs();
  if (!begin_task<Real>(task, problem, number, nullptr, fast, left_out)) return;
  const std::int64_t before = sum_of<std::int64_t>(number, [&](std::int64_t t) {
    return (offsets[t + 1] - offsets[t]) * (query_offsets[t + 1] - query_offsets[t]);
  });
  Real* to = on.results + (before + left_out * task.query_rows) * outputs;
  const Real* whole = on.whole + query_offsets[number] * outputs;
  task.adapt();
  task.predict(to);
  each(task.query_rows * outputs, [&](std::int64_t i) { to[i] = whole[i] - to[i]; });
}

// One kernel for all, so that what they share is compiled once. A block's shared memory holds the task at hand.
template <class Real>
__global__ void __launch_bounds__(kThreads, 4)
    work_on_tasks(const __grid_constant__ InnerProblem<Real> problem, const __grid_constant__ WorkOn<Real> on) {
  METAREC_DYNAMIC_SHARED(fast, Real);
  METAREC_SHARED(task, Task<Real>);
  const std::int64_t items = on.work == Work::effects ? problem.support.count : problem.tasks;
  for (std::int64_t n = blockIdx.x; n < items; n += gridDim.x) {
    if (on.work == Work::effects) {
      find_effects(task, problem, on, n, fast);
    } else if (on.work == Work::recall) {
      predict_by_state(task, problem, on, nth_task(problem, n), fast);
    } else {
      work_on_task(task, problem, on, nth_task(problem, n), fast);
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
inline Cut cut_of(std::int64_t items, std::int64_t workspace_size, std::int64_t value_bytes, const Machine& machine) {
  constexpr std::int64_t blocks_each = 4, static_bytes = 16 << 10, most_bytes = std::int64_t{1} << 29;
  const std::int64_t fitting = std::max<std::int64_t>(most_bytes / (value_bytes * workspace_size + 1), 1);
  Cut cut;
  cut.blocks = std::min({items, blocks_each * machine.multiprocessors, fitting});
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
    return cut_of(items, Task<Real>::workspace(problem, gram, adjoint), sizeof(Real), machine);
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
  return cut_of(problem.tasks, arena.used, sizeof(Real), machine);
}

// Launches the work for both kinds of tasks; choose(on, gram) says what differs.
template <class Launch, class Real, class Choose>
void work_on_both(const Launch& launch, InnerProblem<Real> problem, const Cuts& cuts, Real* workspace, WorkOn<Real> on,
                  const Choose& choose) {
  problem.workspace = workspace;
  for (const bool gram : {true, false}) {
    const Cut& cut = gram ? cuts.gram : cuts.own;
    if (cut.blocks == 0) continue;
    problem.gram = gram;
    problem.workspace_size = cut.workspace_size;
    problem.fast_size = cut.fast_size;
    choose(on, gram);
    launch(Grid{cut.blocks, kThreads, 1, cut.fast_size * sizeof(Real)}, work_on_tasks<Real>, problem, on);
  }
}

template <class Launch, class Real>
void work_on_both(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                  const WorkOn<Real>& on) {
  work_on_both(launch, problem, cuts, workspace, on, [](WorkOn<Real>&, bool) {});
}

template <class Launch, class Real>
void inner_loop(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                Real* predictions) {
  work_on_both(launch, problem, cuts, workspace, WorkOn<Real>{Work::predict, predictions});
}

template <class Launch, class Real>
void inner_loop_backward(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                         InnerAdjoint<Real> adjoint, Real* gram_sums, Real* own_sums) {
  work_on_both(launch, problem, cuts, workspace, WorkOn<Real>{Work::reverse, nullptr, adjoint},
               [&](WorkOn<Real>& on, bool gram) { on.adjoint.sums = gram ? gram_sums : own_sums; });
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
  if (cut.blocks == 0) return;
  problem.workspace = workspace;
  problem.workspace_size = cut.workspace_size;
  problem.fast_size = cut.fast_size;
  launch(Grid{cut.blocks, kThreads, 1, cut.fast_size * sizeof(Real)}, work_on_tasks<Real>, problem,
         WorkOn<Real>{Work::recall, predictions, {}, state});
}

template <class Launch, class Real>
void inner_loop_add(const Launch& launch, Real* to, const Real* from, std::int64_t count) {
  if (count > 0) launch(Grid{ceil_div(count, kThreads), kThreads}, add_values<Real>, to, from, count);
}

}  // namespace metarec::cuda
