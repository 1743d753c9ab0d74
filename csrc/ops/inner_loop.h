// What the kernels of the inner loop read its arguments by.
#pragma once

#include <stdexcept>
#include <string>

#include "metarec/inner_loop.h"

namespace metarec::ops {

inline Activation activation_of(const std::string& name) {
  if (name == "relu") return Activation::relu;
  if (name == "gelu") return Activation::gelu;
  if (name == "tanh") return Activation::tanh;
  throw std::invalid_argument("inner_loop: activation must be relu, gelu or tanh, got " + name);
}

inline Loss loss_of(const std::string& name) {
  if (name == "squared") return Loss::squared;
  if (name == "logistic") return Loss::logistic;
  if (name == "gaussian") return Loss::gaussian;
  throw std::invalid_argument("inner_loop: loss must be squared, logistic or gaussian, got " + name);
}

}  // namespace metarec::ops
