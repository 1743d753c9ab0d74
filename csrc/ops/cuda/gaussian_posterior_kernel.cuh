// Bayesian linear regression of many tasks at once: a block computes a task.
//
// The block's matrix has the posterior precision and, as one row more, the right-hand side: the Cholesky factorisation
// of the one then solves for the other on its way. It is formed in shared memory (16.9 KB for 64 floats; above that
// rank in a workspace, which the second-level cache holds), from tiles of up to kRows observations scaled by the root
// of their precision, by squares of 4 by 4 entries per thread: 8 values are read for 16 multiply-adds. The
// factorisation goes by panels of kPanel columns: within a panel column by column, two barriers each, what is right of
// it by the same squares. The residuals of the evidence take a second look at the features, which lie in the caches
// then; the form without one loses its digits to cancellation.
//
// Per task of n observations and rank r: 4 (n (r + 2) + r^2 + r) bytes from and to memory, most of them the factor, and
// n r^2 / 2 + r^3 / 6 multiply-adds. With n = 20 and r = 64 that is, on an H100, 0.9 us of a multiprocessor's share of the
// bandwidth, against 0.4 us of its arithmetic and 0.8 us of its shared memory: the bandwidth is the floor, with little
// to spare. Registers let five blocks onto a multiprocessor, which fill each other's waits at the barriers (150 per
// task, 0.8 us a fifth of them). Planned: 60 % of the bandwidth; what is lost are the squares on the diagonal, of which
// half is not needed, and waits. Sums are made in an order that depends on the task alone.
#pragma once

#include "device.cuh"
#include "gaussian_posterior.h"

namespace metarec::cuda {

constexpr int kGaussianThreads = 128, kGaussianWarps = kGaussianThreads / kWarp;
constexpr int kPanel = 16, kSquare = 4;

// The sum over the block, which all threads get. `partial` is free again after the next barrier.
template <class Real>
__device__ Real block_sum(Real value, Real* partial) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp, lane = static_cast<int>(threadIdx.x) % kWarp;
  value = LaneGroup(kWarp).sum(value);
  __syncthreads();
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  Real sum = 0;
  for (int i = 0; i < kGaussianWarps; ++i) sum += partial[i];
  return sum;
}

// Vectors of which a matrix takes up the products: value `step` of vector i.
template <class Real>
struct Vectors {
  const Real* data;
  int of_vector, of_step, steps;
  __device__ Real at(int vector, int step) const { return data[vector * of_vector + step * of_step]; }
};

// Adds sign * x_i . x_j to the entries (i, j) with first <= j <= i, i < rows and j < columns.
template <class Real>
__device__ void add_products(Real* matrix, int stride, int first, int rows, int columns, const Vectors<Real>& vectors,
                             Real sign) {
  const int across = (rows - first + kSquare - 1) / kSquare, squares = across * (across + 1) / 2;
  for (int square = static_cast<int>(threadIdx.x); square < squares; square += kGaussianThreads) {
    int down = static_cast<int>((sqrtf(8.f * static_cast<float>(square) + 1.f) - 1.f) / 2.f);
    while (down * (down + 1) / 2 > square) --down;
    while ((down + 1) * (down + 2) / 2 <= square) ++down;
    const int top = first + down * kSquare, left = first + (square - down * (down + 1) / 2) * kSquare;
    Real sums[kSquare][kSquare] = {};
    for (int step = 0; step < vectors.steps; ++step) {
      Real x[kSquare], y[kSquare];
#pragma unroll
      for (int k = 0; k < kSquare; ++k) {
        x[k] = vectors.at(min(top + k, rows - 1), step), y[k] = vectors.at(min(left + k, rows - 1), step);
      }
#pragma unroll
      for (int i = 0; i < kSquare; ++i) {
#pragma unroll
        for (int j = 0; j < kSquare; ++j) sums[i][j] += x[i] * y[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kSquare; ++i) {
#pragma unroll
      for (int j = 0; j < kSquare; ++j) {
        const int row = top + i, column = left + j;
        if (row < rows && column < columns && column <= row) matrix[row * stride + column] += sign * sums[i][j];
      }
    }
  }
}

// Factors the first `columns` rows of a matrix in place, lower triangle; rows beyond them are solved for. A pivot that is
// not positive makes what follows NaN.
template <class Real>
__device__ void factor(Real* matrix, int stride, int rows, int columns) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int begin = 0; begin < columns; begin += kPanel) {
    const int end = min(begin + kPanel, columns);
    for (int k = begin; k < end; ++k) {
      __syncthreads();
      // The pivot keeps its square until all are done, so that each thread can take the root of it.
      const Real inverse = 1 / sqrt(matrix[k * stride + k]);
      for (int i = k + 1 + thread; i < rows; i += kGaussianThreads) matrix[i * stride + k] *= inverse;
      __syncthreads();
      const int width = end - k - 1;
      for (int entry = thread; entry < (rows - k - 1) * width; entry += kGaussianThreads) {
        const int i = k + 1 + entry / width, j = k + 1 + entry % width;
        if (j <= i) matrix[i * stride + j] -= matrix[i * stride + k] * matrix[j * stride + k];
      }
    }
    __syncthreads();
    add_products<Real>(matrix, stride, end, rows, columns, {matrix + begin, stride, 1, end - begin}, Real(-1));
  }
  __syncthreads();
  for (int k = thread; k < columns; k += kGaussianThreads) {
    Real& pivot = matrix[k * stride + k];
    pivot = pivot > 0 ? sqrt(pivot) : pivot - pivot + sqrt(Real(-1));
  }
  __syncthreads();
}

