// Posterior of one task, for one instruction set.
//
// Layout: the matrices of a task are padded to whole vectors in both directions (stride s), with an identity where there
// is nothing, and stay in the first-level cache. Observations are copied in chunks of 64, each row scaled by the root of
// its precision, so that their Gram matrix is G^T G of one buffer. The precision is kept as its upper triangle and
// factored as U^T U (U^T is the Cholesky factor wanted), because then all inner loops run along rows. One register-tiled
// product does the Gram matrix, the updates of the factorisation, and the products of the gradients.
//
// Cost per task: n r^2 / 2 + r^3 / 6 multiply-adds in the product, and r dependent divisions of the pivots. It reads
// each feature once and writes r^2 results: compute-bound from about rank 32 up, where memory gives a byte per 7
// operations. Sums over observations are formed per chunk and then added, so their error grows with n / 64.
#include "product.h"

namespace metarec::METAREC_ISA {
namespace {

// The length of a padded row.
template <class Real>
std::int64_t padded(std::int64_t rank) {
  return (rank + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>;
}

constexpr std::int64_t kChunk = 64;

// C += factor * A^T B for matrices of one stride, `rows` rows of C; A and B have `depth` rows.
template <class Real>
void add_product(const Real* a, const Real* b, Real* c, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                 std::int64_t depth, Real factor) {
  multiply(Product<Real>{a, 1, stride, b, stride, c, stride, rows, columns, depth, factor, c, stride});
}

template <class Real>
void add_scaled(Real* to, Real factor, const Real* from, std::int64_t begin, std::int64_t end) {
  for (std::int64_t i = begin; i < end; i += kLanes<Real>) store(to + i, load(to + i) + factor * load(from + i));
}

template <class Real>
Real dot(const Real* left, const Real* right, std::int64_t begin, std::int64_t end) {
  Vector<Real> total = {};
  for (std::int64_t i = begin; i < end; i += kLanes<Real>) total += load(left + i) * load(right + i);
  return sum<Real>(total);
}

// The factor U of a matrix U^T U, and what its solves take of each block of kLanes rows.
template <class Real>
struct Factor {
  Real* upper;    // [s, s]
  Real* unit;     // [s, kLanes]: the blocks on the diagonal, each row divided by the one of its values on the diagonal
  Real* inverse;  // [s]: one over the diagonal
};

template <class Real>
Factor<Real> allocate_factor(Workspace<Real>& workspace, std::int64_t stride) {
  return {workspace.take(stride * stride), workspace.take(stride * kLanes<Real>), workspace.take(stride)};
}

// Solves U^T x = b for one block of U: Value is a number, or a vector where there are several right-hand sides.
template <class Value, class Real>
[[gnu::always_inline]] inline void eliminate(const Real* unit, const Real* inverse, Real* values, std::int64_t step) {
  constexpr int lanes = kLanes<Real>;
  Value rows[lanes];
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) rows[i] = load_as<Value>(values + i * step);
#pragma GCC unroll 16
  for (int k = 0; k < lanes; ++k) {
#pragma GCC unroll 16
    for (int i = k + 1; i < lanes; ++i) rows[i] -= unit[k * lanes + i] * rows[k];
  }
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) store_as<Value>(values + i * step, inverse[i] * rows[i]);
}

// Factors a block on the diagonal in registers. Its rows are reduced without roots, so that a pivot waits for no more
// than the division by the one before; all roots are taken at once.
template <class Real>
[[gnu::always_inline]] inline bool factor_block(Real* block, std::int64_t stride, Real* unit, Real* inverse) {
  constexpr int lanes = kLanes<Real>;
  Vector<Real> rows[lanes], pivots = {};
  bool positive = true;
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) rows[i] = load(block + i * stride);
#pragma GCC unroll 16
  for (int k = 0; k < lanes; ++k) {
    const Real pivot = rows[k][k];
    positive &= pivot > 0 && pivot <= std::numeric_limits<Real>::max();
    pivots[k] = pivot;
    const Vector<Real> ratios = rows[k] / pivot;
    store(unit + k * lanes, ratios);
#pragma GCC unroll 16
    for (int i = k + 1; i < lanes; ++i) rows[i] -= ratios[i] * rows[k];
  }
  const Vector<Real> scales = 1 / square_root(pivots);
  store(inverse, scales);
#pragma GCC unroll 16
  for (int i = 0; i < lanes; ++i) {
    store(block + i * stride, scales[i] * rows[i]);
    std::fill(block + i * stride, block + i * stride + i, Real(0));
  }
  return positive;
}

