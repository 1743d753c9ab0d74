// Bayesian linear regression of many tasks at once: a block computes a task.
//
// The block's matrix has the posterior precision and, as one row more, the right-hand side: the Cholesky factorisation of
// the one then solves for the other on its way. It is formed in shared memory (16.9 KB for 64 floats; above that rank in
// a workspace, which the second-level cache holds), from tiles of kRows observations scaled by the root of
// their precision, by squares of 4 by 4 entries per thread: 8 values are read for 16 multiply-adds. The factorisation
// goes by panels of kPanel columns: within a panel column by column, two barriers each, what is right of it by the same
// squares. The residuals of the evidence take a second look at the features, which lie in the caches then; the form
// without one loses its digits to cancellation.
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
constexpr int kRows = 32, kPanel = 16, kSquare = 4;

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

template <class Real, bool kInShared>
__global__ void __launch_bounds__(kGaussianThreads, kInShared ? 5 : 4)
    factor_priors(const Real* __restrict__ prior_precision, std::int64_t count, int rank, Real* matrices,
                  Real* __restrict__ half_log_determinants) {
  METAREC_DYNAMIC_SHARED(scratch, Real);
  METAREC_SHARED(partial, Real[kGaussianWarps]);
  const int stride = rank + 1;
  Real* matrix = kInShared ? scratch : matrices + std::int64_t{blockIdx.x} * stride * stride;
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
    posterior_tasks(GaussianTasks<Real> tasks, GaussianPosterior<Real> posterior) {
  METAREC_DYNAMIC_SHARED(scratch, Real);
  METAREC_SHARED(partial, Real[kGaussianWarps]);
  const int rank = static_cast<int>(tasks.rank), stride = rank + 1;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  Real* matrix = kInShared ? scratch : posterior.matrices + std::int64_t{blockIdx.x} * stride * stride;
  Real* rows = kInShared ? scratch + stride * stride : scratch;  // [kRows, stride]
  Real* mean = rows + kRows * stride;                            // [rank]
  Real* right = matrix + rank * stride;                          // the right-hand side, a row of the matrix

  for (std::int64_t task = blockIdx.x; task < tasks.tasks; task += gridDim.x) {
    const std::int64_t begin = tasks.offsets[task], end = tasks.offsets[task + 1];
    METAREC_DEVICE_CHECK(begin >= 0 && begin <= end && end <= tasks.observations,
                         "gaussian_posterior: offsets must ascend from 0 to the number of observations");
    const Real* prior = tasks.prior_precision + (tasks.own_precision ? task * rank * rank : 0);
    const Real* prior_mean = tasks.prior_mean + (tasks.own_mean ? task * rank : 0);
    load_lower(matrix, stride, prior, rank);
    __syncthreads();
    for (int i = thread; i < rank; i += kGaussianThreads) {
      Real sum = 0;
      for (int j = 0; j < rank; ++j) sum += matrix[j <= i ? i * stride + j : j * stride + i] * prior_mean[j];
      right[i] = sum;
    }
    for (std::int64_t first = begin; first < end; first += kRows) {
      const int count = static_cast<int>(min(end - first, std::int64_t{kRows}));
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
      __syncwarp();
      for (int k = rank - 1; k >= 0; --k) {
        const Real value = mean[k] / matrix[k * stride + k];
        __syncwarp();
        for (int i = lane; i < k; i += kWarp) mean[i] -= matrix[k * stride + i] * value;
        if (lane == 0) mean[k] = value;
        __syncwarp();
      }
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

template <class Launch, class Real>
void gaussian_posterior(const Launch& launch, const GaussianTasks<Real>& tasks,
                        const GaussianPosterior<Real>& posterior) {
  if (tasks.tasks == 0) return;
  const auto run = [&]<bool kInShared>(std::bool_constant<kInShared>) {
    const std::int64_t priors = tasks.own_precision ? tasks.tasks : 1, stride = tasks.rank + 1;
    const std::int64_t matrix = kInShared ? stride * stride : 0, blocks = kInShared ? tasks.tasks : kBlocksWithWorkspace;
    const auto bytes = [](std::int64_t values) { return static_cast<std::size_t>(values) * sizeof(Real); };
    launch(Grid{std::min(priors, blocks), kGaussianThreads, 1, bytes(matrix)}, factor_priors<Real, kInShared>,
           tasks.prior_precision, priors, static_cast<int>(tasks.rank), posterior.matrices,
           posterior.half_log_prior_determinant);
    launch(Grid{std::min(tasks.tasks, blocks), kGaussianThreads, 1, bytes(matrix + kRows * stride + tasks.rank)},
           posterior_tasks<Real, kInShared>, tasks, posterior);
  };
  tasks.rank <= kSharedRank ? run(std::true_type{}) : run(std::false_type{});
}

}  // namespace metarec::cuda
