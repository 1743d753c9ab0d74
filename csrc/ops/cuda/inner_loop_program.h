// What a block does with a task, as a program of operations that the host composes for a launch.
//
// A kernel of functions that call each other keeps a stack in local memory: each call saves registers of every thread.
// Here the order of the operations is data, and the kernel one loop over them that has each of them once, in line.
#pragma once

#include <cstdint>

#include "inner_loop.h"

namespace metarec::cuda {

// The bars are gradients: of the sums Z of a layer, of the gradients G in them, of what a layer is given ("inputs").
enum class Op : std::uint8_t {
  // Where to go on. Of loops the operand is the place behind.
  next_step,       // forwards
  step_before,     // backwards
  next_rows,       // of the support, a chunk
  next_queries,    // a chunk
  next_kept_rows,  // of the support, for a chunk of queries
  again,           // to the operand
  unless_kept,     // to the operand where the passes of the steps are kept
  swap_bars,
  done,
  // Steps; from here on the operand is a layer.
  gram,
  sums,
  activate,
  affine,
  loss,
  push,
  outer,
  advance_coefficients,
  keep_coefficients,
  advance_weights,
  // Queries.
  query_sums,
  query_products,
  query_correction,
  predict,
  write_state,
  // The way back: through the queries, ...
  clear_bars,
  query_outer,
  query_push,
  query_shared_sums,
  query_coefficients_bar,
  query_products_bar,
  query_bar,
  query_inputs_bar,
  // ... the updates of a step, ...
  start_bars,
  gradients_bar,
  push_gradients,
  coefficients_bar,
  // ... its gradients and its sums, ...
  curve,
  outer_gradients,
  rise_gradients,
  loss_bar,
  outer_sums,
  push_sums,
  shared_sums,
  correct_bar,
  gram_bar,
  finish_rates,
  // ... and what all steps share.
  gram_rows_bar,
  inputs_bar,
  gram_columns_bar,
  weights_bar,
  add_bars,
};

struct Instruction {
  Op op;
  std::uint8_t operand;
};

struct Program {
  static constexpr int kMost = 96;
  int size = 0;
  Instruction instructions[kMost] = {};
};

enum class Work { predict, reverse, state, recall, effects };

// What a launch does, and what of the following that takes.
template <class Real>
struct WorkOn {
  Work work;
  Real* results = nullptr;  // predictions or effects
  InnerAdjoint<Real> adjoint = {};
  AdaptedHeads<Real> state = {};
  const Real* whole = nullptr;  // predictions by the whole support, for the effects
  Program program = {};

  METAREC_HOST_DEVICE const InnerAdjoint<Real>* reverse() const {
    return work == Work::reverse ? &adjoint : nullptr;
  }
  // Whether coefficients are to be kept of tasks with a first weight of their own as well.
  METAREC_HOST_DEVICE bool compact() const { return work == Work::state && state.compact; }
};

template <class Real>
class Composer {
 public:
  Composer(const Network<Real>& network, const WorkOn<Real>& on, bool gram)
      : network_(network), on_(on), adjoint_(on.adjoint), gram_(gram), top_(network.top()) {}

  Program compose() {
    if (on_.work != Work::recall) adapt();
    if (on_.work == Work::reverse) {
      reverse();
    } else if (on_.work == Work::state) {
      add(Op::write_state);
    } else {
      loop(Op::next_queries, [&] {
        pass_over_queries();
        add(Op::predict);
      });
    }
    add(Op::done);
    return program_;
  }

 private:
  void add(Op op, int operand = 0) {
    program_.instructions[program_.size++] = {op, static_cast<std::uint8_t>(operand)};
  }

  // What the operation may skip.
  template <class Body>
  void skippable(Op op, const Body& body) {
    const int begin = program_.size;
    add(op);
    body();
    program_.instructions[begin].operand = static_cast<std::uint8_t>(program_.size);
  }

  template <class Body>
  void loop(Op op, const Body& body) {
    const int begin = program_.size;
    skippable(op, [&] {
      body();
      add(Op::again, begin);
    });
  }

  void for_own_layers(Op op) {
    for (int l = gram_ ? 1 : 0; l <= top_; ++l) add(op, l);
  }