// Solves L x = b in place, or L^T x = b, for a lower triangle L. A warp calls.
template <bool kTransposed, class Real>
__device__ void substitute(const Real* lower, int stride, int rank, Real* x) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int step = 0; step < rank; ++step) {
    const int k = kTransposed ? rank - 1 - step : step;
    __syncwarp();
    const Real value = x[k] / lower[k * (stride + 1)];
    __syncwarp();
    if (lane == 0) x[k] = value;
    const int begin = kTransposed ? 0 : k + 1, end = kTransposed ? k : rank;
    for (int i = begin + lane; i < end; i += kWarp) {
      x[i] -= lower[kTransposed ? k * stride + i : i * stride + k] * value;
    }
  }
  __syncwarp();
}

template <class Real>
__device__ Real half_log_determinant(const Real* factored, int stride, int rank, Real* partial) {
  Real sum = 0;
  for (int k = static_cast<int>(threadIdx.x); k < rank; k += kGaussianThreads) sum += log(factored[k * stride + k]);
  return block_sum(sum, partial);
}

template <class Real>
__device__ void load_lower(Real* matrix, int stride, const Real* from, int rank) {
  for (int entry = static_cast<int>(threadIdx.x); entry < rank * rank; entry += kGaussianThreads) {
    const int i = entry / rank, j = entry % rank;
    if (j <= i) matrix[i * stride + j] = from[entry];
  }
}

struct Range {
  std::int64_t begin, end;
};

template <class Real>
__device__ Range observations_of(const GaussianTasks<Real>& tasks, std::int64_t task) {
  const Range range{tasks.offsets[task], tasks.offsets[task + 1]};
  METAREC_DEVICE_CHECK(range.begin >= 0 && range.begin <= range.end && range.end <= tasks.observations,
                       "gaussian_posterior: offsets must ascend from 0 to the number of observations");
  return range;
}

template <class Real, bool kInShared>
__global__ void __launch_bounds__(kGaussianThreads, kInShared ? 5 : 4)
    factor_priors(const Real* __restrict__ prior_precision, std::int64_t count, int rank, int stride, Real* matrices,
                  Real* __restrict__ half_log_determinants) {
  METAREC_DYNAMIC_SHARED(scratch, Real);
  METAREC_SHARED(partial, Real[kGaussianWarps]);
  Real* matrix = kInShared ? scratch : matrices + std::int64_t{blockIdx.x} * (rank + 1) * stride;
  for (std::int64_t task = blockIdx.x; task < count; task += gridDim.x) {
    load_lower(matrix, stride, prior_precision + task * rank * rank, rank);
    factor(matrix, stride, rank, rank);
    const Real result = half_log_determinant(matrix, stride, rank, partial);
    if (threadIdx.x == 0) half_log_determinants[task] = result;
    __syncthreads();
  }
}

// An observation's precision, or NaN where it is not one.
template <class Real>
__device__ Real checked_precision(Real precision) {
  return precision >= 0 && precision - precision == 0 ? precision : sqrt(Real(-1));
}

