// What the tests of the C++ library share: claims that end the program, numbers to test with, threads.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "metarec/parallel.h"

#define CHECK(claim)                                                                          \
  do {                                                                                        \
    if (!(claim)) {                                                                           \
      std::fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #claim);         \
      std::exit(1);                                                                           \
    }                                                                                         \
  } while (false)

// Claims that a call throws std::invalid_argument with this in its message.
template <class Call>
void check_throws(const Call& call, const std::string& message) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    if (std::string(error.what()).find(message) != std::string::npos) return;
    std::fprintf(stderr, "expected \"%s\", got \"%s\"\n", message.c_str(), error.what());
    std::exit(1);
  }
  std::fprintf(stderr, "nothing was thrown, expected \"%s\"\n", message.c_str());
  std::exit(1);
}

template <class Real>
std::vector<Real> normal(std::int64_t count, unsigned seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<double> distribution;
  std::vector<Real> values;
  for (std::int64_t i = 0; i < count; ++i) values.push_back(static_cast<Real>(distribution(generator)));
  return values;
}

// A thread for each part of the work: the most that a caller's pool can do.
inline metarec::Parallel threads(std::int64_t count) {
  return {count, [](std::int64_t parts, const std::function<void(std::int64_t)>& body) {
            std::vector<std::jthread> pool;
            for (std::int64_t part = 0; part < parts; ++part) pool.emplace_back([&body, part] { body(part); });
          }};
}
