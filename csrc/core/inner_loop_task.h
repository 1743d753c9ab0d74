// The inner loop of one task; included by its kernel only.
#include "inner_loop_layers.h"

namespace metarec::METAREC_ISA {
namespace {

// Queries of a task are handled so many at a time.
constexpr std::int64_t kQueryRows = 64;

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
    affine(layers_, initial_, 0, x_, rows_, sums_);
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
      if (k + 1 < std::ssize(steps_)) fetch(steps_[k + 1]);
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

 protected:
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

  // The transposed weight that affine(layers_, ) wants, in `room` or anew; none where the layer is thin.
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
      step.traced = trace_.support;
      step.pass = allocate_pass(rows_, keep_steps_ ? trace_.support : none);
      for (std::int64_t l = 0; l < count(); ++l) {
        const std::int64_t size = rows_ * layers_[l].out_stride;
        Real*& part = keep_steps_ && network_.traces_gradient(l) ? trace_.support : none;
        step.grad[l] = take_from(part, size);
        step.pushed[l] = network_.curved() && l < top() ? take_from(part, size) : step.grad[l];
      }
      step.traced_size = trace_.support - step.traced;
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
    if (!steps_.empty()) fetch(steps_[0]);
  }

  // A trace is in no cache when it is written, nor when it is read, and the tiles of a product ask for it line by line.
  static void fetch(const Step<Real>& step) {
    prefetch(step.traced, 0, static_cast<std::size_t>(step.traced_size) * sizeof(Real));
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
      affine(layers_, at, l, pass.out[l - 1], rows, pass.out[l]);
    }
  }

  void query_pass(const Real* x, std::int64_t rows, Real* gram, const Pass<Real>& pass) const {
    affine(layers_, adapted_, 0, x, rows, pass.out[0]);
    if (gram != nullptr) {
      gram_with(x, rows, gram);
      correct(gram, adapted_.coefficients, rows, pass.out[0], pass.out[0]);
    }
    rise(adapted_, rows, pass);
  }

  // A step's pass over the support.
  void propagate(const Step<Real>& step) const {
    if (!gram_) {
      affine(layers_, step.at, 0, x_, rows_, step.pass.out[0]);
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
      push(layers_[l], step.at.weight[l], step.grad[l], rows_, Real(1), step.pushed[l - 1]);
      through_activation(step.pass, l - 1, step.pushed[l - 1], step.grad[l - 1], rows_ * layers_[l].in_stride);
    }
  }

  const Real* input(const Step<Real>& step, std::int64_t l) const { return l == 0 ? x_ : step.pass.out[l - 1]; }

  // block = g^T h + pull * (how far the layer is from where it started)
  void total_gradient(const Step<Real>& step, std::int64_t l, Real* block) const {
    const Layer<Real>& layer = layers_[l];
    outer(layers_[l], step.grad[l], input(step, l), rows_, Real(1), block);
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
        outer(layers_[l], step.grad[l], input(step, l), rows_, -rate, block, step.at.weight[l], step.at.bias[l]);
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
};

}  // namespace
}  // namespace metarec::METAREC_ISA
