// The way back through the inner loop of one task; included by its kernel only.
#include "inner_loop_task.h"

namespace metarec::METAREC_ISA {
namespace {

template <class Real>
class TaskAdjoint : public TaskLoop<Real> {
 public:
  using TaskLoop<Real>::TaskLoop;

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
  using Base = TaskLoop<Real>;
  using Base::network_, Base::layers_, Base::keep_weights_, Base::workspace_, Base::trace_, Base::rows_,
      Base::support_stride_, Base::first_, Base::gram_, Base::x_, Base::scaled_x_, Base::targets_, Base::weights_,
      Base::divisor_, Base::gram_matrix_, Base::scratch_, Base::adapted_, Base::steps_;
  using Base::count, Base::top, Base::take, Base::zeros, Base::padded_copy, Base::padded_rows, Base::unpad,
      Base::turned, Base::allocate_pass, Base::gram_with, Base::correct, Base::query_pass, Base::input,
      Base::total_gradient;

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
      add_outer(layers_[l], bar, pass.out[l - 1], rows, weight_bar_[l]);
      Real* below = take(rows * layers_[l].in_stride);
      push(layers_[l], adapted_.weight[l], bar, rows, Real(1), below);
      through_activation(pass, l - 1, below, below, rows * layers_[l].in_stride);
      bar = below;
    }
    // The first layer: what it started as has the gradient of the sums, and the coefficients have theirs.
    add_outer(layers_[0], bar, x, rows, gram_ ? sums.parameters + bottom.offset : weight_bar_[0]);
    Real* x_bar = query_bar == nullptr ? nullptr : take(rows * bottom.in_stride);
    if (x_bar != nullptr) push(layers_[0], adapted_.weight[0], bar, rows, Real(1), x_bar);
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
    affine(layers_, gradient, l, input(step, l), rows_, grad_bar_[l]);
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
        push(layers_[l], bar, step.grad[l], rows_, -rate, input_bar_[l]);
      } else if (x_bar_ != nullptr) {
        push(layers_[l], bar, step.grad[l], rows_, -rate, x_bar_, x_bar_);
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
      add_outer(layers_[l], sum_bar_[l], step.pass.out[l - 1], rows_, weight_bar_[l]);
      push(layers_[l], step.at.weight[l], sum_bar_[l], rows_, Real(1), input_bar_[l], input_bar_[l]);
      through_activation(step.pass, l - 1, input_bar_[l], input_bar_[l], size);
      if (network_.curved()) {
        add_scaled(sum_bar_[l - 1], Real(1), input_bar_[l], size);
      } else {
        std::swap(sum_bar_[l - 1], input_bar_[l]);
      }
    }
    if (!gram_) {
      add_outer(layers_[0], sum_bar_[0], x_, rows_, weight_bar_[0]);
      if (x_bar_ != nullptr) push(layers_[0], step.at.weight[0], sum_bar_[0], rows_, Real(1), x_bar_, x_bar_);
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
      add_outer(layers_[0], sums_bar_, x_, rows_, sums.parameters + bottom.offset);
      if (sums.input_scales != nullptr) input_scale_terms(x_, rows_, gram_bar_, sums);
      if (x_bar_ != nullptr) {
        for (std::int64_t i = 0; i < rows_; ++i) {
          for (std::int64_t j = 0; j <= i; ++j) {
            const Real both = gram_bar_[i * support_stride_ + j] + gram_bar_[j * support_stride_ + i];
            gram_bar_[i * support_stride_ + j] = gram_bar_[j * support_stride_ + i] = both;
          }
        }
        add_scaled_product(gram_bar_, support_stride_, 1, x_, rows_);
        push(layers_[0], bottom.weight, sums_bar_, rows_, Real(1), x_bar_, x_bar_);
      }
    }
    if (to.support != nullptr) unpad(x_bar_, rows_, bottom.in, bottom.in_stride, to.support);
  }

  // From the weights as used to those given.
  void finish_weights(Real* bar, bool mean) const {
    const Real shared = mean ? std::inner_product(bar, bar + rows_, weights_, Real(0)) : Real(0);
    for (std::int64_t j = 0; j < rows_; ++j) bar[j] = (bar[j] - shared) / divisor_;
  }

  // The adjoint of what has the same name without _bar_.
  Real *sum_bar_[kMostLayers] = {}, *grad_bar_[kMostLayers] = {}, *input_bar_[kMostLayers] = {};
  Real *weight_bar_[kMostLayers] = {}, *initial_bar_[kMostLayers] = {}, *turned_bar_[kMostLayers] = {};
  Real *scratch_bar_ = nullptr, *x_bar_ = nullptr, *coefficients_bar_ = nullptr, *sums_bar_ = nullptr;
  Real *gram_bar_ = nullptr, *turned_coefficients_ = nullptr;
};

}  // namespace
}  // namespace metarec::METAREC_ISA
