// What all tasks of an inner loop share, in the layout of its kernel.
#pragma once

#include "metarec/inner_loop.h"

#include <algorithm>
#include <cstdint>
#include <vector>

#include "workspace.h"

namespace metarec {

constexpr int kMostLayers = 3;

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
      // Line by line of what is written.
      constexpr std::int64_t line = 64 / sizeof(Real);
      for (std::int64_t begin = 0; begin < layer.out; begin += line) {
        const std::int64_t end = std::min(begin + line, layer.out);
        for (std::int64_t i = 0; i < layer.in; ++i) {
          for (std::int64_t o = begin; o < end; ++o) turned[i * layer.out_stride + o] = layer.weight[o * layer.in_stride + i];
        }
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

}  // namespace metarec