// Factors the upper triangle in place, block by block, and solves U^T x = b beside it. False where a pivot is not
// positive.
template <class Real>
bool factor_and_solve(const Factor<Real>& factor, std::int64_t stride, Real* x) {
  constexpr std::int64_t lanes = kLanes<Real>;
  for (std::int64_t begin = 0; begin < stride; begin += lanes) {
    const Real* above = factor.upper + begin;
    Real* panel = factor.upper + begin * stride;
    Real* unit = factor.unit + begin * lanes;
    Real* inverse = factor.inverse + begin;
    const std::int64_t next = begin + lanes;
    add_product(above, above, panel + begin, stride, lanes, stride - begin, begin, Real(-1));
    if (!factor_block(panel + begin, stride, unit, inverse)) return false;
    eliminate<Real>(unit, inverse, x + begin, 1);
    for (std::int64_t i = next; i < stride; i += lanes) eliminate<Vector<Real>>(unit, inverse, panel + i, stride);
    multiply(Product<Real>{x + begin, 1, 1, panel + next, stride, x + next, stride, 1, stride - next, lanes, Real(-1),
                           x + next, stride});
  }
  return true;
}

// Solves U x = b in place.
template <class Real>
void solve_upper(const Factor<Real>& factor, std::int64_t stride, Real* x) {
  constexpr std::int64_t lanes = kLanes<Real>;
  for (std::int64_t begin = stride - lanes; begin >= 0; begin -= lanes) {
    const Real* unit = factor.unit + begin * lanes;
    Real values[lanes];
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      const Real known = dot(factor.upper + (begin + i) * stride, x, begin + lanes, stride);
      values[i] = factor.inverse[begin + i] * (x[begin + i] - known);
    }
#pragma GCC unroll 16
    for (int k = lanes - 1; k >= 0; --k) {
      x[begin + k] = values[k];
#pragma GCC unroll 16
      for (int i = 0; i < k; ++i) values[i] -= unit[i * lanes + k] * values[k];
    }
  }
}

// The logarithm of a product: one for several factors, as long as these stay far from the limits of a double.
class LogProduct {
 public:
  void multiply(double factor) {
    product_ *= factor;
    if (product_ > 1e-200 && product_ < 1e200) return;
    total_ += std::log(product_);
    product_ = 1;
  }
  double log() const { return total_ + std::log(product_); }

 private:
  double total_ = 0, product_ = 1;
};

template <class Real>
double log_diagonal(const Real* matrix, std::int64_t rank, std::int64_t stride) {
  LogProduct product;
  for (std::int64_t k = 0; k < rank; ++k) product.multiply(static_cast<double>(matrix[k * (stride + 1)]));
  return product.log();
}

// result = matrix^T x, of `rows` rows.
template <class Real>
void multiply_vector(const Real* matrix, std::int64_t rows, std::int64_t stride, const Real* x, Real* result) {
  multiply(Product<Real>{x, 1, 1, matrix, stride, result, stride, 1, stride, rows});
}

// Copies rows of `rank` values to rows of `stride`, the rest zero.
template <class Real>
void pad(const Real* from, std::int64_t rows, std::int64_t rank, Real* to, std::int64_t stride) {
  for (std::int64_t i = 0; i < rows; ++i) {
    std::copy(from + i * rank, from + (i + 1) * rank, to + i * stride);
    std::fill(to + i * stride + rank, to + (i + 1) * stride, Real(0));
  }
}

