// The kernels of the inner loop, run on the host, against the core in double precision.
#include "metarec/inner_loop.h"

#include <numeric>

#include "cuda/emulated.h"
#include "ops/cuda/inner_loop_kernel.cuh"

namespace {

using metarec::Activation;
using metarec::Loss;
using metarec::Order;
namespace cuda = metarec::cuda;

enum class Scales { none, rank_one, full };

struct Case {
  std::vector<std::int64_t> counts, queries, widths;
  Scales scales = Scales::none;
  Activation activation = Activation::relu;
  Loss loss = Loss::squared;
  std::int64_t steps = 3;
  double pull = 0;
  bool mean = true;
};

std::vector<std::int64_t> ends(const std::vector<std::int64_t>& counts) {
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t count : counts) offsets.push_back(offsets.back() + count);
  return offsets;
}

// The arguments of a case, and its results by the core.
template <class Real>
struct Arguments {
  Case given;
  std::vector<std::int64_t> offsets, query_offsets;
  std::vector<Real> support, targets, weights, query, parameters, rates, output_scales, input_scales, scales, grad;

  explicit Arguments(const Case& of) : given(of), offsets(ends(of.counts)), query_offsets(ends(of.queries)) {
    const std::int64_t rows = offsets.back(), width = of.widths.front(), layers = std::ssize(of.widths) - 1;
    std::int64_t count = 0;
    for (std::int64_t l = 0; l < layers; ++l) count += of.widths[l + 1] * (of.widths[l] + 1);
    support = normal<Real>(rows * width, 1);
    targets = normal<Real>(rows, 2);
    if (of.loss == Loss::logistic) {
      for (Real& value : targets) value = 1 / (1 + std::exp(-value));
    }
    weights = scattered(rows, 3);
    query = normal<Real>(query_offsets.back() * width, 4);
    parameters = normal<Real>(count, 5);
    for (Real& value : parameters) value /= std::sqrt(static_cast<Real>(of.widths[0] + 4));
    rates = scattered(of.steps * layers, 6);
    for (Real& value : rates) value *= Real(0.2);
    grad = normal<Real>(query_offsets.back() * of.widths.back(), 7);
    const std::int64_t first = of.widths[1] * (width + 1);
    if (of.scales == Scales::none) return;
    scales = scattered(of.scales == Scales::full ? count : count - first, 8);
    if (of.scales == Scales::full) return;
    output_scales = scattered(of.widths[1], 9);
    input_scales = scattered(width + 1, 10);
  }

  template <class Other>
  explicit Arguments(const Arguments<Other>& other)
      : given(other.given), offsets(other.offsets), query_offsets(other.query_offsets) {
    const auto copy = [](const std::vector<Other>& from) { return std::vector<Real>(from.begin(), from.end()); };
    support = copy(other.support), targets = copy(other.targets), weights = copy(other.weights);
    query = copy(other.query), parameters = copy(other.parameters), rates = copy(other.rates);
    output_scales = copy(other.output_scales), input_scales = copy(other.input_scales), scales = copy(other.scales);
    grad = copy(other.grad);
  }

  static std::vector<Real> scattered(std::int64_t count, unsigned seed) {
    std::vector<Real> values = normal<Real>(count, seed);
    for (Real& value : values) value = 1 + std::tanh(value) / 4;
    return values;
  }

  std::int64_t tasks() const { return std::ssize(offsets) - 1; }
  metarec::Head<Real> head() const { return {given.widths, parameters, given.activation, given.loss}; }
  metarec::InnerRates<Real> inner_rates() const {
    return {rates, output_scales, input_scales, scales, static_cast<Real>(given.pull)};
  }
  metarec::Supports<Real> supports() const { return {support, targets, weights, offsets, given.mean}; }
  metarec::Queries<Real> queries() const { return {query, query_offsets}; }
  std::int64_t pairs() const {
    std::int64_t total = 0;
    for (std::int64_t t = 0; t < tasks(); ++t) total += given.counts[t] * given.queries[t];
    return total;
  }
};

// What an op gives: its results one after the other.
template <class Real>
using Results = std::vector<std::vector<Real>>;

template <class Real>
Results<Real> empty_gradients(const Arguments<Real>& a) {
  Results<Real> to;
  for (const auto* argument : {&a.support, &a.targets, &a.weights, &a.query, &a.parameters, &a.rates, &a.output_scales,
                               &a.input_scales, &a.scales}) {
    to.emplace_back(argument->size());
  }
  return to;
}