template <class Real, bool kInShared>
__global__ void __launch_bounds__(kGaussianThreads, kInShared ? 5 : 4)
    posterior_tasks(GaussianTasks<Real> tasks, int stride, int tile, GaussianPosterior<Real> posterior) {
  METAREC_DYNAMIC_SHARED(scratch, Real);
  METAREC_SHARED(partial, Real[kGaussianWarps]);
  const int rank = static_cast<int>(tasks.rank);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  Real* matrix = kInShared ? scratch : posterior.matrices + std::int64_t{blockIdx.x} * (rank + 1) * stride;
  Real* rows = kInShared ? scratch + (rank + 1) * stride : scratch;  // [tile, stride]
  Real* mean = rows + tile * stride;                             // [rank]
  Real* right = matrix + rank * stride;                          // the right-hand side, a row of the matrix

  for (std::int64_t task = blockIdx.x; task < tasks.tasks; task += gridDim.x) {
    const auto [begin, end] = observations_of(tasks, task);
    const Real* prior = tasks.prior_precision + (tasks.own_precision ? task * rank * rank : 0);
    const Real* prior_mean = tasks.prior_mean + (tasks.own_mean ? task * rank : 0);
    load_lower(matrix, stride, prior, rank);
    __syncthreads();
    for (int i = thread; i < rank; i += kGaussianThreads) {
      Real sum = 0;
      for (int j = 0; j < rank; ++j) sum += matrix[j <= i ? i * stride + j : j * stride + i] * prior_mean[j];
      right[i] = sum;
    }
    for (std::int64_t first = begin; first < end; first += tile) {
      const int count = static_cast<int>(min(end - first, std::int64_t{tile}));
      __syncthreads();
      for (int row = warp; row < count; row += kGaussianWarps) {
        const Real root = sqrt(checked_precision(tasks.precision[first + row]));
        const Real* features = tasks.features + (first + row) * rank;
        for (int i = lane; i < rank; i += kWarp) rows[row * stride + i] = root == 0 ? Real(0) : root * features[i];
        if (lane == 0) rows[row * stride + rank] = root == 0 ? Real(0) : root * tasks.targets[first + row];
      }
      __syncthreads();
      add_products<Real>(matrix, stride, 0, rank + 1, rank, {rows, 1, stride, count}, Real(1));
    }
    factor(matrix, stride, rank + 1, rank);

    if (warp == 0) {  // the other half of the solution
      for (int i = lane; i < rank; i += kWarp) mean[i] = right[i];
      substitute<true>(matrix, stride, rank, mean);
    }
    __syncthreads();

    // -2 times what the observations and the prior's misfit add to the log evidence; each warp takes a row at a time.
    Real misfit = 0;
    for (std::int64_t row = begin + warp; row < end; row += kGaussianWarps) {
      const Real precision = checked_precision(tasks.precision[row]);
      Real fitted = 0;
      for (int i = lane; i < rank; i += kWarp) fitted += tasks.features[row * rank + i] * mean[i];
      const Real residual = tasks.targets[row] - LaneGroup(kWarp).sum(fitted);
      constexpr Real two_pi = 6.283185307179586476925286766559;
      if (lane == 0 && !(precision == 0)) misfit += precision * residual * residual - log(precision / two_pi);
    }
    for (int i = warp; i < rank; i += kGaussianWarps) {
      const Real deviation = mean[i] - prior_mean[i];
      for (int j = lane; j <= i; j += kWarp) {
        misfit += (j < i ? 2 : 1) * prior[std::int64_t{i} * rank + j] * deviation * (mean[j] - prior_mean[j]);
      }
    }
    misfit = block_sum(misfit, partial);
    const Real half_log_posterior = half_log_determinant(matrix, stride, rank, partial);
    if (thread == 0) {
      const Real half_log_prior = posterior.half_log_prior_determinant[tasks.own_precision ? task : 0];
      posterior.log_evidence[task] = half_log_prior - half_log_posterior - misfit / 2;
    }
    for (int i = thread; i < rank; i += kGaussianThreads) posterior.mean[task * rank + i] = mean[i];
    for (int entry = thread; entry < rank * rank; entry += kGaussianThreads) {
      const int i = entry / rank, j = entry % rank;
      posterior.cholesky[task * rank * rank + entry] = j <= i ? matrix[i * stride + j] : Real(0);
    }
    __syncthreads();
  }
}

