#include "metarec/inner_loop.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>

namespace metarec {
namespace {

constexpr int kMostLayers = 3;

// Memory that is handed out in pieces, which begin on cache lines, and taken back all at once or down to a mark.
template <class Real>
class Workspace {
 public:
  struct Mark {
    std::size_t chunk;
    std::int64_t used;
  };

  Real* take(std::int64_t count) {
    const std::int64_t size = (count + kLine - 1) / kLine * kLine;
    while (chunks_.empty() || used_ + size > chunks_[chunk_].size) next(size);
    Real* piece = chunks_[chunk_].begin + used_;
    used_ += size;
    return piece;
  }

  Mark mark() const { return {chunk_, used_}; }

  void release(const Mark& mark) {
    chunk_ = mark.chunk;
    used_ = mark.used;
  }

  // Takes everything back, and makes one chunk of the many that it took.
  void reset() {
    if (chunks_.size() > 1) {
      std::int64_t total = 0;
      for (const Chunk& chunk : chunks_) total += chunk.size;
      chunks_.clear();
      chunks_.emplace_back(total);
    }
    release({0, 0});
  }

 private:
  static constexpr std::int64_t kLine = 64 / sizeof(Real);

  struct Chunk {
    explicit Chunk(std::int64_t count)
        : size(count), storage(std::make_unique_for_overwrite<Real[]>(static_cast<std::size_t>(count + kLine))) {
      const auto past = reinterpret_cast<std::uintptr_t>(storage.get()) % 64 / sizeof(Real);
      begin = storage.get() + (past ? kLine - static_cast<std::int64_t>(past) : 0);
    }
    std::int64_t size;
    std::unique_ptr<Real[]> storage;
    Real* begin;
  };

  void next(std::int64_t size) {
    constexpr std::int64_t least = 1 << 16;
    if (chunk_ + 1 < chunks_.size()) {
      ++chunk_;
    } else {
      chunks_.emplace_back(std::max(size, least));
      chunk_ = chunks_.size() - 1;
    }
    used_ = 0;
  }

  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0;
  std::int64_t used_ = 0;
};

// A layer as all tasks start with it. Rows are padded to whole vectors with zeros.
template <class Real>
struct Layer {
  std::int64_t in, out, in_stride, out_stride;
  std::int64_t offset;          // where its block begins in a padded array of all layers
  const Real* weight = nullptr;      // [out, in_stride], the block's beginning
  const Real* transposed = nullptr;  // [in, out_stride]
  const Real* bias = nullptr;        // [out_stride], the block's end
  const Real* scales = nullptr;      // of the rates, a block like the layer's, or none

  std::int64_t size() const { return out * in_stride + out_stride; }
  // Whether dot products beat a transposed copy.
  bool thin() const { return out <= 2; }
};

// What all tasks of a call share.
template <class Real>
struct Network {
  Network(const Head<Real>& head, const InnerRates<Real>& given, std::int64_t vector_length)
      : lanes(vector_length),
        activation(head.activation),
        loss(head.loss),
        steps(std::ssize(given.rates) / head.layers()),
        rates(given.rates.data()),
        pull(given.pull) {
    std::int64_t transposed = 0;
    for (std::int64_t l = 0; l < head.layers(); ++l) {
      const std::int64_t in = head.widths[l], out = head.widths[l + 1];
      layers.push_back({in, out, padded(in), padded(out), padded_size});
      padded_size += layers.back().size();
      largest_layer = std::max(largest_layer, layers.back().size());
      if (!layers.back().thin()) transposed += in * padded(out);
    }
    weights_.resize(static_cast<std::size_t>(padded_size + transposed));
    read(head.parameters.data(), 0, weights_.data());
    Real* turned = weights_.data() + padded_size;
    for (Layer<Real>& layer : layers) {
      layer.weight = weights_.data() + layer.offset;
      layer.bias = layer.weight + layer.out * layer.in_stride;
      if (layer.thin()) continue;
      layer.transposed = turned;
      for (std::int64_t o = 0; o < layer.out; ++o) {
        const Real* row = layer.weight + o * layer.in_stride;
        for (std::int64_t i = 0; i < layer.in; ++i) turned[i * layer.out_stride + o] = row[i];
      }
      turned += layer.in * layer.out_stride;
    }
    read_scales(given);
  }