// Inverts a lower triangle.
template <class Real>
void invert_lower(const Real* lower, std::int64_t rank, std::int64_t stride, Real* inverse) {
  for (std::int64_t i = 0; i < rank; ++i) {
    Real* row = inverse + i * stride;
    const Real scale = 1 / lower[i * (stride + 1)];
    std::fill(row, row + stride, Real(0));
    for (std::int64_t k = 0; k < i; ++k) {
      add_scaled(row, -scale * lower[i * stride + k], inverse + k * stride, 0, k + 1);
    }
    row[i] = scale;
  }
}

// A prior with its matrix padded and filled to both triangles, its mean padded, and what follows from them.
template <class Real>
struct Prior {
  Real* matrix;  // [s, s]
  Factor<Real> factor;
  Real* mean;   // [s]
  Real* shift;  // [s]: matrix * mean
  double log_diagonal;
};

template <class Real>
Prior<Real> allocate_prior(Workspace<Real>& workspace, std::int64_t stride) {
  return {workspace.take(stride * stride), allocate_factor(workspace, stride), workspace.take(stride),
          workspace.take(stride), 0};
}

template <class Real>
bool read_matrix(Prior<Real>& prior, const Real* lower, std::int64_t rank, std::int64_t stride) {
  std::fill(prior.matrix, prior.matrix + stride * stride, Real(0));
  for (std::int64_t i = rank; i < stride; ++i) prior.matrix[i * (stride + 1)] = 1;
  for (std::int64_t i = 0; i < rank; ++i) {
    for (std::int64_t k = 0; k <= i; ++k) {
      prior.matrix[i * stride + k] = prior.matrix[k * stride + i] = lower[i * rank + k];
    }
  }
  std::copy(prior.matrix, prior.matrix + stride * stride, prior.factor.upper);
  if (!factor_and_solve(prior.factor, stride, prior.shift)) return false;
  prior.log_diagonal = log_diagonal(prior.factor.upper, rank, stride);
  return true;
}

template <class Real>
void read_mean(Prior<Real>& prior, const Real* mean, std::int64_t rank, std::int64_t stride) {
  pad(mean, 1, rank, prior.mean, stride);
  multiply_vector(prior.matrix, rank, stride, prior.mean, prior.shift);
}

// Reads the prior of a task, as far as it is the task's own or has not been read.
template <class Real>
bool read_prior(const GaussianTasks<Real>& tasks, std::int64_t task, bool first, std::int64_t stride,
                Prior<Real>& prior) {
  const std::int64_t rank = tasks.rank;
  const bool own_matrix = std::ssize(tasks.prior_precision) > rank * rank;
  const bool own_mean = std::ssize(tasks.prior_mean) > rank;
  if (first || own_matrix) {
    const Real* matrix = tasks.prior_precision.data() + (own_matrix ? task * rank * rank : 0);
    if (!read_matrix(prior, matrix, rank, stride)) return false;
  }
  if (first || own_matrix || own_mean) {
    read_mean(prior, tasks.prior_mean.data() + (own_mean ? task * rank : 0), rank, stride);
  }
  return true;
}

// Transposes a square in registers: exchanges its quarters off the diagonal, then theirs, and so on.
template <class Real>
[[gnu::always_inline]] inline void transpose(Vector<Real> (&rows)[kLanes<Real>]) {
  constexpr int lanes = kLanes<Real>;
  using Index = std::conditional_t<sizeof(Real) == sizeof(float), std::int32_t, std::int64_t>;
#pragma GCC unroll 4
  for (int half = lanes / 2; half > 0; half /= 2) {
    Vector<Index> low, high;  // of both rows one after the other
#pragma GCC unroll 16
    for (int lane = 0; lane < lanes; ++lane) {
      low[lane] = lane & half ? lanes + lane - half : lane;
      high[lane] = lane & half ? lanes + lane : lane + half;
    }
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i) {
      if (i & half) continue;
      const Vector<Real> first = rows[i], second = rows[i + half];
      rows[i] = __builtin_shuffle(first, second, low);
      rows[i + half] = __builtin_shuffle(first, second, high);
    }
  }
}

