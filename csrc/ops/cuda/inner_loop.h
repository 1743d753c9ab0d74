// The inner loop on CUDA. All pointers are the device's, all matrices compact and row-major.
#pragma once

#include <cstdint>

#include "metarec/host_device.h"
#include "metarec/inner_loop.h"
#include "stream.h"

namespace metarec::cuda {

constexpr int kLayers = 3;  // at most

// What a pass over rows leaves behind for a layer, in the order of its parts.
enum Part { kOut, kSlope, kCurve, kGrad, kPushed, kParts };

// What all tasks of a call share.
template <class Real>
struct Network {
  int layers;
  Activation activation;
  Loss loss;
  std::int64_t widths[kLayers + 1], steps;
  const Real *parameters, *rates;
  const Real *output_scales, *input_scales, *scales;  // null where none are given
  Real pull;

  std::int64_t offsets[kLayers + 1];  // where the block (weight, bias) of a layer begins
  // Where a part begins in a pass over one row, and how many values that is; a pass over queries has no gradients.
  std::int64_t columns[kParts][kLayers], pass_columns, query_columns;

  METAREC_HOST_DEVICE std::int64_t in(int l) const { return widths[l]; }
  METAREC_HOST_DEVICE std::int64_t out(int l) const { return widths[l + 1]; }
  METAREC_HOST_DEVICE std::int64_t outputs() const { return widths[layers]; }
  METAREC_HOST_DEVICE int top() const { return layers - 1; }
  METAREC_HOST_DEVICE bool curved() const { return activation != Activation::relu; }
  METAREC_HOST_DEVICE bool scaled() const { return scales != nullptr || output_scales != nullptr; }
  // Whether the first layer has a Gram form.
  METAREC_HOST_DEVICE bool gram_exact() const { return scales == nullptr || output_scales != nullptr; }

  METAREC_HOST_DEVICE std::int64_t weight_size(int l) const { return out(l) * in(l); }
  METAREC_HOST_DEVICE std::int64_t size(int l) const { return out(l) * (in(l) + 1); }
  METAREC_HOST_DEVICE std::int64_t parameter_count() const { return offsets[layers]; }

  // Fills in what follows from the widths and the activation.
  void lay_out() {
    offsets[0] = 0;
    for (int l = 0; l < layers; ++l) offsets[l + 1] = offsets[l] + size(l);
    std::int64_t column = 0;
    for (int part = 0; part < kParts; ++part) {
      if (part == kGrad) query_columns = column;
      for (int l = 0; l < layers; ++l) {
        const bool of_curve = part == kSlope || part == kCurve || part == kPushed;
        columns[part][l] = part == kPushed && !curved() ? columns[kGrad][l] : column;
        if (!of_curve || (curved() && l < top())) column += out(l);
      }
    }
    pass_columns = column;
  }
};

// Ragged rows, and the products of all with the shared first weight.
template <class Real>
struct RaggedRows {
  const Real *inputs, *sums;
  const std::int64_t* offsets;
  std::int64_t count;
};

template <class Real>
struct InnerProblem {
  Network<Real> network;
  RaggedRows<Real> support, query;
  const Real *targets, *weights;
  bool mean;
  std::int64_t tasks;
  const std::int64_t* order;  // of the tasks, or null

  // This launch: which tasks it takes, and where each block of threads works.
  bool gram;
  Real* workspace;
  std::int64_t workspace_size;  // of a block
  int fast_size;                // of its shared memory
};

// Sums over tasks. A block has its own, one after the other; tasks in Gram form use what is before `first` alone.
// Parts that are not wanted begin at -1.
struct SumsLayout {
  std::int64_t rest = 0, rates = -1, outputs = -1, inputs = -1, rest_scales = -1;  // rest: all but the first weight
  std::int64_t first = 0, first_scales = -1, size = 0;

  template <class Real>
  static SumsLayout of(const Network<Real>& network, bool rates, bool rank_one, bool scales) {
    SumsLayout layout;
    const std::int64_t first = network.weight_size(0), rest = network.parameter_count() - first;
    const auto place = [&](std::int64_t count) {
      const std::int64_t at = layout.size;
      layout.size += count;
      return at;
    };
    place(rest);
    if (rates) layout.rates = place(network.steps * network.layers);
    if (rank_one) layout.outputs = place(network.out(0));
    if (rank_one) layout.inputs = place(network.in(0) + 1);
    if (rank_one || scales) layout.rest_scales = place(rest);
    layout.first = place(first);
    if (rank_one || scales) layout.first_scales = place(first);
    return layout;
  }
};

// What the backward pass writes. What is null is not wanted, but the sums' gradients always are.
template <class Real>
struct InnerAdjoint {
  const Real* grad;
  Order order;
  Real *support, *targets, *weights, *query;
  Real *support_sums, *query_sums;  // gradients in RaggedRows::sums; zero for tasks that are not in Gram form
  Real* sums;                       // of a block, `layout`
  SumsLayout layout;

