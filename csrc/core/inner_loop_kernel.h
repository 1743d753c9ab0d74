// The inner loop of one task, and its adjoint, for one instruction set.
//
// Rows of a task's support are X [S, D], its targets y and weights w. Layer l has inputs h_l (h_0 = X), sums
// z_l = h_l W_l^T + b_l and outputs h_{l+1} = f(z_l); below, a bias is a weight of a constant input 1. Step k does
//
//   G_top = w l'(z_top, y),   D_l = G_{l+1} W_{l+1},   G_l = D_l o f'(z_l)                        (o: elementwise)
//   W_l  <- W_l - a_kl s_l o (G_l^T h_l + p (W_l - W_l^0)).
//
// Gram form of the first layer. With scales of rank one, s_0 = u v^T, and no steps of its own for W_0,
//
//   W_0 = W_0^0 - C^T Y,   Y = X diag(v),   z_0 = X W_0^0^T - P C,   P = X Y^T  (a bias adds v_b to each entry)
//   C   <- (1 - a p) C + a G_0 diag(u),
//
// so that X W_0^0^T and P are computed once, and a step is products of S x S and S x H matrices.
//
// Adjoint. A bar marks the derivative of the result. Backwards through step k, where V = s o W-bar of the next weights,
//
//   G-bar_l  = -a h_l V_l^T,   h-bar_l = -a G_l V_l,   W-bar_l <- W-bar_l - a p V_l   (and W-bar_l^0 += a p V_l)
//   a-bar_kl = -<G_l, h_l V_l^T> - p <V_l, W_l - W_l^0>
//   Gram: G-bar_0 = a C-bar diag(u),   a-bar_k0 = <C-bar, G_0 diag(u) - p C>,   C-bar <- (1 - a p) C-bar
//
// then up, through the gradient, for l = 0, 1, ...
//
//   D-bar_l = G-bar_l o f'(z_l),   z-bar_l = G-bar_l o D_l o f''(z_l)
//   G-bar_{l+1} += D-bar_l W_{l+1}^T,   W-bar_{l+1} += G_{l+1}^T D-bar_l,   z-bar_top = w l''(z_top, y) G-bar_top
//
// and down again, through the sums,
//
//   h-bar_l += z-bar_l W_l,   W-bar_l += z-bar_l^T h_l,   z-bar_{l-1} += h-bar_l o f'(z_{l-1})
//   Gram: C-bar -= P z-bar_0,   P-bar -= z-bar_0 C^T,   z-bar of X W_0^0^T += z-bar_0.
//
// First order leaves out all but what reaches the last weights and the rates.
//
// Matrices are padded to whole vectors with zeros, which all of the above keep. A step of a head D-H-H-1 costs
// S^2 H + 3 S H^2 multiply-adds, its adjoint 3 S^2 H + 6 S H^2: compute-bound, as all but the inputs stays in the
// second-level cache. The backward pass runs the steps again, unless the caller kept a trace of them; a thread holds the
// steps of one task, O(min(S^2, D H) + S H K + H^2 K).
#include "product.h"

