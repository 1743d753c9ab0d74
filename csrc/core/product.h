// Products of small matrices with the sums in registers; included by kernels only, once per instruction set.
#include "simd.h"

namespace metarec::METAREC_ISA {
namespace {

// C = base + factor * A B, where A's element (i, k) is a[i * row_step + k * step] and the others are row-major with the
// given strides, `columns` a multiple of the vector's length. No base is zero; a base of stride 0 is one row for all.
template <class Real>
struct Product {
  const Real* a;
  std::int64_t row_step, step;
  const Real* b;
  std::int64_t b_stride;
  Real* c;
  std::int64_t c_stride;
  std::int64_t rows, columns, depth;
  Real factor = 1;
  const Real* base = nullptr;
  std::int64_t base_stride = 0;
};

// Everything is unrolled, or the sums would be an array in memory.
template <int Rows, int Columns, class Real>
void multiply_tile(const Product<Real>& p, std::int64_t row, std::int64_t column) {
  constexpr int lanes = kLanes<Real>;
  Vector<Real> sums[Rows][Columns];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Columns; ++v) sums[i][v] = Vector<Real>{};
  }
  const Real* a = p.a + row * p.row_step;
  const Real* b = p.b + column;
  const std::int64_t row_step = p.row_step, step = p.step, b_stride = p.b_stride, depth = p.depth;
  for (std::int64_t k = 0; k < depth; ++k, a += step, b += b_stride) {
    Vector<Real> right[Columns];
#pragma GCC unroll 4
    for (int v = 0; v < Columns; ++v) right[v] = load(b + v * lanes);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
      const Real left = a[i * row_step];
#pragma GCC unroll 4
      for (int v = 0; v < Columns; ++v) sums[i][v] += left * right[v];
    }
  }
  const std::int64_t base_stride = p.base_stride, c_stride = p.c_stride;
  const Real factor = p.factor;
  Real* c = p.c + row * c_stride + column;
  if (p.base == nullptr) {
#pragma GCC unroll 8
    for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
      for (int v = 0; v < Columns; ++v) store(c + i * c_stride + v * lanes, factor * sums[i][v]);
    }
    return;
  }
  const Real* base = p.base + row * base_stride + column;
#pragma GCC unroll 8
  for (int i = 0; i < Rows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < Columns; ++v) {
      store(c + i * c_stride + v * lanes, load(base + i * base_stride + v * lanes) + factor * sums[i][v]);
    }
  }
}

// Rows are shared out evenly over the tiles: a last tile of one row would wait for its own sums. A tile of one vector
// per row takes up to eight rows, for eight sums are what keeps the arithmetic busy.
template <int Columns, class Real>
void multiply_panel(const Product<Real>& p, std::int64_t column) {
  constexpr std::int64_t most = Columns == 1 ? 8 : 6;
  const std::int64_t tiles = (p.rows + most - 1) / most;
  const std::int64_t height = p.rows / tiles;
  std::int64_t taller = p.rows % tiles;
  for (std::int64_t row = 0, rows; row < p.rows; row += rows) {
    rows = taller-- > 0 ? height + 1 : height;
    switch (rows) {
      case 1: multiply_tile<1, Columns>(p, row, column); break;
      case 2: multiply_tile<2, Columns>(p, row, column); break;
      case 3: multiply_tile<3, Columns>(p, row, column); break;
      case 4: multiply_tile<4, Columns>(p, row, column); break;
      case 5: multiply_tile<5, Columns>(p, row, column); break;
      case 6: multiply_tile<6, Columns>(p, row, column); break;
      case 7: multiply_tile<most == 8 ? 7 : 6, Columns>(p, row, column); break;
      default: multiply_tile<most, Columns>(p, row, column);
    }
  }
}

template <class Real>
void multiply(const Product<Real>& p) {
  constexpr std::int64_t lanes = kLanes<Real>;
  if (p.rows == 0) return;
  std::int64_t column = 0;
  if (p.rows <= 3) {
    for (; column + 4 * lanes <= p.columns; column += 4 * lanes) multiply_panel<4>(p, column);
  }
  for (; column + 2 * lanes <= p.columns; column += 2 * lanes) multiply_panel<2>(p, column);
  if (column < p.columns) multiply_panel<1>(p, column);
}

}  // namespace
}  // namespace metarec::METAREC_ISA