  std::int64_t padded(std::int64_t width) const { return (width + lanes - 1) / lanes * lanes; }
  std::int64_t outputs() const { return layers.back().out; }
  bool curved() const { return activation != Activation::relu; }
  // Whether the gradient in a layer's sums is in a trace of the steps. The last two layers' take few operations.
  bool traces_gradient(std::int64_t layer) const { return layer + 2 < std::ssize(layers); }
  Real rate(std::int64_t step, std::int64_t layer) const { return rates[step * std::ssize(layers) + layer]; }

  // Whether the first layer has a Gram form.
  bool gram_exact() const { return layers[0].scales == nullptr || output_scales != nullptr; }

  std::int64_t parameters() const {
    std::int64_t total = 0;
    for (const Layer<Real>& layer : layers) total += layer.out * (layer.in + 1);
    return total;
  }

  // Between the padded blocks of the layers from `first` on, and these as the caller has them.
  void read(const Real* from, std::int64_t first, Real* to) const {
    for (std::int64_t l = first; l < std::ssize(layers); ++l) {
      const Layer<Real>& layer = layers[l];
      Real* block = to + layer.offset;
      for (std::int64_t o = 0; o < layer.out; ++o, from += layer.in) {
        std::copy(from, from + layer.in, block + o * layer.in_stride);
      }
      std::copy(from, from + layer.out, block + layer.out * layer.in_stride);
      from += layer.out;
    }
  }

  void write(const Real* from, std::int64_t first, Real* to) const {
    for (std::int64_t l = first; l < std::ssize(layers); ++l) {
      const Layer<Real>& layer = layers[l];
      const Real* block = from + layer.offset;
      for (std::int64_t o = 0; o < layer.out; ++o) {
        to = std::copy(block + o * layer.in_stride, block + o * layer.in_stride + layer.in, to);
      }
      const Real* bias = block + layer.out * layer.in_stride;
      to = std::copy(bias, bias + layer.out, to);
    }
  }

  std::vector<Layer<Real>> layers;
  std::int64_t lanes;  // values in a vector
  Activation activation;
  Loss loss;
  std::int64_t steps;
  const Real* rates;
  Real pull;
  const Real *output_scales = nullptr, *input_scales = nullptr;  // of the first layer, where they are of rank one
  Real bias_scale = 1;
  std::int64_t padded_size = 0, largest_layer = 0;

 private:
  void read_scales(const InnerRates<Real>& given) {
    const bool rank_one = !given.output_scales.empty();
    if (!rank_one && given.scales.empty()) return;
    const std::int64_t first = rank_one ? 1 : 0;
    Layer<Real>& bottom = layers[0];
    scales_.resize(static_cast<std::size_t>(padded_size + bottom.out_stride + bottom.in_stride));
    read(given.scales.data(), first, scales_.data());
    for (Layer<Real>& layer : layers) layer.scales = scales_.data() + layer.offset;
    if (!rank_one) return;
    Real* outputs = scales_.data() + padded_size;
    Real* inputs = outputs + bottom.out_stride;
    std::copy(given.output_scales.begin(), given.output_scales.end(), outputs);
    std::copy(given.input_scales.begin(), given.input_scales.end() - 1, inputs);
    output_scales = outputs;
    input_scales = inputs;
    bias_scale = given.input_scales.back();
    for (std::int64_t o = 0; o < bottom.out; ++o) {
      for (std::int64_t i = 0; i < bottom.in; ++i) scales_[o * bottom.in_stride + i] = outputs[o] * inputs[i];
      scales_[bottom.out * bottom.in_stride + o] = outputs[o] * bias_scale;
    }
  }