namespace metarec::METAREC_ISA {
namespace {

template <class Real>
std::int64_t vector_length() {
  return kLanes<Real>;
}

// Queries of a task are handled so many at a time.
constexpr std::int64_t kQueryRows = 64;

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

// to [columns, to_stride] = from [rows, from_stride] turned over, the rest of each row zero.
template <class Real>
void transpose(const Real* from, std::int64_t rows, std::int64_t columns, std::int64_t from_stride, Real* to,
               std::int64_t to_stride) {
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
  for (std::int64_t column = 0; column < columns; ++column) {
    for (std::int64_t i = begin; i < rows; ++i) to[column * to_stride + i] = from[i * from_stride + column];
    std::fill(to + column * to_stride + rows, to + (column + 1) * to_stride, Real(0));
  }
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
  for (std::int64_t i = 0; i < count; ++i) {
    const Real value = z[i];
    Real first, second;
    if (activation == Activation::tanh) {
      z[i] = std::tanh(value);
      first = 1 - z[i] * z[i];
      second = -2 * z[i] * first;
    } else {
      constexpr Real root_half = Real(0.70710678118654752440), root_two_pi = Real(2.50662827463100050242);
      const Real below = std::erfc(-value * root_half) / 2, density = std::exp(-value * value / 2) / root_two_pi;
      z[i] = value * below;
      first = below + value * density;
      second = density * (2 - value * value);
    }
    if (slope != nullptr) slope[i] = first;
    if (curve != nullptr) curve[i] = second;
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
};

template <class Real>
class TaskLoop {
 public:
  // `keep_weights` says that the weights of all steps are wanted afterwards, `keep_steps` all else of them.
  TaskLoop(const Network<Real>& network, bool keep_weights, bool keep_steps)
      : network_(network), layers_(network.layers), keep_weights_(keep_weights), keep_steps_(keep_steps) {}

  // Takes up the support of a task, and where to keep (or find) what the passes have in common.
  void begin(const Real* inputs, std::int64_t rows, bool gram, const TaskTrace<Real>& trace = {}) {
    workspace_.reset();
    trace_ = trace;
    rows_ = rows;
    weights_ = take(rows);
    gram_ = gram;
    first_ = gram ? 1 : 0;
    const Layer<Real>& bottom = layers_[0];
    x_ = padded_rows(inputs, rows, bottom);
    initial_ = {};
    for (std::int64_t l = 0; l < count(); ++l) {
      initial_.weight[l] = layers_[l].weight;
      initial_.transposed[l] = layers_[l].transposed;
      initial_.bias[l] = layers_[l].bias;
    }
    if (gram) {
      support_stride_ = network_.padded(rows);
      scaled_x_ = x_;
      gram_matrix_ = nullptr;
      if (network_.input_scales != nullptr) {
        Real* scaled = take(rows * bottom.in_stride);
        scale_rows(scaled, x_, network_.input_scales, rows, bottom.in_stride);
        scaled_x_ = scaled;
      }
    }
    allocate_steps();
  }

  // Computes what the Gram form needs of the inputs, and the sums that all steps begin with.
  void prepare(bool sums) {
    if (!gram_) return;
    const Layer<Real>& bottom = layers_[0];
    turned_x_ = take(bottom.in * support_stride_);
    transpose(scaled_x_, rows_, bottom.in, bottom.in_stride, turned_x_, support_stride_);
    gram_matrix_ = take(rows_ * support_stride_);
    gram_of_support();
    if (!sums) return;
    sums_ = take(rows_ * bottom.out_stride);
    affine(initial_, 0, x_, rows_, sums_);
  }

  // The ratings' weights are divided by their sum where `mean`.
  void rate(const Real* targets, const Real* weights, bool mean) {
    const Real total = std::accumulate(weights, weights + rows_, Real(0));
    divisor_ = mean && total > 0 ? total : Real(1);
    for (std::int64_t j = 0; j < rows_; ++j) weights_[j] = weights[j] / divisor_;
    targets_ = targets;
  }

  // Runs the steps, or only what is not in the trace of them.
  void adapt(bool replay = false) {
    Weights<Real> now = initial_;
    for (std::int64_t k = 0; k < network_.steps; ++k) {
      Step<Real>& step = steps_[keep_steps_ ? k : 0];
      step.at = now;
      if (!replay) propagate(step);
      find_gradients(step, replay);
      now = advance(step, k);
    }
    adapted_ = now;
  }

  // Finds the adapted head in the trace.
  void recall() {
    adapted_ = initial_;
    if (network_.steps == 0) return;
    if (gram_) adapted_.coefficients = next_[0].coefficients;
    for (std::int64_t l = first_; l < count(); ++l) {
      const Layer<Real>& layer = layers_[l];
      adapted_.weight[l] = next_[0].block[l];
      adapted_.bias[l] = next_[0].block[l] + layer.out * layer.in_stride;
      adapted_.transposed[l] = turned(layer, next_[0].block[l], next_[0].transposed[l]);
    }
  }

  // Turns the Gram form of the first layer into the layer itself, which many queries are faster with.
  void unfold() {
    if (!gram_ || adapted_.coefficients == nullptr) return;
    const Layer<Real>& layer = layers_[0];
    Real* weight = take(layer.out * layer.in_stride);
    Real* bias = take(layer.out_stride);
    multiply(Product<Real>{adapted_.coefficients, 1, layer.out_stride, scaled_x_, layer.in_stride, weight,
                           layer.in_stride, layer.out, layer.in_stride, rows_, Real(-1), layer.weight,
                           layer.in_stride});
    std::copy(adapted_.bias[0], adapted_.bias[0] + layer.out_stride, bias);
    add_rows(bias, -network_.bias_scale, adapted_.coefficients, rows_, layer.out_stride);
    adapted_.weight[0] = weight;
    adapted_.bias[0] = bias;
    adapted_.transposed[0] = turned(layer, weight, nullptr);
    adapted_.coefficients = nullptr;
  }

  // Predicts queries by the adapted head.
  void predict(const Real* queries, std::int64_t rows, Real* predictions) {
    for (std::int64_t from = 0; from < rows; from += kQueryRows) {
      const auto mark = workspace_.mark();
      const std::int64_t some = std::min(kQueryRows, rows - from);
      const Real* x = padded_rows(queries + from * layers_[0].in, some, layers_[0]);
      const Pass<Real> pass = allocate_pass(some, trace_.query);
      Real* products = gram_ && adapted_.coefficients != nullptr ? take(some * support_stride_) : nullptr;
      query_pass(x, some, products, pass);
      unpad(pass.out[top()], some, network_.outputs(), layers_[top()].out_stride,
            predictions + from * network_.outputs());
      workspace_.release(mark);
    }
  }

  // Writes what serving needs of the adapted head.
  void write_state(Real* rows, Real* coefficients, Real* parameters) const {
    const Layer<Real>& bottom = layers_[0];
    if (!gram_) {
      write_layers(adapted_, 0, parameters);
      return;
    }
    unpad(scaled_x_, rows_, bottom.in, bottom.in_stride, rows);
    std::vector<Real> bias(bottom.bias, bottom.bias + bottom.out_stride);
    if (adapted_.coefficients != nullptr) {
      unpad(adapted_.coefficients, rows_, bottom.out, bottom.out_stride, coefficients);
      add_rows(bias.data(), -network_.bias_scale, adapted_.coefficients, rows_, bottom.out_stride);
    } else {
      std::fill(coefficients, coefficients + rows_ * bottom.out, Real(0));
    }
    std::copy(bias.data(), bias.data() + bottom.out, parameters);
    write_layers(adapted_, 1, parameters + bottom.out);
  }

  // Takes up an adapted head as write_state left it.
  void read_state(const Real* rows, const Real* coefficients, const Real* parameters, std::int64_t count_rows,
                  bool gram) {
    workspace_.reset();
    trace_ = {};
    rows_ = count_rows;
    gram_ = gram;
    adapted_ = {};
    const Layer<Real>& bottom = layers_[0];
    if (gram) {
      support_stride_ = network_.padded(rows_);
      adapted_.weight[0] = bottom.weight;
      adapted_.transposed[0] = bottom.transposed;
      adapted_.bias[0] = padded_copy(parameters, 1, bottom.out, bottom.out_stride);
      parameters += bottom.out;
      scaled_x_ = padded_rows(rows, rows_, bottom);
      turned_x_ = take(bottom.in * support_stride_);
      transpose(scaled_x_, rows_, bottom.in, bottom.in_stride, turned_x_, support_stride_);
      adapted_.coefficients = padded_copy(coefficients, rows_, bottom.out, bottom.out_stride);
    }
    for (std::int64_t l = gram ? 1 : 0; l < count(); ++l) {
      const Layer<Real>& layer = layers_[l];
      adapted_.weight[l] = padded_copy(parameters, layer.out, layer.in, layer.in_stride);
      parameters += layer.out * layer.in;
      adapted_.bias[l] = padded_copy(parameters, 1, layer.out, layer.out_stride);
      parameters += layer.out;
      adapted_.transposed[l] = turned(layer, adapted_.weight[l], nullptr);
    }
  }

  // The way back: from the gradient of the predictions to those of all that they depend on. What is null is not wanted.
  struct TaskGradients {
    Real *support, *targets, *weights, *query;
  };
  void reverse(const Real* queries, std::int64_t query_rows, const Real* grad, Order order, bool mean,
               const TaskGradients& to, const SharedSums<Real>& sums) {
    allocate_adjoint(to.support != nullptr || sums.input_scales != nullptr, to.support != nullptr);
    for (std::int64_t from = 0; from < query_rows; from += kQueryRows) {
      const auto mark = workspace_.mark();
      const std::int64_t some = std::min(kQueryRows, query_rows - from);
      reverse_queries(queries + from * layers_[0].in, some, grad + from * network_.outputs(), order,
                      to.query == nullptr ? nullptr : to.query + from * layers_[0].in, sums);
      workspace_.release(mark);
    }
    if (to.targets != nullptr) std::fill(to.targets, to.targets + rows_, Real(0));
    if (to.weights != nullptr) std::fill(to.weights, to.weights + rows_, Real(0));
    if (order == Order::first) {
      for (std::int64_t k = 0; keep_weights_ && k < network_.steps; ++k) rate_terms(k, sums);
      if (to.support != nullptr) std::fill(to.support, to.support + rows_ * layers_[0].in, Real(0));
    } else {
      for (std::int64_t k = network_.steps; k-- > 0;) reverse_step(k, to, sums);
      finish_support(to, sums);
      if (to.weights != nullptr) finish_weights(to.weights, mean);
    }
    for (std::int64_t l = first_; l < count(); ++l) {
      add_scaled(sums.parameters + layers_[l].offset, Real(1), weight_bar_[l], layers_[l].size());
      if (initial_bar_[l] != nullptr) {
        add_scaled(sums.parameters + layers_[l].offset, Real(1), initial_bar_[l], layers_[l].size());
      }
    }
  }

 private:
  std::int64_t count() const { return std::ssize(layers_); }
  std::int64_t top() const { return count() - 1; }
  Real* take(std::int64_t size) { return workspace_.take(size); }

  Real* zeros(std::int64_t size) {
    Real* taken = take(size);
    std::fill(taken, taken + size, Real(0));
    return taken;
  }

  Real* padded_copy(const Real* from, std::int64_t rows, std::int64_t width, std::int64_t stride) {
    Real* to = take(rows * stride);
    for (std::int64_t j = 0; j < rows; ++j) {
      std::copy(from + j * width, from + (j + 1) * width, to + j * stride);
      std::fill(to + j * stride + width, to + (j + 1) * stride, Real(0));
    }
    return to;
  }

  const Real* padded_rows(const Real* from, std::int64_t rows, const Layer<Real>& layer) {
    return layer.in == layer.in_stride ? from : padded_copy(from, rows, layer.in, layer.in_stride);
  }

  static void unpad(const Real* from, std::int64_t rows, std::int64_t width, std::int64_t stride, Real* to) {
    for (std::int64_t j = 0; j < rows; ++j) std::copy(from + j * stride, from + j * stride + width, to + j * width);
  }

  void write_layers(const Weights<Real>& from, std::int64_t first, Real* to) const {
    for (std::int64_t l = first; l < count(); ++l) {
      const Layer<Real>& layer = layers_[l];
      unpad(from.weight[l], layer.out, layer.in, layer.in_stride, to);
      to += layer.out * layer.in;
      to = std::copy(from.bias[l], from.bias[l] + layer.out, to);
    }
  }

  // The transposed weight that affine() wants, in `room` or anew; none where the layer is thin.
  const Real* turned(const Layer<Real>& layer, const Real* weight, Real* room) {
    if (layer.thin()) return nullptr;
    if (room == nullptr) room = take(layer.in * layer.out_stride);
    transpose(weight, layer.out, layer.in, layer.in_stride, room, layer.out_stride);
    return room;
  }

  // From a part of the trace, where there is one.
  Real* take_from(Real*& part, std::int64_t size) {
    if (part == nullptr) return take(size);
    return std::exchange(part, part + size);
  }

  Pass<Real> allocate_pass(std::int64_t rows, Real*& part) {
    Pass<Real> pass;
    for (std::int64_t l = 0; l < count(); ++l) {
      const std::int64_t size = rows * layers_[l].out_stride;
      pass.out[l] = take_from(part, size);
      if (!network_.curved() || l == top()) continue;
      pass.slope[l] = take_from(part, size);
      pass.curve[l] = take_from(part, size);
    }
    return pass;
  }

  void allocate_steps() {
    const std::int64_t one = std::min<std::int64_t>(network_.steps, 1);
    steps_.assign(static_cast<std::size_t>(keep_steps_ ? network_.steps : one), {});
    Real* none = nullptr;
    for (Step<Real>& step : steps_) {
      step.pass = allocate_pass(rows_, keep_steps_ ? trace_.support : none);
      for (std::int64_t l = 0; l < count(); ++l) {
        const std::int64_t size = rows_ * layers_[l].out_stride;
        Real*& part = keep_steps_ && network_.traces_gradient(l) ? trace_.support : none;
        step.grad[l] = take_from(part, size);
        step.pushed[l] = network_.curved() && l < top() ? take_from(part, size) : step.grad[l];
      }
    }
    next_.assign(static_cast<std::size_t>(keep_weights_ ? network_.steps : one), {});
    for (std::int64_t k = 0; k < std::ssize(next_); ++k) {
      if (gram_) {
        next_[k].coefficients = take_from(keep_steps_ ? none : trace_.support, rows_ * layers_[0].out_stride);
      }
      for (std::int64_t l = first_; l < count(); ++l) {
        next_[k].block[l] = take_from(trace_.task, layers_[l].size());
        if (!layers_[l].thin()) next_[k].transposed[l] = take(layers_[l].in * layers_[l].out_stride);
      }
    }
    scratch_ = take(network_.largest_layer);
  }

  // z_l = h W_l^T + b_l
  void affine(const Weights<Real>& at, std::int64_t l, const Real* h, std::int64_t rows, Real* z) const {
    const Layer<Real>& layer = layers_[l];
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

  // to = base + factor * g W, of layer l
  void push(std::int64_t l, const Real* weight, const Real* g, std::int64_t rows, Real factor, Real* to,
            const Real* base) const {
    const Layer<Real>& layer = layers_[l];
    multiply(Product<Real>{g, layer.out_stride, 1, weight, layer.in_stride, to, layer.in_stride, rows,
                           layer.in_stride, layer.out, factor, base, layer.in_stride});
  }

  // The block (weight, bias) of layer l: to = base + factor * g^T h
  void outer(std::int64_t l, const Real* g, const Real* h, std::int64_t rows, Real factor, Real* to,
             const Real* base_weight, const Real* base_bias) const {
    const Layer<Real>& layer = layers_[l];
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

  void add_outer(std::int64_t l, const Real* g, const Real* h, std::int64_t rows, Real* to) const {
    outer(l, g, h, rows, Real(1), to, to, to + layers_[l].out * layers_[l].in_stride);
  }

  // The inner products of rows with the support.
  void gram_with(const Real* x, std::int64_t rows, Real* gram) const {
    const Layer<Real>& layer = layers_[0];
    multiply(Product<Real>{x, layer.in_stride, 1, turned_x_, support_stride_, gram, support_stride_, rows,
                           support_stride_, layer.in});
    for (std::int64_t i = 0; i < rows * support_stride_; ++i) gram[i] += network_.bias_scale;
  }

  // The same of the support itself. It is symmetric: blocks of rows are computed from the diagonal on, and copied.
  void gram_of_support() const {
    constexpr std::int64_t block = 32;
    const std::int64_t stride = support_stride_;
    for (std::int64_t begin = 0; begin < rows_; begin += block) {
      const std::int64_t end = std::min(begin + block, rows_);
      Real* diagonal = gram_matrix_ + begin * (stride + 1);
      multiply(Product<Real>{x_ + begin * layers_[0].in_stride, layers_[0].in_stride, 1, turned_x_ + begin, stride,
                             diagonal, stride, end - begin, stride - begin, layers_[0].in});
      for (std::int64_t i = begin; i < end; ++i) {
        for (std::int64_t j = begin; j < stride; ++j) gram_matrix_[i * stride + j] += network_.bias_scale;
      }
      for (std::int64_t i = end; i < rows_; ++i) {
        for (std::int64_t j = begin; j < end; ++j) gram_matrix_[i * stride + j] = gram_matrix_[j * stride + i];
      }
    }
  }

  // to = base + factor * gram C
  void correct(const Real* gram, const Real* c, std::int64_t rows, Real* to, const Real* base) const {
    const std::int64_t stride = layers_[0].out_stride;
    multiply(Product<Real>{gram, support_stride_, 1, c, stride, to, stride, rows, stride, rows_, Real(-1), base,
                           stride});
  }

  // The layers after the sums of the first one, which stand in pass.out[0].
  void rise(const Weights<Real>& at, std::int64_t rows, const Pass<Real>& pass) const {
    for (std::int64_t l = 1; l < count(); ++l) {
      activate(network_.activation, rows * layers_[l].in_stride, pass.out[l - 1], pass.slope[l - 1], pass.curve[l - 1]);
      affine(at, l, pass.out[l - 1], rows, pass.out[l]);
    }
  }

  void query_pass(const Real* x, std::int64_t rows, Real* gram, const Pass<Real>& pass) const {
    affine(adapted_, 0, x, rows, pass.out[0]);
    if (gram != nullptr) {
      gram_with(x, rows, gram);
      correct(gram, adapted_.coefficients, rows, pass.out[0], pass.out[0]);
    }
    rise(adapted_, rows, pass);
  }

  // A step's pass over the support.
  void propagate(const Step<Real>& step) const {
    if (!gram_) {
      affine(step.at, 0, x_, rows_, step.pass.out[0]);
    } else if (step.at.coefficients != nullptr) {
      correct(gram_matrix_, step.at.coefficients, rows_, step.pass.out[0], sums_);
    } else {
      std::copy(sums_, sums_ + rows_ * layers_[0].out_stride, step.pass.out[0]);
    }
    rise(step.at, rows_, step.pass);
  }

  // The gradients of a step, but those that a trace has.
  void find_gradients(const Step<Real>& step, bool traced) const {
    const std::int64_t stride = layers_[top()].out_stride, outputs = network_.outputs();
    std::fill(step.grad[top()], step.grad[top()] + rows_ * stride, Real(0));
    for (std::int64_t j = 0; j < rows_; ++j) {
      const LossTerms<Real> terms = loss_terms(network_.loss, step.pass.out[top()] + j * stride, targets_[j]);
      for (std::int64_t o = 0; o < outputs; ++o) step.grad[top()][j * stride + o] = weights_[j] * terms.gradient[o];
    }
    for (std::int64_t l = top(); l > 0; --l) {
      if (traced && network_.traces_gradient(l - 1)) continue;
      push(l, step.at.weight[l], step.grad[l], rows_, Real(1), step.pushed[l - 1], nullptr);
      through_activation(step.pass, l - 1, step.pushed[l - 1], step.grad[l - 1], rows_ * layers_[l].in_stride);
    }
  }

  const Real* input(const Step<Real>& step, std::int64_t l) const { return l == 0 ? x_ : step.pass.out[l - 1]; }

  // block = g^T h + pull * (how far the layer is from where it started)
  void total_gradient(const Step<Real>& step, std::int64_t l, Real* block) const {
    const Layer<Real>& layer = layers_[l];
    outer(l, step.grad[l], input(step, l), rows_, Real(1), block, nullptr, nullptr);
    if (network_.pull == 0) return;
    const std::int64_t size = layer.out * layer.in_stride;
    add_scaled(block, network_.pull, step.at.weight[l], size);
    add_scaled(block, -network_.pull, layer.weight, size);
    add_scaled(block + size, network_.pull, step.at.bias[l], layer.out_stride);
    add_scaled(block + size, -network_.pull, layer.bias, layer.out_stride);
  }

  // The weights after a step.
  Weights<Real> advance(const Step<Real>& step, std::int64_t k) {
    Weights<Real> now = step.at;
    const NextWeights& room = next_[std::min(k, std::ssize(next_) - 1)];
    for (std::int64_t l = first_; l < count(); ++l) {
      const Layer<Real>& layer = layers_[l];
      const Real rate = network_.rate(k, l);
      const std::int64_t size = layer.out * layer.in_stride;
      Real* block = room.block[l];
      if (network_.pull == 0 && layer.scales == nullptr) {
        outer(l, step.grad[l], input(step, l), rows_, -rate, block, step.at.weight[l], step.at.bias[l]);
      } else {
        total_gradient(step, l, scratch_);
        if (layer.scales != nullptr) multiply_elements(scratch_, scratch_, layer.scales, layer.size());
        if (step.at.weight[l] != block) {
          std::copy(step.at.weight[l], step.at.weight[l] + size, block);
          std::copy(step.at.bias[l], step.at.bias[l] + layer.out_stride, block + size);
        }
        add_scaled(block, -rate, scratch_, layer.size());
      }
      now.weight[l] = block;
      now.bias[l] = block + size;
      now.transposed[l] = turned(layer, block, room.transposed[l]);
    }
    if (gram_) {
      const std::int64_t stride = layers_[0].out_stride;
      const Real rate = network_.rate(k, 0), kept = 1 - rate * network_.pull;
      for (std::int64_t i = 0; i < rows_ * stride; i += kLanes<Real>) {
        Vector<Real> change = rate * load(step.grad[0] + i);
        if (network_.output_scales != nullptr) change *= load(network_.output_scales + i % stride);
        if (now.coefficients != nullptr) change += kept * load(now.coefficients + i);
        store(room.coefficients + i, change);
      }
      now.coefficients = room.coefficients;
    }
    return now;
  }

  void allocate_adjoint(bool gram_bar, bool inputs) {
    const Layer<Real>& bottom = layers_[0];
    for (std::int64_t l = 0; l < count(); ++l) {
      const Layer<Real>& layer = layers_[l];
      sum_bar_[l] = take(rows_ * layer.out_stride);
      grad_bar_[l] = take(rows_ * layer.out_stride);
      input_bar_[l] = l > 0 ? take(rows_ * layer.in_stride) : nullptr;
      weight_bar_[l] = l >= first_ ? zeros(layer.size()) : nullptr;
      initial_bar_[l] = l >= first_ && network_.pull != 0 ? zeros(layer.size()) : nullptr;
      turned_bar_[l] = l >= first_ && !layer.thin() ? take(layer.in * layer.out_stride) : nullptr;
    }
    scratch_bar_ = take(network_.largest_layer);
    x_bar_ = inputs ? zeros(rows_ * bottom.in_stride) : nullptr;
    if (!gram_) return;
    coefficients_bar_ = zeros(rows_ * bottom.out_stride);
    sums_bar_ = zeros(rows_ * bottom.out_stride);
    gram_bar_ = gram_bar ? zeros(rows_ * support_stride_) : nullptr;
    turned_coefficients_ = take(bottom.out * support_stride_);
  }

  // Back through the queries, to the adapted head.
  void reverse_queries(const Real* queries, std::int64_t rows, const Real* grad, Order order, Real* query_bar,
                       const SharedSums<Real>& sums) {
    const Layer<Real>& bottom = layers_[0];
    const bool gram = gram_ && adapted_.coefficients != nullptr;
    const Real* x = padded_rows(queries, rows, bottom);
    const bool kept = trace_.query != nullptr;
    const Pass<Real> pass = allocate_pass(rows, trace_.query);
    Real* products = gram && gram_matrix_ != nullptr ? take(rows * support_stride_) : nullptr;
    if (!kept) {
      query_pass(x, rows, products, pass);
    } else if (products != nullptr) {
      gram_with(x, rows, products);
    }
    Real* bar = padded_copy(grad, rows, network_.outputs(), layers_[top()].out_stride);
    for (std::int64_t l = top(); l > 0; --l) {
      add_outer(l, bar, pass.out[l - 1], rows, weight_bar_[l]);
      Real* below = take(rows * layers_[l].in_stride);
      push(l, adapted_.weight[l], bar, rows, Real(1), below, nullptr);
      through_activation(pass, l - 1, below, below, rows * layers_[l].in_stride);
      bar = below;
    }
    // The first layer: what it started as has the gradient of the sums, and the coefficients have theirs.
    add_outer(0, bar, x, rows, gram_ ? sums.parameters + bottom.offset : weight_bar_[0]);
    Real* x_bar = query_bar == nullptr ? nullptr : take(rows * bottom.in_stride);
    if (x_bar != nullptr) push(0, adapted_.weight[0], bar, rows, Real(1), x_bar, nullptr);
    if (gram) reverse_query_gram(x, rows, products, bar, x_bar, order, sums);
    if (x_bar != nullptr) unpad(x_bar, rows, bottom.in, bottom.in_stride, query_bar);
  }

  void reverse_query_gram(const Real* x, std::int64_t rows, const Real* products, const Real* bar, Real* x_bar,
                          Order order, const SharedSums<Real>& sums) {
    const Layer<Real>& bottom = layers_[0];
    const std::int64_t stride = bottom.out_stride, in_stride = bottom.in_stride;
    if (products != nullptr) {
      multiply(Product<Real>{products, 1, support_stride_, bar, stride, coefficients_bar_, stride, rows_, stride, rows,
                             Real(-1), coefficients_bar_, stride});
    }
    const bool support = order == Order::second && x_bar_ != nullptr;
    if (x_bar == nullptr && !support && sums.input_scales == nullptr) return;
    Real* products_bar = take(rows * support_stride_);
    transpose(adapted_.coefficients, rows_, bottom.out, stride, turned_coefficients_, support_stride_);
    multiply(Product<Real>{bar, stride, 1, turned_coefficients_, support_stride_, products_bar, support_stride_, rows,
                           support_stride_, bottom.out, Real(-1)});
    if (x_bar != nullptr) {
      multiply(Product<Real>{products_bar, support_stride_, 1, scaled_x_, in_stride, x_bar, in_stride, rows, in_stride,
                             rows_, Real(1), x_bar, in_stride});
    }
    if (support) add_scaled_product(products_bar, 1, support_stride_, x, rows);
    if (sums.input_scales != nullptr) input_scale_terms(x, rows, products_bar, sums);
  }

  // x_bar_ += (bar x) diag(v), bar [support, rows]
  void add_scaled_product(const Real* bar, std::int64_t row_step, std::int64_t step, const Real* x,
                          std::int64_t rows) {
    const std::int64_t stride = layers_[0].in_stride;
    if (network_.input_scales == nullptr) {
      multiply(Product<Real>{bar, row_step, step, x, stride, x_bar_, stride, rows_, stride, rows, Real(1), x_bar_,
                             stride});
      return;
    }
    const auto mark = workspace_.mark();
    Real* product = take(rows_ * stride);
    multiply(Product<Real>{bar, row_step, step, x, stride, product, stride, rows_, stride, rows});
    scale_rows(product, product, network_.input_scales, rows_, stride);
    add_scaled(x_bar_, Real(1), product, rows_ * stride);
    workspace_.release(mark);
  }

  // v-bar of P = x diag(v) X^T + v_b
  void input_scale_terms(const Real* x, std::int64_t rows, const Real* bar, const SharedSums<Real>& sums) {
    const std::int64_t stride = layers_[0].in_stride;
    const auto mark = workspace_.mark();
    Real* product = take(rows * stride);
    multiply(Product<Real>{bar, support_stride_, 1, x_, stride, product, stride, rows, stride, rows_});
    multiply_elements(product, product, x, rows * stride);
    add_rows(sums.input_scales, Real(1), product, rows, stride);
    for (std::int64_t j = 0; j < rows; ++j) {
      for (std::int64_t i = 0; i < rows_; ++i) sums.input_scales[stride] += bar[j * support_stride_ + i];
    }
    workspace_.release(mark);
  }

  // s o W-bar of layer l
  const Real* scaled_bar(std::int64_t l) const {
    const Layer<Real>& layer = layers_[l];
    if (layer.scales == nullptr) return weight_bar_[l];
    multiply_elements(scratch_bar_, weight_bar_[l], layer.scales, layer.size());
    return scratch_bar_;
  }

  // What step k's rates and scales have of the gradient. As a by-product grad_bar_[l] = h_l V_l^T.
  void rate_terms(std::int64_t k, const SharedSums<Real>& sums) {
    const Step<Real>& step = steps_[k];
    for (std::int64_t l = first_; l < count(); ++l) layer_rate_terms(step, k, l, scaled_bar(l), sums);
    if (gram_) gram_rate_terms(step, k, sums);
  }

  void layer_rate_terms(const Step<Real>& step, std::int64_t k, std::int64_t l, const Real* bar,
                        const SharedSums<Real>& sums) {
    const Layer<Real>& layer = layers_[l];
    const std::int64_t size = layer.out * layer.in_stride;
    Weights<Real> gradient;
    gradient.weight[l] = bar;
    gradient.bias[l] = bar + size;
    gradient.transposed[l] = turned(layer, bar, turned_bar_[l]);
    affine(gradient, l, input(step, l), rows_, grad_bar_[l]);
    if (sums.rates != nullptr) {
      Real total = dot(step.grad[l], grad_bar_[l], rows_ * layer.out_stride);
      if (network_.pull != 0) {
        total += network_.pull * (dot(bar, step.at.weight[l], size) - dot(bar, layer.weight, size) +
                                  dot(bar + size, step.at.bias[l], layer.out_stride) -
                                  dot(bar + size, layer.bias, layer.out_stride));
      }
      sums.rates[k * count() + l] -= total;
    }
    if (sums.scales != nullptr && layer.scales != nullptr) {
      total_gradient(step, l, scratch_);
      multiply_elements(scratch_, scratch_, weight_bar_[l], layer.size());
      add_scaled(sums.scales + layer.offset, -network_.rate(k, l), scratch_, layer.size());
    }
  }

  void gram_rate_terms(const Step<Real>& step, std::int64_t k, const SharedSums<Real>& sums) {
    const std::int64_t stride = layers_[0].out_stride, size = rows_ * stride;
    const Real* scales = network_.output_scales;
    if (sums.rates != nullptr) {
      Real total = 0;
      for (std::int64_t j = 0; j < rows_; ++j) {
        const Real* bar = coefficients_bar_ + j * stride;
        if (scales != nullptr) {
          multiply_elements(scratch_, bar, scales, stride);
          bar = scratch_;
        }
        total += dot(bar, step.grad[0] + j * stride, stride);
      }
      if (step.at.coefficients != nullptr) total -= network_.pull * dot(coefficients_bar_, step.at.coefficients, size);
      sums.rates[k * count()] += total;
    }
    if (sums.output_scales != nullptr) {
      multiply_elements(grad_bar_[0], coefficients_bar_, step.grad[0], size);
      add_rows(sums.output_scales, network_.rate(k, 0), grad_bar_[0], rows_, stride);
    }
  }

  void reverse_step(std::int64_t k, const TaskGradients& to, const SharedSums<Real>& sums) {
    const Step<Real>& step = steps_[k];
    reverse_update(step, k, sums);
    rise_gradients(step, to.weights, to.targets);
    descend_sums(step);
  }

  // Back through the change of the weights.
  void reverse_update(const Step<Real>& step, std::int64_t k, const SharedSums<Real>& sums) {
    for (std::int64_t l = first_; l < count(); ++l) {
      const Layer<Real>& layer = layers_[l];
      const Real rate = network_.rate(k, l);
      const Real* bar = scaled_bar(l);
      layer_rate_terms(step, k, l, bar, sums);
      for (std::int64_t i = 0; i < rows_ * layer.out_stride; i += kLanes<Real>) {
        store(grad_bar_[l] + i, -rate * load(grad_bar_[l] + i));
      }
      if (l > 0) {
        push(l, bar, step.grad[l], rows_, -rate, input_bar_[l], nullptr);
      } else if (x_bar_ != nullptr) {
        push(l, bar, step.grad[l], rows_, -rate, x_bar_, x_bar_);
      }
      if (network_.pull != 0) {
        add_scaled(initial_bar_[l], rate * network_.pull, bar, layer.size());
        add_scaled(weight_bar_[l], -rate * network_.pull, bar, layer.size());
      }
    }
    if (!gram_) return;
    gram_rate_terms(step, k, sums);
    const std::int64_t stride = layers_[0].out_stride;
    const Real rate = network_.rate(k, 0), kept = 1 - rate * network_.pull;
    for (std::int64_t i = 0; i < rows_ * stride; i += kLanes<Real>) {
      const Vector<Real> bar = load(coefficients_bar_ + i);
      Vector<Real> pushed = rate * bar;
      if (network_.output_scales != nullptr) pushed *= load(network_.output_scales + i % stride);
      store(grad_bar_[0] + i, pushed);
      store(coefficients_bar_ + i, kept * bar);
    }
  }

  // Back through the gradients, from the first layer to the loss.
  void rise_gradients(const Step<Real>& step, Real* weights_bar, Real* targets_bar) {
    for (std::int64_t l = 0; l < top(); ++l) {
      const Layer<Real>& above = layers_[l + 1];
      const std::int64_t size = rows_ * layers_[l].out_stride;
      if (network_.curved()) {
        multiply_elements(sum_bar_[l], grad_bar_[l], step.pushed[l], size);
        multiply_elements(sum_bar_[l], sum_bar_[l], step.pass.curve[l], size);
      }
      through_activation(step.pass, l, grad_bar_[l], grad_bar_[l], size);
      outer_without_bias(l + 1, step.grad[l + 1], grad_bar_[l]);
      if (!above.thin()) {
        multiply(Product<Real>{grad_bar_[l], above.in_stride, 1, step.at.transposed[l + 1], above.out_stride,
                               grad_bar_[l + 1], above.out_stride, rows_, above.out_stride, above.in, Real(1),
                               grad_bar_[l + 1], above.out_stride});
        continue;
      }
      for (std::int64_t j = 0; j < rows_; ++j) {
        for (std::int64_t o = 0; o < above.out; ++o) {
          grad_bar_[l + 1][j * above.out_stride + o] +=
              dot(grad_bar_[l] + j * above.in_stride, step.at.weight[l + 1] + o * above.in_stride, above.in_stride);
        }
      }
    }
    const std::int64_t stride = layers_[top()].out_stride, outputs = network_.outputs();
    std::fill(sum_bar_[top()], sum_bar_[top()] + rows_ * stride, Real(0));
    for (std::int64_t j = 0; j < rows_; ++j) {
      const LossTerms<Real> terms = loss_terms(network_.loss, step.pass.out[top()] + j * stride, targets_[j]);
      const Real* bar = grad_bar_[top()] + j * stride;
      for (std::int64_t o = 0; o < outputs; ++o) {
        Real total = 0;
        for (std::int64_t i = 0; i < outputs; ++i) total += bar[i] * terms.curvature[i][o];
        sum_bar_[top()][j * stride + o] = weights_[j] * total;
        if (weights_bar != nullptr) weights_bar[j] += bar[o] * terms.gradient[o];
        if (targets_bar != nullptr) targets_bar[j] += weights_[j] * bar[o] * terms.by_target[o];
      }
    }
  }

  // W-bar_l += g^T d, the bias apart
  void outer_without_bias(std::int64_t l, const Real* g, const Real* d) {
    const Layer<Real>& layer = layers_[l];
    multiply(Product<Real>{g, 1, layer.out_stride, d, layer.in_stride, weight_bar_[l], layer.in_stride, layer.out,
                           layer.in_stride, rows_, Real(1), weight_bar_[l], layer.in_stride});
  }

  // Back through the sums, from the loss to the inputs.
  void descend_sums(const Step<Real>& step) {
    for (std::int64_t l = top(); l > 0; --l) {
      const std::int64_t size = rows_ * layers_[l].in_stride;
      add_outer(l, sum_bar_[l], step.pass.out[l - 1], rows_, weight_bar_[l]);
      push(l, step.at.weight[l], sum_bar_[l], rows_, Real(1), input_bar_[l], input_bar_[l]);
      through_activation(step.pass, l - 1, input_bar_[l], input_bar_[l], size);
      if (network_.curved()) {
        add_scaled(sum_bar_[l - 1], Real(1), input_bar_[l], size);
      } else {
        std::swap(sum_bar_[l - 1], input_bar_[l]);
      }
    }
    if (!gram_) {
      add_outer(0, sum_bar_[0], x_, rows_, weight_bar_[0]);
      if (x_bar_ != nullptr) push(0, step.at.weight[0], sum_bar_[0], rows_, Real(1), x_bar_, x_bar_);
      return;
    }
    const Layer<Real>& bottom = layers_[0];
    const std::int64_t stride = bottom.out_stride;
    add_scaled(sums_bar_, Real(1), sum_bar_[0], rows_ * stride);
    if (step.at.coefficients == nullptr) return;
    correct(gram_matrix_, sum_bar_[0], rows_, coefficients_bar_, coefficients_bar_);
    if (gram_bar_ == nullptr) return;
    transpose(step.at.coefficients, rows_, bottom.out, stride, turned_coefficients_, support_stride_);
    multiply(Product<Real>{sum_bar_[0], stride, 1, turned_coefficients_, support_stride_, gram_bar_, support_stride_,
                           rows_, support_stride_, bottom.out, Real(-1), gram_bar_, support_stride_});
  }

  // From the sums and the Gram matrix of the support to the first layer and the inputs.
  void finish_support(const TaskGradients& to, const SharedSums<Real>& sums) {
    const Layer<Real>& bottom = layers_[0];
    if (gram_) {
      add_outer(0, sums_bar_, x_, rows_, sums.parameters + bottom.offset);
      if (sums.input_scales != nullptr) input_scale_terms(x_, rows_, gram_bar_, sums);
      if (x_bar_ != nullptr) {
        for (std::int64_t i = 0; i < rows_; ++i) {
          for (std::int64_t j = 0; j <= i; ++j) {
            const Real both = gram_bar_[i * support_stride_ + j] + gram_bar_[j * support_stride_ + i];
            gram_bar_[i * support_stride_ + j] = gram_bar_[j * support_stride_ + i] = both;
          }
        }
        add_scaled_product(gram_bar_, support_stride_, 1, x_, rows_);
        push(0, bottom.weight, sums_bar_, rows_, Real(1), x_bar_, x_bar_);
      }
    }
    if (to.support != nullptr) unpad(x_bar_, rows_, bottom.in, bottom.in_stride, to.support);
  }

  // From the weights as used to those given.
  void finish_weights(Real* bar, bool mean) const {
    const Real shared = mean ? std::inner_product(bar, bar + rows_, weights_, Real(0)) : Real(0);
    for (std::int64_t j = 0; j < rows_; ++j) bar[j] = (bar[j] - shared) / divisor_;
  }

  struct NextWeights {
    Real *block[kMostLayers] = {}, *transposed[kMostLayers] = {}, *coefficients = nullptr;
  };

  const Network<Real>& network_;
  const std::vector<Layer<Real>>& layers_;
  const bool keep_weights_, keep_steps_;
  Workspace<Real> workspace_;
  TaskTrace<Real> trace_;

  std::int64_t rows_ = 0, support_stride_ = 0, first_ = 0;
  bool gram_ = false;
  const Real *x_ = nullptr, *scaled_x_ = nullptr, *targets_ = nullptr;
  Real* weights_ = nullptr;
  Real divisor_ = 1;
  Real *turned_x_ = nullptr, *gram_matrix_ = nullptr, *sums_ = nullptr, *scratch_ = nullptr;
  Weights<Real> initial_, adapted_;
  std::vector<Step<Real>> steps_;
  std::vector<NextWeights> next_;

  // The adjoint of what has the same name without _bar_.
  Real *sum_bar_[kMostLayers] = {}, *grad_bar_[kMostLayers] = {}, *input_bar_[kMostLayers] = {};
  Real *weight_bar_[kMostLayers] = {}, *initial_bar_[kMostLayers] = {}, *turned_bar_[kMostLayers] = {};
  Real *scratch_bar_ = nullptr, *x_bar_ = nullptr, *coefficients_bar_ = nullptr, *sums_bar_ = nullptr;
  Real *gram_bar_ = nullptr, *turned_coefficients_ = nullptr;
};

// Whether the Gram form of the first layer takes fewer operations than steps of the layer itself.
template <class Real>
bool prefers_gram(const Network<Real>& network, std::int64_t rows, std::int64_t queries) {
  const Layer<Real>& layer = network.layers[0];
  if (!network.gram_exact()) return false;
  const std::int64_t products = rows + std::min(queries, layer.out);
  return products * layer.in + network.steps * rows * layer.out < (2 * network.steps - 1) * layer.in * layer.out;
}

// The adapted heads of a trace are in Gram form wherever there is one, so that their size is known.
template <class Real>
bool takes_gram(const Network<Real>& network, Keep keep, std::int64_t rows, std::int64_t queries) {
  return keep == Keep::adapted ? network.gram_exact() : prefers_gram(network, rows, queries);
}

// From this many queries on it pays to compute the first layer's weight from its Gram form.
template <class Real>
bool prefers_unfolded(const Network<Real>& network, std::int64_t queries) {
  const Layer<Real>& layer = network.layers[0];
  return queries * (layer.in + layer.out) > layer.in * layer.out;
}

template <class Real>
void predict_tasks(const Network<Real>& network, const Supports<Real>& supports, const Queries<Real>& queries,
                   Real* predictions, const TraceLayout<Real>& trace, std::int64_t begin, std::int64_t end) {
  TaskLoop<Real> loop(network, false, trace.keep == Keep::steps);
  const std::int64_t width = network.layers[0].in;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = supports.offsets[task], rows = supports.offsets[task + 1] - first;
    const std::int64_t query = queries.offsets[task], query_rows = queries.offsets[task + 1] - query;
    loop.begin(supports.inputs.data() + first * width, rows, takes_gram(network, trace.keep, rows, query_rows),
               trace.of(task, first, query));
    loop.prepare(true);
    loop.rate(supports.targets.data() + first, supports.weights.data() + first, supports.mean);
    loop.adapt();
    if (prefers_unfolded(network, query_rows)) loop.unfold();
    loop.predict(queries.inputs.data() + query * width, query_rows, predictions + query * network.outputs());
  }
}

template <class Real>
void reverse_tasks(const Network<Real>& network, const Supports<Real>& supports, const Queries<Real>& queries,
                   const Real* grad, Order order, const TraceLayout<Real>& trace, const InnerLoopGradients<Real>& to,
                   const SharedSums<Real>& sums, std::int64_t begin, std::int64_t end) {
  const bool steps = order == Order::second || sums.rates != nullptr || sums.scales != nullptr;
  TaskLoop<Real> loop(network, steps, steps);
  const std::int64_t width = network.layers[0].in;
  const auto from = [](std::span<Real> values, std::int64_t index) {
    return values.empty() ? nullptr : values.data() + index;
  };
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = supports.offsets[task], rows = supports.offsets[task + 1] - first;
    const std::int64_t query = queries.offsets[task], query_rows = queries.offsets[task + 1] - query;
    loop.begin(supports.inputs.data() + first * width, rows, takes_gram(network, trace.keep, rows, query_rows),
               trace.of(task, first, query));
    loop.rate(supports.targets.data() + first, supports.weights.data() + first, supports.mean);
    if (trace.keep == Keep::adapted) {
      loop.recall();
    } else {
      loop.prepare(trace.keep == Keep::nothing);
      loop.adapt(trace.keep == Keep::steps);
    }
    loop.reverse(queries.inputs.data() + query * width, query_rows, grad + query * network.outputs(), order,
                 supports.mean,
                 {from(to.support, first * width), from(to.targets, first), from(to.weights, first),
                  from(to.query, query * width)},
                 sums);
  }
}

template <class Real>
void state_of_tasks(const Network<Real>& network, const Supports<Real>& supports, const InnerLoopState<Real>& state,
                    std::int64_t begin, std::int64_t end) {
  TaskLoop<Real> loop(network, false, false);
  const bool gram = network.gram_exact();
  const std::int64_t width = network.layers[0].in, outputs = network.layers[0].out;
  const std::int64_t size = network.parameters() - (gram ? width * outputs : 0);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = supports.offsets[task];
    loop.begin(supports.inputs.data() + first * width, supports.offsets[task + 1] - first, gram);
    loop.prepare(true);
    loop.rate(supports.targets.data() + first, supports.weights.data() + first, supports.mean);
    loop.adapt();
    loop.write_state(gram ? state.rows.data() + first * width : nullptr,
                     gram ? state.coefficients.data() + first * outputs : nullptr,
                     state.parameters.data() + task * size);
  }
}

template <class Real>
void predict_by_state(const Network<Real>& network, const InnerLoopState<const Real>& state,
                      std::span<const std::int64_t> offsets, const Queries<Real>& queries, Real* predictions,
                      std::int64_t begin, std::int64_t end) {
  TaskLoop<Real> loop(network, false, false);
  const std::int64_t width = network.layers[0].in, outputs = network.layers[0].out;
  const std::int64_t all = network.parameters();
  const bool gram = std::ssize(state.parameters) != (std::ssize(offsets) - 1) * all;
  const std::int64_t size = all - (gram ? width * outputs : 0);
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = gram ? offsets[task] : 0, rows = gram ? offsets[task + 1] - first : 0;
    const std::int64_t query = queries.offsets[task], query_rows = queries.offsets[task + 1] - query;
    if (query_rows == 0) continue;
    loop.read_state(state.rows.data() + first * width, state.coefficients.data() + first * outputs,
                    state.parameters.data() + task * size, rows, gram);
    if (prefers_unfolded(network, query_rows)) loop.unfold();
    loop.predict(queries.inputs.data() + query * width, query_rows, predictions + query * network.outputs());
  }
}

template <class Real>
void effects_on_task(TaskLoop<Real>& loop, const Real* targets, const Real* weights, std::int64_t rows, bool mean,
                     const Real* queries, std::int64_t query_rows, std::int64_t predicted, Real* effects) {
  std::vector<Real> whole(static_cast<std::size_t>(predicted)), others(weights, weights + rows);
  loop.rate(targets, weights, mean);
  loop.adapt();
  loop.predict(queries, query_rows, whole.data());
  for (std::int64_t j = 0; j < rows; ++j, effects += predicted) {
    others[j] = 0;
    loop.rate(targets, others.data(), mean);
    loop.adapt();
    others[j] = weights[j];
    loop.predict(queries, query_rows, effects);
    for (std::int64_t i = 0; i < predicted; ++i) effects[i] = whole[i] - effects[i];
  }
}

template <class Real>
void effects_on_tasks(const Network<Real>& network, const Supports<Real>& supports, const Queries<Real>& queries,
                      Real* effects, const std::int64_t* effect_offsets, std::int64_t begin, std::int64_t end) {
  TaskLoop<Real> loop(network, false, false);
  const std::int64_t width = network.layers[0].in;
  for (std::int64_t task = begin; task < end; ++task) {
    const std::int64_t first = supports.offsets[task], rows = supports.offsets[task + 1] - first;
    const std::int64_t query = queries.offsets[task], query_rows = queries.offsets[task + 1] - query;
    if (rows == 0 || query_rows == 0) continue;
    loop.begin(supports.inputs.data() + first * width, rows, prefers_gram(network, rows, query_rows));
    loop.prepare(true);
    effects_on_task(loop, supports.targets.data() + first, supports.weights.data() + first, rows, supports.mean,
                    queries.inputs.data() + query * width, query_rows, query_rows * network.outputs(),
                    effects + effect_offsets[task]);
  }
}

}  // namespace
}  // namespace metarec::METAREC_ISA