// Writes an upper triangle as the lower one of an unpadded matrix.
template <class Real>
void write_transposed(const Real* upper, std::int64_t rank, std::int64_t stride, Real* lower) {
  constexpr std::int64_t lanes = kLanes<Real>;
  std::fill(lower, lower + rank * rank, Real(0));
  for (std::int64_t column = 0; column < rank; column += lanes) {
    for (std::int64_t row = column; row < rank; row += lanes) {
      Vector<Real> square[lanes];
#pragma GCC unroll 16
      for (std::int64_t k = 0; k < lanes; ++k) square[k] = load(upper + (column + k) * stride + row);
      transpose<Real>(square);
      if (row + lanes <= rank) {
#pragma GCC unroll 16
        for (std::int64_t k = 0; k < lanes; ++k) store(lower + (row + k) * rank + column, square[k]);
      } else {
        const auto bytes = static_cast<std::size_t>(std::min(lanes, rank - column)) * sizeof(Real);
        for (std::int64_t k = 0; row + k < rank; ++k) std::memcpy(lower + (row + k) * rank + column, &square[k], bytes);
      }
    }
  }
}

// Observations of a task, each scaled by the root of its precision.
template <class Real>
struct Chunk {
  Real* features;  // [kChunk, s]
  Real* targets;   // [kChunk]
  Real* roots;     // [kChunk]
};

template <class Real>
void read_chunk(const GaussianTasks<Real>& tasks, std::int64_t begin, std::int64_t count, std::int64_t stride,
                const Chunk<Real>& chunk) {
  constexpr std::int64_t lanes = kLanes<Real>;
  const std::int64_t rank = tasks.rank, whole = rank / lanes * lanes;
  std::copy_n(tasks.precision.data() + begin, count, chunk.roots);
  for (std::int64_t j = 0; j < count; j += lanes) store(chunk.roots + j, square_root(load(chunk.roots + j)));
  for (std::int64_t j = 0; j < count; ++j) {
    const Real root = chunk.roots[j];
    const Real* features = tasks.features.data() + (begin + j) * rank;
    Real* row = chunk.features + j * stride;
    for (std::int64_t i = 0; i < whole; i += lanes) store(row + i, root * load(features + i));
    for (std::int64_t i = whole; i < rank; ++i) row[i] = root * features[i];
    for (std::int64_t i = rank; i < stride; ++i) row[i] = 0;
    chunk.targets[j] = root * tasks.targets[begin + j];
  }
}

template <class Real>
Failure posterior_range(const GaussianTasks<Real>& tasks, const GaussianPosterior<Real>& posterior, std::int64_t begin,
                        std::int64_t end) {
  const std::int64_t rank = tasks.rank, stride = padded<Real>(rank);
  Workspace<Real> workspace((3 * stride + 2 * kLanes<Real> + 7 + kChunk) * stride + 2 * kChunk);
  Prior<Real> prior = allocate_prior(workspace, stride);
  const Factor<Real> total = allocate_factor(workspace, stride);
  const Chunk<Real> chunk{workspace.take(kChunk * stride), workspace.take(kChunk), workspace.take(kChunk)};
  Real* mean = workspace.take(stride);
  Real* deviation = workspace.take(stride);
  Real* image = workspace.take(stride);

  for (std::int64_t task = begin; task < end; ++task) {
    if (!read_prior(tasks, task, task == begin, stride, prior)) return {Failure::prior, task};
    std::copy(prior.matrix, prior.matrix + stride * stride, total.upper);
    std::copy(prior.shift, prior.shift + stride, mean);
    const std::int64_t first = tasks.offsets[task], last = tasks.offsets[task + 1];
    LogProduct precisions;
    std::int64_t present = 0;
    for (std::int64_t from = first; from < last; from += kChunk) {
      const std::int64_t count = std::min(kChunk, last - from);
      for (std::int64_t j = from; j < from + count; ++j) {
        const Real precision = tasks.precision[j];
        if (!(precision >= 0 && precision <= std::numeric_limits<Real>::max())) return {Failure::observation, j};
        if (precision > 0) {
          precisions.multiply(static_cast<double>(precision));
          ++present;
        }
      }
      read_chunk(tasks, from, count, stride, chunk);
      multiply(Product<Real>{chunk.targets, 1, 1, chunk.features, stride, mean, stride, 1, stride, count, 1, mean, stride});
      for (std::int64_t i = 0; i < stride; i += kLanes<Real>) {
        const Real* columns = chunk.features + i;
        add_product(columns, columns, total.upper + i * (stride + 1), stride, kLanes<Real>, stride - i, count, Real(1));
      }
    }
    if (!factor_and_solve(total, stride, mean)) return {Failure::posterior, task};
    solve_upper(total, stride, mean);

    for (std::int64_t i = 0; i < stride; ++i) deviation[i] = mean[i] - prior.mean[i];
    multiply_vector(prior.matrix, rank, stride, deviation, image);
    double misfit = dot(image, deviation, 0, stride);
    for (std::int64_t from = first; from < last; from += kChunk) {
      const std::int64_t count = std::min(kChunk, last - from);
      if (last - first > kChunk) read_chunk(tasks, from, count, stride, chunk);
      for (std::int64_t j = 0; j < count; ++j) {
        const Real residual = chunk.targets[j] - dot(chunk.features + j * stride, mean, 0, stride);
        misfit += static_cast<double>(residual * residual);
      }
    }
    constexpr double log_two_pi = 1.8378770664093453;
    posterior.log_evidence[task] = static_cast<Real>(
        prior.log_diagonal - log_diagonal(total.upper, rank, stride) +
        (precisions.log() - static_cast<double>(present) * log_two_pi - misfit) / 2);
    std::copy(mean, mean + rank, posterior.mean.data() + task * rank);
    write_transposed(total.upper, rank, stride, posterior.cholesky.data() + task * rank * rank);
  }
  return {};
}