// Backward: a block computes a task, as above.
//
// Everything passes through the posterior precision: with L L^T = Lambda, what reaches it is
//   A = 1/2 L^-T (S + S^T - diag S) L^-1 - 1/2 (s mu^T + mu s^T),  S = tril(L^T L-bar),  s = Lambda^-1 mu-bar,
// where L-bar takes up the evidence e, which has the logarithm of the determinant, as -e / L_kk on its diagonal. L^-1
// is not formed: the factorisation is taken back panel by panel, from the last one (reverse_factor), in place, with a
// third of the operations, r^3 / 3. The same function gives the inverse of the prior precision, which is the gradient of
// the logarithm of its determinant. Factor and gradient lie in shared memory (34 KB for 64 floats, above that rank in a
// workspace); when the first is done with, tiles of kRows observations and their products with A take its place, and at
// last the prior. Sums over tasks, where a prior is shared, are made by GaussianTasks::blocks blocks, each in its own
// workspace, and then in the order of the blocks: no atomics, and bits that depend on the tasks alone.
//
// Per task of n observations and rank r, floats and shared priors: 8 n (r + 2) + 4 r^2 bytes (features and their
// gradient, lower halves of L and L-bar; the sums stay in the second-level cache) and n r^2 + r^3 / 3 multiply-adds.
// With n = 20 and r = 64 that is, on an H100, 1.1 us of a multiprocessor's share of the bandwidth, 0.8 us of its
// arithmetic and 3.5 us of its shared memory, from which the panels read a value for each multiply-add, the
// observations half of one, and the three passes over a matrix some six for each entry: shared memory is the floor. The
// 2 r steps of the substitutions and the r / 16 panels are a chain of about 30 us, of which five blocks run at a time.
// Planned: 60 % of the floor, a fifth of the bandwidth.

// Calls use(i, j, sum of left(i, step) * right(step, j)) for i < rows and j < columns. A thread takes kSide by kSide of
// them, spread so that neighbouring threads read and write neighbouring columns.
template <int kSide, class Real, class Left, class Right, class Use>
__device__ void each_product(int rows, int columns, int depth, const Left& left, const Right& right, const Use& use) {
  const int down = (rows + kSide - 1) / kSide, across = (columns + kSide - 1) / kSide;
  for (int square = static_cast<int>(threadIdx.x); square < down * across; square += kGaussianThreads) {
    const int top = square / across, first = square % across;
    Real sums[kSide][kSide] = {};
    for (int step = 0; step < depth; ++step) {
      Real x[kSide], y[kSide];
#pragma unroll
      for (int k = 0; k < kSide; ++k) {
        x[k] = left(min(top + k * down, rows - 1), step), y[k] = right(step, min(first + k * across, columns - 1));
      }
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
#pragma unroll
        for (int j = 0; j < kSide; ++j) sums[i][j] += x[i] * y[j];
      }
    }
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const int row = top + i * down, column = first + j * across;
        if (row < rows && column < columns) use(row, column, sums[i][j]);
      }
    }
  }
}

// Solves x D = c for the lower triangle D of a panel; values beyond its width are left alone.
template <class Real>
__device__ void divide_by_panel(Real (&x)[kPanel], const Real* panel, int stride, int width) {
#pragma unroll
  for (int k = kPanel - 1; k >= 0; --k) {
    if (k >= width) continue;
    x[k] /= panel[k * (stride + 1)];
#pragma unroll
    for (int j = 0; j < k; ++j) x[j] -= x[k] * panel[k * stride + j];
  }
}

// From the gradient of a Cholesky factor (lower triangle) to twice that of the symmetric matrix, in place. With a panel
// C below its triangle D, and M what is done already:
//   C-bar <- (C-bar - M C) D^-1,  D-bar <- D-bar - tril(C-bar^T C),  D-bar <- D^-T (S + S^T - diag S) D^-1.
template <class Real>
__device__ void reverse_factor(const Real* factor, Real* gradient, int stride, int rank) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int begin = (rank - 1) / kPanel * kPanel; begin >= 0; begin -= kPanel) {
    const int end = min(begin + kPanel, rank), width = end - begin, below = rank - end;
    const Real* panel = factor + begin * (stride + 1);  // D
    const Real* under = factor + end * stride + begin;  // C
    Real* to_panel = gradient + begin * (stride + 1);
    Real* to_under = gradient + end * stride + begin;
    Real* to_right = gradient + begin * stride + end;
    Real* done = gradient + end * (stride + 1);
    __syncthreads();
    each_product<2, Real>(
        below, width, below, [&](int i, int step) { return done[i * stride + step]; },
        [&](int step, int j) { return under[step * stride + j]; },
        [&](int i, int j, Real sum) { to_under[i * stride + j] -= sum; });
    __syncthreads();
    for (int i = thread; i < below; i += kGaussianThreads) {
      Real row[kPanel];
#pragma unroll
      for (int k = 0; k < kPanel; ++k) row[k] = k < width ? to_under[i * stride + k] : Real(0);
      divide_by_panel(row, panel, stride, width);
#pragma unroll
      for (int k = 0; k < kPanel; ++k) {
        if (k < width) to_under[i * stride + k] = to_right[k * stride + i] = row[k];
      }
    }
    __syncthreads();
    each_product<2, Real>(
        width, width, below, [&](int i, int step) { return to_under[step * stride + i]; },
        [&](int step, int j) { return under[step * stride + j]; },
        [&](int i, int j, Real sum) { to_panel[i * stride + j] -= sum; });
    __syncthreads();
    // S = tril(D^T D-bar) goes where nothing is read: above the diagonal, and on it, of which S_ii alone reads.
    for (int entry = thread; entry < width * width; entry += kGaussianThreads) {
      const int i = entry / width, j = entry % width;
      Real sum = 0;
      for (int k = i; k < width && j <= i; ++k) sum += panel[k * stride + i] * to_panel[k * stride + j];
      if (j <= i) to_panel[j * stride + i] = sum;
    }
    __syncthreads();
    if (thread < kWarp) {  // its rows, then its columns
      Real values[kPanel] = {};
#pragma unroll
      for (int k = 0; k < kPanel; ++k) {
        if (thread < width && k < width) values[k] = to_panel[min(thread, k) * stride + max(thread, k)];
      }
      __syncwarp();
      if (thread < width) divide_by_panel(values, panel, stride, width);
#pragma unroll
      for (int k = 0; k < kPanel; ++k) {
        if (thread < width && k < width) to_panel[thread * stride + k] = values[k];
      }
      __syncwarp();
#pragma unroll
      for (int k = 0; k < kPanel; ++k) {
        if (thread <= k && k < width) values[k] = to_panel[k * stride + thread];
      }
      if (thread < width) divide_by_panel(values, panel, stride, width);
#pragma unroll
      for (int k = 0; k < kPanel; ++k) {
        if (thread <= k && k < width) to_panel[k * stride + thread] = to_panel[thread * stride + k] = values[k];
      }
    }
  }
  __syncthreads();
}

