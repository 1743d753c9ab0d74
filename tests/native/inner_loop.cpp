// The inner loop against its definition, written out in double precision, and its gradients against differences.
#include "metarec/inner_loop.h"

#include "checks.h"

namespace {

using metarec::Activation;
using metarec::Keep;
using metarec::Loss;
using metarec::Order;

std::vector<std::int64_t> ends(const std::vector<std::int64_t>& counts) {
  std::vector<std::int64_t> offsets{0};
  for (const std::int64_t count : counts) offsets.push_back(offsets.back() + count);
  return offsets;
}

enum class Scales { none, rank_one, full };

template <class Real>
struct Problem {
  std::vector<std::int64_t> widths, offsets, query_offsets;
  Activation activation = Activation::relu;
  Loss loss = Loss::squared;
  std::int64_t steps = 3;
  Real pull = 0;
  std::vector<Real> parameters, support, targets, weights, query, rates, output_scales, input_scales, scales;

  Problem(const std::vector<std::int64_t>& counts, const std::vector<std::int64_t>& queries,
          std::vector<std::int64_t> sizes, Scales kind)
      : widths(std::move(sizes)), offsets(ends(counts)), query_offsets(ends(queries)) {
    const std::int64_t rows = offsets.back(), width = widths.front(), layers = std::ssize(widths) - 1;
    std::int64_t count = 0;
    for (std::int64_t l = 0; l < layers; ++l) count += widths[l + 1] * (widths[l] + 1);
    parameters = normal<Real>(count, 1);
    for (Real& value : parameters) value *= Real(0.4);
    support = normal<Real>(rows * width, 2);
    targets = normal<Real>(rows, 3);
    weights = normal<Real>(rows, 4);
    for (Real& value : weights) value = std::abs(value) + Real(0.1);
    query = normal<Real>(query_offsets.back() * width, 5);
    rates.assign(steps * layers, Real(0.1));
    for (std::size_t i = 0; i < rates.size(); ++i) rates[i] += Real(0.01) * static_cast<Real>(i);
    const std::int64_t first = widths[1] * (width + 1);
    if (kind == Scales::none) return;
    scales = positive(kind == Scales::full ? count : count - first, 6);
    if (kind == Scales::full) return;
    output_scales = positive(widths[1], 7);
    input_scales = positive(width + 1, 8);
  }

  static std::vector<Real> positive(std::int64_t count, unsigned seed) {
    std::vector<Real> values = normal<Real>(count, seed);
    for (Real& value : values) value = 1 + value / 8;
    return values;
  }

  metarec::Head<Real> head() const { return {widths, parameters, activation, loss}; }
  metarec::InnerRates<Real> inner_rates() const { return {rates, output_scales, input_scales, scales, pull}; }
  metarec::Supports<Real> supports() const { return {support, targets, weights, offsets}; }
  metarec::Queries<Real> queries() const { return {query, query_offsets}; }

  // All that can have a gradient.
  std::vector<std::vector<Real>*> arguments() {
    return {&support, &targets, &weights, &query, &parameters, &rates, &output_scales, &input_scales, &scales};
  }

  std::vector<Real> predict(const metarec::Trace<Real>& trace = {}, const metarec::Parallel& parallel = {}) const {
    std::vector<Real> predictions(query_offsets.back() * widths.back());
    metarec::inner_loop<Real>(head(), inner_rates(), supports(), queries(), predictions, trace, parallel);
    return predictions;
  }

  std::vector<std::vector<Real>> reverse(const std::vector<Real>& grad, Order order,
                                         const metarec::Trace<Real>& trace = {},
                                         const metarec::Parallel& parallel = {}) {
    std::vector<std::vector<Real>> to;
    for (const std::vector<Real>* argument : arguments()) to.emplace_back(argument->size());
    metarec::inner_loop_backward<Real>(head(), inner_rates(), supports(), queries(), grad, order,
                                       {to[0], to[1], to[2], to[3], to[4], to[5], to[6], to[7], to[8]}, trace,
                                       parallel);
    return to;
  }