// Adds to `matrix` the symmetric factor * (x y^T + y x^T).
template <class Real>
void add_outer(Real* matrix, std::int64_t rank, std::int64_t stride, Real factor, const Real* x, const Real* y) {
  for (std::int64_t i = 0; i < rank; ++i) {
    add_scaled(matrix + i * stride, factor * x[i], y, 0, stride);
    add_scaled(matrix + i * stride, factor * y[i], x, 0, stride);
  }
}

// Writes the gradients of the observations of tasks [begin, end), and of their priors where they are their own; adds
// those of shared priors to `shared_mean` [stride] and `shared_matrix` [rank, stride].
template <class Real>
void backward_range(const GaussianTasks<Real>& tasks, const PosteriorGradients<Real>& from,
                    const GaussianPosteriorGradients<Real>& to, std::int64_t begin, std::int64_t end, bool own_mean,
                    bool own_matrix, Real* shared_mean, Real* shared_matrix) {
  const std::int64_t rank = tasks.rank, stride = padded<Real>(rank);
  const std::int64_t square = rank * stride;
  Workspace<Real> workspace(7 * square + (2 * stride + kLanes<Real> + 8 + 2 * kChunk) * stride);
  Prior<Real> prior = allocate_prior(workspace, stride);
  Real* covariance = workspace.take(square);  // of the prior
  Real* lower = workspace.take(square);
  Real* inverse = workspace.take(square);
  Real* inner = workspace.take(square);
  Real* half = workspace.take(square);
  Real* total = workspace.take(square);
  Real* given = workspace.take(square);
  Real* mean = workspace.take(stride);
  Real* solved = workspace.take(stride);
  Real* deviation = workspace.take(stride);
  Real* whitened = workspace.take(stride);
  Real* image = workspace.take(stride);
  Real* chunk = workspace.take(kChunk * stride);
  Real* pushed = workspace.take(kChunk * stride);
  const auto transposed = [=](const Real* a, const Real* b, Real* c, Real sign) {  // c += sign * a^T b
    add_product(a, b, c, stride, rank, stride, rank, sign);
  };

  for (std::int64_t task = begin; task < end; ++task) {
    read_prior(tasks, task, task == begin, stride, prior);
    if (task == begin || own_matrix) {
      std::fill(half, half + square, Real(0));
      for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t k = 0; k <= i; ++k) half[i * stride + k] = prior.factor.upper[k * stride + i];
      }
      invert_lower(half, rank, stride, inverse);
      std::fill(covariance, covariance + square, Real(0));
      transposed(inverse, inverse, covariance, Real(1));
    }
    pad(from.cholesky.data() + task * rank * rank, rank, rank, lower, stride);
    pad(from.mean.data() + task * rank, 1, rank, mean, stride);
    for (std::int64_t i = 0; i < stride; ++i) deviation[i] = mean[i] - prior.mean[i];
    invert_lower(lower, rank, stride, inverse);

    // What reaches the posterior precision, through its Cholesky factor, the evidence and the mean.
    const Real evidence = from.grad_log_evidence[task];
    const Real* grad_cholesky = from.grad_cholesky.data() + task * rank * rank;
    std::fill(total, total + square, Real(0));
    if (std::any_of(grad_cholesky, grad_cholesky + rank * rank, [](Real value) { return value != 0; })) {
      std::fill(given, given + square, Real(0));
      for (std::int64_t i = 0; i < rank; ++i) {
        std::copy(grad_cholesky + i * rank, grad_cholesky + i * rank + i + 1, given + i * stride);
      }
      std::fill(inner, inner + square, Real(0));
      transposed(lower, given, inner, Real(0.5));
      for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t k = 0; k < i; ++k) inner[k * stride + i] = inner[i * stride + k];
        inner[i * (stride + 1)] -= evidence / 2;
      }
      std::fill(half, half + square, Real(0));
      transposed(inner, inverse, half, Real(1));
      transposed(inverse, half, total, Real(1));
    } else if (evidence != 0) {
      transposed(inverse, inverse, total, -evidence / 2);
    }
    const Real* grad_mean = from.grad_mean.data() + task * rank;
    pad(grad_mean, 1, rank, image, stride);
    for (std::int64_t i = 0; i < rank; ++i) whitened[i] = dot(inverse + i * stride, image, 0, stride);
    multiply_vector(inverse, rank, stride, whitened, solved);
    add_outer(total, rank, stride, Real(-0.5), solved, mean);

    for (std::int64_t at = tasks.offsets[task]; at < tasks.offsets[task + 1]; at += kChunk) {
      const std::int64_t count = std::min(kChunk, tasks.offsets[task + 1] - at);
      pad(tasks.features.data() + at * rank, count, rank, chunk, stride);
      multiply(Product<Real>{chunk, stride, 1, total, stride, pushed, stride, count, stride, rank});
      for (std::int64_t j = 0; j < count; ++j) {
        const Real* row = chunk + j * stride;
        const Real precision = tasks.precision[at + j], target = tasks.targets[at + j];
        const Real along = dot(row, solved, 0, stride), residual = target - dot(row, mean, 0, stride);
        to.targets[at + j] = precision * (along - evidence * residual);
        const Real density = (precision > 0 ? 1 / precision : Real(0)) - residual * residual;
        to.precision[at + j] = dot(row, pushed + j * stride, 0, stride) + target * along + evidence * density / 2;
        Real* features = to.features.data() + (at + j) * rank;
        const Real towards_mean = evidence * residual;
        for (std::int64_t i = 0; i < rank; ++i) {
          features[i] =
              precision * (2 * pushed[j * stride + i] + target * solved[i] + towards_mean * mean[i]);
        }
      }
    }

    Real* matrix = own_matrix ? total : shared_matrix;
    if (!own_matrix) add_scaled(matrix, Real(1), total, 0, square);
    add_outer(matrix, rank, stride, Real(0.5), solved, prior.mean);
    add_outer(matrix, rank, stride, -evidence / 4, deviation, deviation);
    add_scaled(matrix, evidence / 2, covariance, 0, square);
    for (std::int64_t i = 0; own_matrix && i < rank; ++i) {
      std::copy(matrix + i * stride, matrix + i * stride + rank, to.prior_precision.data() + (task * rank + i) * rank);
    }
    add_scaled(solved, evidence, deviation, 0, stride);
    multiply_vector(prior.matrix, rank, stride, solved, image);
    if (own_mean) {
      std::copy(image, image + rank, to.prior_mean.data() + task * rank);
    } else {
      add_scaled(shared_mean, Real(1), image, 0, stride);
    }
  }
}

}  // namespace
}  // namespace metarec::METAREC_ISA
