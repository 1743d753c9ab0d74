// Posterior of one task, for one instruction set.
//
// Layout: matrices of a task are padded to whole vectors (stride s) and stay in the first-level cache. Observations
// are copied in chunks of 64, each row scaled by the root of its precision, so that their Gram matrix is G^T G of one
// buffer. The precision is kept as its upper triangle and factored as U^T U (U^T is the Cholesky factor wanted), because
// then all inner loops run along rows. One register-tiled product does the Gram matrix, the trailing updates of the
// factorisation, and the products of the gradients.
//
// Cost per task: n r^2 / 2 + r^3 / 6 multiply-adds in the product, plus r dependent square roots and divisions, which
// are what a task of rank 32 mostly waits for. It reads each feature twice and writes r^2 results: compute-bound from
// rank 8 up. Sums over observations are formed per chunk and then added, so their error grows with n / 64.
#include "simd.h"

namespace metarec::METAREC_ISA {
namespace {

// The length of a padded row.
template <class Real>
std::int64_t padded(std::int64_t rank) {
  return (rank + kLanes<Real> - 1) / kLanes<Real> * kLanes<Real>;
}

constexpr std::int64_t kChunk = 64;
constexpr int kTileRows = METAREC_VECTOR_BYTES == 64 ? 8 : METAREC_VECTOR_BYTES == 32 ? 6 : 4;

// Rows [row, row + rows) and Columns vectors from `column` of C += sign * A B, where A's element (i, k) is
// a[i * row_step + k * step], and B and C are row-major with the given strides.
template <class Real>
struct Product {
  const Real* a;
  std::int64_t row_step, step;
  const Real* b;
  std::int64_t b_stride;
  Real* c;
  std::int64_t c_stride;
  std::int64_t depth;
  Real sign;
};

template <int Rows, int Columns, class Real>
void multiply_tile(const Product<Real>& p, std::int64_t row, std::int64_t column) {
  constexpr int lanes = kLanes<Real>;
  Vector<Real> sums[Rows][Columns] = {};
  const Real* a = p.a + row * p.row_step;
  const Real* b = p.b + column;
  for (std::int64_t k = 0; k < p.depth; ++k, a += p.step, b += p.b_stride) {
    Vector<Real> right[Columns];
    for (int v = 0; v < Columns; ++v) right[v] = load(b + v * lanes);
    for (int i = 0; i < Rows; ++i) {
      for (int v = 0; v < Columns; ++v) sums[i][v] += a[i * p.row_step] * right[v];
    }
  }
  for (int i = 0; i < Rows; ++i) {
    Real* c = p.c + (row + i) * p.c_stride + column;
    for (int v = 0; v < Columns; ++v) store(c + v * lanes, load(c + v * lanes) + p.sign * sums[i][v]);
  }
}

template <int Columns, class Real>
void multiply_column(const Product<Real>& p, std::int64_t begin, std::int64_t end, std::int64_t column) {
  std::int64_t row = begin;
  for (; row + kTileRows <= end; row += kTileRows) multiply_tile<kTileRows, Columns>(p, row, column);
  for (; row + 2 <= end; row += 2) multiply_tile<2, Columns>(p, row, column);
  for (; row < end; ++row) multiply_tile<1, Columns>(p, row, column);
}

// C += sign * A B for the rows [begin, end), and of these only what lies on or above the diagonal where `upper`.
template <class Real>
void multiply(const Product<Real>& p, std::int64_t begin, std::int64_t end, bool upper) {
  constexpr std::int64_t lanes = kLanes<Real>;
  for (std::int64_t column = upper ? begin / lanes * lanes : 0; column < p.c_stride;) {
    const bool pair = column + 2 * lanes <= p.c_stride;
    const std::int64_t next = column + (pair ? 2 * lanes : lanes);
    const std::int64_t last = upper ? std::min(end, next) : end;
    pair ? multiply_column<2>(p, begin, last, column) : multiply_column<1>(p, begin, last, column);
    column = next;
  }
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

// Factors the upper triangle in place as U^T U, eight rows at a time, and clears what shares a vector with the diagonal
// and lies below it. False where a pivot is not positive.
template <class Real>
bool factor(Real* matrix, std::int64_t rank, std::int64_t stride) {
  constexpr std::int64_t block = 8, lanes = kLanes<Real>;
  for (std::int64_t begin = 0; begin < rank; begin += block) {
    const std::int64_t end = std::min(begin + block, rank);
    for (std::int64_t k = begin; k < end; ++k) {
      Real* row = matrix + k * stride;
      const Real pivot = row[k];
      if (!(pivot > 0) || !(pivot <= std::numeric_limits<Real>::max())) return false;
      const std::int64_t first = k / lanes * lanes;
      const Real inverse = 1 / std::sqrt(pivot);
      for (std::int64_t i = first; i < stride; i += lanes) store(row + i, inverse * load(row + i));
      std::fill(row + first, row + k, Real(0));
      for (std::int64_t i = k + 1; i < end; ++i) add_scaled(matrix + i * stride, -row[i], row, first, stride);
    }
    const Real* panel = matrix + begin * stride;
    multiply(Product<Real>{panel, 1, stride, panel, stride, matrix, stride, end - begin, Real(-1)}, end, rank, true);
  }
  return true;
}

// Solves U^T x = b in place.
template <class Real>
void solve_lower(const Real* upper, std::int64_t rank, std::int64_t stride, Real* x) {
  for (std::int64_t k = 0; k < rank; ++k) {
    const Real* row = upper + k * stride;
    const Real value = x[k] / row[k];
    add_scaled(x, -value, row, k / kLanes<Real> * kLanes<Real>, stride);
    x[k] = value;
  }
}

// Solves U x = b in place. The values of a vector are found one after the other, in scalars: a vector that is read just
// after one of its values was written waits for that to reach the cache.
template <class Real>
void solve_upper(const Real* upper, std::int64_t rank, std::int64_t stride, Real* x) {
  constexpr std::int64_t lanes = kLanes<Real>;
  for (std::int64_t begin = (rank - 1) / lanes * lanes; begin >= 0; begin -= lanes) {
    const std::int64_t end = std::min(begin + lanes, rank);
    for (std::int64_t k = begin; k < end; ++k) x[k] -= dot(upper + k * stride, x, begin + lanes, stride);
    for (std::int64_t k = end; k-- > begin;) {
      const Real* row = upper + k * stride;
      Real value = x[k];
      for (std::int64_t i = k + 1; i < end; ++i) value -= row[i] * x[i];
      x[k] = value / row[k];
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

template <class Real>
void multiply_vector(const Real* matrix, std::int64_t rank, std::int64_t stride, const Real* x, Real* result) {
  std::fill(result, result + stride, Real(0));
  for (std::int64_t i = 0; i < rank; ++i) add_scaled(result, x[i], matrix + i * stride, 0, stride);
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
  Real* matrix;
  Real* factor;
  Real* mean;
  Real* shift;  // matrix * mean
  double log_diagonal;
};

template <class Real>
Prior<Real> allocate_prior(Workspace<Real>& workspace, std::int64_t rank, std::int64_t stride) {
  return {workspace.take(rank * stride), workspace.take(rank * stride), workspace.take(stride),
          workspace.take(stride), 0};
}

template <class Real>
bool read_matrix(Prior<Real>& prior, const Real* lower, std::int64_t rank, std::int64_t stride) {
  std::fill(prior.matrix, prior.matrix + rank * stride, Real(0));
  for (std::int64_t i = 0; i < rank; ++i) {
    for (std::int64_t k = 0; k <= i; ++k) {
      prior.matrix[i * stride + k] = prior.matrix[k * stride + i] = lower[i * rank + k];
    }
  }
  std::copy(prior.matrix, prior.matrix + rank * stride, prior.factor);
  if (!factor(prior.factor, rank, stride)) return false;
  prior.log_diagonal = log_diagonal(prior.factor, rank, stride);
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

// Writes an upper triangle as the lower one of an unpadded matrix. Runs of fixed length cost no mispredicted branch; the
// cache lines of a column serve the rows that follow too.
template <class Real>
void write_transposed(const Real* upper, std::int64_t rank, std::int64_t stride, Real* lower) {
  constexpr std::int64_t run = 8;
  for (std::int64_t i = 0; i < rank; ++i) {
    std::int64_t k = 0;
    for (; k + run <= i + 1; k += run) {
      for (std::int64_t j = k; j < k + run; ++j) lower[i * rank + j] = upper[j * stride + i];
    }
    for (; k <= i; ++k) lower[i * rank + k] = upper[k * stride + i];
    std::fill(lower + i * rank + i + 1, lower + (i + 1) * rank, Real(0));
  }
}

template <class Real>
Failure posterior_range(const GaussianTasks<Real>& tasks, const GaussianPosterior<Real>& posterior, std::int64_t begin,
                        std::int64_t end) {
  const std::int64_t rank = tasks.rank, stride = padded<Real>(rank);
  Workspace<Real> workspace(3 * rank * stride + 5 * stride + kChunk * stride);
  Prior<Real> prior = allocate_prior(workspace, rank, stride);
  Real* total = workspace.take(rank * stride);
  Real* chunk = workspace.take(kChunk * stride);
  Real* mean = workspace.take(stride);
  Real* deviation = workspace.take(stride);
  Real* image = workspace.take(stride);

  for (std::int64_t task = begin; task < end; ++task) {
    if (!read_prior(tasks, task, task == begin, stride, prior)) return {Failure::prior, task};
    std::copy(prior.matrix, prior.matrix + rank * stride, total);
    std::copy(prior.shift, prior.shift + stride, mean);
    const std::int64_t first = tasks.offsets[task], last = tasks.offsets[task + 1];
    LogProduct precisions;
    std::int64_t present = 0;
    for (std::int64_t from = first; from < last; from += kChunk) {
      const std::int64_t count = std::min(kChunk, last - from);
      for (std::int64_t j = 0; j < count; ++j) {
        const Real precision = tasks.precision[from + j];
        if (!(precision >= 0 && precision <= std::numeric_limits<Real>::max())) return {Failure::observation, from + j};
        if (precision > 0) {
          precisions.multiply(static_cast<double>(precision));
          ++present;
        }
        const Real root = std::sqrt(precision);
        Real* row = chunk + j * stride;
        const Real* features = tasks.features.data() + (from + j) * rank;
        std::int64_t i = 0;
        for (; i + kLanes<Real> <= rank; i += kLanes<Real>) store(row + i, root * load(features + i));
        for (; i < rank; ++i) row[i] = root * features[i];
        for (; i < stride; ++i) row[i] = 0;
        add_scaled(mean, root * tasks.targets[from + j], row, 0, stride);
      }
      multiply(Product<Real>{chunk, 1, stride, chunk, stride, total, stride, count, Real(1)}, 0, rank, true);
    }
    if (!factor(total, rank, stride)) return {Failure::posterior, task};
    solve_lower(total, rank, stride, mean);
    solve_upper(total, rank, stride, mean);

    for (std::int64_t i = 0; i < stride; ++i) deviation[i] = mean[i] - prior.mean[i];
    multiply_vector(prior.matrix, rank, stride, deviation, image);
    double misfit = dot(image, deviation, 0, stride);
    for (std::int64_t j = first; j < last; ++j) {
      const Real* features = tasks.features.data() + j * rank;
      const std::int64_t whole = rank / kLanes<Real> * kLanes<Real>;
      Real fitted = dot(features, mean, 0, whole);
      for (std::int64_t i = whole; i < rank; ++i) fitted += features[i] * mean[i];
      const Real residual = tasks.targets[j] - fitted;
      misfit += static_cast<double>(tasks.precision[j] * residual * residual);
    }
    constexpr double log_two_pi = 1.8378770664093453;
    posterior.log_evidence[task] = static_cast<Real>(
        prior.log_diagonal - log_diagonal(total, rank, stride) +
        (precisions.log() - static_cast<double>(present) * log_two_pi - misfit) / 2);
    std::copy(mean, mean + rank, posterior.mean.data() + task * rank);
    write_transposed(total, rank, stride, posterior.cholesky.data() + task * rank * rank);
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
  Workspace<Real> workspace(9 * square + 8 * stride + 2 * kChunk * stride);
  Prior<Real> prior = allocate_prior(workspace, rank, stride);
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
    multiply(Product<Real>{a, 1, stride, b, stride, c, stride, rank, sign}, 0, rank, false);
  };

  for (std::int64_t task = begin; task < end; ++task) {
    read_prior(tasks, task, task == begin, stride, prior);
    if (task == begin || own_matrix) {
      std::fill(half, half + square, Real(0));
      for (std::int64_t i = 0; i < rank; ++i) {
        for (std::int64_t k = 0; k <= i; ++k) half[i * stride + k] = prior.factor[k * stride + i];
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
      std::fill(pushed, pushed + count * stride, Real(0));
      multiply(Product<Real>{chunk, stride, 1, total, stride, pushed, stride, rank, Real(1)}, 0, count, false);
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