  void adapt() {
    if (gram_) add(Op::gram);
    loop(Op::next_step, [&] {
      loop(Op::next_rows, [&] {
        propagate();
        for_own_layers(Op::outer);
        if (gram_) {
          add(Op::advance_coefficients);
        } else if (on_.compact()) {
          add(Op::keep_coefficients);
        }
      });
      add(Op::advance_weights);
    });
  }

  // A step's pass over rows of the support, and its gradients.
  void propagate() {
    add(Op::sums);
    rise();
    add(Op::loss);
    for (int l = top_; l > 0; --l) add(Op::push, l);
  }

  // The layers after the sums of the first one.
  void rise() {
    for (int l = 0; l < top_; ++l) {
      add(Op::activate, l);
      add(Op::affine, l + 1);
    }
  }

  void pass_over_queries() {
    add(Op::query_sums);
    if (gram_) {
      loop(Op::next_kept_rows, [&] {
        add(Op::query_products);
        add(Op::query_correction);
      });
    }
    rise();
  }

  void reverse() {
    add(Op::clear_bars);
    loop(Op::next_queries, [&] {
      pass_over_queries();
      reverse_queries();
    });
    if (adjoint_.of_steps()) {
      loop(Op::step_before, [&] { reverse_step(); });
    }
    if (gram_ && adjoint_.of_inputs()) {
      if (second()) add(Op::gram_rows_bar);
      if (adjoint_.layout.inputs >= 0) add(Op::inputs_bar);
      if (second() && adjoint_.support != nullptr) add(Op::gram_columns_bar);
    }
    if (second() && adjoint_.weights != nullptr) add(Op::weights_bar);
    for_own_layers(Op::add_bars);
  }

  bool second() const { return adjoint_.order == Order::second; }

  // Back through some queries, to the adapted head.
  void reverse_queries() {
    for (int l = top_; l > 0; --l) {
      add(Op::query_outer, l);
      add(Op::query_push, l);
    }
    add(Op::query_shared_sums);
    if (!gram_) {
      add(Op::query_outer, 0);
      if (adjoint_.query != nullptr) add(Op::query_push, 0);
      return;
    }
    add(Op::query_coefficients_bar);
    if (adjoint_.query == nullptr && !adjoint_.of_inputs()) return;
    add(Op::query_products_bar);
    if (adjoint_.query != nullptr) add(Op::query_bar);
    if (adjoint_.of_inputs()) add(Op::query_inputs_bar);
  }

  // Back through a step; of first order, only to its rates and scales.
  void reverse_step() {
    const bool scales = adjoint_.layout.rest_scales >= 0 && network_.scaled();
    add(Op::start_bars);
    loop(Op::next_rows, [&] {
      skippable(Op::unless_kept, [&] { propagate(); });
      reverse_updates();
      if (scales) for_own_layers(Op::outer);
      if (!second()) return;
      rise_gradients();
      descend_sums();
    });
    if (scales || (adjoint_.layout.rates >= 0 && network_.pull != 0)) for_own_layers(Op::finish_rates);
    if (second()) add(Op::swap_bars);
  }

  // Back through the change of the weights, to the gradients G and what they were multiplied with.
  void reverse_updates() {
    for (int l = gram_ ? 1 : 0; l <= top_; ++l) {
      add(Op::gradients_bar, l);
      if (second() && (l > 0 || adjoint_.support != nullptr)) add(Op::push_gradients, l);
    }
    if (gram_) add(Op::coefficients_bar);
  }

  // Back through the gradients, from the first layer to the loss.
  void rise_gradients() {
    for (int l = 0; l < top_; ++l) {
      add(Op::curve, l);
      add(Op::outer_gradients, l + 1);
      add(Op::rise_gradients, l + 1);
    }
    add(Op::loss_bar);
  }

  // Back through the sums, from the loss to the inputs.
  void descend_sums() {
    for (int l = top_; l > 0; --l) {
      add(Op::outer_sums, l);
      add(Op::push_sums, l);
    }
    if (!gram_) {
      add(Op::outer_sums, 0);
      if (adjoint_.support != nullptr) add(Op::push_sums, 0);
      return;
    }
    add(Op::shared_sums);
    add(Op::correct_bar);
    if (adjoint_.of_inputs()) add(Op::gram_bar);
  }

  const Network<Real>& network_;
  const WorkOn<Real>& on_;
  const InnerAdjoint<Real>& adjoint_;
  bool gram_;
  int top_;
  Program program_;
};

}  // namespace metarec::cuda
