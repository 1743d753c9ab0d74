// The activations and losses of the inner loop with their derivatives; included by its kernel only.
#include "inner_loop_rows.h"

namespace metarec::METAREC_ISA {
namespace {

// A function's value with its first and second derivative, for each lane.
template <class Real>
struct Curve {
  Vector<Real> value, slope, curve;
};

// c[0] + c[1] x + c[2] x^2 + ...
template <int Count>
[[gnu::always_inline]] inline Vector<float> polynomial(const float (&c)[Count], Vector<float> x) {
  Vector<float> total = Vector<float>{} + c[Count - 1];
#pragma GCC unroll 16
  for (int i = Count - 2; i >= 0; --i) total = total * x + c[i];
  return total;
}

// exp(y + rest) for y <= 0 and a small rest, within 1.5 units in the last place; 0 below the normal numbers.
[[gnu::always_inline]] inline Vector<float> exponential(Vector<float> y, Vector<float> rest) {
  using Bits = Vector<std::uint32_t>;
  constexpr float c[] = {0.49999994f, 0.1666652f, 0.041668408f, 0.008368899f, 0.0013814219f};  // (e^r - 1 - r) / r^2
  constexpr float to_integer = 12582912;  // adding 1.5 * 2^23 leaves the integer part in the lowest bits
  const Vector<float> shifted = y * 1.44269504f + to_integer, count = shifted - to_integer;
  const Vector<float> r = y - count * 0.693359375f + count * 2.12194440e-4f + rest;  // less multiples of log 2
  const Vector<float> mantissa = 1 + (r + r * r * polynomial(c, r));
  const Bits power = (reinterpret_cast<Bits>(shifted) + 127) << 23;
  const Vector<float> zero = {};
  return y < -87.0f ? zero : mantissa * reinterpret_cast<Vector<float>>(power);
}

[[gnu::always_inline]] inline Vector<float> magnitude(Vector<float> x) {
  return reinterpret_cast<Vector<float>>(reinterpret_cast<Vector<std::uint32_t>>(x) & 0x7fffffff);
}

// Within 1.5 units in the last place.
[[gnu::always_inline]] inline Curve<float> tanh_curve(Vector<float> x) {
  constexpr float c[] = {-0.33333278f, 0.13331331f, -0.05373f, 0.020606168f, -0.0056669684f};  // (tanh x - x) / x^3
  using Bits = Vector<std::uint32_t>;
  const Vector<float> size = magnitude(x), square = x * x, large = Vector<float>{} + 10;
  const Vector<float> decay = exponential(-2 * (size > large ? large : size), Vector<float>{});
  const Vector<float> far = (1 - decay) / (1 + decay), near = x + x * square * polynomial(c, square);
  const Bits sign = reinterpret_cast<Bits>(x) & 0x80000000;
  const Vector<float> signed_far = reinterpret_cast<Vector<float>>(reinterpret_cast<Bits>(far) | sign);
  const Vector<float> value = size < 0.625f ? near : signed_far, slope = 1 - value * value;
  return {value, slope, -2 * value * slope};
}

// x times the normal distribution, which is the density at |x| times a smooth function where x < 0; within 5 units in
// the last place. The square of |x| is that of its upper half, which is exact, and a rest.
[[gnu::always_inline]] inline Curve<float> gelu_curve(Vector<float> x) {
  // (|x| + 3.5) e^(x^2 / 2) erfc(|x| / sqrt 2) / 2 by (|x| - 3.5) / (|x| + 3.5)
  constexpr float c[] = {0.74441606f,   -0.5655618f,    0.31542495f,     -0.116052672f,   0.017407598f,
                         0.0064912523f, -0.0031812529f, -0.00049387646f, 0.000431256340f, 0.000115686395f};
  const Vector<float> given = magnitude(x), large = Vector<float>{} + 16;
  const Vector<float> size = given > large ? large : given;
  const Vector<float> upper =
      reinterpret_cast<Vector<float>>(reinterpret_cast<Vector<std::uint32_t>>(size) & 0xfffff000);
  const Vector<float> bell = exponential(-0.5f * upper * upper, -0.5f * (size - upper) * (size + upper));
  const Vector<float> inverse = 1 / (size + 3.5f);
  const Vector<float> tail = polynomial(c, (size - 3.5f) * inverse) * inverse * bell;
  const Vector<float> below = x > 0 ? 1 - tail : tail, density = bell * 0.39894228f;
  return {x * below, below + x * density, density * (2 - x * x)};
}

// In double precision each lane by the standard library.
inline Curve<double> tanh_curve(Vector<double> x) {
  for (int lane = 0; lane < kLanes<double>; ++lane) x[lane] = std::tanh(x[lane]);
  const Vector<double> slope = 1 - x * x;
  return {x, slope, -2 * x * slope};
}

inline Curve<double> gelu_curve(Vector<double> x) {
  Vector<double> below, density;
  for (int lane = 0; lane < kLanes<double>; ++lane) {
    below[lane] = std::erfc(-x[lane] * 0.70710678118654752440) / 2;
    density[lane] = std::exp(-x[lane] * x[lane] / 2) * 0.39894228040143267794;
  }
  return {x * below, below + x * density, density * (2 - x * x)};
}

// Replaces z by f(z), and gives f'(z) and f''(z) where there is room for them; those of ReLU are seen in f(z).
template <class Real>
void activate(Activation activation, std::int64_t count, Real* z, Real* slope, Real* curve) {
  if (activation == Activation::relu) {
    for (std::int64_t i = 0; i < count; i += kLanes<Real>) {
      const Vector<Real> value = load(z + i), zero = {};
      store(z + i, value > zero ? value : zero);
    }
    return;
  }
  for (std::int64_t i = 0; i < count; i += kLanes<Real>) {
    const Vector<Real> value = load(z + i);
    const Curve<Real> found = activation == Activation::tanh ? tanh_curve(value) : gelu_curve(value);
    store(z + i, found.value);
    if (slope != nullptr) store(slope + i, found.slope);
    if (curve != nullptr) store(curve + i, found.curve);
  }
}

// Gradient of a loss and what its own gradient takes: second derivatives in the outputs and in the target.
template <class Real>
struct LossTerms {
  Real gradient[2], curvature[2][2], by_target[2];
};

template <class Real>
LossTerms<Real> loss_terms(Loss loss, const Real* z, Real target) {
  if (loss == Loss::squared) return {{z[0] - target}, {{1}}, {-1}};
  if (loss == Loss::logistic) {
    const Real chance = 1 / (1 + std::exp(-z[0]));
    return {{chance - target}, {{chance * (1 - chance)}}, {-1}};
  }
  const Real precision = std::exp(-z[1]), error = z[0] - target, pushed = error * precision;
  return {{pushed, (1 - error * pushed) / 2},
          {{precision, -pushed}, {-pushed, error * pushed / 2}},
          {-precision, pushed}};
}

}  // namespace
}  // namespace metarec::METAREC_ISA