  std::vector<Real> weights_, scales_;
};

// A task's parts of a trace, or none.
template <class Real>
struct TaskTrace {
  Real *support = nullptr, *task = nullptr, *query = nullptr;
};

// A trace is in three parts, of so many values per support row, task and query.
template <class Real>
struct TraceLayout {
  TraceLayout(const Network<Real>& network, Keep kept, std::int64_t supports, std::int64_t queries, std::int64_t tasks)
      : keep(kept) {
    if (keep == Keep::nothing) return;
    const Layer<Real>& bottom = network.layers[0];
    const std::int64_t derivatives = network.curved() ? 2 : 0;
    std::int64_t gradients = 0;
    for (std::int64_t l = 0; l < std::ssize(network.layers); ++l) {
      const Layer<Real>& layer = network.layers[l];
      per_query += layer.out_stride * (1 + (l + 1 < std::ssize(network.layers) ? derivatives : 0));
      if (network.traces_gradient(l)) gradients += layer.out_stride * (network.curved() ? 2 : 1);
      if (l > 0 || !network.gram_exact()) per_task += layer.size();
    }
    if (keep == Keep::steps) {
      per_support = network.steps * (per_query + gradients);
      per_task = 0;
    } else {
      per_support = network.gram_exact() ? bottom.out_stride : 0;
    }
    tasks_begin = supports * per_support;
    queries_begin = tasks_begin + tasks * per_task;
    size = queries_begin + queries * per_query;
  }

  TaskTrace<Real> of(std::int64_t task, std::int64_t support, std::int64_t query) const {
    if (keep == Keep::nothing) return {};
    Real* blocks = keep == Keep::adapted ? values + tasks_begin + task * per_task : nullptr;
    return {values + support * per_support, blocks, values + queries_begin + query * per_query};
  }

  Keep keep;
  Real* values = nullptr;
  std::int64_t per_support = 0, per_task = 0, per_query = 0, tasks_begin = 0, queries_begin = 0, size = 0;
};

// The sums over tasks of the gradients of what tasks share, padded. What is null is not wanted.
template <class Real>
struct SharedSums {
  Real *parameters = nullptr, *rates = nullptr, *output_scales = nullptr, *input_scales = nullptr, *scales = nullptr;
};

}  // namespace
}  // namespace metarec

#define METAREC_KERNEL "inner_loop_kernel.h"
#include "for_each_isa.h"

namespace metarec {
namespace {

void check_offsets(const char* what, std::span<const std::int64_t> offsets, std::int64_t count, std::int64_t tasks) {
  if (std::ssize(offsets) == tasks + 1 && tasks >= 0 && offsets.front() == 0 && offsets.back() == count &&
      std::is_sorted(offsets.begin(), offsets.end())) {
    return;
  }
  std::string shown;
  for (const std::int64_t offset : offsets.first(std::min<std::size_t>(offsets.size(), 8))) {
    shown += (shown.empty() ? "" : ", ") + std::to_string(offset);
  }
  throw std::invalid_argument(std::string("inner_loop: ") + what + " must ascend from 0 to " + std::to_string(count) +
                              ", got [" + shown + (offsets.size() > 8 ? ", ...]" : "]"));
}

template <class Real>
void check(const Head<Real>& head, const InnerRates<Real>& rates) {
  std::int64_t size = 0;
  for (std::int64_t l = 0; l < head.layers(); ++l) size += head.widths[l + 1] * (head.widths[l] + 1);
  if (std::any_of(head.widths.begin(), head.widths.end(), [](std::int64_t width) { return width < 1; })) {
    throw std::invalid_argument("inner_loop: every layer of a head has inputs and outputs, got a width of 0");
  }
  if (head.layers() < 1 || head.layers() > kMostLayers || std::ssize(head.parameters) != size) {
    throw std::invalid_argument("inner_loop: a head of these widths has one to three layers and " +
                                std::to_string(size) + " parameters, got " + std::to_string(head.layers()) + " and " +
                                std::to_string(head.parameters.size()));
  }
  if (rates.pull != 0 && !rates.output_scales.empty()) {
    throw std::invalid_argument("inner_loop: scales of rank one do not go with a pull");
  }
}

template <class Real>
void check(const Supports<Real>& supports) {
  check_offsets("support_offsets", supports.offsets, std::ssize(supports.targets), supports.tasks());
}

template <class Real>
void check(const Head<Real>& head, const Queries<Real>& queries, std::int64_t tasks) {
  check_offsets("query_offsets", queries.offsets, std::ssize(queries.inputs) / head.widths.front(), tasks);
}

// Tasks in ranges of about the same work. They depend on the tasks alone, and so do sums that are formed by range.
class Ranges {
 public:
  // Few, as each has sums of its own, but enough for the threads to end together.
  Ranges(std::span<const std::int64_t> supports, std::span<const std::int64_t> queries, std::int64_t steps) {
    const std::int64_t tasks = std::ssize(supports) - 1;
    const std::int64_t count = std::clamp<std::int64_t>(tasks / 8, std::min<std::int64_t>(tasks, 16), 64);
    const auto work_before = [&](std::int64_t task) {
      return (1 + 3 * steps) * supports[task] + (queries.empty() ? 0 : 2 * queries[task]) + 4 * task;
    };
    for (std::int64_t range = 0, task = 0; range < count; ++range) {
      while (task < tasks && work_before(task) * count < work_before(tasks) * range) ++task;
      begins_.push_back(task);
    }
    begins_.push_back(tasks);
  }