// Begins the gradients of the prior precisions: e / 2 times the inverse of each, e of its task or the sum over all.
template <class Real, bool kInShared>
__global__ void __launch_bounds__(kGaussianThreads, kInShared ? 3 : 2)
    reverse_priors(GaussianTasks<Real> tasks, std::int64_t count, int stride, int height,
                   const Real* __restrict__ grad_log_evidence, GaussianPosteriorGradients<Real> to) {
  METAREC_DYNAMIC_SHARED(scratch, Real);
  METAREC_SHARED(partial, Real[kGaussianWarps]);
  const int rank = static_cast<int>(tasks.rank), thread = static_cast<int>(threadIdx.x);
  Real* matrix = kInShared ? scratch : to.matrices + std::int64_t{blockIdx.x} * height * stride;
  Real* gradient = matrix + (height - rank) * stride;
  for (std::int64_t prior = blockIdx.x; prior < count; prior += gridDim.x) {
    Real evidence = 0;
    if (tasks.own_precision) {
      evidence = grad_log_evidence[prior];
    } else {
      for (std::int64_t t = thread; t < tasks.tasks; t += kGaussianThreads) evidence += grad_log_evidence[t];
      evidence = block_sum(evidence, partial);
    }
    load_lower(matrix, stride, tasks.prior_precision + prior * rank * rank, rank);
    factor(matrix, stride, rank, rank);
    for (int entry = thread; entry < rank * rank; entry += kGaussianThreads) {
      const int i = entry / rank, j = entry % rank;
      if (j <= i) gradient[i * stride + j] = i == j ? evidence / matrix[i * stride + i] : Real(0);
    }
    reverse_factor(matrix, gradient, stride, rank);
    for (int entry = thread; entry < rank * rank; entry += kGaussianThreads) {
      to.prior_precision[prior * rank * rank + entry] = gradient[entry / rank * stride + entry % rank] / 2;
    }
  }
}