template <class Real>
Results<Real> core_gradients(const Arguments<Real>& a, Order order) {
  Results<Real> to = empty_gradients(a);
  metarec::inner_loop_backward<Real>(a.head(), a.inner_rates(), a.supports(), a.queries(), a.grad, order,
                                     {to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7], to[8]});
  return to;
}

// A device and torch's part of the ops.
template <class Real>
class Device {
 public:
  Device(const Arguments<Real>& arguments, std::uint64_t seed, cuda::Machine machine)
      : a_(arguments), launch_{seed}, machine_(machine) {
    for (std::size_t i = 0; i < a_.given.counts.size(); ++i) order_.push_back(static_cast<std::int64_t>(i));
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::int64_t s, std::int64_t t) { return a_.given.counts[s] > a_.given.counts[t]; });
    support_sums_ = product(a_.support, a_.parameters, width(), hidden());
    query_sums_ = product(a_.query, a_.parameters, width(), hidden());
    network_.layers = static_cast<int>(a_.given.widths.size()) - 1;
    network_.activation = a_.given.activation;
    network_.loss = a_.given.loss;
    std::copy(a_.given.widths.begin(), a_.given.widths.end(), network_.widths);
    network_.steps = a_.given.steps;
    network_.parameters = a_.parameters.data();
    network_.rates = a_.rates.data();
    const auto at = [](const std::vector<Real>& values) { return values.empty() ? nullptr : values.data(); };
    network_.output_scales = at(a_.output_scales);
    network_.input_scales = at(a_.input_scales);
    network_.scales = at(a_.scales);
    network_.pull = static_cast<Real>(a_.given.pull);
    network_.lay_out();
  }

  std::vector<Real> predict() const {
    const cuda::Cuts cuts = cuda::inner_loop_cuts<Real>(problem(), a_.tasks(), nullptr, machine_);
    simt::Output<Real> workspace(cuts.workspace()), predictions(a_.query_offsets.back() * network_.outputs());
    cuda::inner_loop(launch_, problem(), cuts, workspace.data(), predictions.data());
    return copied(predictions);
  }

  Results<Real> gradients(Order order, bool all) const {
    const bool rank_one = network_.output_scales != nullptr;
    Results<Real> to = empty_gradients(a_);
    std::vector<simt::Output<Real>> out;
    for (const std::vector<Real>& values : to) out.emplace_back(std::ssize(values));
    const auto wanted = [&](int i) { return all || i == 4 ? out[i].data() : nullptr; };
    const std::int64_t rows = a_.offsets.back(), asked = a_.query_offsets.back();
    simt::Output<Real> support_bar(rows * hidden()), query_bar(asked * hidden());
    cuda::InnerAdjoint<Real> adjoint = {a_.grad.data(),
                                        order,
                                        wanted(0),
                                        wanted(1),
                                        wanted(2),
                                        wanted(3),
                                        support_bar.data(),
                                        query_bar.data(),
                                        nullptr,
                                        cuda::SumsLayout::of(network_, all, all && rank_one, all && network_.scaled())};
    const cuda::Cuts cuts = cuda::inner_loop_cuts<Real>(problem(), a_.tasks(), &adjoint, machine_);
    simt::Output<Real> workspace(cuts.workspace()), total(adjoint.layout.size);
    std::vector<Real> gram_sums(cuts.gram.blocks * adjoint.layout.size),
        own_sums(cuts.own.blocks * adjoint.layout.size);
    cuda::inner_loop_backward(launch_, problem(), cuts, workspace.data(), adjoint, gram_sums.data(), own_sums.data());
    const std::vector<Real> of_support = turned_product(copied(support_bar), a_.support);
    const std::vector<Real> of_query = turned_product(copied(query_bar), a_.query);
    if (all && order == Order::second) add(out[0], back_product(copied(support_bar)), rows);
    if (all) add(out[3], back_product(copied(query_bar)), asked);
    cuda::inner_loop_share(launch_, network_, adjoint.layout,
                           {gram_sums.data(), own_sums.data(), cuts.gram.blocks, cuts.own.blocks}, total.data(),
                           {wanted(4), wanted(5), rank_one ? wanted(6) : nullptr, rank_one ? wanted(7) : nullptr,
                            network_.scales != nullptr ? wanted(8) : nullptr, of_support.data(), of_query.data()});
    for (int i = 0; i < 9; ++i) {
      if (wanted(i) == nullptr) {
        to[i].clear();
      } else {
        to[i] = copied(out[i]);
      }
    }
    return to;
  }

  Results<Real> state() const {
    const bool compact = network_.gram_exact();
    const std::int64_t rows = compact ? a_.offsets.back() : 0;
    const std::int64_t size = network_.parameter_count() - (compact ? network_.weight_size(0) : 0);
    simt::Output<Real> kept(rows * width()), coefficients(rows * hidden()), parameters(a_.tasks() * size);
    cuda::InnerProblem<Real> own = problem();
    const std::vector<std::int64_t> no_queries(a_.offsets.size());
    own.query = {nullptr, nullptr, no_queries.data(), 0};
    const cuda::Cuts cuts = cuda::inner_loop_cuts<Real>(own, a_.tasks(), nullptr, machine_);
    simt::Output<Real> workspace(cuts.workspace());
    cuda::inner_loop_state(launch_, own, cuts, workspace.data(),
                           {compact, kept.data(), coefficients.data(), parameters.data()});
    return {copied(kept), copied(coefficients), copied(parameters)};
  }

  std::vector<Real> predict_by(const Results<Real>& state) const {
    const bool compact = network_.gram_exact();
    Results<Real> own = state;
    cuda::InnerProblem<Real> asked = problem();
    asked.network.output_scales = asked.network.input_scales = asked.network.scales = nullptr;
    const cuda::Cut cut = cuda::inner_loop_state_cut(asked, compact, machine_);
    simt::Output<Real> workspace(cut.workspace()), predictions(a_.query_offsets.back() * network_.outputs());
    cuda::inner_loop_predict(launch_, asked, cut, workspace.data(),
                             {compact, own[0].data(), own[1].data(), own[2].data()}, predictions.data());
    return copied(predictions);
  }

  std::vector<Real> effects() const {
    const std::vector<Real> whole = predict();
    const cuda::Cuts cuts = cuda::inner_loop_cuts<Real>(problem(), a_.offsets.back(), nullptr, machine_);
    simt::Output<Real> workspace(cuts.workspace()), effects(a_.pairs() * network_.outputs());
    cuda::inner_loop_effects(launch_, problem(), cuts, workspace.data(), whole.data(), effects.data());
    return copied(effects);
  }

 private:
  std::int64_t width() const { return a_.given.widths[0]; }
  std::int64_t hidden() const { return a_.given.widths[1]; }

  cuda::InnerProblem<Real> problem() const {
    cuda::InnerProblem<Real> problem = {};
    problem.network = network_;
    problem.support = {a_.support.data(), support_sums_.data(), a_.offsets.data(), a_.offsets.back()};
    problem.query = {a_.query.data(), query_sums_.data(), a_.query_offsets.data(), a_.query_offsets.back()};
    problem.targets = a_.targets.data();
    problem.weights = a_.weights.data();
    problem.mean = a_.given.mean;
    problem.tasks = a_.tasks();
    problem.order = order_.data();
    return problem;
  }

  static std::vector<Real> copied(const simt::Output<Real>& output) {
    const auto values = output.written();
    return {values.begin(), values.end()};
  }

  static void add(simt::Output<Real>& to, const std::vector<Real>& values, std::int64_t) {
    for (std::size_t i = 0; i < values.size(); ++i) to.data()[i] += values[i];
  }

  // x W^T, bar^T x and bar W, with the first weight W
  static std::vector<Real> product(const std::vector<Real>& x, const std::vector<Real>& weight, std::int64_t in,
                                   std::int64_t out) {
    std::vector<Real> sums;
    for (std::size_t row = 0; row < x.size(); row += in) {
      for (std::int64_t o = 0; o < out; ++o) {
        sums.push_back(std::inner_product(x.begin() + row, x.begin() + row + in, weight.begin() + o * in, Real(0)));
      }
    }
    return sums;
  }
  std::vector<Real> turned_product(const std::vector<Real>& bar, const std::vector<Real>& x) const {
    std::vector<Real> to(width() * hidden());
    for (std::size_t i = 0; i < bar.size(); ++i) {
      for (std::int64_t j = 0; j < width(); ++j)
        to[i % hidden() * width() + j] += bar[i] * x[i / hidden() * width() + j];
    }
    return to;
  }
  std::vector<Real> back_product(const std::vector<Real>& bar) const {
    std::vector<Real> to(bar.size() / hidden() * width());
    for (std::size_t i = 0; i < bar.size(); ++i) {
      for (std::int64_t j = 0; j < width(); ++j)
        to[i / hidden() * width() + j] += bar[i] * a_.parameters[i % hidden() * width() + j];
    }
    return to;
  }

  const Arguments<Real>& a_;
  Emulated launch_;
  cuda::Machine machine_;
  std::vector<std::int64_t> order_;
  std::vector<Real> support_sums_, query_sums_;
  cuda::Network<Real> network_ = {};
};