  std::int64_t count() const { return std::ssize(begins_) - 1; }
  std::int64_t begin(std::int64_t range) const { return begins_[range]; }

  // Calls body(range) for each range, by threads that take the next one when they are free.
  template <class Body>
  void run(const Parallel& parallel, const Body& body) const {
    const std::int64_t parts = std::min(count(), parallel.threads);
    if (parts == 0) return;
    std::atomic<std::int64_t> next = 0;
    parallel.run(parts, [&](std::int64_t) {
      for (std::int64_t range; (range = next.fetch_add(1, std::memory_order_relaxed)) < count();) body(range);
    });
  }

 private:
  std::vector<std::int64_t> begins_;
};

// The sums of one range in one array, and what they are afterwards.
template <class Real>
class RangeSums {
 public:
  RangeSums(const Network<Real>& network, const InnerLoopGradients<Real>& wanted) : network_(network), wanted_(wanted) {
    const Layer<Real>& bottom = network.layers[0];
    const bool rank_one = !wanted.output_scales.empty() || !wanted.input_scales.empty();
    parameters_ = place(network.padded_size, true);
    rates_ = place(std::ssize(wanted.rates), !wanted.rates.empty());
    output_scales_ = place(bottom.out_stride, rank_one);
    input_scales_ = place(bottom.in_stride + network.lanes, rank_one);
    scales_ = place(network.padded_size, rank_one || !wanted.scales.empty());
  }

  std::int64_t size() const { return size_; }

  SharedSums<Real> in(Real* array) const {
    const auto at = [&](std::int64_t offset) { return offset < 0 ? nullptr : array + offset; };
    return {at(parameters_), at(rates_), at(output_scales_), at(input_scales_), at(scales_)};
  }

  void write(Real* total) const {
    const SharedSums<Real> sums = in(total);
    if (!wanted_.parameters.empty()) network_.write(sums.parameters, 0, wanted_.parameters.data());
    std::copy(sums.rates, sums.rates + wanted_.rates.size(), wanted_.rates.data());
    if (sums.output_scales != nullptr) write_rank_one(sums);
    const std::int64_t first = sums.output_scales != nullptr ? 1 : 0;
    if (!wanted_.scales.empty()) network_.write(sums.scales, first, wanted_.scales.data());
  }

 private:
  std::int64_t place(std::int64_t count, bool wanted) {
    if (!wanted) return -1;
    const std::int64_t offset = size_;
    size_ += network_.padded(count);
    return offset;
  }

  // Tasks that took steps of the first layer itself have left the gradient of all its scales, s = u v^T.
  void write_rank_one(const SharedSums<Real>& sums) const {
    const Layer<Real>& layer = network_.layers[0];
    const Real* biases = sums.scales + layer.out * layer.in_stride;
    for (std::int64_t o = 0; o < layer.out; ++o) {
      const Real* row = sums.scales + o * layer.in_stride;
      Real total = sums.output_scales[o] + biases[o] * network_.bias_scale;
      for (std::int64_t i = 0; i < layer.in; ++i) {
        total += row[i] * network_.input_scales[i];
        sums.input_scales[i] += row[i] * network_.output_scales[o];
      }
      sums.input_scales[layer.in_stride] += biases[o] * network_.output_scales[o];
      wanted_.output_scales[o] = total;
    }
    std::copy(sums.input_scales, sums.input_scales + layer.in, wanted_.input_scales.data());
    wanted_.input_scales.back() = sums.input_scales[layer.in_stride];
  }

