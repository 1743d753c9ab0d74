// Gradient steps on a small network for many tasks at once, what it predicts then, and exact meta-gradients.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "metarec/parallel.h"

namespace metarec {

enum class Activation { relu, gelu, tanh };
// (z - y)^2 / 2; log(1 + e^z) - y z; and, of a mean z_0 and a log variance z_1, (z_1 + (y - z_0)^2 e^-z_1) / 2.
enum class Loss { squared, logistic, gaussian };
// What the gradients are of: the steps as they are, or with the gradients in them taken for constants.
enum class Order { first, second };

// A network of one to three layers, z_l = h_l W_l^T + b_l and h_{l + 1} = activation(z_l), that all tasks start from.
template <class Real>
struct Head {
  std::vector<std::int64_t> widths;  // of the inputs, the hidden layers and the outputs (1, or 2 for Loss::gaussian)
  std::span<const Real> parameters;  // of each layer the weight [out, in], then the bias [out]
  Activation activation = Activation::relu;
  Loss loss = Loss::squared;

  std::int64_t layers() const { return std::ssize(widths) - 1; }
};

// Step k changes parameter p of layer l by -rates[k, l] * scale(p) * (gradient of the weighted loss + pull * (how far p
// is from where it started)). A scale is 1 where none is given.
template <class Real>
struct InnerRates {
  std::span<const Real> rates;  // [steps, layers]
  // The first layer's scales, the outer product of these (the bias last among the inputs). Only where there is no pull.
  std::span<const Real> output_scales, input_scales;
  // The scales of all parameters, or of those after the first layer.
  std::span<const Real> scales;
  Real pull = 0;
};

// Ragged supports: task t has the rows offsets[t] <= j < offsets[t + 1].
template <class Real>
struct Supports {
  std::span<const Real> inputs;           // [support, widths.front()]
  std::span<const Real> targets;          // [support]
  std::span<const Real> weights;          // [support], of the losses
  std::span<const std::int64_t> offsets;  // [tasks + 1]
  bool mean = true;                       // whether a task's weights are divided by their sum

  std::int64_t tasks() const { return std::ssize(offsets) - 1; }
};

template <class Real>
struct Queries {
  std::span<const Real> inputs;           // [query, widths.front()]
  std::span<const std::int64_t> offsets;  // [tasks + 1]
};

// Adapted heads. Where the scales of the first layer are of rank one (or not given), its weight is kept as what it
// takes to compute it, W_0 - coefficients^T rows; else as it is.
template <class Real>
struct InnerLoopState {
  std::span<Real> rows;          // [support, widths.front()], or empty
  std::span<Real> coefficients;  // [support, widths[1]], or empty
  std::span<Real> parameters;    // [tasks, all parameters but the first weight, or all]
};

// What is empty is not computed.
template <class Real>
struct InnerLoopGradients {
  std::span<Real> support, targets, weights, query, parameters, rates, output_scales, input_scales, scales;
};

// What the forward pass keeps for the backward pass, which computes the rest again: the steps, or only where they led
// to, which is all that Order::first needs where no rate has a gradient.
enum class Keep { nothing, adapted, steps };

template <class Real>
struct Trace {
  Keep keep = Keep::nothing;
  std::span<Real> values;
};

// How many values a trace has.
template <class Real>
std::int64_t inner_loop_trace_size(const Head<Real>& head, const InnerRates<Real>& rates, Keep keep,
                                   std::int64_t support, std::int64_t query, std::int64_t tasks);

// Predicts the queries [query, outputs] by every task's adapted head.
template <class Real>
void inner_loop(const Head<Real>& head, const InnerRates<Real>& rates, const Supports<Real>& supports,
                const Queries<Real>& queries, std::span<Real> predictions, const Trace<Real>& trace = {},
                const Parallel& parallel = {});

// Computes the gradients of the arguments from those of the predictions.
template <class Real>
void inner_loop_backward(const Head<Real>& head, const InnerRates<Real>& rates, const Supports<Real>& supports,
                         const Queries<Real>& queries, std::span<const Real> grad, Order order,
                         const InnerLoopGradients<Real>& gradients, const Trace<Real>& trace = {},
                         const Parallel& parallel = {});

// Adapts the heads for later use.
template <class Real>
void inner_loop_state(const Head<Real>& head, const InnerRates<Real>& rates, const Supports<Real>& supports,
                      const InnerLoopState<Real>& state, const Parallel& parallel = {});

// Predicts the queries [query, outputs] by heads adapted before; `offsets` are those of the supports.
template <class Real>
void inner_loop_predict(const Head<Real>& head, const InnerLoopState<const Real>& state,
                        std::span<const std::int64_t> offsets, const Queries<Real>& queries,
                        std::span<Real> predictions, const Parallel& parallel = {});

// How much each support rating adds to each prediction: the prediction less the one without that rating. Of task t it
// writes [support, query, outputs].
template <class Real>
void inner_loop_effects(const Head<Real>& head, const InnerRates<Real>& rates, const Supports<Real>& supports,
                        const Queries<Real>& queries, std::span<Real> effects, const Parallel& parallel = {});

}  // namespace metarec