  std::vector<Real> trace_for(Keep keep) const {
    return std::vector<Real>(metarec::inner_loop_trace_size<Real>(head(), inner_rates(), keep, offsets.back(),
                                                                  query_offsets.back(), std::ssize(offsets) - 1));
  }
};

// The predictions by the definition, for ReLU and the squared loss.
std::vector<double> by_definition(const Problem<double>& p) {
  const std::int64_t layers = std::ssize(p.widths) - 1, width = p.widths.front();
  const auto pass = [&](const std::vector<double>& own, const double* input) {
    std::vector<std::vector<double>> sums;
    std::vector<double> h(input, input + width);
    const double* at = own.data();
    for (std::int64_t l = 0; l < layers; ++l) {
      std::vector<double> z(p.widths[l + 1]);
      for (std::size_t o = 0; o < z.size(); ++o) {
        for (std::size_t i = 0; i < h.size(); ++i) z[o] += at[o * h.size() + i] * h[i];
        z[o] += at[z.size() * h.size() + o];
      }
      at += z.size() * (h.size() + 1);
      sums.push_back(z);
      for (double& value : z) value = std::max(value, 0.0);
      h = z;
    }
    return sums;
  };
  std::vector<double> predictions;
  for (std::size_t task = 0; task + 1 < p.offsets.size(); ++task) {
    std::vector<double> own = p.parameters;
    double total = 0;
    for (std::int64_t j = p.offsets[task]; j < p.offsets[task + 1]; ++j) total += p.weights[j];
    for (std::int64_t k = 0; k < p.steps; ++k) {
      std::vector<double> gradient(own.size());
      for (std::int64_t j = p.offsets[task]; j < p.offsets[task + 1]; ++j) {
        const auto sums = pass(own, p.support.data() + j * width);
        std::vector<double> bar{p.weights[j] / total * (sums.back()[0] - p.targets[j])};
        std::int64_t end = std::ssize(own);
        for (std::int64_t l = layers; l-- > 0;) {
          const std::int64_t in = p.widths[l], out = p.widths[l + 1], begin = end - out * (in + 1);
          std::vector<double> below(in);
          for (std::int64_t o = 0; o < out; ++o) {
            for (std::int64_t i = 0; i < in; ++i) {
              const double input = l == 0 ? p.support[j * width + i] : std::max(sums[l - 1][i], 0.0);
              gradient[begin + o * in + i] += bar[o] * input;
              if (l > 0 && sums[l - 1][i] > 0) below[i] += bar[o] * own[begin + o * in + i];
            }
            gradient[begin + out * in + o] += bar[o];
          }
          bar = below;
          end = begin;
        }
      }
      std::int64_t at = 0;
      for (std::int64_t l = 0; l < layers; ++l) {
        const std::int64_t size = p.widths[l + 1] * (p.widths[l] + 1);
        for (std::int64_t i = 0; i < size; ++i, ++at) {
          own[at] -= p.rates[k * layers + l] * (gradient[at] + p.pull * (own[at] - p.parameters[at]));
        }
      }
    }
    for (std::int64_t j = p.query_offsets[task]; j < p.query_offsets[task + 1]; ++j) {
      predictions.push_back(pass(own, p.query.data() + j * width).back()[0]);
    }
  }
  return predictions;
}

void check_close(const std::vector<double>& got, const std::vector<double>& wanted, double tolerance) {
  CHECK(got.size() == wanted.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    CHECK(std::abs(got[i] - wanted[i]) <= tolerance * (1 + std::abs(wanted[i])));
  }
}

const std::vector<std::vector<std::int64_t>> kWidths{{5, 1}, {5, 4, 1}, {9, 8, 3, 1}, {4, 17, 16, 1}};

void test_predictions() {
  for (const auto& widths : kWidths) {
    for (const double pull : {0.0, 0.5}) {
      Problem<double> problem({0, 1, 40, 3}, {2, 1, 70, 0}, widths, Scales::none);
      problem.pull = pull;
      check_close(problem.predict(), by_definition(problem), 1e-11);
      std::vector<float> narrow;
      Problem<float> single({0, 1, 40, 3}, {2, 1, 70, 0}, widths, Scales::none);
      single.pull = static_cast<float>(pull);
      for (const float value : single.predict()) narrow.push_back(value);
      check_close({narrow.begin(), narrow.end()}, by_definition(problem), 2e-4);
    }
  }
}

// Claims that the gradient along a direction in all arguments is the difference quotient. Neighbouring ranges of these
// tasks have sums to add.
void test_gradients() {
  for (auto widths : kWidths) {
    for (const Scales scales : {Scales::none, Scales::rank_one, Scales::full}) {
      for (const Loss loss : {Loss::squared, Loss::logistic, Loss::gaussian}) {
        widths.back() = loss == Loss::gaussian ? 2 : 1;
        Problem<double> problem({9, 8, 2, 30, 0}, {2, 1, 70, 0, 0}, widths, scales);
        problem.loss = loss;
        problem.activation = loss == Loss::logistic ? Activation::gelu : Activation::tanh;
        problem.pull = scales == Scales::rank_one ? 0 : 0.3;
        const std::vector<double> grad = normal<double>(73 * widths.back(), 9);
        const auto gradients = problem.reverse(grad, Order::second);
        double along = 0, difference = 0;
        constexpr double step = 1e-6;
        for (const double sign : {1.0, -1.0}) {
          Problem<double> moved = problem;
          const auto arguments = moved.arguments();
          for (std::size_t a = 0; a < arguments.size(); ++a) {
            const std::vector<double> direction = normal<double>(std::ssize(*arguments[a]), 20 + a);
            for (std::size_t i = 0; i < direction.size(); ++i) {
              (*arguments[a])[i] += sign * step * direction[i];
              if (sign > 0) along += gradients[a][i] * direction[i];
            }
          }
          const std::vector<double> predictions = moved.predict();
          for (std::size_t i = 0; i < grad.size(); ++i) difference += sign * grad[i] * predictions[i] / (2 * step);
        }
        CHECK(std::abs(along - difference) <= 1e-6 * (1 + std::abs(along)));
      }
    }
  }
}

// Claims that what is kept changes nothing but the time. Adapted heads are in Gram form whatever the support, here with
// a matrix of more than one block, and are held to steps of the layer itself.
void test_traces() {
  for (const auto& widths : kWidths) {
    for (const Scales scales : {Scales::none, Scales::rank_one, Scales::full}) {
      for (const Activation activation : {Activation::relu, Activation::gelu}) {
        Problem<double> problem({0, 2, 40, 3}, {2, 1, 70, 0}, widths, scales);
        problem.activation = activation;
        const std::vector<double> grad = normal<double>(73, 9), wanted = problem.predict();
        const auto gradients = problem.reverse(grad, Order::second);
        std::vector<double> values = problem.trace_for(Keep::steps);
        check_close(problem.predict({Keep::steps, values}), wanted, 1e-12);
        const auto traced = problem.reverse(grad, Order::second, {Keep::steps, values});
        for (std::size_t a = 0; a < traced.size(); ++a) check_close(traced[a], gradients[a], 1e-11);

        values = problem.trace_for(Keep::adapted);
        check_close(problem.predict({Keep::adapted, values}), wanted, 1e-12);
        std::vector<double> parameters(problem.parameters.size()), query(problem.query.size());
        metarec::InnerLoopGradients<double> only;
        only.parameters = parameters;
        only.query = query;
        metarec::inner_loop_backward<double>(problem.head(), problem.inner_rates(), problem.supports(),
                                             problem.queries(), grad, Order::first, only, {Keep::adapted, values});
        const auto first = problem.reverse(grad, Order::first);
        check_close(parameters, first[4], 1e-11);
        check_close(query, first[3], 1e-11);
      }
    }
  }
}

void test_states_and_effects() {
  for (const Scales scales : {Scales::none, Scales::rank_one, Scales::full}) {
    Problem<double> problem({0, 2, 30}, {2, 60, 3}, {7, 6, 5, 1}, scales);
    const bool full = scales == Scales::full;
    std::vector<double> rows(full ? 0 : 32 * 7), coefficients(full ? 0 : 32 * 6);
    std::vector<double> parameters(3 * (problem.parameters.size() - (full ? 0 : 42))), predictions(65);
    metarec::inner_loop_state<double>(problem.head(), problem.inner_rates(), problem.supports(),
                                      {rows, coefficients, parameters});
    metarec::inner_loop_predict<double>(problem.head(), {rows, coefficients, parameters}, problem.offsets,
                                        problem.queries(), predictions);
    const std::vector<double> whole = problem.predict();
    check_close(predictions, whole, 1e-12);

    std::vector<double> effects(2 * 60 + 30 * 3);
    metarec::inner_loop_effects<double>(problem.head(), problem.inner_rates(), problem.supports(), problem.queries(),
                                        effects);
    Problem<double> without = problem;
    without.weights[4] = 0;
    const std::vector<double> rest = without.predict();
    const std::vector<double> got(effects.begin() + 2 * 60 + 2 * 3, effects.begin() + 2 * 60 + 3 * 3);
    check_close(got, {whole[62] - rest[62], whole[63] - rest[63], whole[64] - rest[64]}, 1e-12);
  }
}

// Many tasks of all lengths, so that every thread has some; the results are the very same.
template <class Real>
void test_threads_change_nothing() {
  std::vector<std::int64_t> counts, queries;
  for (std::int64_t task = 0; task < 150; ++task) {
    counts.push_back(task * 7 % 20);
    queries.push_back(task % 4);
  }
  for (const Scales scales : {Scales::none, Scales::rank_one, Scales::full}) {
    Problem<Real> problem(counts, queries, {9, 8, 5, 1}, scales);
    std::vector<Real> one = problem.trace_for(Keep::steps), four = one;
    CHECK(problem.predict({Keep::steps, one}) == problem.predict({Keep::steps, four}, threads(4)));
    const std::vector<Real> grad = normal<Real>(problem.query_offsets.back(), 9);
    for (const Order order : {Order::first, Order::second}) {
      CHECK(problem.reverse(grad, order) == problem.reverse(grad, order, {}, threads(4)));
      CHECK(problem.reverse(grad, order, {Keep::steps, one}) ==
            problem.reverse(grad, order, {Keep::steps, four}, threads(4)));
    }
  }
}

void test_bad_arguments_throw() {
  Problem<float> problem({2, 3}, {1, 1}, {4, 3, 1}, Scales::rank_one);
  problem.offsets = {0, 3, 2};
  check_throws([&] { problem.predict(); }, "support_offsets must ascend from 0 to 5");
  problem.offsets = {0, 2, 5};
  problem.query_offsets = {0, 3, 2};
  check_throws([&] { problem.predict(); }, "query_offsets must ascend from 0 to 2");
  problem.query_offsets = {0, 1, 2};
  std::vector<float> small(7);
  check_throws([&] { problem.predict({Keep::steps, small}); }, "got room for 7");
  std::vector<float> adapted = problem.trace_for(Keep::adapted);
  check_throws([&] { problem.reverse(normal<float>(2, 9), Order::second, {Keep::adapted, adapted}); },
               "does not tell the gradients of the steps");
  problem.pull = 1;
  check_throws([&] { problem.predict(); }, "scales of rank one do not go with a pull");
  problem.pull = 0;
  problem.widths[1] = 0;
  check_throws([&] { problem.predict(); }, "got a width of 0");
  problem.widths[1] = 3;
  problem.parameters.pop_back();
  check_throws([&] { problem.predict(); }, "one to three layers and 19 parameters");
}

}  // namespace

// With an argument only what threads do, for the sanitizer that is slow.
int main(int count, char**) {
  test_threads_change_nothing<float>();
  test_threads_change_nothing<double>();
  if (count > 1) return 0;
  test_predictions();
  test_gradients();
  test_traces();
  test_states_and_effects();
  test_bad_arguments_throw();
}