  const Network<Real>& network_;
  const InnerLoopGradients<Real>& wanted_;
  std::int64_t size_ = 0, parameters_, rates_, output_scales_, input_scales_, scales_;
};

template <class Real>
Network<Real> network_of(const Head<Real>& head, const InnerRates<Real>& rates) {
  return {head, rates, METAREC_DISPATCH(vector_length<Real>())};
}

template <class Real>
TraceLayout<Real> layout_of(const Network<Real>& network, const Trace<Real>& trace, const Supports<Real>& supports,
                            const Queries<Real>& queries) {
  TraceLayout<Real> layout(network, trace.keep, supports.offsets.back(), queries.offsets.back(), supports.tasks());
  if (layout.size > std::ssize(trace.values)) {
    throw std::invalid_argument("inner_loop: a trace has " + std::to_string(layout.size) + " values, got room for " +
                                std::to_string(trace.values.size()));
  }
  layout.values = trace.values.data();
  return layout;
}

}  // namespace

template <class Real>
std::int64_t inner_loop_trace_size(const Head<Real>& head, const InnerRates<Real>& rates, Keep keep,
                                   std::int64_t support, std::int64_t query, std::int64_t tasks) {
  check(head, rates);
  return TraceLayout<Real>(network_of(head, rates), keep, support, query, tasks).size;
}

template <class Real>
void inner_loop(const Head<Real>& head, const InnerRates<Real>& rates, const Supports<Real>& supports,
                const Queries<Real>& queries, std::span<Real> predictions, const Trace<Real>& trace,
                const Parallel& parallel) {
  check(head, rates);
  check(supports);
  check(head, queries, supports.tasks());
  const Network<Real> network = network_of(head, rates);
  const TraceLayout<Real> layout = layout_of(network, trace, supports, queries);
  const Ranges ranges(supports.offsets, queries.offsets, network.steps);
  ranges.run(parallel, [&](std::int64_t range) {
    METAREC_DISPATCH(predict_tasks(network, supports, queries, predictions.data(), layout, ranges.begin(range),
                                   ranges.begin(range + 1)));
  });
}

template <class Real>
void inner_loop_backward(const Head<Real>& head, const InnerRates<Real>& rates, const Supports<Real>& supports,
                         const Queries<Real>& queries, std::span<const Real> grad, Order order,
                         const InnerLoopGradients<Real>& gradients, const Trace<Real>& trace,
                         const Parallel& parallel) {
  check(head, rates);
  check(supports);
  check(head, queries, supports.tasks());
  const Network<Real> network = network_of(head, rates);
  const Ranges ranges(supports.offsets, queries.offsets, network.steps);
  const TraceLayout<Real> layout = layout_of(network, trace, supports, queries);
  const RangeSums<Real> shared(network, gradients);
  const bool of_steps = order == Order::second || !gradients.rates.empty() || !gradients.output_scales.empty() ||
                        !gradients.scales.empty();
  if (trace.keep == Keep::adapted && of_steps) {
    throw std::invalid_argument("inner_loop: a trace of adapted heads does not tell the gradients of the steps");
  }
  const std::int64_t size = shared.size();
  const auto sums = std::make_unique_for_overwrite<Real[]>(
      static_cast<std::size_t>(std::max<std::int64_t>(ranges.count(), 1) * size));
  if (ranges.count() == 0) std::fill(sums.get(), sums.get() + size, Real(0));
  ranges.run(parallel, [&](std::int64_t range) {
    Real* array = sums.get() + range * size;
    std::fill(array, array + size, Real(0));
    METAREC_DISPATCH(reverse_tasks(network, supports, queries, grad.data(), order, layout, gradients, shared.in(array),
                                   ranges.begin(range), ranges.begin(range + 1)));
  });
  for (std::int64_t range = 1; range < ranges.count(); ++range) {
    const Real* array = sums.get() + range * size;
    for (std::int64_t i = 0; i < size; ++i) sums[i] += array[i];
  }
  shared.write(sums.get());
}

template <class Real>
void inner_loop_state(const Head<Real>& head, const InnerRates<Real>& rates, const Supports<Real>& supports,
                      const InnerLoopState<Real>& state, const Parallel& parallel) {
  check(head, rates);
  check(supports);
  const Network<Real> network = network_of(head, rates);
  const Ranges ranges(supports.offsets, {}, network.steps);
  ranges.run(parallel, [&](std::int64_t range) {
    METAREC_DISPATCH(state_of_tasks(network, supports, state, ranges.begin(range), ranges.begin(range + 1)));
  });
}

template <class Real>
void inner_loop_predict(const Head<Real>& head, const InnerLoopState<const Real>& state,
                        std::span<const std::int64_t> offsets, const Queries<Real>& queries,
                        std::span<Real> predictions, const Parallel& parallel) {
  check(head, InnerRates<Real>{});
  check(head, queries, std::ssize(offsets) - 1);
  Network<Real> network = network_of(head, InnerRates<Real>{});
  network.bias_scale = 0;  // the state has the adapted bias
  const Ranges ranges(offsets, queries.offsets, 0);
  ranges.run(parallel, [&](std::int64_t range) {
    METAREC_DISPATCH(predict_by_state(network, state, offsets, queries, predictions.data(), ranges.begin(range),
                                      ranges.begin(range + 1)));
  });
}

template <class Real>
void inner_loop_effects(const Head<Real>& head, const InnerRates<Real>& rates, const Supports<Real>& supports,
                        const Queries<Real>& queries, std::span<Real> effects, const Parallel& parallel) {
  check(head, rates);
  check(supports);
  check(head, queries, supports.tasks());
  const Network<Real> network = network_of(head, rates);
  std::vector<std::int64_t> begins(supports.offsets.size());
  for (std::int64_t task = 0; task < supports.tasks(); ++task) {
    const std::int64_t pairs = (supports.offsets[task + 1] - supports.offsets[task]) *
                               (queries.offsets[task + 1] - queries.offsets[task]);
    begins[task + 1] = begins[task] + pairs * head.widths.back();
  }
  if (begins.back() != std::ssize(effects)) {
    throw std::invalid_argument("inner_loop: there are " + std::to_string(begins.back()) + " effects, got room for " +
                                std::to_string(effects.size()));
  }
  const Ranges ranges(supports.offsets, queries.offsets, network.steps);
  ranges.run(parallel, [&](std::int64_t range) {
    METAREC_DISPATCH(effects_on_tasks(network, supports, queries, effects.data(), begins.data(),
                                      ranges.begin(range), ranges.begin(range + 1)));
  });
}

#define METAREC_INSTANTIATE(Real)                                                                                     \
  template void inner_loop(const Head<Real>&, const InnerRates<Real>&, const Supports<Real>&, const Queries<Real>&,   \
                           std::span<Real>, const Trace<Real>&, const Parallel&);                                     \
  template void inner_loop_backward(const Head<Real>&, const InnerRates<Real>&, const Supports<Real>&,                \
                                    const Queries<Real>&, std::span<const Real>, Order,                               \
                                    const InnerLoopGradients<Real>&, const Trace<Real>&, const Parallel&);            \
  template std::int64_t inner_loop_trace_size(const Head<Real>&, const InnerRates<Real>&, Keep, std::int64_t,          \
                                              std::int64_t, std::int64_t);                                            \
  template void inner_loop_state(const Head<Real>&, const InnerRates<Real>&, const Supports<Real>&,                   \
                                 const InnerLoopState<Real>&, const Parallel&);                                       \
  template void inner_loop_predict(const Head<Real>&, const InnerLoopState<const Real>&,                              \
                                   std::span<const std::int64_t>, const Queries<Real>&, std::span<Real>,              \
                                   const Parallel&);                                                                  \
  template void inner_loop_effects(const Head<Real>&, const InnerRates<Real>&, const Supports<Real>&,                 \
                                   const Queries<Real>&, std::span<Real>, const Parallel&);
METAREC_INSTANTIATE(float)
METAREC_INSTANTIATE(double)
#undef METAREC_INSTANTIATE

}  // namespace metarec