  METAREC_HOST_DEVICE bool of_steps() const {
    return order == Order::second || layout.rates >= 0 || layout.rest_scales >= 0;
  }
  METAREC_HOST_DEVICE bool of_inputs() const {
    return (order == Order::second && support != nullptr) || layout.inputs >= 0;
  }
};

// Adapted heads, laid out as in InnerLoopState; `compact` says that the first layer is kept as rows and coefficients.
template <class Real>
struct AdaptedHeads {
  bool compact;
  Real *rows, *coefficients, *parameters;

  METAREC_HOST_DEVICE std::int64_t size(const Network<Real>& network) const {
    return network.parameter_count() - (compact ? network.weight_size(0) : 0);
  }
};

// The sums of all blocks of both launches, in the order of the blocks.
template <class Real>
struct BlockSums {
  const Real *gram, *own;
  std::int64_t gram_blocks, own_blocks;
};

// The gradients of what all tasks share; what is null is not wanted. The first weight's has the products that torch
// computed as well.
template <class Real>
struct SharedGradients {
  Real *parameters, *rates, *output_scales, *input_scales, *scales;
  const Real *first_of_support, *first_of_query;
};

// What a launch is cut by.
struct Machine {
  std::int64_t multiprocessors;
  std::int64_t shared_bytes;        // of a multiprocessor
  std::int64_t block_shared_bytes;  // that a block may have
};

// How one launch is cut: into how many blocks, each with which memory, counted in values.
struct Cut {
  std::int64_t blocks = 0, workspace_size = 0;
  int fast_size = 0;

  std::int64_t workspace() const { return blocks * workspace_size; }
};

// Of the launches for the two kinds of tasks.
struct Cuts {
  Cut gram, own;

  std::int64_t workspace() const { return gram.workspace() > own.workspace() ? gram.workspace() : own.workspace(); }
};

// The device that is current.
Machine current_machine();

// By what the host knows of the tasks: how many rows they have together. `items` is what a block takes one of at a
// time: tasks, or support ratings for inner_loop_effects; `adjoint` is null but for inner_loop_backward.
template <class Real>
Cuts inner_loop_cuts(const InnerProblem<Real>& problem, std::int64_t items, const InnerAdjoint<Real>* adjoint,
                     const Machine& machine);

// Predicts the queries.
template <class Launch, class Real>
void inner_loop(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                Real* predictions);

// Leaves the blocks' sums in `gram_sums` and `own_sums`, which begin as zeros.
template <class Launch, class Real>
void inner_loop_backward(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                         InnerAdjoint<Real> adjoint, Real* gram_sums, Real* own_sums);

// Adds the blocks' sums up, into `total`, and writes the gradients that are made of them.
template <class Launch, class Real>
void inner_loop_share(const Launch& launch, const Network<Real>& network, const SumsLayout& layout,
                      const BlockSums<Real>& sums, Real* total, const SharedGradients<Real>& to);

// Adapts the heads for later use.
template <class Launch, class Real>
void inner_loop_state(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                      const AdaptedHeads<Real>& state);

// Predicts queries by them. The problem has no targets and no rates, and of the sums only those of the queries.
template <class Real>
Cut inner_loop_state_cut(const InnerProblem<Real>& problem, bool compact, const Machine& machine);
template <class Launch, class Real>
void inner_loop_predict(const Launch& launch, InnerProblem<Real> problem, const Cut& cut, Real* workspace,
                        const AdaptedHeads<Real>& state, Real* predictions);

// The effects of the support ratings, of predictions with all of them.
template <class Launch, class Real>
void inner_loop_effects(const Launch& launch, const InnerProblem<Real>& problem, const Cuts& cuts, Real* workspace,
                        const Real* whole, Real* effects);

// to += from
template <class Launch, class Real>
void inner_loop_add(const Launch& launch, Real* to, const Real* from, std::int64_t count);

}  // namespace metarec::cuda