const char* const kNames[] = {"support", "targets",       "weights",      "query", "parameters",
                              "rates",   "output_scales", "input_scales", "scales"};

template <class Real>
void check_close(const std::string& what, const std::vector<Real>& got, const std::vector<double>& wanted) {
  const double tolerance = sizeof(Real) == 4 ? 5e-5 : 1e-11;
  CHECK(got.size() == wanted.size());
  double scale = 1;
  for (const double value : wanted) scale = std::max(scale, std::abs(value));
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::abs(static_cast<double>(got[i]) - wanted[i]) <= tolerance * scale) continue;
    std::fprintf(stderr, "%s: value %zu is %g, not %g\n", what.c_str(), i, static_cast<double>(got[i]), wanted[i]);
    std::exit(1);
  }
}

// Beyond this many ratings, to leave out each of them, or to ask for a single gradient, takes the test too long.
constexpr std::int64_t kFewRatings = 5;

template <class Real>
void check_case(const std::string& name, const Case& of, std::uint64_t seed, const cuda::Machine& machine) {
  const Arguments<Real> arguments(of);
  const Arguments<double> exact(arguments);
  const Device<Real> device(arguments, seed, machine);
  std::vector<double> predictions(exact.query_offsets.back() * of.widths.back());
  metarec::inner_loop<double>(exact.head(), exact.inner_rates(), exact.supports(), exact.queries(), predictions);
  check_close(name + ": predictions", device.predict(), predictions);
  check_close(name + ": predictions by a state", device.predict_by(device.state()), predictions);
  if (exact.offsets.back() <= kFewRatings) {
    std::vector<double> effects(exact.pairs() * of.widths.back());
    metarec::inner_loop_effects<double>(exact.head(), exact.inner_rates(), exact.supports(), exact.queries(), effects);
    check_close(name + ": effects", device.effects(), effects);
  }
  for (const Order order : {Order::first, Order::second}) {
    const Results<double> wanted = core_gradients(exact, order);
    for (const bool all : {true, false}) {
      if (!all && exact.offsets.back() > kFewRatings) continue;
      const Results<Real> got = device.gradients(order, all);
      for (int i = 0; i < 9; ++i) {
        if (!all && i != 4) continue;
        const std::string what = name + (order == Order::first ? ": first" : ": second") + "-order gradient of ";
        check_close(what + kNames[i], got[i], wanted[i]);
      }
    }
  }
}

