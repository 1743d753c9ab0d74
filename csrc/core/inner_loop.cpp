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

#include "inner_loop_network.h"

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

// Adds the other arrays to the first, in their order.
template <class Real>
void add_up(Real* sums, std::int64_t size, std::int64_t arrays, const Parallel& parallel) {
  constexpr std::int64_t block = 4096;
  parallel.run((size + block - 1) / block, [&](std::int64_t part) {
    const std::int64_t begin = part * block, end = std::min(begin + block, size);
    for (std::int64_t array = 1; array < arrays; ++array) {
      for (std::int64_t i = begin; i < end; ++i) sums[i] += sums[array * size + i];
    }
  });
}

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
  add_up(sums.get(), size, ranges.count(), parallel);
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