// As many blocks share a multiprocessor as registers allow, or for doubles shared memory.
template <class Real, bool kInShared>
__global__ void __launch_bounds__(kGaussianThreads, !kInShared ? 2 : sizeof(Real) == sizeof(double) ? 3 : 5)
    reverse_tasks(GaussianTasks<Real> tasks, int stride, int height, std::int64_t shared, GaussianAdjoint<Real> from,
                  GaussianPosteriorGradients<Real> to) {
  METAREC_DYNAMIC_SHARED(scratch, Real);
  const int rank = static_cast<int>(tasks.rank);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const std::int64_t square = std::int64_t{rank} * rank;
  Real* factor = kInShared ? scratch : to.matrices + std::int64_t{blockIdx.x} * height * stride;
  Real* total = factor + (height - rank) * stride;         // 2 A
  Real *rows = factor, *pushed = factor + kRows * stride;  // in place of the factor, when it is done with
  Real* mean = kInShared ? scratch + height * stride : scratch;
  Real *solved = mean + rank, *prior_mean = solved + rank, *shift = prior_mean + rank;
  Real* sums = to.sums + std::int64_t{blockIdx.x} * shared;  // of its precisions, then of its means

  for (std::int64_t task = blockIdx.x; task < tasks.tasks; task += gridDim.x) {
    const auto [begin, end] = observations_of(tasks, task);
    const Real evidence = from.grad_log_evidence[task];
    const Real *cholesky = from.cholesky + task * square, *grad_cholesky = from.grad_cholesky + task * square;
    for (int entry = thread; entry < rank * rank; entry += kGaussianThreads) {
      const int i = entry / rank, j = entry % rank;
      if (j > i) continue;
      const Real value = cholesky[entry], given = grad_cholesky[entry];
      factor[i * stride + j] = value;
      total[i * stride + j] = i == j ? given - evidence / value : given;
    }
    for (int i = thread; i < rank; i += kGaussianThreads) {
      mean[i] = from.mean[task * rank + i];
      solved[i] = from.grad_mean[task * rank + i];
      prior_mean[i] = tasks.prior_mean[(tasks.own_mean ? task * rank : 0) + i];
    }
    __syncthreads();
    if (warp == 0) {
      substitute<false>(factor, stride, rank, solved);
      substitute<true>(factor, stride, rank, solved);
      for (int i = lane; i < rank; i += kWarp) shift[i] = solved[i] + evidence * (mean[i] - prior_mean[i]);
    }
    reverse_factor(factor, total, stride, rank);
    for (int entry = thread; entry < rank * rank; entry += kGaussianThreads) {
      const int i = entry / rank, j = entry % rank;
      total[i * stride + j] -= solved[i] * mean[j] + mean[i] * solved[j];
    }

    for (std::int64_t first = begin; first < end; first += kRows) {
      const int count = static_cast<int>(min(end - first, std::int64_t{kRows}));
      for (int row = warp; row < count; row += kGaussianWarps) {  // over rows that none but it still reads
        for (int i = lane; i < rank; i += kWarp) rows[row * stride + i] = tasks.features[(first + row) * rank + i];
      }
      __syncthreads();
      each_product<kSquare, Real>(
          count, rank, rank, [&](int i, int step) { return rows[i * stride + step]; },
          [&](int step, int j) { return total[step * stride + j]; },
          [&](int i, int j, Real sum) { pushed[i * stride + j] = sum; });
      __syncthreads();
      for (int row = warp; row < count; row += kGaussianWarps) {
        const std::int64_t at = first + row;
        const Real precision = tasks.precision[at], target = tasks.targets[at];
        Real fitted = 0, along = 0, curvature = 0;
        for (int i = lane; i < rank; i += kWarp) {
          const Real feature = rows[row * stride + i];
          fitted += feature * mean[i], along += feature * solved[i], curvature += feature * pushed[row * stride + i];
        }
        const LaneGroup lanes(kWarp);
        const Real residual = target - lanes.sum(fitted), towards_mean = evidence * residual;
        along = lanes.sum(along), curvature = lanes.sum(curvature);
        if (lane == 0) {
          const Real density = (precision > 0 ? 1 / precision : Real(0)) - residual * residual;
          to.targets[at] = precision * (along - towards_mean);
          to.precision[at] = curvature / 2 + target * along + evidence * density / 2;
        }
        for (int i = lane; i < rank; i += kWarp) {
          to.features[at * rank + i] =
              precision * (pushed[row * stride + i] + target * solved[i] + towards_mean * mean[i]);
        }
      }
    }

    __syncthreads();
    const bool adds = task != blockIdx.x;  // to what the block has of tasks before
    load_lower(factor, stride, tasks.prior_precision + (tasks.own_precision ? task * square : 0), rank);
    for (int entry = thread; entry < rank * rank; entry += kGaussianThreads) {
      const int i = entry / rank, j = entry % rank;
      const Real spread = (mean[i] - prior_mean[i]) * (mean[j] - prior_mean[j]);
      const Real lift = solved[i] * prior_mean[j] + prior_mean[i] * solved[j];
      const Real value = (total[i * stride + j] + lift - evidence * spread) / 2;
      Real& place = tasks.own_precision ? to.prior_precision[task * square + entry] : sums[entry];
      place = tasks.own_precision || adds ? place + value : value;
    }
    __syncthreads();
    for (int i = thread; i < rank; i += kGaussianThreads) {
      Real value = 0;
      for (int j = 0; j < rank; ++j) value += factor[j <= i ? i * stride + j : j * stride + i] * shift[j];
      Real& place = tasks.own_mean ? to.prior_mean[task * rank + i] : sums[(tasks.own_precision ? 0 : square) + i];
      place = adds && !tasks.own_mean ? place + value : value;
    }
    __syncthreads();
  }
}

