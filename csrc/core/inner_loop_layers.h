// What one layer does to rows, and what a task keeps of it; included by the kernel of the inner loop only.
#include "inner_loop_functions.h"

namespace metarec::METAREC_ISA {
namespace {

// What the layers are at one time of a task.
template <class Real>
struct Weights {
  const Real *weight[kMostLayers] = {}, *transposed[kMostLayers] = {}, *bias[kMostLayers] = {};
  const Real* coefficients = nullptr;  // C, none at the start
};

// What a pass over rows leaves behind: the outputs and, where the activation is curved, its derivatives.
template <class Real>
struct Pass {
  Real *out[kMostLayers] = {}, *slope[kMostLayers] = {}, *curve[kMostLayers] = {};
};

// to = bar o f'(z_l)
template <class Real>
void through_activation(const Pass<Real>& pass, std::int64_t l, const Real* bar, Real* to, std::int64_t count) {
  if (pass.slope[l] != nullptr) return multiply_elements(to, bar, pass.slope[l], count);
  for (std::int64_t i = 0; i < count; i += kLanes<Real>) {
    const Vector<Real> zero = {};
    store(to + i, load(pass.out[l] + i) > zero ? load(bar + i) : zero);
  }
}

template <class Real>
struct Step {
  Weights<Real> at;
  Pass<Real> pass;
  Real *grad[kMostLayers] = {}, *pushed[kMostLayers] = {};  // G and D
  const Real* traced = nullptr;  // where of these are in a trace, and how many values
  std::int64_t traced_size = 0;
};

// z_l = h W_l^T + b_l
template <class Real>
void affine(const std::vector<Layer<Real>>& layers, const Weights<Real>& at, std::int64_t l, const Real* h,
            std::int64_t rows, Real* z) {
  const Layer<Real>& layer = layers[l];
  if (!layer.thin()) {
    multiply(Product<Real>{h, layer.in_stride, 1, at.transposed[l], layer.out_stride, z, layer.out_stride, rows,
                           layer.out_stride, layer.in, Real(1), at.bias[l], 0});
    return;
  }
  for (std::int64_t j = 0; j < rows; ++j) {
    Real* row = z + j * layer.out_stride;
    std::copy(at.bias[l], at.bias[l] + layer.out_stride, row);
    for (std::int64_t o = 0; o < layer.out; ++o) {
      row[o] += dot(h + j * layer.in_stride, at.weight[l] + o * layer.in_stride, layer.in_stride);
    }
  }
}

// to = base + factor * g W
template <class Real>
void push(const Layer<Real>& layer, const Real* weight, const Real* g, std::int64_t rows, Real factor, Real* to,
          const Real* base = nullptr) {
  multiply(Product<Real>{g, layer.out_stride, 1, weight, layer.in_stride, to, layer.in_stride, rows,
                         layer.in_stride, layer.out, factor, base, layer.in_stride});
}

// A block (weight, bias): to = base + factor * g^T h
template <class Real>
void outer(const Layer<Real>& layer, const Real* g, const Real* h, std::int64_t rows, Real factor, Real* to,
           const Real* base_weight = nullptr, const Real* base_bias = nullptr) {
  multiply(Product<Real>{g, 1, layer.out_stride, h, layer.in_stride, to, layer.in_stride, layer.out,
                         layer.in_stride, rows, factor, base_weight, layer.in_stride});
  Real* bias = to + layer.out * layer.in_stride;
  if (base_bias == nullptr) {
    std::fill(bias, bias + layer.out_stride, Real(0));
  } else if (base_bias != bias) {
    std::copy(base_bias, base_bias + layer.out_stride, bias);
  }
  add_rows(bias, factor, g, rows, layer.out_stride);
}

template <class Real>
void add_outer(const Layer<Real>& layer, const Real* g, const Real* h, std::int64_t rows, Real* to) {
  outer(layer, g, h, rows, Real(1), to, to, to + layer.out * layer.in_stride);
}

}  // namespace
}  // namespace metarec::METAREC_ISA