// No shared memory but what the kernels declare; some, so that matrices lie on both sides; enough for all.
constexpr cuda::Machine kMachines[] = {{2, 0, 0}, {3, 24 << 10, 24 << 10}, {2, 228 << 10, 200 << 10}};

template <class Real>
void check_on_each(const std::string& name, const Case& of) {
  static std::uint64_t number = 0;
  const std::uint64_t seed = ++number;
  check_case<Real>(name, of, seed, kMachines[seed % std::size(kMachines)]);
}

using enum Scales;
using enum Activation;
using enum Loss;

// Layers, empty tasks, both kinds of tasks, tails of tiles and of chunks; all scales, activations and losses.
const Case kCases[] = {
    {{3, 0}, {2, 1}, {4, 1}, rank_one, relu, squared, 2},
    {{0, 2, 1, 7}, {1, 3, 0, 2}, {5, 6, 4, 1}, none, Activation::tanh, squared, 3, 0.7},
    {{1, 30, 2}, {2, 70, 3}, {9, 8, 16, 1}, rank_one, relu, squared, 2},
    {{20, 5}, {3, 2}, {33, 31, 8, 1}, full, Activation::tanh, squared, 2},
    {{129, 0, 2}, {1, 2, 65}, {70, 40, 1}, rank_one, relu, squared, 2},
    {{3, 0, 4}, {2, 2, 1}, {6, 5, 4, 1}, none, gelu, logistic, 2, 0, false},
    {{3, 4}, {2, 1}, {6, 5, 4, 2}, rank_one, Activation::tanh, gaussian, 2},
    {{3, 1}, {2, 1}, {6, 5, 4, 2}, full, gelu, gaussian, 2, 0.7, false},
    {{2, 3}, {1, 1}, {6, 5, 4, 1}, full, Activation::tanh, logistic, 2},
    {{3, 130}, {2, 1}, {3, 4, 1}, none, relu, squared, 0},
    {{3, 2}, {1, 2}, {6, 5, 1}, none, gelu, squared, 5},
};

}  // namespace

int main() {
  for (const Case& of : kCases) {
    const std::string name = "case " + std::to_string(&of - kCases);
    if (of.widths.back() == 1) check_on_each<float>(name + " in float", of);
    if (of.counts.size() == 2) check_on_each<double>(name + " in double", of);
  }
}