// Adds up what the blocks have left of the gradients of shared priors; kBlocksAtOnce at a time.
constexpr int kBlocksAtOnce = 8;

template <class Real>
__global__ void __launch_bounds__(kWarp* kBlocksAtOnce)
    share_prior_gradients(std::int64_t blocks, std::int64_t size, const Real* __restrict__ sums,
                          std::int64_t of_precision, Real* prior_precision, Real* prior_mean) {
  METAREC_SHARED(partial, Real[kBlocksAtOnce][kWarp + 1]);
  const int x = static_cast<int>(threadIdx.x) % kWarp, y = static_cast<int>(threadIdx.x) / kWarp;
  const std::int64_t i = std::int64_t{blockIdx.x} * kWarp + x;
  Real sum = 0;
  for (std::int64_t block = y; block < blocks && i < size; block += kBlocksAtOnce) sum += sums[block * size + i];
  partial[y][x] = sum;
  __syncthreads();
  if (y > 0 || i >= size) return;
  for (int k = 1; k < kBlocksAtOnce; ++k) sum += partial[k][x];
  if (i < of_precision) {
    prior_precision[i] += sum;
  } else {
    prior_mean[i - of_precision] = sum;
  }
}

// Update: a warp takes a task, and nothing but the factor's own order makes it wait. Column k of the factor takes up
// the k-th component of x = sqrt(|w|) f by a plane rotation, a hyperbolic one where an observation is taken away, and
// hands the rest on; L^-1 f, which needs the new columns in the same order, is found on the way. The factor lies in
// shared memory (17 KB for 64 floats: twelve warps on an H100), above that rank in the result itself, which the caches
// hold.
//
// Bytes per task of rank r: 6 r^2 (half of a factor read, all of it written, floats) and 14 r; 5 r^2 operations, less
// than one a byte: the bandwidth is the floor, 1 us on a multiprocessor of an H100 for r = 64. The chain of 2 r steps
// takes 10 us, reading and writing 5 us: twelve tasks at a time come to 1.3 us each. Planned: 60 % of the bandwidth,
// which is why a task has one warp and no more: others would wait while it goes through the chain.
template <class Real, bool kInShared>
__global__ void __launch_bounds__(kWarp, 16) update_tasks(GaussianUpdates<Real> updates, int stride) {
  METAREC_DYNAMIC_SHARED(scratch, Real);
  const std::int64_t task = blockIdx.x;
  const int rank = static_cast<int>(updates.rank), lane = static_cast<int>(threadIdx.x);
  const Real* cholesky = updates.cholesky + task * rank * rank;
  Real* new_cholesky = updates.new_cholesky + task * rank * rank;
  Real* factor = kInShared ? scratch : new_cholesky;
  Real* solved = kInShared ? scratch + rank * stride : scratch;
  Real* x = solved + rank;

  // Column by column of 32, so that many rows are on their way at once.
  for (int column = lane; column < rank; column += kWarp) {
#pragma unroll 8
    for (int row = column - lane; row < rank; ++row) {
      if (column <= row) factor[row * stride + column] = __ldg(cholesky + row * rank + column);
    }
  }
  const Real precision = updates.precision[task];
  const Real sign = precision < 0 ? Real(-1) : Real(1);
  const Real root = precision - precision == 0 ? sqrt(sign * precision) : sqrt(Real(-1));
  Real fitted = 0;
  for (int i = lane; i < rank; i += kWarp) {
    const Real feature = updates.features[task * rank + i];
    solved[i] = feature, x[i] = root * feature;
    fitted += feature * updates.mean[task * rank + i];
  }
  const Real scale = precision * (updates.targets[task] - LaneGroup(kWarp).sum(fitted));

  for (int k = 0; k < rank; ++k) {
    __syncwarp();
    const Real pivot = factor[k * (stride + 1)], own = x[k], squared = pivot * pivot + sign * own * own;
    const Real updated = squared > 0 ? sqrt(squared) : sqrt(Real(-1)), value = solved[k] / updated;
    const Real cosine = pivot / updated, sine = sign * own / updated, slope = own / pivot;
    __syncwarp();
    if (lane == 0) factor[k * (stride + 1)] = updated, solved[k] = value;
    for (int i = k + 1 + lane; i < rank; i += kWarp) {
      const Real before = factor[i * stride + k], after = cosine * before + sine * x[i];
      factor[i * stride + k] = after;
      x[i] = cosine * (x[i] - slope * before);
      solved[i] -= after * value;
    }
  }
  substitute<true>(factor, stride, rank, solved);

  // mean += w (y - f^T mean) (L L^T)^-1 f
  for (int i = lane; i < rank; i += kWarp) {
    updates.new_mean[task * rank + i] = updates.mean[task * rank + i] + scale * solved[i];
  }
  for (int row = 0; row < rank; ++row) {
    for (int column = lane; column < rank; column += kWarp) {
      if (column > row) new_cholesky[row * rank + column] = 0;
      if (kInShared && column <= row) new_cholesky[row * rank + column] = factor[row * stride + column];
    }
  }
}

