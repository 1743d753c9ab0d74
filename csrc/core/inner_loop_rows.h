// Rows of numbers that are padded to whole vectors: sums, products and transposes; included by kernels only.
#include "product.h"

namespace metarec::METAREC_ISA {
namespace {

template <class Real>
void add_scaled(Real* to, Real factor, const Real* from, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kLanes<Real>) store(to + i, load(to + i) + factor * load(from + i));
}

template <class Real>
void multiply_elements(Real* to, const Real* left, const Real* right, std::int64_t count) {
  for (std::int64_t i = 0; i < count; i += kLanes<Real>) store(to + i, load(left + i) * load(right + i));
}

template <class Real>
Real dot(const Real* left, const Real* right, std::int64_t count) {
  Vector<Real> total = {};
  for (std::int64_t i = 0; i < count; i += kLanes<Real>) total += load(left + i) * load(right + i);
  return sum<Real>(total);
}

// to += factor * (sum of the rows)
template <class Real>
void add_rows(Real* to, Real factor, const Real* from, std::int64_t rows, std::int64_t stride) {
  for (std::int64_t i = 0; i < stride; i += kLanes<Real>) {
    Vector<Real> total = {};
    for (std::int64_t j = 0; j < rows; ++j) total += load(from + j * stride + i);
    store(to + i, load(to + i) + factor * total);
  }
}

// Each row of `from` times `scale`.
template <class Real>
void scale_rows(Real* to, const Real* from, const Real* scale, std::int64_t rows, std::int64_t stride) {
  for (std::int64_t j = 0; j < rows; ++j) multiply_elements(to + j * stride, from + j * stride, scale, stride);
}

#if METAREC_VECTOR_BYTES >= 32
// Eight rows of eight floats, turned over.
[[gnu::always_inline]] inline void transpose_eight(const float* from, std::int64_t from_stride, float* to,
                                                   std::int64_t to_stride) {
  __m256 rows[8], pairs[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) rows[i] = _mm256_loadu_ps(from + i * from_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    rows[i] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0x44);
    rows[i + 1] = _mm256_shuffle_ps(pairs[i], pairs[i + 2], 0xEE);
    rows[i + 2] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0x44);
    rows[i + 3] = _mm256_shuffle_ps(pairs[i + 1], pairs[i + 3], 0xEE);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(rows[i], rows[i + 4], 0x31));
  }
}
#endif

// to [columns, to_stride] = from [rows, from_stride] turned over, where to_stride is padded(rows): the rest is zero.
template <class Real>
void transpose(const Real* from, std::int64_t rows, std::int64_t columns, std::int64_t from_stride, Real* to,
               std::int64_t to_stride) {
  if (rows < to_stride) {
    for (std::int64_t column = 1; column <= columns; ++column) {
      store(to + column * to_stride - kLanes<Real>, Vector<Real>{});
    }
  }
  std::int64_t begin = 0;
#if METAREC_VECTOR_BYTES >= 32
  if constexpr (sizeof(Real) == sizeof(float)) {
    for (; begin + 8 <= rows; begin += 8) {
      std::int64_t column = 0;
      for (; column + 8 <= columns; column += 8) {
        transpose_eight(from + begin * from_stride + column, from_stride, to + column * to_stride + begin, to_stride);
      }
      for (; column < columns; ++column) {
        for (std::int64_t i = begin; i < begin + 8; ++i) to[column * to_stride + i] = from[i * from_stride + column];
      }
    }
  }
#endif
  for (; begin < rows; ++begin) {
    for (std::int64_t column = 0; column < columns; ++column) to[column * to_stride + begin] = from[begin * from_stride + column];
  }
}

}  // namespace
}  // namespace metarec::METAREC_ISA