// How the kernels of a rank are launched: matrices of a height in shared memory or not, and `values` beside them.
template <class Real, bool kInShared>
struct GaussianGrid {
  const GaussianTasks<Real>& tasks;

  Grid operator()(std::int64_t count, std::int64_t height, std::int64_t values, bool keeps_sums = false) const {
    const std::int64_t blocks = kInShared && !keeps_sums ? count : std::min(count, tasks.blocks);
    const std::int64_t total = values + (kInShared ? height * tasks.stride() : 0);
    return {blocks, kGaussianThreads, 1, static_cast<std::size_t>(total) * sizeof(Real)};
  }
};

// Calls function(whether matrices of this rank lie in shared memory).
template <class Function>
void with_memory(std::int64_t rank, const Function& function) {
  rank <= kSharedRank ? function(std::true_type{}) : function(std::false_type{});
}

template <class Launch, class Real>
void gaussian_posterior(const Launch& launch, const GaussianTasks<Real>& tasks,
                        const GaussianPosterior<Real>& posterior) {
  if (tasks.tasks == 0) return;
  with_memory(tasks.rank, [&]<bool kInShared>(std::bool_constant<kInShared>) {
    const GaussianGrid<Real, kInShared> grid{tasks};
    const auto stride = static_cast<int>(tasks.stride());
    launch(grid(tasks.priors(), tasks.height(), 0), factor_priors<Real, kInShared>, tasks.prior_precision,
           tasks.priors(), static_cast<int>(tasks.rank), stride, posterior.matrices,
           posterior.half_log_prior_determinant);
    const int tile = rows_at_once(tasks);
    launch(grid(tasks.tasks, tasks.height(), std::int64_t{tile} * stride + tasks.rank),
           posterior_tasks<Real, kInShared>, tasks, stride, tile, posterior);
  });
}

template <class Launch, class Real>
void gaussian_posterior_backward(const Launch& launch, const GaussianTasks<Real>& tasks,
                                 const GaussianAdjoint<Real>& adjoint,
                                 const GaussianPosteriorGradients<Real>& gradients) {
  const std::int64_t sums = gaussian_sums(tasks);
  with_memory(tasks.rank, [&]<bool kInShared>(std::bool_constant<kInShared>) {
    const GaussianGrid<Real, kInShared> grid{tasks};
    const auto stride = static_cast<int>(tasks.stride()), height = static_cast<int>(tasks.gradient_height());
    if (tasks.priors() > 0) {
      launch(grid(tasks.priors(), height, 0), reverse_priors<Real, kInShared>, tasks, tasks.priors(), stride, height,
             adjoint.grad_log_evidence, gradients);
    }
    if (tasks.tasks > 0) {
      launch(grid(tasks.tasks, height, 4 * tasks.rank, sums > 0), reverse_tasks<Real, kInShared>, tasks, stride,
             height, sums, adjoint, gradients);
    }
  });
  if (sums > 0) {
    launch(Grid{ceil_div(sums, kWarp), kWarp * kBlocksAtOnce}, share_prior_gradients<Real>, tasks.blocks, sums,
           gradients.sums, tasks.own_precision ? 0 : tasks.rank * tasks.rank, gradients.prior_precision,
           gradients.prior_mean);
  }
}

template <class Launch, class Real>
void gaussian_update(const Launch& launch, const GaussianUpdates<Real>& updates) {
  if (updates.tasks == 0) return;
  with_memory(updates.rank, [&]<bool kInShared>(std::bool_constant<kInShared>) {
    const std::int64_t rank = updates.rank, stride = kInShared ? rank | 1 : rank;
    const std::int64_t values = (kInShared ? rank * stride : 0) + 2 * rank;
    launch(Grid{updates.tasks, kWarp, 1, static_cast<std::size_t>(values) * sizeof(Real)},
           update_tasks<Real, kInShared>, updates, static_cast<int>(stride));
  });
}

}  // namespace metarec::cuda
